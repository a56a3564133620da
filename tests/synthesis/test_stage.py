import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import MICRO, tiny

from saukit.core.artifacts import load_tensors
from saukit.core.config import load_config
from saukit.core.console import Reporter
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault, Interrupted, UsageError
from saukit.core.workspace import Workspace
from saukit.core.writing import sha256_file
from saukit.data.config import SplitConfig
from saukit.data.split import Split, load_split, make_split
from saukit.data.synthetic import load_cache
from saukit.synthesis import outcome, sampling, stage
from saukit.synthesis.config import SynthConfig
from saukit.synthesis.generators import diffusion
from saukit.synthesis.generators.diffusion_training import GeneratorTrainer
from saukit.synthesis.generators.presets import DiffusionConfig
from saukit.synthesis.judging import judges
from saukit.synthesis.plan import SynthesisPlan, begin, outline, resolve
from saukit.synthesis.stage import SynthesisResult, preview, synthesize

Run = Callable[..., SynthesisResult]
EXPECTED_FILES = {
    "config.yaml",
    "manifest.json",
    "plan.json",
    "samples.png",
    "selection.safetensors",
    "source.json",
    "generator/unet/config.json",
    "generator/unet/diffusion_pytorch_model.safetensors",
    "generator/scheduler/scheduler_config.json",
    *(f"shard-{index:05d}.safetensors" for index in range(8)),
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def hashes_of(folder: Path) -> dict[str, str]:
    """Every file's hash, but of those that tell times."""
    timeless = files_of(folder) - {"manifest.json", "source.json"}
    return {name: sha256_file(folder / name) for name in timeless}


@pytest.fixture
def run(workspace: Workspace, micro: SynthConfig, cpu: torch.device, reporter: Reporter) -> Run:
    def go(config: SynthConfig = micro, *, force: bool = False, resume: bool = False) -> SynthesisResult:
        return synthesize(config, workspace, device=cpu, force=force, resume=resume, reporter=reporter)

    return go


@pytest.fixture(scope="module")
def undisturbed(digits_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed micro run."""
    root = tmp_path_factory.mktemp("undisturbed")
    (root / "split").symlink_to(digits_root / "split")
    reporter = Reporter(quiet=True)
    synthesize(MICRO, Workspace(root), device=torch.device("cpu"), force=False, resume=False, reporter=reporter)
    return root / "synth"


@pytest.fixture
def finished(workspace: Workspace, undisturbed: Path) -> Workspace:
    """A workspace with a copy of the undisturbed cache."""
    shutil.copytree(undisturbed, workspace.synth)
    return workspace


def test_the_cache_is_the_plan(finished: Workspace, split: Split, micro: SynthConfig, cpu: torch.device) -> None:
    plan = begin(outline(resolve(micro, split, cpu), split))
    cache = load_cache(finished, split)
    assert cache.images.shape == (62, 3, 8, 8)
    assert cache.images[:].dtype == np.uint8
    assert np.array_equal(cache.labels, plan.labels)
    assert np.array_equal(cache.seeds, plan.rounds[0].seeds)
    assert files_of(finished.synth) == EXPECTED_FILES
    assert set(cache.manifest.files) == EXPECTED_FILES - {"manifest.json"}
    assert cache.manifest.inputs == {"split": split.manifest.digest}
    summary = cache.manifest.summary
    assert summary["images"] == 62
    assert summary["images_per_class"] == dict(zip("0123456789", [0] * 5 + [4, 10, 14, 16, 18], strict=True))
    assert summary["real_per_class"] == dict(zip("0123456789", split.class_counts.tolist(), strict=True))
    assert load_config(DiffusionConfig, finished.synth / "config.yaml") == plan.config


def test_diffusers_loads_the_generator_and_draws_the_same_images(
    finished: Workspace, split: Split, micro: SynthConfig
) -> None:
    """A plain diffusers loop, with the seeds of the first shard's first batch, gives the cached pixels."""
    from diffusers import DPMSolverMultistepScheduler, UNet2DModel

    folder = finished.synth / "generator"
    unet = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True).eval()
    scheduler = DPMSolverMultistepScheduler.from_pretrained(folder / "scheduler")
    cached, _ = load_tensors(finished.synth / "shard-00000.safetensors")
    labels = torch.from_numpy(cached["labels"][:4])
    x = torch.stack(
        [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(int(s))) for s in cached["seeds"][:4]]
    )
    scheduler.set_timesteps(2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            of_class = unet(x, t, class_labels=labels).sample
            of_null = unet(x, t, class_labels=torch.full_like(labels, split.num_classes)).sample
            guidance = plan_guidance(finished) if 200 <= t <= 800 else 1.0
            x = scheduler.step(of_null + guidance * (of_class - of_null), t, x).prev_sample
    drawn = ((x + 1) * 127.5).round().clamp(0, 255).mean(1, keepdim=True)  # the digits are grey
    assert float((drawn - torch.from_numpy(cached["images"][:4]).float()).abs().max()) <= 1


def plan_guidance(workspace: Workspace) -> float:
    guidance = load_config(SynthConfig, workspace.synth / "config.yaml").guidance
    assert guidance is not None
    return guidance


def test_the_same_command_again_has_nothing_to_do(finished: Workspace, run: Run) -> None:
    before = hashes_of(finished.synth)
    result = run()
    assert result.state == "complete"
    assert result.samples.is_file()
    assert hashes_of(finished.synth) == before


def test_another_configuration_is_an_error_that_lists_it(finished: Workspace, run: Run, micro: SynthConfig) -> None:
    before = hashes_of(finished.synth)
    with pytest.raises(UsageError, match=r"train_steps: 6 -> 7.*--force.*another --workspace"):
        run(replace(micro, train_steps=7))
    assert hashes_of(finished.synth) == before
    assert run(replace(micro, train_steps=7), force=True).state == "new"


class Killed(BaseException):
    """Stands for a process that ends without another word."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Have the `call`-th call of owner.name raise instead."""
    original, calls = getattr(owner, name), [0]

    def counted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (GeneratorTrainer, "train_step", 8),  # the first four measure the time
        (diffusion, "save_generator", 1),
        (SynthesisPlan, "save", 1),
        (sampling, "write_shard", 1),
        (sampling, "write_shard", 4),
        (GeneratorTrainer, "sample", 13),  # the first three measure the time
        (outcome, "save_selection", 1),
        (outcome, "save_sample_grid", 1),
        (outcome, "write_manifest", 1),
    ],
)
def test_a_resumed_cache_is_the_same_to_the_bit(
    owner: Any, name: str, call: int, run: Run, workspace: Workspace, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "saukit.synthesis.generators.diffusion_training.CHECKPOINT_SECONDS", 0.0
    )  # a checkpoint after every step
    with monkeypatch.context() as patched:
        kill_at(patched, owner, name, call)
        with pytest.raises(Killed):
            run()
    with pytest.raises(UsageError, match="interrupted synth: continue it with --resume, or start over"):
        run()
    run(resume=True)
    assert hashes_of(workspace.synth) == hashes_of(undisturbed)


