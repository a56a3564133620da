"""A linear head on a frozen backbone: `--tune head`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.preprocessing import StandardScaler
from support import tiny, tree

from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault, UsageError
from saukit.core.extras import EXTRAS
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import load_split, load_test, make_split
from saukit.evaluation.compare import compare
from saukit.evaluation.config import CompareConfig, EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.models.classifier import load_classifier
from saukit.training import features as room
from saukit.training import trainer as training_room
from saukit.training.estimate import estimate_seconds
from saukit.training.plan import plan_training
from saukit.training.stage import fit
from saukit.training.trainer import Trainer

timm = pytest.importorskip("timm")
CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def photo_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits at 32 pixels with a validation part, and random weights of a tiny network of timm beside it."""
    root = tmp_path_factory.mktemp("photos")
    counts = {str(digit): 12 - digit for digit in range(10)}
    config = SplitConfig(dataset="digits", counts=counts, image_size=32, val_fraction=0.3)
    make_split(config, Workspace(root / "work"), root=None, force=False, reporter=QUIET)
    torch.manual_seed(0)
    state = timm.create_model("test_efficientnet").state_dict()
    save_file({name: value.contiguous() for name, value in state.items()}, root / "weights.safetensors")
    return root


@pytest.fixture
def work(photo_work: Path, tmp_path: Path) -> Path:
    shutil.copytree(photo_work / "work", tmp_path / "work")
    return tmp_path / "work"


def train(work: Path, weights: Path | str, name: str = "run", **fields: Any) -> Path:
    given = {"backbone": "timm/test_efficientnet", "weights": str(weights), "tune": "head", "steps": 8, **fields}
    return fit(tiny(**given), Workspace(work), name=name, device=CPU, force=False, resume=True, reporter=QUIET).folder


@pytest.fixture
def weights(photo_work: Path) -> Path:
    return photo_work / "weights.safetensors"


def timm_features(weights: Path, images: np.ndarray) -> np.ndarray:
    """By timm alone, one image after the other."""
    network = timm.create_model("test_efficientnet")
    network.load_state_dict(load_file(weights))
    network.reset_classifier(0)
    config = timm.get_pretrained_cfg("test_efficientnet")
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    with torch.inference_mode():
        rows = [network.eval()(((torch.from_numpy(image) / 255 - mean) / std)[None])[0] for image in images]
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("method", ["ce", "balanced-softmax", "logit-adjustment", "ldam-drw", "crt", "class-balanced"])
def test_the_model_is_a_linear_head_on_standardised_features(work: Path, weights: Path, method: str) -> None:
    folder = train(work, weights, method=method)
    split = load_split(Workspace(work))
    state = load_file(folder / "model.safetensors")
    features = timm_features(weights, np.asarray(split.train.images))
    scale = StandardScaler().fit(features)
    assert state["standardize.mean"].numpy() == pytest.approx(scale.mean_, abs=1e-4)
    assert state["standardize.std"].numpy() == pytest.approx(scale.scale_, rel=1e-3, abs=1e-5)
    assert torch.equal(state["backbone.network.conv_stem.weight"], load_file(weights)["conv_stem.weight"])

    classifier = load_classifier(folder)
    images = split.train.images[:7]
    with torch.no_grad():
        found = classifier(torch.from_numpy(images).float() / 255).numpy()
    standard = (timm_features(weights, images) - state["standardize.mean"].numpy()) / state["standardize.std"].numpy()
    weight = state["classifier.weight"].numpy()
    if method == "ldam-drw":  # a cosine classifier
        standard /= np.linalg.norm(standard, axis=1, keepdims=True)
        expected = 30 * standard @ (weight / np.linalg.norm(weight, axis=1, keepdims=True)).T
    else:
        expected = standard @ weight.T + state["classifier.bias"].numpy()
    assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(("flip", "count"), [(False, 2), (True, 4)])
