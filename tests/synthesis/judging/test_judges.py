"""The classifier that judges where none is named: trained once, with a budget that fits the split."""

from dataclasses import replace

import pytest
import torch
from support import tiny, tree

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.split import Split
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.judging import judges
from saukit.synthesis.judging.judges import JUDGE, judge_to_train, open_judges


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