@pytest.mark.parametrize("moment", ["training", "sampling"])
def test_a_signal_saves_and_resumes(
    moment: str, run: Run, workspace: Workspace, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os
    import signal

    owner, name = {"training": (GeneratorTrainer, "train_step"), "sampling": (GeneratorTrainer, "sample")}[moment]
    original, calls = getattr(owner, name), [0]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, interrupted)
        with pytest.raises(Interrupted, match=r"continue with: the same call") as caught:
            run()
    assert caught.value.exit_code == 130
    assert (workspace.synth / "generator" / "checkpoint.pt").is_file()
    assert ((workspace.synth / "shard-00000.safetensors").is_file()) == (moment == "sampling")
    run(resume=True)
    assert hashes_of(workspace.synth) == hashes_of(undisturbed)


def test_a_damaged_shard_is_made_again_by_a_resume(
    run: Run, workspace: Workspace, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        kill_at(patched, outcome, "save_sample_grid", 1)
        with pytest.raises(Killed):
            run()
    (workspace.synth / "shard-00001.safetensors").write_bytes(b"cut off")
    (workspace.synth / "shard-00002.safetensors").unlink()
    shutil.copy(workspace.synth / "shard-00003.safetensors", workspace.synth / "shard-00004.safetensors")
    run(resume=True)
    assert hashes_of(workspace.synth) == hashes_of(undisturbed)


def test_other_batches_are_found_by_the_plan(run: Run, workspace: Workspace, micro: SynthConfig) -> None:
    run()
    with pytest.raises(UsageError, match="sample_batch_size: 4 -> 8"):
        run(replace(micro, sample_batch_size=8))


def test_a_flipped_byte_is_found(finished: Workspace, split: Split) -> None:
    path = finished.synth / "shard-00003.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"shard-00003.safetensors was changed .*--force"):
        load_cache(finished, split)


def test_without_a_cache_the_command_that_makes_it_is_named(workspace: Workspace, split: Split) -> None:
    with pytest.raises(DataError, match="run `saukit synth -w"):
        load_cache(workspace, split)


def test_without_a_split_the_command_that_makes_it_is_named(
    tmp_path: Path, micro: SynthConfig, cpu: torch.device, reporter: Reporter
) -> None:
    empty = Workspace(tmp_path / "empty")
    with pytest.raises(DataError, match="run `saukit make-lt -w"):
        synthesize(micro, empty, device=cpu, force=False, resume=False, reporter=reporter)
    assert not empty.synth.exists()


def test_a_cache_of_another_split_is_refused(finished: Workspace, run: Run, reporter: Reporter) -> None:
    (finished.root / "split").unlink()
    make_split(SplitConfig(imb=50, seed=7), finished, root=None, force=False, reporter=reporter)
    before = hashes_of(finished.synth)
    with pytest.raises(UsageError, match=r"made from another split .*--force"):
        run()
    with pytest.raises(DataError, match=r"made from another split .*`saukit synth --force -w"):
        load_cache(finished, load_split(finished))
    assert hashes_of(finished.synth) == before
    run(force=True)
    assert load_cache(finished, load_split(finished)).images.shape[0] == 62


def test_a_target_that_needs_nothing_leaves_all_as_it_was(finished: Workspace, run: Run, micro: SynthConfig) -> None:
    before = hashes_of(finished.synth)
    with pytest.raises(UsageError, match="per_class_target 2 needs no synthetic image"):
        run(replace(micro, per_class_target=2), force=True)
    assert hashes_of(finished.synth) == before


def test_a_full_disk_is_told_before_the_work(run: Run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EnvironmentFault, match=r"needs about .* but 1000 B are free"):
        run()
    assert not workspace.synth.exists()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({}, EnvironmentFault),  # the disk
        ({"generator": "folder", "from_folder": "nowhere"}, DataError),
        ({"model": "nowhere"}, DataError),
        ({"filter": "classifier", "classifier": "nobody"}, DataError),
    ],
)
def test_a_refusal_leaves_nothing_behind_and_takes_nothing_away(
    run: Run,
    workspace: Workspace,
    undisturbed: Path,
    micro: SynthConfig,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    error: type[Exception],
) -> None:
    if not change:
        usage = shutil._ntuple_diskusage(10**9, 10**9, 1000)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    else:
        micro = replace(micro, train_steps=None, train_batch_size=None)
    if change.get("generator") == "folder":
        micro = replace(micro, sampler_steps=None, amp="auto")
    with pytest.raises(error):
        run(replace(micro, **change))
    assert not workspace.synth.exists()
    shutil.copytree(undisturbed, workspace.synth)
    before = hashes_of(workspace.synth)
    with pytest.raises(error):
        run(replace(micro, seed=1, **change), force=True)
    assert hashes_of(workspace.synth) == before


