"""Several processes compute what one computes. One job does much: they begin, and join, each time."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from support import fit_job, job, metrics, tiny, torchrun
from torch import Tensor, nn

from saukit.core import ranks
from saukit.core.errors import SaukitError, UsageError
from saukit.core.workspace import Workspace
from saukit.data.images import RowsOf
from saukit.training import distributed, stage
from saukit.training.batch_norm import synchronise_batch_norm
from saukit.training.config import TrainConfig
from saukit.training.distributed import Share, joined
from saukit.training.methods import METHODS
from saukit.training.plan import TrainingPlan, plan_training
from saukit.training.views import Views, draw_jitter

TESTS = Path(__file__).parents[1]
RANKS = TESTS.parent / "examples" / "benchmarks" / "ranks.py"


def weights(run: Path) -> dict[str, np.ndarray[Any, Any]]:
    return load_file(run / "model.safetensors")


def difference(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    return max(float(np.abs(a[name].astype(float) - b[name]).max()) for name in a)


# --- parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(16, 2), (17, 2), (5, 3), (1, 4), (128, 8)])
def test_shares_are_the_batch(count: int, size: int) -> None:
    drawn = draw_jitter(count, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    parts = [Share(count, rank, size).take(drawn) for rank in range(size)]
    assert all(type(part) is type(drawn) for part in parts)
    for name in drawn._fields:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(drawn, name))
    lengths = [len(part.hue) for part in parts]
    assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("crop_scale", [None, 0.3])
@pytest.mark.parametrize("view", ["crop_flip", "autoaugment", "simclr"])
def test_a_view_of_a_share_is_the_share_of_the_view(view: str, crop_scale: float | None) -> None:
    images = torch.randint(256, (7, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = torch.full((2, 3), 0.5)

    def made(share: Share | None, of: Tensor) -> Tensor:
        views = Views(mean, std, flip=True, crop_scale=crop_scale, share=share)
        result: Tensor = getattr(views, view)(of, torch.Generator().manual_seed(2))
        return result

    whole = made(None, images)
    shares = [Share(7, rank, 9) for rank in range(9)]  # two of them have nothing
    parts = torch.cat([made(share, images[share.rows]) for share in shares])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 5, 3)])
def test_batch_norm_in_one_process_is_torchs(shape: tuple[int, ...]) -> None:
    own, torchs = (nn.Sequential((nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(4)).double() for _ in range(2))
    synchronise_batch_norm(own, without="nothing")
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        x, gradient = torch.randn((2, *shape), dtype=torch.float64, generator=generator)
        results = []
        for network in (own, torchs):
            given = x.clone().requires_grad_()
            y = network(given)
            y.backward(gradient)
            results.append([y, given.grad, network[0].weight.grad, network[0].bias.grad, *network.buffers()])
        for mine, reference in zip(*results, strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own.eval()(x), torchs.eval()(x), rtol=1e-9, atol=1e-9)


def test_rows_of_other_images() -> None:
    images = np.arange(10 * 3, dtype=np.uint8).reshape(10, 3, 1, 1)
    some = RowsOf(images, slice(3, 8))
    assert (len(some), some.shape, some.nbytes) == (5, (5, 3, 1, 1), 15)
    assert np.array_equal(some[1:3], images[4:6]) and np.array_equal(some[3:99], images[6:8])


def test_one_process_speaks_of_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import HashStore

    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert (ranks.job_size(), ranks.job_rank(), ranks.local_rank(), ranks.may_speak(2)) == (2, 1, 0, False)
    monkeypatch.setattr(ranks, "_store", HashStore())
    assert ranks.may_speak(3)
    ranks.has_spoken()
    assert not ranks.may_speak(1)
    assert ranks.exit_code_of_job(1) == 3


def test_what_several_processes_refuse(shared_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "--device cuda:1 is one GPU, and each of the 2 processes needs its own"
    with pytest.raises(UsageError, match=message), joined(torch.device("cuda", 1)):
        pass

    def plan_of(config: TrainConfig) -> TrainingPlan:
        return plan_training(config, Workspace(shared_work), name=None, device=torch.device("cpu"))

    monkeypatch.setattr(stage, "size", lambda: 9)
    with pytest.raises(UsageError, match="a batch of 16 images leaves one of 9 processes fewer than two"):
        stage._check_shares(plan_of(tiny(synthetic=False)))
    monkeypatch.setattr(stage, "size", lambda: 5)
    with pytest.raises(UsageError, match=r"a batch of 8 images leaves one of 5 .* or --drop-last"):
        stage._check_shares(plan_of(tiny(synthetic=False, batch_size=64, drop_last=False)))  # 392 images
    stage._check_shares(plan_of(tiny(synthetic=False, batch_size=64)))


def test_an_exchange_that_breaks_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    message = r"another process of this job has ended \(reset by peer\): .* continue with --resume"
    with pytest.raises(SaukitError, match=message), distributed._exchanging():
        raise RuntimeError("[../gloo/pair.cc:1] reset by peer\nmore")


# --- jobs ---------------------------------------------------------------------------------------------------------


def trained(root: Path, folder: Path, methods: Sequence[str], processes: int, **fields: Any) -> list[dict[str, Any]]:
    """Steps of each method by the benchmark's worker; an uneven batch, real and synthetic images.

    Few, and with a small learning rate: each step multiplies the rounding errors of the ones before.
    """
    jobs = []
    for method in methods:
        config = {"preset": "small", "method": method, "steps": 4, "batch_size": 33, "synthetic": True, "amp": "off"}
        config |= {"lr": 0.002, "schedule": "cosine-step", "warmup": 0.0}
        jobs.append({"workspace": str(root), "config": {**config, **fields}, "out": str(folder / f"{method}.pt")})
    done = job(RANKS, "work", "--jobs", json.dumps(jobs), processes=processes)
    assert done.returncode == 0, done.stderr
    return [torch.load(str(each["out"]), weights_only=True) for each in jobs]


@pytest.mark.slow
def test_two_processes_compute_what_one_computes(shared_work: Path, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    one = trained(shared_work, tmp_path, tuple(METHODS), 1)
    two = trained(shared_work, tmp_path, tuple(METHODS), 2, sync_batchnorm=True)
    for method, alone, together in zip(METHODS, one, two, strict=True):
        assert together["equal"], method
        assert together["losses"] == pytest.approx(alone["losses"], rel=2e-5), method
        for name, value in alone["weights"].items():
            atol = 1e-3 if "running" in name else 1e-4  # the deepest layers' statistics are hundreds of times larger
            torch.testing.assert_close(together["weights"][name], value, rtol=1e-4, atol=atol, msg=f"{method} {name}")
    # And it is seen where it does not hold: statistics of each share by itself.
    (local,) = trained(shared_work, tmp_path / "local", ["ce"], 2)
    assert local["equal"]
    alone = one[list(METHODS).index("ce")]
    assert max(float((local["weights"][name] - value).abs().max()) for name, value in alone["weights"].items()) > 2e-3


@pytest.mark.slow
def test_a_job_goes_on_with_another_number_of_processes(split_work: Path) -> None:
    config = tiny(steps=9, batch_size=32, sync_batchnorm=True)
    assert fit_job(split_work, "whole", "none", config, processes=1).returncode == 0
    for processes, fault in ((2, "stop:3"), (1, "stop:6"), (2, "none")):
        done = fit_job(split_work, "parts", fault, config, processes=processes)
        assert done.returncode == 0, done.stderr
        assert (done.stdout.count("stopped and saved"), fault != "none") in ((0, False), (processes, True))
    assert "resuming parts at step 7 of 9" in done.stderr
    assert difference(split_work / "runs/whole", split_work / "runs/parts") < 1e-5
    assert metrics(split_work / "runs/parts")[-1]["losses"]["ce"] == pytest.approx(
        metrics(split_work / "runs/whole")[-1]["losses"]["ce"], rel=1e-5
    )


@pytest.mark.slow
def test_a_killed_process_is_restarted_to_the_same_bits(split_work: Path) -> None:
    config = tiny(steps=6, batch_size=32)
    assert fit_job(split_work, "whole", "none", config).returncode == 0
    done = fit_job(split_work, "killed", "kill:4", config, restarts=1)
    assert done.returncode == 0, done.stderr
    assert "resuming killed at step 4 of 6" in done.stderr
    assert difference(split_work / "runs/whole", split_work / "runs/killed") == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_what_processes_do_together(tmp_path: Path) -> None:
    """What the first one alone does, a sum whose bits do not depend on their number, and their end, also by an error.

    None begins before all have joined: what fails at once would break the connections of one that is slow to join.
    A thread of the exchange that is left at the interpreter's end may abort it.
    """
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    done = torchrun(script, processes=3)
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / rank).read_text() for rank in "012"] == ["[3, 0, 0]"] * 3


TOGETHER = """
import os, time, torch
from pathlib import Path
from saukit.core.errors import Interrupted, UsageError
from saukit.training.distributed import first_before_others, from_first, is_first, joined
from saukit.training.distributed import rank, size, sum_in_order, total


