"""CMO as a generator, against a loop over pixels that knows nothing of boxes as tensors."""

import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import tiny

from saukit.core.artifacts import load_tensors
from saukit.core.console import Reporter
from saukit.core.seeding import torch_generator
from saukit.core.workspace import Workspace
from saukit.core.writing import sha256_file
from saukit.data.config import SplitConfig
from saukit.data.images import as_stored
from saukit.data.split import load_split, make_split
from saukit.data.synthetic import load_cache
from saukit.report.collect import collect
from saukit.report.config import ReportConfig
from saukit.report.words import limits
from saukit.synthesis import sampling
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators.cmo import CmoGenerator
from saukit.synthesis.jobs import Job
from saukit.synthesis.plan import begin, outline, resolve
from saukit.synthesis.stage import preview, synthesize
from saukit.training.stage import fit

CPU = torch.device("cpu")
QUIET = Reporter(quiet=True)
CMO = SynthConfig(generator="cmo", per_class_target=20, sample_batch_size=4, preflight=0, audit=False)


def numbered(counts: list[int], height: int, width: int) -> Any:
    """A split whose image i is all i: a pixel tells which image it is from."""
    total = sum(counts)
    images = np.broadcast_to(np.arange(total, dtype=np.uint8)[:, None, None, None], (total, 3, height, width)).copy()
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    train = SimpleNamespace(images=images, labels=labels)
    return SimpleNamespace(train=train, num_classes=len(counts), manifest=SimpleNamespace(digest="d"))


def plain(images: Any, labels: np.ndarray, label: int, seed: int) -> np.ndarray:
    """One image by the paper's words, from the same stream of random numbers."""
    draws = torch_generator(seed, "cmo")
    own = [i for i in range(len(labels)) if labels[i] == label]
    foreground = images[[own[int(torch.randint(len(own), (), generator=draws))]]][0]
    image = images[[int(torch.randint(len(labels), (), generator=draws))]][0].copy()
    _, height, width = image.shape
    while True:
        lams = torch.rand(64, generator=draws).numpy()
        rows, columns = (torch.randint(side, (64,), generator=draws).tolist() for side in (height, width))
        for lam, y, x in zip(lams, rows, columns, strict=True):
            side = np.sqrt(np.float32(1) - lam)
            tall, wide = math.floor(side * np.float32(height)), math.floor(side * np.float32(width))
            top, left = y - tall // 2, x - wide // 2
            inside = [
                (r, c)
                for r in range(top, top + tall)
                for c in range(left, left + wide)
                if 0 <= r < height and 0 <= c < width
            ]
            if 2 * len(inside) >= height * width:
                for r, c in inside:
                    image[:, r, c] = foreground[:, r, c]
                return image


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 4), (6, 9)])
def test_images_are_those_of_a_plain_loop(height: int, width: int) -> None:
    split = numbered([5, 3, 1], height, width)
    images, labels = split.train.images, split.train.labels
    wanted, seeds = np.arange(60) % 3, np.arange(60) * 7919
    made = CmoGenerator(split).sample(wanted, seeds, seeds)
    assert made.dtype == np.uint8 and made.shape == (60, 3, height, width)
    for image, label, seed in zip(made, wanted.tolist(), seeds.tolist(), strict=True):
        assert np.array_equal(image, plain(images, labels, label, seed))


def test_an_image_depends_on_its_seed_alone() -> None:
    generator = CmoGenerator(numbered([6, 2], 8, 8))
    labels, seeds = np.arange(20) % 2, np.arange(20)
    together = generator.sample(labels, seeds, seeds)
    back = generator.sample(labels[::-1], seeds[::-1], seeds * 0)[::-1]
    alone = [generator.sample(labels[i : i + 1], seeds[i : i + 1], seeds[i : i + 1])[0] for i in range(20)]
    assert np.array_equal(together, back) and np.array_equal(together, np.stack(alone))
    assert len({image.tobytes() for image in together}) > 15


