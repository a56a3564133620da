"""The training set and the order it is visited in."""

import inspect
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from saukit.core.console import Reporter
from saukit.core.workspace import Workspace
from saukit.data.config import SplitConfig
from saukit.data.split import Split, load_split, make_split
from saukit.data.synthetic import SyntheticImages, load_cache
from saukit.training.config import Method
from saukit.training.methods import METHODS
from saukit.training.training_set import (
    Batch,
    BatchOrder,
    Residence,
    StoredImages,
    TrainingSet,
    batches_per_epoch,
    build_training_set,
    choose_residence,
)

CPU = torch.device("cpu")


def numbered(count: int, *, residence: Residence = "device") -> TrainingSet:
    """A training set whose labels and images are their own positions."""
    positions = torch.arange(count)
    images = (positions % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return TrainingSet(images, positions, positions >= count // 2, count // 2, residence)


def assert_same(one: Batch, other: Batch) -> None:
    for a, b in zip(astuple(one), astuple(other), strict=True):
        assert torch.equal(a, b)


def epoch_of(order: BatchOrder, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in A and in B of one epoch."""
    first = epoch * order.steps_per_epoch
    batches = [order.batch(step) for step in range(first, first + order.steps_per_epoch)]
    return torch.cat([batch.labels for batch in batches]), torch.cat([batch.partner_labels for batch in batches])


def test_real_images_come_first_and_nothing_is_lost(shared_work: Path) -> None:
    workspace = Workspace(shared_work)
    split = load_split(workspace)
    cache = load_cache(workspace, split)
    training_set = build_training_set(split, cache, CPU)
    real, synthetic = len(split.train.labels), len(cache.labels)
    assert (real, synthetic, len(training_set), training_set.real_count) == (392, 62, 454, 392)
    assert np.array_equal(training_set.images[:real].numpy(), np.asarray(split.train.images))
    assert np.array_equal(training_set.images[real:].numpy(), cache.images[:])
    assert training_set.labels.tolist() == [*split.train.labels.tolist(), *cache.labels.tolist()]
    assert training_set.synthetic.tolist() == [False] * real + [True] * synthetic


def test_without_a_cache_nothing_is_synthetic(shared_work: Path) -> None:
    split = load_split(Workspace(shared_work))
    training_set = build_training_set(split, None, CPU)
    assert len(training_set) == training_set.real_count == len(split.train.labels)
    assert not training_set.synthetic.any()


@pytest.mark.parametrize("residence", ["device", "host"])
def test_images_are_the_parts_in_both_residences(shared_work: Path, residence: Residence) -> None:
    workspace = Workspace(shared_work)
    split = load_split(workspace)
    cache = load_cache(workspace, split)
    both, alone = (build_training_set(split, extra, CPU, residence=residence) for extra in (cache, None))
    assert both.residence == alone.residence == residence
    assert np.array_equal(np.asarray(both.images), np.concatenate([np.asarray(split.train.images), cache.images]))
    # One part is not copied: with a cache its images are in memory twice, without one they are there once.
    assert np.shares_memory(np.asarray(alone.images), np.asarray(split.train.images))
    assert not np.shares_memory(np.asarray(both.images), np.asarray(split.train.images))


@pytest.mark.parametrize(
    ("needed", "free", "expected"),
    [(0, 0, "device"), (50, 100, "device"), (51, 100, "host"), (1, 0, "host"), (300 << 30, 139 << 30, "host")],
)
def test_images_take_half_of_the_free_memory_at_most(needed: int, free: int, expected: Residence) -> None:
    assert choose_residence(needed, free) == expected


def test_on_a_processor_images_stay_where_they_are(shared_work: Path) -> None:
    assert build_training_set(load_split(Workspace(shared_work)), None, CPU).residence == "device"


def test_where_the_images_are_in_words() -> None:
    training_set = replace(numbered(100), images=torch.empty(4096, 3, 10, 10, dtype=torch.uint8))
    assert training_set.describe() == "images in memory (1.2 MiB)"
    elsewhere = replace(
        training_set, labels=training_set.labels.to("meta")
    )  # the one device but the CPU that is always there
    assert elsewhere.describe() == "images resident on meta (1.2 MiB)"
    assert replace(elsewhere, residence="host").describe() == "images in host memory (1.2 MiB), copied batch by batch"


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_each_epoch_is_a_permutation_in_both_batches(epoch: int) -> None:
    a, b = epoch_of(BatchOrder(numbered(96), 16, seed=0), epoch)
    assert sorted(a.tolist()) == sorted(b.tolist()) == list(range(96))
    assert a.tolist() != list(range(96))


def test_only_whole_batches_and_no_sample_twice() -> None:
    order = BatchOrder(numbered(100), 16, seed=0)
    assert order.steps_per_epoch == 6
    seen = [epoch_of(order, epoch)[0] for epoch in range(8)]
    assert [len(set(positions.tolist())) for positions in seen] == [96] * 8
    # Who is left out changes from epoch to epoch, so nobody always is.
    assert set(torch.cat(seen).tolist()) == set(range(100))


@pytest.mark.parametrize("residence", ["device", "host"])
def test_a_last_batch_that_is_kept_brings_every_sample_once(residence: Residence) -> None:
    order = BatchOrder(numbered(100, residence=residence), 16, 0, drop_last=False)
    batches = [order.batch(step) for step in range(order.steps_per_epoch)]
    assert [len(batch.labels) for batch in batches] == [16] * 6 + [4]
    assert (
        [len(batch.images) for batch in batches] == [len(batch.partner_images) for batch in batches] == [16] * 6 + [4]
    )
    assert sorted(torch.cat([batch.labels for batch in batches]).tolist()) == list(range(100))
    assert sorted(torch.cat([batch.partner_labels for batch in batches]).tolist()) == list(range(100))


def test_a_last_batch_of_one_image_is_left_out() -> None:
    assert [batches_per_epoch(count, 16, drop_last=False) for count in (97, 98, 96, 1)] == [6, 7, 6, 1]


def test_a_set_smaller_than_the_batch_is_one_batch() -> None:
    order = BatchOrder(numbered(10), 128, seed=0)
    assert (order.batch_size, order.steps_per_epoch) == (10, 1)
    assert sorted(order.batch(3).labels.tolist()) == list(range(10))


def test_a_and_b_are_independent() -> None:
    """The pairs of an epoch: few meet themselves, and no fixed distance between A and B explains them."""
    a, b = epoch_of(BatchOrder(numbered(512), 16, seed=0), 0)
    assert int((a == b).sum()) < 10  # 1 is expected; at 10 the chance is 1e-7
    assert len(set(((a - b) % 512).tolist())) > 256  # 1 - 1/e of 512 is expected
    assert abs(float(torch.corrcoef(torch.stack((a.double(), b.double())))[0, 1])) < 0.2


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [
        tuple(positions.tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
        for positions in epoch_of(BatchOrder(numbered(64), 16, seed=seed), epoch)
    ]
    assert len(set(orders)) == 8


def long_tailed() -> TrainingSet:
    """60, 30, 9 and 1 images of four classes, in a mixed order; an image's first value is its label."""
    labels = torch.cat([torch.full((n,), c) for c, n in enumerate((60, 30, 9, 1))])
    labels = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    images = labels.to(torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2)
    return TrainingSet(images, labels, labels > 3, 100)


def test_class_balanced_batches_have_every_class_as_often_and_every_image_of_a_class() -> None:
    training_set = long_tailed()
    order = BatchOrder(training_set, 20, seed=0, class_balanced=True)
    batches = [order.batch(step) for step in range(400)]
    for labels in (
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.partner_labels for batch in batches]),
    ):
        counts = torch.bincount(labels).tolist()
        assert all(abs(count - 2000) < 5 * (8000 * 0.25 * 0.75) ** 0.5 for count in counts), counts
    rows = torch.cat([order._rows(step)[1][0] for step in range(400)])
    drawn = torch.bincount(rows, minlength=100)
    assert int(drawn.min()) > 0
    of_head = drawn[
        training_set.labels == 0
    ].double()  # 2,000 draws of 60 images: chi-squared with 59 degrees of freedom
    assert 25 < float(((of_head - of_head.mean()) ** 2 / of_head.mean()).sum()) < 110
    assert not torch.equal(batches[0].labels, batches[0].partner_labels)
    assert torch.equal(batches[7].images[:, 0, 0, 0].long(), batches[7].labels)


def test_balanced_partners_are_class_balanced_and_the_batch_is_what_it_was() -> None:
    order, plain = (BatchOrder(long_tailed(), 20, seed=0, balanced_partners=on) for on in (True, False))
    batches = [order.batch(step) for step in range(400)]
    counts = torch.bincount(torch.cat([batch.partner_labels for batch in batches])).tolist()
    assert all(abs(count - 2000) < 5 * (8000 * 0.25 * 0.75) ** 0.5 for count in counts), counts
    assert all(torch.equal(batches[step].images, plain.batch(step).images) for step in range(10))


def test_class_balanced_batches_are_the_same_when_jumped_to_and_others_in_each_epoch() -> None:
    walked, jumped = (BatchOrder(long_tailed(), 20, seed=3, class_balanced=True) for _ in range(2))
    for before in range(13):
        walked.batch(before)
    assert torch.equal(walked.batch(13).labels, jumped.batch(13).labels)
    first, second = (jumped._rows(step)[1] for step in (0, 5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("step", [1, 5, 6, 7, 23, 100])
def test_a_step_is_the_same_when_it_is_jumped_to(step: int) -> None:
    walked, jumped = BatchOrder(numbered(100), 16, seed=3), BatchOrder(numbered(100), 16, seed=3)
    for before in range(step):
        walked.batch(before)
    one, other = walked.batch(step), jumped.batch(step)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.partner_labels, other.partner_labels)


def test_batches_of_real_images_alone_are_permutations_of_those() -> None:
    order = BatchOrder(numbered(96), 16, seed=0, real_only=True)
    assert order.steps_per_epoch == 3
    for batches in epoch_of(order, 0), epoch_of(order, 2):
        for positions in batches:
            assert sorted(positions.tolist()) == list(range(48))
    batch = order.batch(5)
    assert not batch.synthetic.any() and not batch.partner_synthetic.any()
    assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
    assert BatchOrder(numbered(20), 16, seed=0, real_only=True).batch_size == 10


def test_class_balanced_batches_of_real_images_alone() -> None:
    """60, 30, 9 and 1 real images, and as many synthetic ones of the last three classes as make them 60."""
    tail = long_tailed()
    labels = torch.cat((tail.labels, torch.tensor([1] * 30 + [2] * 51 + [3] * 59)))
    training_set = replace(
        tail,
        images=labels.to(torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2),
        labels=labels,
        synthetic=torch.arange(240) >= 100,
    )
    order = BatchOrder(training_set, 20, seed=0, class_balanced=True, real_only=True)
    rows = torch.cat([order._rows(step)[1].flatten() for step in range(300)])
    assert set(rows.tolist()) == set(range(100))
    drawn = torch.bincount(labels[rows]).double()
    assert float(drawn.max() / drawn.min()) < 1.15
    assert not order.batch(7).synthetic.any()


def test_a_batch_holds_what_belongs_together() -> None:
    batch = BatchOrder(numbered(64), 16, seed=0).batch(2)
    assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
    assert torch.equal(batch.partner_images[:, 0, 0, 0].long(), batch.partner_labels)
    assert torch.equal(batch.synthetic, batch.labels >= 32)
    assert torch.equal(batch.partner_synthetic, batch.partner_labels >= 32)
    assert not torch.equal(batch.synthetic, batch.partner_synthetic)


# --- images in host memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "batch_size"), [(100, 16), (96, 16), (10, 128), (16, 16)])
def test_images_in_host_memory_make_the_same_batches(count: int, batch_size: int) -> None:
    order, expected = (
        BatchOrder(numbered(count, residence=residence), batch_size, seed=3) for residence in ("host", "device")
    )
    for step in range(3 * order.steps_per_epoch):
        assert_same(order.batch(step), expected.batch(step))


def test_images_in_host_memory_at_a_jump() -> None:
    order, expected = (BatchOrder(numbered(100, residence=residence), 16, seed=3) for residence in ("host", "device"))
    # On, over an epoch's end (5 to 6), the same again, back within and across epochs, far ahead.
    for step in (0, 1, 5, 6, 6, 7, 3, 5, 5, 40, 41, 0):
        assert_same(order.batch(step), expected.batch(step))


def test_a_batch_handed_out_is_not_changed_by_later_ones() -> None:
    order, expected = (BatchOrder(numbered(100, residence=residence), 16, seed=3) for residence in ("host", "device"))
    kept = [order.batch(step) for step in range(9)]
    for step, batch in enumerate(kept):
        assert_same(batch, expected.batch(step))


def test_each_batch_is_gathered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []
    select = torch.index_select

    def counted(source: torch.Tensor, dim: int, rows: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        gathered.append(len(rows))
        return select(source, dim, rows, out=out)

    monkeypatch.setattr(torch, "index_select", counted)
    order = BatchOrder(numbered(100, residence="host"), 16, seed=0)
    for step in range(14):
        order.batch(step)
    assert gathered == [32] * 15  # A and B together, and one batch ahead
    order.batch(3)
    assert len(gathered) == 17


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_to_a_gpu_overtake_nothing() -> None:
    """Batches are read late, behind long computations, and dropped early, so that a reused buffer would show."""
    gpu = torch.device("cuda", 0)
    positions = torch.arange(4096)
    images = (positions % 251).to(torch.uint8)[:, None, None, None].expand(-1, 3, 64, 64).contiguous()
    on_gpu = TrainingSet(images, positions.to(gpu), (positions < 0).to(gpu), 4096, "host")
    order, busy = BatchOrder(on_gpu, 128, seed=0), torch.rand(4096, 4096, device=gpu)
    wrong = torch.zeros((), dtype=torch.int64, device=gpu)
    for step in range(3 * order.steps_per_epoch):
        batch = order.batch(step)
        busy = (busy @ busy).clamp(0, 1)
        for pixels, labels in ((batch.images, batch.labels), (batch.partner_images, batch.partner_labels)):
            wrong += (pixels != (labels % 251).to(torch.uint8)[:, None, None, None]).sum()
    assert int(wrong) == 0


# --- encoded images on disk --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Digits at 72 pixels, which are stored encoded."""
    workspace = Workspace(tmp_path_factory.mktemp("photos"))
    config = SplitConfig(image_size=72, imb=10, val_fraction=0.1)
    make_split(config, workspace, root=None, force=False, reporter=Reporter(quiet=True))
    return load_split(workspace)


@pytest.fixture(scope="module")
def on_disk_and_in_memory(photos: Split) -> tuple[TrainingSet, TrainingSet]:
    """The same samples, the last ones synthetic and in memory."""
    synthetic = np.random.default_rng(0).integers(0, 256, (9, 3, 72, 72), dtype=np.uint8)
    cache = SyntheticImages(synthetic, np.arange(9), np.arange(9), photos.manifest)
    in_memory = replace(photos, train=replace(photos.train, images=np.asarray(photos.train.images)))
    return build_training_set(photos, cache, CPU), build_training_set(in_memory, cache, CPU)


def test_encoded_images_stay_on_disk(on_disk_and_in_memory: tuple[TrainingSet, TrainingSet]) -> None:
    on_disk, in_memory = on_disk_and_in_memory
    assert (on_disk.residence, in_memory.residence) == ("disk", "device")
    assert on_disk.describe().startswith("images on disk (") and on_disk.images.nbytes < in_memory.images.nbytes
    assert on_disk.images.shape == in_memory.images.shape and len(on_disk.images) == len(in_memory.images)
    assert torch.equal(on_disk.labels, in_memory.labels) and on_disk.real_count == in_memory.real_count


def test_images_on_disk_make_the_same_batches(on_disk_and_in_memory: tuple[TrainingSet, TrainingSet]) -> None:
    order, expected = (BatchOrder(one, 64, seed=3) for one in on_disk_and_in_memory)
    last = expected.steps_per_epoch
    for step in (0, 1, last - 1, last, last, 3, 2 * last + 1):
        assert_same(order.batch(step), expected.batch(step))


def test_without_partners_they_are_not_decoded(
    on_disk_and_in_memory: tuple[TrainingSet, TrainingSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk, in_memory = on_disk_and_in_memory
    decoded: list[int] = []
    take = StoredImages.__getitem__

    def counted(self: StoredImages, rows: torch.Tensor) -> torch.Tensor:
        decoded.append(rows.numel())
        return take(self, rows)

    monkeypatch.setattr(StoredImages, "__getitem__", counted)
    order, expected = BatchOrder(on_disk, 32, 1, partners=False), BatchOrder(in_memory, 32, 1, partners=False)
    for step in range(3):
        batch, other = order.batch(step), expected.batch(step)
        assert torch.equal(batch.images, other.images) and torch.equal(batch.labels, other.labels)
        assert batch.partner_images.shape == (0, 3, 72, 72)
    order._sent = None
    assert decoded == [32] * len(decoded)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_says_whether_it_reads_partners(method: Method) -> None:
    """A step that read images of B which are not there would fail, or train on nothing."""
    source = inspect.getsource(METHODS[method].step)
    called = [name for name in ("mixup_cutmix_step", "sau_step", "_mixed_views") if f"{name}(" in source]
    reads = "partner_images" in source or bool(called)
    assert METHODS[method].partners == reads
