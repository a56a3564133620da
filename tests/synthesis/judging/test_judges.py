"""The classifier that judges where none is named: trained once, with a budget that fits the split."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support import tiny, tree

from saukit.core.console import Reporter
from saukit.core.errors import EnvironmentFault
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import Split, load_split, make_split
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.judging import judges
from saukit.synthesis.judging.duplicates import CopyDetector
from saukit.synthesis.judging.judges import JUDGE, judge_to_train, open_judges
from saukit.training.plan import plan_training
from saukit.training.stage import fit

QUIET = Reporter(quiet=True)


def test_the_judge_is_trained_once_and_says_its_budget(
    workspace: Workspace,
    split: Split,
    cpu: torch.device,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert (JUDGE.method, JUDGE.synthetic) == ("balanced-softmax", False)
    monkeypatch.setattr(judges, "JUDGE", tiny(method="balanced-softmax", synthetic=False, steps=130))
    found = open_judges(SynthConfig(), workspace, split, cpu, Reporter())
    assert found.classifier is not None and found.classifier.name == "balanced-softmax"
    assert "(run balanced-softmax): 130 steps of 16 images; --classifier names another" in capsys.readouterr().err
    before = tree(workspace.root / "runs")
    again = open_judges(SynthConfig(), workspace, split, cpu, Reporter())
    assert [score.digest for score in again.scores] == [score.digest for score in found.scores]
    assert (tree(workspace.root / "runs"), capsys.readouterr().err) == (before, "")


def test_no_judge_is_trained_where_none_is_needed_or_one_is_named(workspace: Workspace, cpu: torch.device) -> None:
    assert judge_to_train(SynthConfig(audit=False, preflight=0), workspace, cpu) is None
    assert judge_to_train(SynthConfig(classifier="ce"), workspace, cpu) is None


@pytest.mark.parametrize(("steps", "expected"), [(4, 120), (1000, 1000), (20_000, 9600)])
def test_the_budget_is_between_5_and_400_passes_over_the_real_images(
    steps: int, expected: int, workspace: Workspace, cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "JUDGE", replace(JUDGE, steps=steps, batch_size=16))
    plan = judge_to_train(SynthConfig(), workspace, cpu)
    assert plan is not None and plan.steps_per_epoch == 24  # 392 images
    assert (plan.total_steps, plan.name) == (expected, "balanced-softmax")


def test_a_frozen_pretrained_judge_lends_its_features(
    workspace: Workspace, split: Split, cpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), weights)
    photos = Workspace(tmp_path / "photos")
    counts = {str(digit): 4 for digit in range(10)}
    make_split(
        SplitConfig(dataset="digits", counts=counts, image_size=32), photos, root=None, force=False, reporter=QUIET
    )
    own = load_split(photos)
    training = tiny(
        method="ce", backbone="timm/test_efficientnet", weights=str(weights), tune="head", steps=4, synthetic=False
    )
    fit(training, photos, name="head", device=cpu, force=False, resume=False, reporter=QUIET)
    given: list[Any] = []

    def detector(reference: Any, *, features: Any, **others: Any) -> CopyDetector:
        given.append(features)
        return CopyDetector(reference, features=features, **others)

    monkeypatch.setattr(judges, "CopyDetector", detector)
    found = open_judges(SynthConfig(classifier="head"), photos, own, cpu, QUIET)
    assert found.classifier is not None and found.classifier.is_pretrained
    assert found.classifier.features_of == "timm/test_efficientnet, pretrained and frozen (head)"
    images = own.train.images[:6]
    assert np.array_equal(given[0](images), found.classifier.features_and_probabilities(images)[0])

    monkeypatch.setattr(judges, "JUDGE", tiny(method="balanced-softmax", synthetic=False, steps=130))
    plain = open_judges(SynthConfig(classifier=None), workspace, split, cpu, QUIET)
    assert plain.classifier is not None and not plain.classifier.is_pretrained
    assert given[1] is None
    assert plain.copies is not found.copies and plain.scores[-1].digest != found.scores[-1].digest
    assert "trained on the split's real images (balanced-softmax)" in plain.classifier.features_of


def test_the_judge_of_photos_is_frozen_on_a_gpu_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `saukit train` fine-tunes: features of its own images would tell the judge less about new ones."""
    photos, gpu = Workspace(tmp_path), torch.device("cuda")
    counts = {str(digit): 2 for digit in range(10)}
    make_split(
        SplitConfig(dataset="digits", counts=counts, image_size=224), photos, root=None, force=False, reporter=QUIET
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert plan_training(JUDGE, photos, name=None, device=gpu).config.tune == "all"
    plan = judge_to_train(SynthConfig(), photos, gpu)
    assert plan is not None
    assert (plan.config.tune, plan.config.preset, plan.config.method) == ("head", "photo-small", "balanced-softmax")


def test_a_judge_whose_weights_are_out_of_reach_names_the_command(
    workspace: Workspace, split: Split, cpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_reach(*arguments: object, **options: object) -> None:
        raise EnvironmentFault("the pretrained weights of timm/x cannot be loaded (offline): give --weights FILE")

    monkeypatch.setattr(judges, "fit", out_of_reach)
    with pytest.raises(EnvironmentFault, match=r"--weights FILE; train it with `saukit train --method balanced"):
        open_judges(SynthConfig(), workspace, split, cpu, QUIET)