@pytest.mark.parametrize("counts", [[40, 1], [60, 20]])
def test_half_an_image_is_its_classes_and_backgrounds_are_as_often_as_images_are(counts: list[int]) -> None:
    """Also for a class of one image; the share of the class's own pixels is that of the same draws in float64."""
    split = numbered(counts, 16, 16)
    labels = split.train.labels
    n, rare = 1500, np.ones(1500, np.int64)
    made = CmoGenerator(split).sample(rare, np.arange(n), np.arange(n))[:, 0].reshape(n, -1)
    own = labels[made] == 1
    assert (own.mean(axis=1) >= 0.5).all()
    foreground = [np.bincount(image[of]).argmax() for image, of in zip(made, own, strict=True)]
    assert set(foreground) == set(np.flatnonzero(labels == 1).tolist())
    of_head = (~own).any(axis=1).mean()  # the background is of the other class, whatever its image
    expected = counts[0] / sum(counts)
    assert of_head == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n) + 1e-9)
    rng, shares = np.random.default_rng(0), []
    for lam, y, x in zip(rng.random(40_000), *rng.integers(0, 16, (2, 40_000)), strict=True):
        side = int(16 * math.sqrt(1 - lam))
        tall, wide = (min(16, at - side // 2 + side) - max(0, at - side // 2) for at in (y, x))
        if 2 * tall * wide >= 256:
            shares.append(tall * wide / 256)
    mixed = (~own).any(axis=1)
    assert own[mixed].mean() == pytest.approx(np.mean(shares), abs=0.015)


def hashes_of(folder: Path) -> dict[str, str]:
    timed = ("manifest.json", "source.json")
    return {path.name: sha256_file(path) for path in folder.iterdir() if path.name not in timed}


def go(workspace: Workspace, config: SynthConfig = CMO, *, resume: bool = False, job: str | None = None) -> Any:
    part = None if job is None else Job.parse(job)
    return synthesize(config, workspace, device=CPU, force=False, resume=resume, reporter=QUIET, job=part)


def test_a_cache_is_the_plan_and_the_same_after_a_kill_and_of_jobs(
    digits_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def beside(name: str) -> Workspace:
        (tmp_path / name).mkdir()
        (tmp_path / name / "split").symlink_to(digits_root / "split")
        return Workspace(tmp_path / name)

    whole, killed, jobs = (beside(name) for name in ("whole", "killed", "jobs"))
    go(whole)
    split = load_split(whole)
    plan, time = preview(CMO, beside("preview"), device=CPU, reporter=QUIET)
    alike = begin(outline(resolve(CMO, split, CPU), split))
    assert [part.digest for part in plan.rounds] == [part.digest for part in alike.rounds]
    assert time.sample_seconds > 0 and time.train_seconds == time.judge_seconds == 0
    cache = load_cache(whole, split)
    assert np.array_equal(cache.labels, plan.labels) and cache.images.shape == (62, 3, 8, 8)
    for index in (0, 30, 61):
        expected = plain(split.train.images, split.train.labels, int(cache.labels[index]), int(cache.seeds[index]))
        assert np.array_equal(cache.images[[index]][0], expected)

    real, written = sampling.write_shard, list[int]()

    def dies(folder: Path, index: int, *rest: Any) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(index)
        real(folder, index, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "write_shard", dies)
        with pytest.raises(KeyboardInterrupt):
            go(killed)
    assert len(list(killed.synth.glob("shard-*"))) == 3
    go(killed, resume=True)
    assert hashes_of(killed.synth) == hashes_of(whole.synth)

    for job in ("1/2", "0/2"):
        go(jobs, job=job)
    go(jobs, resume=True)
    assert hashes_of(jobs.synth) == hashes_of(whole.synth)


def test_audit_filters_and_page_take_such_images(workspace: Workspace) -> None:
    """Near copies of a training image are what the audit counts, and --reject-copies replaces."""
    result = go(workspace, replace(CMO, reject_copies=True))
    assert sum(result.summary["rejected"].values()) > 0 and result.summary["images"] == 62
    assert result.summary["generator"]["generator"] == "cmo" and not list(workspace.synth.glob("generator*"))
    shutil.rmtree(workspace.synth)
    fit(
        tiny(method="ce", synthetic=False),
        workspace,
        name="judge",
        device=CPU,
        force=False,
        resume=False,
        reporter=QUIET,
    )
    audit = go(workspace, replace(CMO, audit=True, preflight=2, classifier="judge")).audit
    assert 0 < audit["overall"]["memorised"] < 1
    assert any(
        "The generator saw the split's training images alone" in text
        for text in limits(collect(ReportConfig(), workspace))
    )


def test_photos_come_at_the_splits_size_and_encoded(tmp_path: Path) -> None:
    for name, count in (("cat", 9), ("dog", 2)):
        (tmp_path / "real" / name).mkdir(parents=True)
        for index in range(count):
            coarse = np.random.default_rng([count, index]).integers(0, 256, (5, 6, 3), dtype=np.uint8)
            picture = Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC)
            picture.save(tmp_path / "real" / name / f"{index}.png")
    workspace = Workspace(tmp_path / "work")
    config = SplitConfig(dataset="folder", image_size=72, test_fraction=0.2)
    make_split(config, workspace, root=tmp_path / "real", force=False, reporter=QUIET)
    go(workspace, replace(CMO, per_class_target=None))
    split = load_split(workspace)
    cache = load_cache(workspace, split)
    assert split.class_counts[1] == 1 and set(cache.labels.tolist()) == {1}
    tensors, _ = load_tensors(workspace.synth / "shard-00000.safetensors")
    assert "images" not in tensors and cache.images.shape[1:] == (3, 72, 72)
    for image, seed in zip(cache.images[:], cache.seeds.tolist(), strict=True):
        expected = plain(split.train.images, split.train.labels, 1, seed)
        assert np.array_equal(image, as_stored(expected))
