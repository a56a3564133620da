import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from torch.nn import functional

from saukit.core.errors import DataError, EnvironmentFault, UsageError
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.pipeline import PipelineGenerator, fit_image, match_classes, resolve_dtype
from saukit.synthesis.generators.pipeline_files import find_model
from saukit.synthesis.generators.prompts import PromptBook

CPU = torch.device("cpu")
CLASSES = ("golden_retriever", "tench")
COMMIT = "0123456789" * 4
Build = Callable[..., PipelineGenerator]


def built(model: Path | str, **options: Any) -> PipelineGenerator:
    classes = options.pop("classes", CLASSES)
    own = {name: options.pop(name) for name in ("image_size", "prompts", "class_ids") if name in options}
    own = {"image_size": (8, 8), "prompts": PromptBook.of(classes), "class_ids": None, **own}
    config = SynthConfig(**{"generator": "pipeline", "model": str(model), "sampler_steps": 2, **options})
    return PipelineGenerator(config, classes=classes, device=CPU, **own)


def drawn(generator: PipelineGenerator, *images: tuple[int, int, int]) -> np.ndarray:
    """The images of (label, seed, ordinal) each, as int64 so that differences do not wrap."""
    labels, seeds, ordinals = np.array(images, np.int64).T
    result = generator.sample(labels, seeds, ordinals)
    assert result.dtype == np.uint8
    return result.astype(np.int64)


def mean_difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


@pytest.mark.parametrize(
    ("name", "pipeline", "scheduler", "side"),
    [
        ("sd", "StableDiffusionPipeline", "DDIMScheduler", 32),
        ("xl", "StableDiffusionXLPipeline", "EulerDiscreteScheduler", 32),
        ("flux", "FluxPipeline", "FlowMatchEulerDiscreteScheduler", 48),
        ("dit", "DiTPipeline", "DDIMScheduler", 16),
    ],
)
def test_an_image_is_its_seeds_whatever_its_batch(
    models: Path, name: str, pipeline: str, scheduler: str, side: int
) -> None:
    generator = built(models / name, image_size=(8, 6), pipeline_size=48 if name == "flux" else None)
    assert generator.description["drawn_size"] is None
    images = drawn(generator, (0, 11, 0), (1, 12, 0), (1, 13, 0))
    assert images.shape == (3, 3, 8, 6)
    assert images.std() > 5
    other = drawn(generator, (0, 99, 0), (1, 13, 0))
    alone = drawn(generator, (1, 12, 0))
    assert np.abs(alone[0] - images[1]).max() <= 2  # rounding
    assert np.abs(other[1] - images[2]).max() <= 2
    assert mean_difference(other[0], images[0]) > 5
    assert generator.description["pipeline"] == pipeline
    assert generator.description["scheduler"] == scheduler
    assert generator.description["drawn_size"] == (side, side)
    assert generator.description["dtype"] == "float32"
    json.dumps(generator.description)


