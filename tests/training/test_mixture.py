"""The mixed training set and the order it is visited in."""

from pathlib import Path

import numpy as np
import pytest
import torch

from saukit.core.errors import EnvironmentFault
from saukit.core.workspace import Workspace
from saukit.data.split import load_split
from saukit.synthesis.cache import load_cache
from saukit.training.mixture import BatchOrder, Mixture, build_mixture

CPU = torch.device("cpu")


def numbered(count: int) -> Mixture:
    """A mixture whose labels and images are their own positions."""
    positions = torch.arange(count)
    images = (positions % 256).to(torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return Mixture(images, positions, positions >= count // 2, torch.ones(count), count // 2)


def epoch_of(order: BatchOrder, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in A and in B of one epoch."""
    first = epoch * order.steps_per_epoch
    batches = [order.batch(step) for step in range(first, first + order.steps_per_epoch)]
    return torch.cat([batch.labels for batch in batches]), torch.cat([batch.partner_labels for batch in batches])


def test_real_images_come_first_and_nothing_is_lost(shared_work: Path) -> None:
    workspace = Workspace(shared_work)
    split = load_split(workspace)
    cache = load_cache(workspace, split)
    mixture = build_mixture(split, cache, CPU)
    real, synthetic = len(split.train.labels), len(cache.labels)
    assert (real, synthetic, len(mixture), mixture.real_count) == (392, 62, 454, 392)
    assert np.array_equal(mixture.images[:real].numpy(), split.train.images)
    assert np.array_equal(mixture.images[real:].numpy(), cache.images)
    assert mixture.labels.tolist() == [*split.train.labels.tolist(), *cache.labels.tolist()]
    assert mixture.synthetic.tolist() == [False] * real + [True] * synthetic
    counts = [int((mixture.labels == label).sum()) for label in range(10)]
    assert mixture.class_counts.tolist() == counts
    assert min(counts) == 20


def test_without_a_cache_nothing_is_synthetic(shared_work: Path) -> None:
    split = load_split(Workspace(shared_work))
    mixture = build_mixture(split, None, CPU)
    assert len(mixture) == mixture.real_count == len(split.train.labels)
    assert not mixture.synthetic.any()
    assert mixture.class_counts.tolist() == split.class_counts.tolist()


def test_images_that_do_not_fit_on_the_device_are_refused(shared_work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1024, 2048))
    with pytest.raises(EnvironmentFault, match=r"take 74 KiB but cuda:0 has 1\.0 KiB free.*smaller --image-size"):
        build_mixture(load_split(Workspace(shared_work)), None, torch.device("cuda", 0))


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


@pytest.mark.parametrize("step", [1, 5, 6, 7, 23, 100])
def test_a_step_is_the_same_when_it_is_jumped_to(step: int) -> None:
    walked, jumped = BatchOrder(numbered(100), 16, seed=3), BatchOrder(numbered(100), 16, seed=3)
    for before in range(step):
        walked.batch(before)
    one, other = walked.batch(step), jumped.batch(step)
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.partner_labels, other.partner_labels)


def test_a_batch_holds_what_belongs_together() -> None:
    batch = BatchOrder(numbered(64), 16, seed=0).batch(2)
    assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.labels)
    assert torch.equal(batch.partner_images[:, 0, 0, 0].long(), batch.partner_labels)
    assert torch.equal(batch.synthetic, batch.labels >= 32)