def test_crops_are_averaged(work: Path, weights: Path, flip: bool, count: int) -> None:
    folder = train(work, weights, multi_crop=True, flip=flip)
    images = np.asarray(load_split(Workspace(work)).train.images)
    margin = 2  # 0.875 of 32 pixels are 28
    views = [images, images[:, :, margin:-margin, margin:-margin]]
    if flip:
        views += [view[..., ::-1].copy() for view in views]
    features = np.mean([timm_features(weights, view) for view in views], axis=0)
    state = load_file(folder / "model.safetensors")
    assert state["standardize.mean"].numpy() == pytest.approx(features.mean(0), abs=1e-4)

    classifier = load_classifier(folder)
    assert classifier.spec.crops == count
    standard = (features[:7] - state["standardize.mean"].numpy()) / state["standardize.std"].numpy()
    expected = standard @ state["classifier.weight"].numpy().T + state["classifier.bias"].numpy()
    with torch.no_grad():
        found = classifier(torch.from_numpy(images[:7]).float() / 255).numpy()
    assert found == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize(
    ("method", "tune"),
    [("ce", "head"), ("ldam-drw", "head"), ("crt", "head"), ("ce", "all"), ("balanced-softmax", "all")],
)
def test_a_head_starts_as_the_nearest_class_mean_by_cosine(work: Path, weights: Path, method: str, tune: str) -> None:
    """With steps that move nothing, against a loop over images; cRT starts it again in its second stage."""
    still: dict[str, Any] = {"lr": 1e-12, "weight_decay": 0.0, **({"freeze_bn": True} if tune == "all" else {})}
    folder = train(work, weights, method=method, tune=tune, head="class-means", **still)
    train_part = load_split(Workspace(work)).train
    features = timm_features(weights, np.asarray(train_part.images))
    if tune == "head":
        features = StandardScaler().fit_transform(features)
    means = [np.mean([row for row, label in zip(features, train_part.labels, strict=True) if label == k], 0)
             for k in range(10)]  # fmt: skip
    cosines = np.array(
        [[row @ mean / np.linalg.norm(row) / np.linalg.norm(mean) for mean in means] for row in features]
    )
    with torch.no_grad():
        logits = load_classifier(folder)(torch.from_numpy(np.asarray(train_part.images)).float() / 255).numpy()
    assert logits == pytest.approx(30 * cosines, abs=0.02)
    assert (cosines.argmax(1) == train_part.labels).mean() > 0.5  # not the same for every image


def test_class_means_are_ahead_of_random_weights(work: Path, weights: Path) -> None:
    labels, right = load_split(Workspace(work)).train.labels, {}
    images = torch.from_numpy(load_split(Workspace(work)).train.images[:]).float() / 255
    for head in ("cosine", "class-means"):
        folder = train(work, weights, head, head=head, steps=2, batch_size=32, lr=0.005)
        classifier = load_classifier(folder)
        assert classifier.spec.classifier == "cosine"
        with torch.no_grad():
            right[head] = (classifier(images).argmax(1).numpy() == labels).mean()
    assert right["class-means"] > right["cosine"]