def test_the_prompt_is_that_of_the_class_and_the_ordinal(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = PromptBook.of(CLASSES, templates=("a {class}", "one {class}", "the {class}"))
    generator = built(models / "sd", prompts=prompts, negative_prompt="blur", guidance=3.0)
    pipeline = type(generator._pipe)
    encode, seen = pipeline.encode_prompt, []

    def spy(self: Any, prompt: Any, device: Any, count: int, guided: bool, negative: Any, **rest: Any) -> Any:
        seen.append((prompt, count, guided, negative))
        return encode(self, prompt, device, count, guided, negative, **rest)

    monkeypatch.setattr(pipeline, "encode_prompt", spy)
    drawn(generator, (1, 5, 2), (0, 5, 3), (0, 6, 1))
    assert seen == [(["the tench", "a golden retriever", "one golden retriever"], 1, True, ["blur"] * 3)]


def test_options_reach_the_pipeline_and_what_is_not_given_is_its_own(models: Path) -> None:
    generator = built(models / "sd", sampler_steps=None)
    seen: list[dict[str, Any]] = []

    class Spy:
        scheduler = None

        def __call__(self, **arguments: Any) -> Any:
            seen.append(arguments)
            images = np.zeros((len(arguments["prompt"]), 16, 24, 3), np.float32)
            return SimpleNamespace(images=images)

    assert (generator.description["guidance"], generator.description["steps"]) == (7.5, 50)
    generator._pipe = Spy()
    drawn(generator, (0, 1, 0), (0, 2, 0))
    assert sorted(seen[-1]) == ["generator", "output_type", "prompt"]
    assert [g.device.type for g in seen[-1]["generator"]] == ["cpu", "cpu"]
    assert [g.initial_seed() for g in seen[-1]["generator"]] == [1, 2]

    given = built(models / "sd", negative_prompt="blur", guidance=2.0, sampler_steps=3, pipeline_size=16)
    assert (given.description["guidance"], given.description["steps"]) == (2.0, 3)
    given._pipe = Spy()
    drawn(given, (0, 1, 0))
    for name in ("prompt", "generator", "output_type"):
        del seen[-1][name]
    assert seen[-1] == {
        "negative_prompt": ["blur"],
        "guidance_scale": 2.0,
        "num_inference_steps": 3,
        "height": 16,
        "width": 16,
    }


def test_an_image_that_is_not_finite_is_an_error(models: Path) -> None:
    generator = built(models / "sd")
    generator._pipe = lambda **arguments: SimpleNamespace(images=np.full((1, 8, 8, 3), np.nan, np.float32))
    message = r"is not finite in float32: the weights of .*sd are damaged, fetch the model again$"
    with pytest.raises(DataError, match=message):
        drawn(generator, (0, 1, 0))


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_a_batch_that_overflows_in_half_precision_is_decoded_in_float32(models: Path, name: str) -> None:
    """The oracle: the same latents, decoded by hand with the VAE in float32."""
    generator, images = built(models / name, dtype="bfloat16"), ((0, 1, 0), (1, 2, 0))
    vae = generator._pipe.vae
    decode, seen, fits = type(vae).decode, [], drawn(generator, *images)

    def overflowing(self: Any, latents: torch.Tensor, *rest: Any, **options: Any) -> Any:
        result = decode(self, latents, *rest, **options)
        seen.append(latents.clone())
        sample = result[0] if isinstance(result, tuple) else result.sample
        if sample.dtype == torch.bfloat16:
            sample.fill_(torch.nan)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(vae), "decode", overflowing)
        found = drawn(generator, *images)
    assert [latents.dtype for latents in seen] == [torch.bfloat16, torch.float32]
    assert torch.equal(seen[0].float(), seen[1])
    with torch.no_grad():
        pixels = vae.float().decode(seen[1]).sample
    expected = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found, np.stack([fit_image(image, (8, 8)) for image in expected]))
    vae.to(torch.bfloat16)
    assert np.array_equal(drawn(generator, *images), fits)  # the next batch is as if there had been no such


def test_a_size_that_the_pipeline_refuses_is_an_error(models: Path) -> None:
    with pytest.raises(
        UsageError, match=r"^StableDiffusionPipeline refuses its options: .*divisible by 8.*; change --pi"
    ):
        drawn(built(models / "sd", pipeline_size=30), (0, 1, 0))


def test_other_arithmetic_draws_almost_the_same(models: Path) -> None:
    exact, coarse = built(models / "sd"), built(models / "sd", dtype="bfloat16")
    assert next(coarse._pipe.unet.parameters()).dtype == torch.bfloat16
    assert coarse.description["dtype"] == "bfloat16"
    assert exact.digest != coarse.digest
    assert 0 < mean_difference(drawn(coarse, (0, 1, 0)), drawn(exact, (0, 1, 0))) < 3


def test_lora_weights_change_the_images_by_their_scale(models: Path) -> None:
    at = [(0, 1, 0), (1, 2, 0)]
    plain = drawn(built(models / "sd"), *at)
    full, half, none = (built(models / "sd", lora=str(models / "lora"), lora_scale=s) for s in (1.0, 0.5, 0.0))
    assert mean_difference(drawn(full, *at), plain) > 0.3
    assert mean_difference(drawn(half, *at), plain) > 0.1
    assert mean_difference(drawn(half, *at), drawn(full, *at)) > 0.1
    assert np.abs(drawn(none, *at) - plain).max() <= 1
    file = built(models / "sd", lora=str(models / "lora" / "pytorch_lora_weights.safetensors"))
    assert np.abs(drawn(file, *at) - drawn(full, *at)).max() <= 1
    assert len({full.digest, half.digest, built(models / "sd").digest}) == 3
    assert file.digest == full.digest