def threads():
    return sum("gloo" in task.read_text() for task in Path("/proc/self/task").glob("*/comm"))


def fails():
    raise Interrupted("stopped", 15) if size() == 1 else RuntimeError("not alone")


def slowly(*given, init=torch.distributed.init_process_group, **more):
    init(*given, **more)
    time.sleep(1)
    late.touch()


counts, late = [], Path(__file__).with_name("late")
if os.environ["RANK"] == "2":
    torch.distributed.init_process_group = slowly
with joined(torch.device("cpu")):
    assert late.exists()
    import torch.distributed.nn.functional
    assert total(torch.ones(2)).tolist() == [3, 3]
    assert from_first(lambda: (size(), rank(), int(os.environ["RANK"]))) == (1, 0, 0) and size() == 3
    assert first_before_others(lambda: int(os.environ["RANK"])) == rank()
    assert first_before_others(lambda: from_first(lambda: (size(), rank(), is_first()))) == (1, 0, rank() == 0)
    try:
        from_first(fails)
    except Interrupted as stopped:
        assert (str(stopped), stopped.exit_code) == ("stopped", 143)
    rows = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 5)[:, None]
    for shares in ((2, 2, 1), (0, 5, 0), (1, 0, 4)):
        mine = rows.split(shares)[rank()]
        assert torch.equal(sum_in_order(mine, shares), rows[0] + rows[1] + rows[2] + rows[3] + rows[4])
    counts.append(threads())
