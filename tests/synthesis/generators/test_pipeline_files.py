"""Finding and checking the files of a pipeline, on tiny models made here."""

import json
from pathlib import Path

import pytest

from saukit.core.errors import DataError, EnvironmentFault, UsageError
from saukit.synthesis.generators.pipeline_files import find_lora, find_model


def test_pickled_weights_are_not_read(sd: Path) -> None:
    for path in (sd / "unet").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(DataError, match=r"pickled alone \(unet/diffusion_pytorch_model\.bin\).*with save_pretrained"):
        find_model(str(sd))


def test_code_that_comes_with_a_model_is_not_run(sd: Path) -> None:
    index = json.loads((sd / "model_index.json").read_text())
    (sd / "model_index.json").write_text(json.dumps({**index, "unet": ["my_unet", "MyUNet"]}))
    (sd / "unet" / "my_unet.py").write_text("raise AssertionError('run')")
    with pytest.raises(DataError, match=r"brings code of its own \(unet/my_unet\.py\), which saukit does not run$"):
        find_model(str(sd))
    (sd / "model_index.json").write_text(json.dumps({**index, "_class_name": ["pipeline", "Mine"]}))
    with pytest.raises(DataError, match=r"does not describe a pipeline: it is code of its own"):
        find_model(str(sd))


def test_a_folder_that_is_no_pipeline_is_an_error(sd: Path, tmp_path: Path) -> None:
    index = sd / "model_index.json"
    with pytest.raises(UsageError, match=r"^model .*json is a file: give a folder with model_index\.json; .*single"):
        find_model(str(index))
    with pytest.raises(UsageError, match=r"^no folder .*/none: give a folder with model_index\.json, or a model's id"):
        find_model(str(tmp_path / "none"))
    for text in ("{", "[]", "{}"):
        index.write_text(text)
        with pytest.raises(
            DataError,
            match=r"model_index\.json (cannot be used|does not describe a pipeline): .*; fetch",
        ):
            find_model(str(sd))
    index.unlink()
    with pytest.raises(DataError, match=r"has no model_index\.json, so it is not a pipeline: give a folder as diff"):
        find_model(str(sd))


def test_the_components_are_what_the_index_names_with_a_library(sd: Path) -> None:
    index = json.loads((sd / "model_index.json").read_text())
    (sd / "model_index.json").write_text(json.dumps({**index, "_ignore_files": ["a", "b"], "sides": [8, 8]}))
    found = find_model(str(sd)).components
    assert set(found) == {"vae", "text_encoder", "tokenizer", "unet", "scheduler"}
    assert (found["unet"], found["tokenizer"]) == ("diffusers", "transformers")


def test_a_model_that_cannot_be_fetched_is_an_error(offline: Path) -> None:
    with pytest.raises(EnvironmentFault) as raised:
        find_model("nobody/nothing")
    assert str(raised.value).startswith(
        "model nobody/nothing is not a local folder and cannot be fetched from the Hub ("
    )
    assert "give a local folder, or check its id, the network, HF_HUB_OFFLINE" in str(raised.value)


def test_the_file_of_lora_weights_has_to_be_clear(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^no LoRA weights .*none: give a safetensors file, or a folder with one"):
        find_lora(str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"holds 0 safetensors files \(none\): name the file$"):
        find_lora(str(tmp_path))
    for name in ("a.safetensors", "b.safetensors", "c.bin"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"holds 2 safetensors files \(a.safetensors, b.safetensors\): name the file$"):
        find_lora(str(tmp_path))
    with pytest.raises(UsageError, match=r"^lora .*c\.bin is not a safetensors file"):
        find_lora(str(tmp_path / "c.bin"))
    (tmp_path / "pytorch_lora_weights.safetensors").touch()
    assert find_lora(str(tmp_path)).name == "pytorch_lora_weights.safetensors"