def test_lora_weights_that_do_not_fit_are_an_error(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(models / "lora" / "pytorch_lora_weights.safetensors")
    save_file({f"other.{name.partition('.')[2]}": w for name, w in weights.items()}, tmp_path / "other.safetensors")
    save_file({name: torch.cat([w, w], -1) for name, w in weights.items()}, tmp_path / "shapes.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "no.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"nothing")
    for name, message in (
        ("other", "fit no layer of StableDiffusionPipeline: give weights made for this model"),
        ("shapes", "for StableDiffusionPipeline cannot be read ("),
        ("no", "for StableDiffusionPipeline cannot be read (Invalid LoRA checkpoint"),
        ("torn", "for StableDiffusionPipeline cannot be read ("),
    ):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(DataError) as raised:
            built(models / "sd", lora=str(path))
        assert str(raised.value).startswith(f"LoRA weights {path} {message}")


def test_options_that_a_pipeline_does_not_take_are_told(models: Path) -> None:
    with pytest.raises(UsageError) as raised:
        built(models / "dit", negative_prompt="blur", pipeline_size=32, lora=str(models / "lora"))
    assert str(raised.value) == (
        "DiTPipeline takes no negative_prompt: leave it out; DiTPipeline takes no pipeline_size: leave it "
        "out; DiTPipeline takes no lora: leave it out"
    )
    with pytest.raises(UsageError, match=r"^FluxPipeline ignores negative_prompt, as its true_cfg_scale is off"):
        built(models / "flux", negative_prompt="blur")
    for guidance in (0.0, 1.0):
        with pytest.raises(UsageError, match=f"^with guidance {guidance:g} a negative_prompt does nothing"):
            built(models / "sd", negative_prompt="blur", guidance=guidance)
    with pytest.raises(UsageError, match=r"^class_ids are for DiTPipeline; StableDiffusionPipeline samples from promp"):
        built(models / "sd", class_ids={"tench": 0})


def test_float16_on_a_cpu_is_an_error() -> None:
    assert resolve_dtype("auto", CPU) == torch.float32
    assert resolve_dtype("bfloat16", CPU) == torch.bfloat16
    assert resolve_dtype("float16", torch.device("cuda")) == torch.float16
    with pytest.raises(UsageError, match=r"^dtype float16 needs a GPU: use float32, bfloat16 or auto$"):
        resolve_dtype("float16", CPU)


def test_text_pipelines_need_the_extra_and_dit_does_not(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    absent = ("transformers", "peft")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in absent else real(name, *rest))
    with pytest.raises(EnvironmentFault) as raised:
        built(models / "sd")
    assert str(raised.value) == (
        "the pipeline StableDiffusionPipeline needs transformers and peft: pip install 'saukit[text2image]'"
    )
    assert drawn(built(models / "dit"), (0, 1, 0)).shape == (1, 3, 8, 8)


def test_pickled_weights_beside_other_safetensors_are_not_read_either(sd: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = sd / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    save_file({"weight": torch.zeros(1)}, weights.with_name("other.safetensors"))
    with pytest.raises(DataError, match=r"^model .* cannot be read \(.*diffusion_pytorch_model\.safetensors"):
        built(sd)


def test_a_pipeline_that_draws_from_something_else_is_an_error(sd: Path) -> None:
    (sd / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    with pytest.raises(UsageError, match=r"is a DDPMPipeline, which does not sample from text: give a text-to-image"):
        built(sd)


def test_a_model_that_is_not_whole_is_an_error(sd: Path) -> None:
    with (sd / "unet" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"^model .* cannot be read \(.*\): save or fetch it again"):
        built(sd)
    shutil.rmtree(sd / "unet")
    with pytest.raises(DataError, match=r"^model .* cannot be read \(.*\): save or fetch it again"):
        built(sd)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_a_model_that_lacks_weights_is_an_error(sd: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    (path,) = (sd / name).glob("*.safetensors")
    weights = load_file(path)
    save_file({key: weights[key] for key in sorted(weights)[1:]}, path, metadata={"format": "pt"})
    with pytest.raises(DataError, match=rf"cannot be read \(.*({name}|size|shape).*\): save or fetch it again"):
        built(sd)


@pytest.mark.parametrize("change", ["gone", {"model_max_length": "x"}], ids=str)
def test_a_model_that_cannot_sample_is_an_error(sd: Path, change: Any) -> None:
    path = sd / "tokenizer" / "tokenizer_config.json"
    document = json.loads(path.read_text())
    path.unlink() if change == "gone" else path.write_text(json.dumps(document | change))
    with pytest.raises(DataError, match=r"^model .* cannot be read \(.*\): fetch the model again, and see that it"):
        drawn(built(sd), (0, 1, 0))


def test_a_folder_with_half_precision_weights_alone_is_read(models: Path, sd: Path) -> None:
    for path in (*(sd / "unet").glob("*.safetensors"), *(sd / "text_encoder").glob("*.safetensors")):
        path.rename(path.with_suffix(".fp16.safetensors"))
    assert (find_model(str(sd)).variant, find_model(str(models / "sd")).variant) == ("fp16", None)
    assert (drawn(built(sd), (0, 1, 0)) == drawn(built(models / "sd"), (0, 1, 0))).all()
    half = sd / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    half.rename(half.with_name("diffusion_pytorch_model.ema.safetensors"))
    assert find_model(str(sd)).variant is None  # ema here, fp16 there


def test_a_model_in_the_cache_of_the_hub_needs_no_network(models: Path, offline: Path) -> None:
    repository = offline / "models--tiny--sd"
    shutil.copytree(models / "sd", repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    generator = built("tiny/sd")
    assert (generator.description["model"], generator.description["revision"]) == ("tiny/sd", COMMIT)
    assert (drawn(generator, (0, 1, 0)) == drawn(built(models / "sd"), (0, 1, 0))).all()
    assert generator.digest != built(models / "sd").digest


def test_the_digest_is_that_of_what_draws(models: Path, sd: Path) -> None:
    first = built(models / "sd")
    digest = first.digest
    drawn(first, (0, 1, 0))
    assert built(models / "sd").digest == digest == first.digest
    (sd / "README.md").write_text("no part of it")
    (sd / "unet" / "old.bin").write_text("no part of it")
    assert built(sd).digest == digest
    others = [
        built(sd, prompts=PromptBook.of(CLASSES, templates=("a {class}",))),
        built(sd, sampler_steps=3),
        built(sd, guidance=2.0),
        built(sd, negative_prompt="blur"),
        built(sd, image_size=(8, 9)),
    ]
    assert len({digest, *(other.digest for other in others)}) == 6
    weights = sd / "vae" / "diffusion_pytorch_model.safetensors"
    whole = bytearray(weights.read_bytes())
    whole[-1] ^= 1
    weights.write_bytes(whole)
    assert built(sd).digest != digest
    assert built(models / "dit").digest != built(models / "dit", class_ids={"tench": 3}).digest


def test_dit_draws_its_own_classes(models: Path) -> None:
    by_name = built(models / "dit")
    by_number = built(models / "dit", classes=("a", "b"), class_ids={"a": 1, "b": 0})
    assert by_name.description["class_ids"] == (1, 0)
    assert by_name.description["prompts"] is None
    images = drawn(by_name, (0, 5, 0), (1, 5, 0))
    assert (drawn(by_number, (0, 5, 0), (1, 5, 0)) == images).all()
    assert mean_difference(images[0], images[1]) > 0.1  # the same noise, other classes
    with pytest.raises(UsageError, match=r"^class_ids must be from 0 to 999, got -1, 1000$"):
        built(models / "dit", class_ids={"golden_retriever": 1000, "tench": -1})


def test_classes_are_found_by_any_name_of_the_model() -> None:
    names = {str(number): text for number, text in tiny_pipelines.LABELS.items()}
    classes = ("Golden_Retriever", "tinca tinca", "tench, Tinca tinca", "n02123045_tabby", "crane")
    assert match_classes(names, classes, {"crane": 2}) == (1, 0, 0, 4, 2)
    with pytest.raises(UsageError) as raised:
        match_classes(names, ("crane", "bus", "tench", "cat"), {"dog": 1})
    assert str(raised.value) == (
        "class_ids names 'dog', which is not a class; the model has 2 classes 'crane' (2, 3); "
        "the model has no class 'bus'; the model has no class 'cat': give the model's own numbers as class_ids"
    )
    with pytest.raises(UsageError, match=r"^the model has no class 'a' \(it names none at all: .*\): give the model's"):
        match_classes({}, ("a",), {})


def test_a_picture_is_resized_as_by_an_antialiased_bicubic_filter() -> None:
    waves = np.add.outer(np.sin(np.arange(64) / 3), np.cos(np.arange(64) / 5))[..., None] * (20, 40, 60) + 128
    image = waves.round().astype(np.uint8)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    for size in ((16, 16), (9, 9), (96, 96)):
        expected = functional.interpolate(planes, size, mode="bicubic", antialias=True, align_corners=False)[0]
        fitted = fit_image(image, size)
        assert fitted.shape == (3, *size)
        assert fitted.flags.c_contiguous
        assert np.abs(fitted - expected.numpy()).max() < 2
    assert (fit_image(image, (64, 64)) == image.transpose(2, 0, 1)).all()


@pytest.mark.parametrize(("size", "kept"), [((4, 4), (8, 8)), ((8, 4), (8, 4)), ((3, 9), (4, 12))])
def test_what_is_outside_the_wanted_proportions_is_cut_off(size: tuple[int, int], kept: tuple[int, int]) -> None:
    image = np.full((8, 12, 3), 255, np.uint8)
    top, left = (8 - kept[0]) // 2, (12 - kept[1]) // 2
    image[top : top + kept[0], left : left + kept[1]] = 40
    assert (fit_image(image, size) == 40).all()


def test_bars_of_other_libraries_are_off(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drawn(built(models / "sd"), (0, 1, 0))
    assert "it/s" not in capfd.readouterr().err
