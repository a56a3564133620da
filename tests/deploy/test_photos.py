"""Photos, which a split stores encoded: `predict`, ONNX and transformers against the evaluation, to the image."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.decoding import decode_image
from saukit.data.split import load_test, make_split
from saukit.deploy.config import ExportConfig, PredictConfig
from saukit.deploy.export import export
from saukit.deploy.predict import PredictResult, predict
from saukit.evaluation.config import EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.training.config import TrainConfig
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
CLASSES = ("blouse", "coat", "dress")
SIDE = 96
BACKBONE = "test_efficientnet"


def photo(draw: np.random.Generator, label: int) -> Image.Image:
    """A smooth picture in the colours of its class, with noise, of a size and shape of its own."""
    size = (int(draw.integers(70, 420)), int(draw.integers(70, 420)))
    small = draw.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    small[..., label] = small[..., label] * 0.8
    picture = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    noise = draw.integers(-40, 41, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(picture, np.int64) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace of 24 + 30 + 24 photos in three classes, and the runs `head` (four crops) and `single`, evaluated."""
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 8), ("test", 10)):
        for label, name in enumerate(CLASSES):
            folder = root / "pictures" / part / name
            folder.mkdir(parents=True)
            for index in range(count):
                photo(draw, label).save(folder / f"{index}.{('jpg', 'png')[index % 2]}", quality=80)
    torch.manual_seed(0)
    save_file(timm.create_model(BACKBONE).state_dict(), root / "weights.safetensors")
    workspace = Workspace(root / "work")
    config = SplitConfig(dataset="folder", image_size=SIDE)
    make_split(config, workspace, root=root / "pictures", force=False, reporter=QUIET)
    for name, crops in (("head", True), ("single", False)):
        training = TrainConfig(
            method="ce", preset="photo-small", backbone=f"timm/{BACKBONE}", weights=str(root / "weights.safetensors"),
            steps=20, batch_size=16, multi_crop=crops, weight_decay=0.1,
        )  # fmt: skip
        fit(training, workspace, name=name, device=CPU, force=False, resume=False, reporter=QUIET)
        evaluate(EvalConfig(run=name), workspace, device=CPU, force=False, reporter=QUIET)
    return root


def predicted(root: Path, model: str = "head", **options: Any) -> PredictResult:
    workspace = Workspace(root / "work")
    return predict(PredictConfig(**options), model, [root / "pictures" / "test"], workspace, device=CPU, reporter=QUIET)


def results(root: Path, name: str) -> dict[str, Any]:
    workspace = Workspace(root / "work")
    return evaluate(EvalConfig(run=name), workspace, device=CPU, force=False, reporter=QUIET).document


def confusion(files: list[Path], found: list[str]) -> list[list[int]]:
    counts = np.zeros((len(CLASSES), len(CLASSES)), np.int64)
    for file, name in zip(files, found, strict=True):
        counts[CLASSES.index(file.parent.name), CLASSES.index(name)] += 1
    rows: list[list[int]] = counts.tolist()
    return rows


def test_predict_sees_the_pixels_that_eval_sees(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split stores JPEGs at its size; a prediction goes through that step too."""
    test = load_test(Workspace(photos / "work"))
    seen: list[np.ndarray[Any, Any]] = []
    from saukit.models import inference

    judge = inference.predict

    def judging(network: Any, spec: Any, images: Any, **options: Any) -> Any:
        seen.append(images)
        return judge(network, spec, images, **options)

    monkeypatch.setattr(inference, "predict", judging)
    result = predicted(photos)
    assert np.array_equal(np.concatenate(seen), np.asarray(test.images))
    unstored = np.stack([decode_image(file, SIDE) for file in result.images])
    assert not np.array_equal(unstored, np.asarray(test.images))  # so it is that step that makes them equal
    names = [CLASSES[label] for label in result.labels[:, 0]]
    assert confusion(list(result.images), names) == results(photos, "head")["confusion"]
    assert 0 < results(photos, "head")["top1"] < 1


def example(name: str) -> Any:
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_onnx_with_the_documented_preparation_classifies_as_eval(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace, out = Workspace(photos / "work"), tmp_path / "out"
    export(ExportConfig(("onnx",)), "head", out, workspace, force=False, reporter=QUIET)
    by_saukit = predicted(photos)
    example("onnx_predict").main(str(out), *map(str, by_saukit.images))
    lines = [line.rsplit(",", 2) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in lines] == list(map(str, by_saukit.images))
    assert confusion(list(by_saukit.images), [line[1] for line in lines]) == results(photos, "head")["confusion"]
    shares = [float(line[2]) for line in lines]
    np.testing.assert_allclose(shares, by_saukit.probabilities[:, 0], atol=1e-4)


def test_a_transformers_pipeline_and_timm_give_the_runs_probabilities(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import pipeline

    workspace, out = Workspace(photos / "work"), tmp_path / "out"
    result = export(ExportConfig(("transformers",)), "single", out, workspace, force=False, reporter=QUIET)
    assert result.files == ("classes.json", "transformers/config.json", "transformers/model.safetensors")
    images = np.asarray(load_test(workspace).images)[:6]
    expected = predicted(photos, "single", top=3)
    classify = pipeline("image-classification", model=str(out / "transformers"), device="cpu", top_k=3)
    for image, labels, shares in zip(images, expected.labels, expected.probabilities, strict=False):
        found = classify(Image.fromarray(image.transpose(1, 2, 0)))
        assert [entry["label"] for entry in found] == [CLASSES[label] for label in labels]
        np.testing.assert_allclose([entry["score"] for entry in found], shares, atol=1e-4)
    # A picture of another shape: its shorter side resized, then its centre; nearly the same pixels.
    file = expected.images[0]
    whole = {entry["label"]: entry["score"] for entry in classify(str(file))}
    for label, share in zip(expected.labels[0], expected.probabilities[0], strict=True):
        assert whole[CLASSES[label]] == pytest.approx(share, abs=0.1)
    network = timm.create_model(f"local-dir:{out / 'transformers'}", pretrained=True).eval()
    known = timm.get_pretrained_cfg(BACKBONE)
    mean, std = (torch.tensor(values)[:, None, None] for values in (known.mean, known.std))
    with torch.no_grad():
        found = network((torch.from_numpy(images) / 255 - mean) / std).softmax(1)
    np.testing.assert_allclose(found.max(1).values, expected.probabilities[:6, 0], atol=1e-4)


def test_min_accuracy_chooses_on_the_validation_part(photos: Path) -> None:
    rejection = predicted(photos, min_accuracy=0.9).rejection
    assert rejection is not None and rejection.images == 24
    everything = predict(
        PredictConfig(), "head", [photos / "pictures" / "val"], Workspace(photos / "work"), device=CPU, reporter=QUIET
    )
    shares = everything.probabilities[:, 0].astype(float).round(6)
    names = [CLASSES[label] for label in everything.labels[:, 0]]
    right = [name == file.parent.name for name, file in zip(names, everything.images, strict=True)]
    tried = {}
    for threshold in shares.tolist():  # a plain loop over all that could be chosen
        kept = [good for good, share in zip(right, shares, strict=True) if share >= threshold]
        if sum(kept) >= 0.9 * len(kept):
            tried[threshold] = (len(kept) / 24, sum(kept) / len(kept))
    assert rejection.min_confidence == pytest.approx(min(tried), abs=2e-6)
    assert (rejection.coverage, rejection.accuracy) == pytest.approx(tried[min(tried)])
