"""Workspaces for the report, made once a session. Tests copy them and never write into the shared ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import make_split
from saukit.evaluation.compare import compare
from saukit.evaluation.config import CompareConfig, EvalConfig
from saukit.evaluation.evaluate import evaluate
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.stage import synthesize
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)

ODD_NAMES = (
    '<b>&"x',
    "<script>alert(1)<script>",
    "<img src=x onerror=alert(1)>",
    "' onload='x",
    "{{ 7 * 7 }}",
    "été Ω `x`",
    "one-word-longer-than-a-column-of-a-table",
)
MANY_CLASSES = 34


@pytest.fixture(scope="session")
def report_work(shared_work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits: an audited cache, a comparison of `ce` and `sau+synth` with three seeds, and the run `extra` besides."""
    root = tmp_path_factory.mktemp("report") / "work"
    for part in ("split", "runs/ce"):
        shutil.copytree(shared_work / part, root / part)
    workspace = Workspace(root)
    drawn = SynthConfig(
        per_class_target=20,
        train_steps=3,
        train_batch_size=4,
        sampler_steps=2,
        amp="off",
        preflight=0,
        audit=True,
        classifier="ce",
    )
    synthesize(drawn, workspace, device=CPU, force=False, resume=False, reporter=QUIET)
    compare(
        CompareConfig(methods=("ce", "sau+synth"), seeds=3, train={"steps": 4, "batch_size": 16, "amp": "off"}),
        workspace,
        name="main",
        devices=["cpu"],
        force=False,
        reporter=QUIET,
    )
    fit(tiny(steps=30, synthetic=False), workspace, name="extra", device=CPU, force=False, resume=False, reporter=QUIET)
    evaluate(EvalConfig(run="extra"), workspace, device=CPU, force=False, reporter=QUIET)
    return root


@pytest.fixture(scope="session")
def odd_work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 34 classes, some with names that are markup, with a validation part, and a run with such a name."""
    pictures, root = tmp_path_factory.mktemp("odd-pictures"), tmp_path_factory.mktemp("odd") / "work"
    generator = np.random.default_rng(0)
    for label in range(MANY_CLASSES):
        folder = pictures / (ODD_NAMES[label] if label < len(ODD_NAMES) else f"class {label}")
        folder.mkdir()
        for index in range(5 + label % 4):
            pixels = generator.integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    workspace = Workspace(root)
    config = SplitConfig(dataset="folder", image_size=12, profile="none", test_fraction=0.2, val_fraction=0.2)
    make_split(config, workspace, root=pictures, force=False, reporter=QUIET)
    fit(tiny(synthetic=False), workspace, name="plain", device=CPU, force=False, resume=False, reporter=QUIET)
    evaluate(EvalConfig(run="plain"), workspace, device=CPU, force=False, reporter=QUIET)
    (root / "runs" / "plain").rename(root / "runs" / '<i>&"run')
    return root