def test_evaluation_keeps_its_features_and_agrees_with_the_classifier(
    work: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        folder = train(work, weights, name, multi_crop=True, method="ce" if name == "first" else "ldam-drw")
        document = evaluate(EvalConfig(run=name), Workspace(work), device=CPU, force=False, reporter=QUIET).document
        test = load_test(Workspace(work))
        with torch.no_grad():
            logits = load_classifier(folder)(torch.from_numpy(test.images).float() / 255)
        assert document["top1"] == pytest.approx((logits.argmax(1).numpy() == test.labels).mean(), abs=1e-9)
        # From here on nothing has to be computed.
        monkeypatch.setattr(room, "backbone_features", lambda *_, **__: pytest.fail("features are computed again"))


def test_a_head_learns(work: Path, weights: Path) -> None:
    folder = train(work, weights, steps=200, batch_size=32, lr=0.02)
    split = load_split(Workspace(work))
    with torch.no_grad():
        logits = load_classifier(folder)(torch.from_numpy(split.train.images).float() / 255)
    assert (logits.argmax(1).numpy() == split.train.labels).mean() > 0.9
    document = evaluate(EvalConfig(run="run"), Workspace(work), device=CPU, force=False, reporter=QUIET).document
    assert document["top1"] > 0.2


def test_features_are_computed_once_for_every_method_and_seed(
    work: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train(work, weights, "first")
    computed: list[int] = []
    original = room.backbone_features

    def counted(*arguments: Any, **options: Any) -> Any:
        computed.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(room, "backbone_features", counted)
    train(work, weights, "second", method="balanced-softmax", seed=1)
    assert computed == []
    kept = sorted((work / "features").iterdir())[0]
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(bytes(content))
    again = train(work, weights, "again")
    assert computed  # a changed byte is noticed
    assert (again / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_run_that_nobody_has_evaluated_is_one_of_a_comparison(work: Path, weights: Path, seeds: int) -> None:
    """Its evaluation computes the features of the test images, and says how far it is."""
    train(work, weights, "ce")
    shared = {"backbone": "timm/test_efficientnet", "weights": str(weights), "tune": "head", "steps": 8}
    config = CompareConfig(methods=("ce",), seeds=seeds, train={**shared, "batch_size": 16, "amp": "off"})
    done = compare(config, Workspace(work), name="main", devices=["cpu"], force=False, reporter=QUIET)
    assert [run["reused"] for run in done.document["methods"][0]["runs"]] == [True, False][:seeds]


def test_a_stopped_run_resumes_to_the_same_bits(work: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (train(work, weights, "whole") / "model.safetensors").read_bytes()
    original = Trainer.advance

    def advance(trainer: Trainer) -> None:
        if trainer.step_count == 5:
            raise KeyboardInterrupt
        original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(training_room, "CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Trainer, "advance", advance)
        with pytest.raises(KeyboardInterrupt):
            train(work, weights, "cut")
    assert (work / "runs/cut/checkpoint.pt").exists()
    assert (train(work, weights, "cut") / "model.safetensors").read_bytes() == expected


def test_a_head_trains_with_one_thread(work: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the images are; the network computes its features with all of them."""
    threads: dict[str, set[int]] = {"features": set(), "steps": set()}
    compute, step = room.backbone_features, Trainer.advance

    def features(*arguments: Any, **options: Any) -> Any:
        threads["features"].add(torch.get_num_threads())
        return compute(*arguments, **options)

    def advance(trainer: Trainer) -> None:
        threads["steps"].add(torch.get_num_threads())
        step(trainer)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("saukit.core.device.ONE_THREAD_SIDE", 16)  # so that 32 pixels are photos
    monkeypatch.setattr(room, "backbone_features", features)
    monkeypatch.setattr(Trainer, "advance", advance)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        train(work, weights)
    finally:
        torch.set_num_threads(before)
    assert threads == {"features": {2}, "steps": {1}}


def test_the_validation_part_chooses_a_step(work: Path, weights: Path) -> None:
    folder = train(work, weights, select="val")
    assert '"val_balanced_accuracy"' in (folder / "metrics.jsonl").read_text(encoding="utf-8")


def test_a_run_starts_from_another_ones_weights(work: Path, weights: Path) -> None:
    train(work, weights, "first")
    second = train(work, "run:first", "second", tune="all", steps=0 + 1, lr=1e-9, weight_decay=0.0)
    state = load_file(second / "model.safetensors")
    assert state["backbone.network.conv_stem.weight"].numpy() == pytest.approx(
        load_file(weights)["conv_stem.weight"].numpy(), abs=1e-6
    )


def test_a_tampered_run_is_no_start(work: Path, weights: Path) -> None:
    model = train(work, weights, "first") / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-5] ^= 1
    model.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors") as caught:
        train(work, "run:first", "second")
    assert caught.value.exit_code == 4 and not (work / "runs" / "second").exists()


def test_a_run_of_another_backbone_is_no_start(work: Path, weights: Path) -> None:
    train(work, "none", "first", backbone="convnet-small", tune="all", steps=1)
    with pytest.raises(DataError, match=r"the weights in .*do not fit the backbone: 0 of ") as caught:
        train(work, "run:first", "second")
    assert caught.value.exit_code == 3 and not (work / "runs" / "second").exists()


def test_weights_that_changed_are_another_run(work: Path, weights: Path) -> None:
    train(work, weights)
    own = work.parent / "own.safetensors"
    shutil.copyfile(weights, own)
    train(work, own, "again")
    state = load_file(own)
    save_file({**state, "bn1.weight": state["bn1.weight"] + 1}, own)
    with pytest.raises(UsageError, match="weights"):
        train(work, own, "again")


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"method": "sau"},
            UsageError,
            "tune head trains on features of one view per image, and sau needs",
        ),
        (
            {"weights": "none"},
            UsageError,
            "tune head trains on a frozen backbone, and weights none",
        ),
        ({"weights": "nowhere.safetensors"}, DataError, "no weights at nowhere.safetensors: give a safetensors file"),
        ({"weights": "run:none"}, DataError, "saukit train"),
        ({"backbone": "convnet-small", "weights": "pretrained"}, UsageError, "convnet-small has no pretrained weights"),
        ({"backbone": "timm/no_such"}, UsageError, "unknown backbone 'timm/no_such'"),
        ({"backbone": "timm/test_vit"}, UsageError, "takes images of 160 pixels, this split has 32 x 32"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    work: Path, weights: Path, fields: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        train(work, fields.pop("weights", weights), **fields)
    assert message in str(caught.value)
    assert not (work / "runs").exists()


@pytest.mark.parametrize("force", [False, True])
def test_weights_out_of_reach_leave_everything_as_it_was(
    work: Path, weights: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another command with other weights then needs no --force, and --force has cost no earlier run."""
    if force:
        train(work, weights)
    before = tree(work)

    original = timm.create_model

    def offline(*arguments: Any, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no network")
        return original(*arguments, **options)

    monkeypatch.setattr("timm.create_model", offline)
    monkeypatch.setattr("saukit.core.extras._answers", lambda: True)
    config = tiny(backbone="timm/test_efficientnet", tune="head")
    with pytest.raises(EnvironmentFault, match=r"cannot be loaded \(no network\).*--weights FILE.safetensors"):
        fit(config, Workspace(work), name="run", device=CPU, force=force, resume=False, reporter=QUIET)
    assert tree(work) == before


def test_without_the_extra_the_remedy_is_named(work: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from saukit.core import extras

    monkeypatch.setattr(extras, "missing_packages", lambda extra: ["timm"] if extra == "timm" else [])
    with pytest.raises(EnvironmentFault, match=r"pip install 'saukit\[timm\]'"):
        train(work, weights)


@pytest.mark.parametrize("measure", [False, True])
def test_a_dry_run_counts_the_features(work: Path, weights: Path, measure: bool) -> None:
    config = tiny(backbone="timm/test_efficientnet", weights=str(weights), tune="head", steps=8)
    plan = plan_training(config, Workspace(work), name=None, device=CPU)
    assert 0.01 < estimate_seconds(plan, measure=measure) < 60
    assert not (work / "features").exists() and not (work / "runs").exists()


@pytest.mark.parametrize(("side", "warned"), [(72, True), (64, False)])
def test_photos_without_timm_are_trained_from_scratch_with_a_warning(
    side: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = SplitConfig(dataset="digits", counts={str(digit): 2 for digit in range(10)}, image_size=side)
    make_split(config, Workspace(tmp_path), root=None, force=False, reporter=QUIET)

    def said(name: str, **fields: Any) -> str:
        run = tiny(steps=1, batch_size=2, **fields)
        fit(run, Workspace(tmp_path), name=name, device=CPU, force=False, resume=False, reporter=Reporter())
        return capsys.readouterr().err

    assert "saukit[timm]" not in said("chosen", weights="none")
    monkeypatch.setitem(EXTRAS, "timm", ("no_such_package",))
    assert ("warning: training from scratch, and photos want a network pretrained" in said("run")) is warned