counts.append(threads())
os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"  # the addresses in the store are those of the first time
try:
    with joined(torch.device("cpu")):
        raise UsageError("wrong") if rank() == 1 else Interrupted("stopped", 15)
except (UsageError, Interrupted):
    counts.append(threads())
Path(__file__).with_name(os.environ["RANK"]).write_text(str(counts))
"""


@pytest.mark.slow
def test_one_message_for_all_processes(split_work: Path, tmp_path: Path) -> None:
    missing = torchrun("-m", "saukit", "train", "-w", tmp_path / "nothing")
    assert missing.returncode != 0
    assert missing.stderr.count("error: the split in") == 1
    assert "exitcode  : 3" in missing.stderr and "RuntimeError" not in missing.stderr
    # The first process alone finds what is wrong; the other one waits for it.
    (split_work / "runs" / "taken").mkdir(parents=True)
    (split_work / "runs" / "taken" / "notes.txt").write_text("mine")
    steps = ("--method", "ce", "--steps", "2", "--batch-size", "16", "-w", split_work)
    taken = job("-m", "saukit", "train", "--name", "taken", *steps)
    assert taken.stderr.count("exists but saukit did not write it") == 1
    assert "exitcode  : 2" in taken.stderr and "RuntimeError" not in taken.stderr
    # A command of one process.
    evaluated = job("-m", "saukit", "doctor")
    assert evaluated.returncode == 0 and evaluated.stdout.count("saukit doctor") == 1


@pytest.mark.slow
def test_the_silent_process_waits_for_a_first_one_that_is_slow(split_work: Path, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import os, time\nif os.environ['RANK'] == '0':\n    time.sleep(1.5)\nfrom saukit.cli.main import run\nrun()\n"
    )
    done = job(script, "compare", "--methods", "ce", "--jobs", "2", "-w", split_work)
    assert done.returncode != 0 and done.stderr.count("torchrun's processes share each training") == 1, done.stderr


@pytest.mark.slow
def test_other_commands_share_their_work(shared_work: Path, tmp_path: Path) -> None:
    """An evaluation and predictions have the bytes of one process; a comparison's runs are trained by both."""
    one, two = (shutil.copytree(shared_work, tmp_path / name) for name in ("one", "two"))
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(7):
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"images/{index}.png")
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    predict = ("predict", "sau", tmp_path / "images", "--batch-size", "2", "--skip-bad", "--out")
    compare = ("compare", "--methods", "ce,focal", "--seeds", "1", "--steps", "4", "--batch-size", "16")
    commands: dict[str, tuple[str | Path, ...]]
    commands = {"eval": ("eval", "--force"), "predict": predict, "compare": compare}
    for name, command in commands.items():
        for root, processes in ((one, 1), (two, 2)):
            out = [root / "predicted.csv"] if name == "predict" else []
            done = job("-m", "saukit", *command, *out, "-w", root, processes=processes)
            assert done.returncode == 0, done.stderr
    for path in ("predicted.csv", "runs/ce/errors.csv", "runs/ce/confusion.png"):
        assert (one / path).read_bytes() == (two / path).read_bytes(), path
    results = [json.loads((root / "runs/ce/results.json").read_text()) for root in (one, two)]
    assert results[0] == results[1]
    (comparison,) = (two / "comparisons").glob("*/compare.json")
    methods = json.loads(comparison.read_text())["methods"]
    assert [method["label"] for method in methods] == ["ce", "focal"]
    assert all(run["reused"] is False for method in methods for run in method["runs"])
    runs = [two / "runs" / run["name"] / "manifest.json" for method in methods for run in method["runs"]]
    manifests = [json.loads(path.read_text())["summary"] for path in runs]
    assert [summary["processes"] for summary in manifests] == [2, 2]
    again = job("-m", "saukit", *compare, "--jobs", "2", "-w", two)
    assert again.returncode != 0 and again.stderr.count("torchrun's processes share each training: leave --jobs") == 1
