"""The functions of the package: what `import saukit` loads, and that they do what the commands do."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import MICRO, tiny, tree

import saukit
from saukit.core.errors import DataError
from saukit.core.workspace import Workspace
from saukit.data.split import load_test
from saukit.training.config import TrainConfig

EXAMPLE = Path(__file__).parents[1] / "examples" / "python_api.py"


def test_importing_the_package_and_its_configurations_loads_nothing_heavy() -> None:
    script = """
import json, sys
import saukit
saukit.SplitConfig(), saukit.SynthConfig(), saukit.TrainConfig(), saukit.EvalConfig(), saukit.PredictConfig()
print(json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert loaded.isdisjoint({"torch", "torchvision", "diffusers", "matplotlib", "sklearn", "PIL", "huggingface_hub"})


def test_every_name_is_there_and_known_to_type_checkers() -> None:
    tree_of_init = ast.parse(Path(saukit.__file__).read_text())
    (block,) = [node for node in tree_of_init.body if isinstance(node, ast.If)]
    declared = {
        alias.name: str(node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert sorted(declared) == sorted(saukit.__all__)
    for name, module in declared.items():
        assert getattr(saukit, name) is getattr(sys.modules[module], name)
    assert set(saukit.__all__) <= set(dir(saukit)) and "__version__" in dir(saukit)


def test_an_unknown_name_is_an_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'saukit' has no attribute 'trian'$"):
        _ = saukit.trian
    assert not hasattr(saukit, "classifier_training")


def test_a_split_is_made_once_and_quietly(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = saukit.SplitConfig(dataset="digits", imb=50)
    first = saukit.make_lt(config, tmp_path / "work")
    assert (first.state, first.summary["counts"][0]) == ("new", 142)
    before = tree(tmp_path)
    assert saukit.make_lt(config, str(tmp_path / "work")).state == "complete"
    assert saukit.make_lt(config, Workspace(tmp_path / "work")).state == "complete"
    assert tree(tmp_path) == before
    assert capfd.readouterr() == ("", "")


def test_a_data_set_is_read_from_its_folder(tmp_path: Path) -> None:
    for name, shade in (("light", 250), ("dark", 5)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for index in range(6):
            Image.new("RGB", (8, 8), (shade, shade, index)).save(tmp_path / "pictures" / name / f"{index}.png")
    made = saukit.make_lt(saukit.SplitConfig(dataset="folder"), tmp_path / "work", root=str(tmp_path / "pictures"))
    assert made.summary["classes"] == ["dark", "light"]


def test_a_run_is_trained_and_evaluated(split_work: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = saukit.train(tiny(synthetic=False), split_work, name="mine", device="cpu")
    assert (run.state, run.name, run.folder) == ("new", "mine", split_work / "runs" / "mine")
    result = saukit.evaluate(saukit.EvalConfig(), split_work, device="cpu")
    assert (result.computed, result.document["run"]["name"]) == (True, "mine")
    assert not saukit.evaluate(saukit.EvalConfig(run="mine"), split_work).computed
    assert saukit.evaluate(saukit.EvalConfig(run="mine"), split_work, force=True).computed
    assert capfd.readouterr() == ("", "")
    saukit.train(tiny(synthetic=False, seed=1), split_work, device="cpu", verbose=True)
    assert "training ce-seed1" in capfd.readouterr().err


def test_methods_are_compared(split_work: Path) -> None:
    config = saukit.CompareConfig(
        methods=("ce", "balanced-softmax"), seeds=1, train={"steps": 2, "batch_size": 16, "amp": "off"}
    )
    result = saukit.compare(config, split_work, device="cpu", jobs=1)
    assert (result.state, result.folder) == ("new", split_work / "comparisons" / "main")
    assert [entry["label"] for entry in result.document["methods"]] == ["ce", "balanced-softmax"]
    assert saukit.compare(config, split_work, device="cpu", jobs=1).state == "complete"


def test_synthetic_images_are_made(split_work: Path) -> None:
    cache = saukit.synth(MICRO, split_work, device="cpu")
    assert (cache.state, cache.summary["images"]) == ("new", 62)
    assert saukit.synth(MICRO, split_work, device="cpu").state == "complete"


def test_files_are_classified(shared_work: Path, tmp_path: Path) -> None:
    test = load_test(Workspace(shared_work))
    Image.fromarray(test.images[0].transpose(1, 2, 0)).save(tmp_path / "a.png")
    result = saukit.predict(saukit.PredictConfig(top=2), "sau", [str(tmp_path / "a.png")], shared_work, device="cpu")
    classifier = saukit.load_classifier(shared_work / "runs" / "sau")
    with torch.no_grad():
        expected = classifier(torch.from_numpy(test.images[:1]) / 255).softmax(1)[0]
    assert result.labels[0, 0] == int(expected.argmax())
    assert result.probabilities[0, 0] == pytest.approx(float(expected.max()), abs=1e-5)


def test_errors_are_the_packages_own(tmp_path: Path) -> None:
    with pytest.raises(saukit.SaukitError, match="run `saukit make-lt -w") as caught:
        saukit.train(TrainConfig(), tmp_path)
    assert isinstance(caught.value, DataError)


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "work")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    text = capsys.readouterr().out
    assert "training images a class: [142," in text
    assert "sau+synth: balanced accuracy 0." in text and "a blank image is predicted as" in text
    assert Workspace(tmp_path / "work").run_names() == ["balanced-softmax", "sau+synth"]