def test_a_model_that_is_missing_is_noticed_before_the_judge_is_trained(
    run: Run, workspace: Workspace, offline: Path
) -> None:
    config = SynthConfig(generator="pipeline", model="nobody/nothing", per_class_target=20)
    assert config.needs_classifier
    with pytest.raises(EnvironmentFault, match="cannot be fetched from the Hub"):
        run(config)
    assert {path.name for path in workspace.root.iterdir()} == {"split"}


@pytest.mark.parametrize(("agreement", "warned"), [(0.0, True), (0.19, True), (0.2, False), (None, False)])
def test_a_judge_that_recognises_no_more_than_by_chance_is_a_warning(agreement: float | None, warned: bool) -> None:
    document = {"overall": {"agreement": agreement}, "per_class": [{}] * 10, "classifier_run": "judge"}
    text = outcome.not_recognised(document)
    assert (text is not None) == warned
    if text is not None and agreement == 0:
        assert text.startswith("the judge judge takes only 0.0% of the kept images for their class (by chance: 10.0%)")


def test_a_full_disk_in_the_middle_keeps_the_shards_before_it(
    run: Run, workspace: Workspace, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = sampling.write_shard, [0]

    def failing(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise EnvironmentFault("no space left")
        original(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(sampling, "write_shard", failing)
        with pytest.raises(EnvironmentFault):
            run()
    assert hashes_of(undisturbed).items() >= {
        (name, sha256_file(workspace.synth / name)) for name in ("shard-00000.safetensors", "shard-00001.safetensors")
    }
    run(resume=True)
    assert hashes_of(workspace.synth) == hashes_of(undisturbed)


def test_a_preview_writes_nothing_and_counts_the_judge(
    workspace: Workspace, micro: SynthConfig, cpu: torch.device, reporter: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, time = preview(micro, workspace, device=cpu, reporter=reporter)
    assert (plan.total, time.judge_seconds) == (62, 0)
    assert 0 < time.train_seconds < 60 and 0 < time.sample_seconds < 60
    monkeypatch.setattr(judges, "JUDGE", tiny(method="balanced-softmax", synthetic=False))
    _, judged = preview(replace(micro, audit=True), workspace, device=cpu, reporter=reporter)
    assert 0 < judged.judge_seconds < judged.total_seconds < 60
    assert {path.name for path in workspace.root.iterdir()} == {"split"}


def test_days_of_work_are_a_warning(
    run: Run, micro: SynthConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "DAY_SECONDS", 0.0)
    run(replace(micro, train_steps=1))
    assert "a smaller --preset or --per-class-target is quicker" in capsys.readouterr().err
