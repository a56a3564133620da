"""The losses against plain loops that follow the papers, against boolean indexing, and against another library."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytorch_metric_learning.losses import SupConLoss
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saukit.training.losses import (
    NOISE_STRATEGIES,
    NoiseStrategy,
    balanced_contrastive_loss,
    class_balanced_weights,
    cross_entropy,
    focal_loss,
    inverse_frequency_weights,
    label_check,
    ldam_loss,
    ldam_margins,
    mixed_cross_entropy,
    prior_offsets,
    supervised_contrastive_loss,
    synthetic_aware_loss,
)

EXACT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-14}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: threads that wait for each other make these tests many times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def unit_vectors(*shape: int, seed: int) -> Tensor:
    draws = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return F.normalize(draws, dim=-1)


def value_and_gradients(loss: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    value = loss(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


def assert_same(ours: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


class HostWaits(TorchDispatchMode):
    """Collects the operations that would make the host wait for an accelerator, or break a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name.startswith("index") and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in (args[1] if isinstance(args[1], list) else [])
        )
        # lift_fresh is torch.tensor(numbers): on an accelerator a copy from pageable memory.
        if by_mask or name in {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount", "lift_fresh"}:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


# --- oracles: plain loops ----------------------------------------------------------------------------------------


def contrastive_loop(
    z: Tensor, labels: list[int], temperature: float, anchors: list[int], present: list[int]
) -> Tensor:
    """Khosla et al. 2020, Eq. 2, term by term."""
    terms = []
    for i in anchors:
        if i not in present:
            continue
        others = [a for a in present if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        if not positives:
            continue
        exponentials = torch.exp(z @ z[i] / temperature)
        denominator = exponentials[others].sum()
        logs = [torch.log(exponentials[p] / denominator) for p in positives]
        terms.append(-torch.stack(logs).sum() / len(positives))
    return torch.stack(terms).mean() if terms else z.sum() * 0


def trusted_loop(
    z2: Tensor, z3: Tensor, labels: list[int], synthetic: list[bool], prototypes2: Tensor, prototypes3: Tensor
) -> list[bool]:
    trusted = []
    for i in range(len(labels)):
        votes = []
        for z, prototypes in ((z2, prototypes2), (z3, prototypes3)):
            candidates = [(float(z[i] @ z[j]), labels[j]) for j in range(len(labels)) if not synthetic[j]]
            candidates += [(float(z[i] @ prototypes[k]), k) for k in range(len(prototypes))]
            votes.append(max(candidates)[1] == labels[i])
        trusted.append(not synthetic[i] or all(votes))
    return trusted


def synthetic_aware_loop(
    z2: Tensor,
    z3: Tensor,
    labels: list[int],
    trusted: list[bool],
    prototypes2: Tensor,
    prototypes3: Tensor,
    temperature: float,
    strategy: str,
) -> Tensor:
    """The 2 (b + K) embeddings one after the other, each strategy in its own words."""
    rows, row_labels, is_anchor = [], [], []
    own = 10_000
    for view, (z, prototypes) in enumerate(((z2, prototypes2), (z3, prototypes3))):
        for i, label in enumerate(labels):
            if trusted[i]:
                rows.append(z[i]), row_labels.append(label), is_anchor.append(True)
            elif strategy == "pos_neg":
                rows.append(z[i]), row_labels.append(own + i), is_anchor.append(True)
            elif strategy == "neg_only":  # a label that nobody shares, not even the other view
                rows.append(z[i]), row_labels.append(own * (view + 1) + i), is_anchor.append(False)
        for k in range(len(prototypes)):
            rows.append(prototypes[k]), row_labels.append(k), is_anchor.append(True)
    anchors = [i for i, yes in enumerate(is_anchor) if yes]
    return contrastive_loop(torch.stack(rows), row_labels, temperature, anchors, list(range(len(rows))))


def synthetic_aware_by_anchor(
    z2: Tensor,
    z3: Tensor,
    labels: Tensor,
    synthetic: Tensor,
    prototypes2: Tensor,
    prototypes3: Tensor,
    *,
    temperature: float,
    strategy: str,
) -> tuple[Tensor, Tensor]:
    """Label check and loss one sample, then one anchor at a time, each with sets of its own: fast for many classes.

    No labels are invented here and nothing is masked: who is whose positive is said in terms of samples.
    """
    batch, classes = len(labels), len(prototypes2)
    trusted = torch.ones(batch, dtype=torch.bool)
    for i in synthetic.nonzero()[:, 0].tolist():
        for z, prototypes in ((z2, prototypes2), (z3, prototypes3)):
            real, real_labels = z[~synthetic] @ z[i], labels[~synthetic]
            nearest_class = (prototypes @ z[i]).argmax()
            if len(real) and real.max() > (prototypes @ z[i]).max():
                nearest_class = real_labels[real.argmax()]
            trusted[i] &= nearest_class == labels[i]

    sample = torch.arange(batch + classes).repeat(2)  # which sample or prototype a row shows
    row_labels = torch.cat((labels, torch.arange(classes))).repeat(2)
    clean = torch.cat((trusted, torch.ones(classes, dtype=torch.bool))).repeat(2)
    z = torch.cat((z2, prototypes2, z3, prototypes3))
    if strategy == "drop":
        z, sample, row_labels, clean = z[clean], sample[clean], row_labels[clean], clean[clean]
    terms = []
    for i in range(len(z)):
        others = torch.arange(len(z)) != i
        if clean[i]:
            positives = others & clean & (row_labels == row_labels[i])
        elif strategy == "pos_neg":
            positives = others & (sample == sample[i])
        else:
            continue
        similarity = z @ z[i] / temperature
        terms.append(similarity[others].logsumexp(0) - similarity[positives].mean())
    return torch.stack(terms).mean(), trusted


def scene(classes: int, batch: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A batch near its class centres, with some labels wrong, so that the label check has both to find."""
    draws = torch.Generator().manual_seed(1000 + seed)
    centres = unit_vectors(classes, 16, seed=seed)
    true = torch.randint(classes, (batch,), generator=draws)
    wrong = torch.rand(batch, generator=draws) < 0.3
    labels = torch.where(wrong, torch.randint(classes, (batch,), generator=draws), true)
    synthetic = torch.rand(batch, generator=draws) < 0.6
    z2, z3 = (F.normalize(centres[true] + 0.5 * unit_vectors(batch, 16, seed=seed + k), dim=1) for k in (1, 2))
    prototypes2, prototypes3 = (
        F.normalize(centres + 0.2 * unit_vectors(classes, 16, seed=seed + k), dim=1) for k in (3, 4)
    )
    return z2, z3, labels, synthetic, prototypes2, prototypes3


# --- cross-entropies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixed_cross_entropy_is_the_soft_form(lam: float) -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=draws)
    labels_a, labels_b = torch.randint(4, (2, 6), generator=draws)
    soft = lam * F.one_hot(labels_a, 4).double() + (1 - lam) * F.one_hot(labels_b, 4).double()
    expected = value_and_gradients(lambda x: F.cross_entropy(x, soft), logits)
    for weight in (lam, torch.tensor(lam, dtype=torch.float64)):
        assert_same(
            value_and_gradients(lambda x, w=weight: mixed_cross_entropy(x, labels_a, labels_b, w), logits), expected
        )


def test_balanced_softmax_is_the_definition() -> None:
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=draws)
    labels, counts = torch.randint(4, (6,), generator=draws), torch.tensor([500, 90, 12, 1])

    def loop(scores: Tensor) -> Tensor:
        terms = []
        for i, label in enumerate(labels.tolist()):
            weighted = [float(counts[k]) * scores[i, k].exp() for k in range(4)]
            terms.append(-torch.log(weighted[label] / sum(weighted)))
        return torch.stack(terms).mean()

    offsets = prior_offsets(counts.double(), 1.0)
    assert_same(
        value_and_gradients(lambda x: cross_entropy(x + offsets, labels), logits), value_and_gradients(loop, logits)
    )
    even = cross_entropy(logits + prior_offsets(torch.full((4,), 7.0), 1.0), labels)
    torch.testing.assert_close(even, F.cross_entropy(logits, labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize("tau", [0.0, 0.75, 2.0])
def test_prior_offsets_multiply_each_class_by_a_power_of_its_count(tau: float) -> None:
    """Menon et al. 2021, Eq. 10, with shares pi_k = n_k / N in place of the counts."""
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, generator=draws)
    labels, counts = torch.randint(4, (6,), generator=draws), [500, 90, 12, 1]

    def loop(scores: Tensor) -> Tensor:
        terms = []
        for i, label in enumerate(labels.tolist()):
            weighted = [(counts[k] / 603) ** tau * scores[i, k].exp() for k in range(4)]
            terms.append(-torch.log(weighted[label] / sum(weighted)))
        return torch.stack(terms).mean()

    offsets = prior_offsets(torch.tensor(counts).double(), tau)
    assert_same(
        value_and_gradients(lambda x: cross_entropy(x + offsets, labels), logits), value_and_gradients(loop, logits)
    )
    if tau == 0:
        assert torch.equal(offsets, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_weighted_cross_entropy_is_the_weighted_mean(share: float) -> None:
    draws = torch.Generator().manual_seed(3)
    logits = torch.randn(9, 4, dtype=torch.float64, generator=draws)
    labels = torch.randint(4, (9,), generator=draws)
    weights = torch.where(torch.rand(9, generator=draws) < share, 0.25, 1.0).double()

    def loop(scores: Tensor) -> Tensor:
        total, weight = scores.new_zeros(()), 0.0
        for i, label in enumerate(labels.tolist()):
            total = total - float(weights[i]) * torch.log(scores[i, label].exp() / scores[i].exp().sum())
            weight += float(weights[i])
        return total / weight

    expected = value_and_gradients(loop, logits)
    assert_same(value_and_gradients(lambda x: cross_entropy(x, labels, weights=weights), logits), expected)
    if share in (0.0, 1.0):  # equal weights, however small: the step is no smaller
        assert_same(value_and_gradients(lambda x: F.cross_entropy(x, labels), logits), expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_label_smoothing_is_soft_cross_entropy_against_smoothed_targets(weighted: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    labels, others = (torch.randint(4, (6,), generator=draw) for _ in range(2))
    weights = (torch.rand(6, generator=draw) + 0.1, torch.rand(6, generator=draw) + 0.1)

    def plain(parts: list[tuple[Tensor, Tensor, float]], smoothing: float) -> float:
        total = scale = 0.0
        for of, weight, part in parts:
            for i in range(6):
                target = [smoothing / 4 + (1 - smoothing) * (k == int(of[i])) for k in range(4)]
                log_p = logits[i].log_softmax(0).tolist()
                own = part * (float(weight[i]) if weighted else 1.0)
                total -= own * sum(p * value for p, value in zip(target, log_p, strict=True))
                scale += own
        return total / scale

    single = cross_entropy(logits, labels, weights=weights[0] if weighted else None, smoothing=0.2)
    assert float(single) == pytest.approx(plain([(labels, weights[0], 1.0)], 0.2), rel=1e-6)
    mixed = mixed_cross_entropy(logits, labels, others, 0.3, weights=weights if weighted else None, smoothing=0.2)
    parts = [(labels, weights[0], 0.3), (others, weights[1], 0.7)]
    assert float(mixed) == pytest.approx(plain(parts, 0.2), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_focal_loss_is_the_definition(gamma: float) -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0], [30.0, 0.0, 0.0], [0.0, 3.0, 1.0]], dtype=torch.float64)
    labels, weights = torch.tensor([0, 0, 2]), torch.tensor([1.0, 2.0, 0.5])
    rows = zip(logits.tolist(), labels.tolist(), strict=True)
    chances = [math.exp(row[label]) / sum(map(math.exp, row)) for row, label in rows]
    losses = [-((1 - p) ** gamma) * math.log(p) for p in chances]
    assert float(focal_loss(logits, labels, gamma=gamma)) == pytest.approx(sum(losses) / 3)
    expected = sum(w * loss for w, loss in zip((1.0, 2.0, 0.5), losses, strict=True)) / 3.5
    assert float(focal_loss(logits, labels, gamma=gamma, weights=weights)) == pytest.approx(expected)


def test_inverse_frequency_weights_are_scikit_learns() -> None:
    labels = np.repeat(np.arange(3), (50, 10, 2))
    found = inverse_frequency_weights(torch.tensor([50.0, 10.0, 2.0]))
    theirs = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert found.tolist() == pytest.approx((theirs / theirs.mean()).tolist())


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_weighted_mixed_cross_entropy_weighs_each_label_by_its_own_image(lam: float) -> None:
    draws = torch.Generator().manual_seed(4)
    logits = torch.randn(9, 4, dtype=torch.float64, generator=draws)
    labels = torch.randint(4, (2, 9), generator=draws)
    weights = torch.where(torch.rand(2, 9, generator=draws) < 0.5, 0.25, 1.0).double()
    assert {tuple(pair) for pair in weights.T.tolist()} == {(a, b) for a in (0.25, 1.0) for b in (0.25, 1.0)}

    def loop(scores: Tensor) -> Tensor:
        total, weight = scores.new_zeros(()), 0.0
        for i in range(9):
            for side, share in ((0, lam), (1, 1 - lam)):
                label, w = int(labels[side, i]), share * float(weights[side, i])
                total = total - w * torch.log(scores[i, label].exp() / scores[i].exp().sum())
                weight += w
        return total / weight

    expected = value_and_gradients(loop, logits)
    for number in (lam, torch.tensor(lam, dtype=torch.float64)):
        ours = value_and_gradients(
            lambda x, n=number: mixed_cross_entropy(x, labels[0], labels[1], n, weights=(weights[0], weights[1])),
            logits,
        )
        assert_same(ours, expected)
    equal = torch.full((9,), 0.25, dtype=torch.float64)
    assert_same(
        value_and_gradients(
            lambda x: mixed_cross_entropy(x, labels[0], labels[1], lam, weights=(equal, equal)), logits
        ),
        value_and_gradients(lambda x: mixed_cross_entropy(x, labels[0], labels[1], lam), logits),
    )


def test_gradients_of_the_weighted_losses_are_numerically_right() -> None:
    draws = torch.Generator().manual_seed(5)
    logits = torch.randn(5, 3, dtype=torch.float64, generator=draws).requires_grad_()
    labels = torch.randint(3, (2, 5), generator=draws)
    weights = torch.tensor([[1.0, 0.25, 1.0, 0.25, 0.25], [0.25, 0.25, 1.0, 1.0, 1.0]], dtype=torch.float64)
    offsets = prior_offsets(torch.tensor([90.0, 10.0, 2.0], dtype=torch.float64), 0.75)
    assert torch.autograd.gradcheck(lambda x: cross_entropy(x + offsets, labels[0], weights=weights[0]), logits)
    assert torch.autograd.gradcheck(
        lambda x: mixed_cross_entropy(x + offsets, labels[0], labels[1], 0.3, weights=(weights[0], weights[1])), logits
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cross_entropies_are_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.tensor([[60.0, -60.0, 3.0], [0.5, 0.25, -8.0]], dtype=dtype)
    labels, weights = torch.tensor([1, 2]), torch.tensor([1.0, 0.25])
    for loss, expected in (
        (mixed_cross_entropy(logits, labels, labels, 0.5), F.cross_entropy(logits.float(), labels)),
        (
            mixed_cross_entropy(logits, labels, labels, 0.5, weights=(weights, weights)),
            cross_entropy(logits.float(), labels, weights=weights),
        ),
        (cross_entropy(logits, labels), F.cross_entropy(logits.float(), labels)),
        (cross_entropy(logits, labels, weights=weights), cross_entropy(logits.float(), labels, weights=weights)),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected)


# --- label check -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("batch", [4, 16, 64])
def test_label_check_is_the_loop(classes: int, batch: int) -> None:
    found = set()
    for seed in range(4):
        z2, z3, labels, synthetic, prototypes2, prototypes3 = scene(classes, batch, 10 * seed)
        trusted = label_check(z2, z3, labels, synthetic, prototypes2, prototypes3)
        expected = trusted_loop(z2, z3, labels.tolist(), synthetic.tolist(), prototypes2, prototypes3)
        assert trusted.tolist() == expected
        found |= {(s, t) for s, t in zip(synthetic.tolist(), expected, strict=True)}
    assert found == {(False, True), (True, True), (True, False)}


def test_label_check_asks_real_neighbours_in_both_views() -> None:
    """Class 0 lies at x, class 1 at y; sample 0 is real, 1 to 4 are synthetic."""
    x, y = [1.0, 0.0], [0.0, 1.0]
    near_x, near_y = [0.8, 0.6], [0.6, 0.8]
    prototypes = torch.tensor([x, y])
    labels, synthetic = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([False, True, True, True, True])
    # Sample 0 is a real 1 that lies at near_x: it outvotes the prototype of class 0 there.
    z2 = torch.tensor([near_x, near_x, x, near_x, x])
    z3 = torch.tensor([near_x, x, x, near_x, near_y])
    trusted = label_check(z2, z3, labels, synthetic, prototypes, prototypes)
    assert trusted.tolist() == [True, False, True, True, False]


@pytest.mark.parametrize("all_synthetic", [True, False])
def test_label_check_of_one_kind_only(all_synthetic: bool) -> None:
    z2, z3, labels, _, prototypes2, prototypes3 = scene(10, 32, 0)
    synthetic = torch.full((32,), all_synthetic)
    trusted = label_check(z2, z3, labels, synthetic, prototypes2, prototypes3)
    if all_synthetic:
        nearest2, nearest3 = (z2 @ prototypes2.T).argmax(dim=1), (z3 @ prototypes3.T).argmax(dim=1)
        assert torch.equal(trusted, (nearest2 == labels) & (nearest3 == labels))
        assert 0 < trusted.sum() < 32
    else:
        assert trusted.all()


# --- supervised contrastive loss ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 24])
@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_loss_is_the_loop(n: int, masked: bool) -> None:
    for seed in range(3):
        draws = torch.Generator().manual_seed(seed)
        z, labels = unit_vectors(n, 8, seed=seed), torch.randint(3, (n,), generator=draws)
        anchors, present = torch.rand(2, n, generator=draws) < 0.6
        rows = list(range(n))
        masks = {"anchors": anchors, "present": present} if masked else {}
        chosen = ([i for i in rows if anchors[i]], [i for i in rows if present[i]]) if masked else (rows, rows)
        ours = value_and_gradients(
            lambda e, y=labels, m=masks: supervised_contrastive_loss(e, y, temperature=0.2, **m), z
        )
        expected = value_and_gradients(lambda e, y=labels, c=chosen: contrastive_loop(e, y.tolist(), 0.2, *c), z)
        assert_same(ours, expected)


def test_contrastive_loss_equals_pytorch_metric_learning() -> None:
    z = unit_vectors(40, 16, seed=0)
    labels = torch.randint(6, (40,), generator=torch.Generator().manual_seed(0))
    other = SupConLoss(temperature=0.1)
    ours = value_and_gradients(lambda e: supervised_contrastive_loss(e, labels, temperature=0.1), z)
    expected = value_and_gradients(lambda e: other(F.normalize(e, dim=1), labels), z)
    torch.testing.assert_close(ours[0], expected[0], rtol=1e-9, atol=0)
    # That library normalises once more, which removes the radial part of the gradient.
    tangential = ours[1] - (ours[1] * z).sum(dim=1, keepdim=True) * z
    torch.testing.assert_close(tangential, expected[1], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(
    ("labels", "masks"),
    [
        ([0, 1, 2, 3], {}),
        ([0, 0, 1, 1], {"anchors": [False] * 4}),
        ([0, 0, 1, 1], {"present": [False] * 4}),
        ([0, 0, 1, 1], {"present": [True, False, False, False]}),
        ([0, 0, 1, 1], {"anchors": [True, True, False, False], "present": [False, False, True, True]}),
        ([5], {}),
    ],
)
def test_contrastive_loss_without_anchors_is_zero(labels: list[int], masks: dict[str, list[bool]]) -> None:
    for dtype in (torch.float32, torch.float64):
        value, gradient = value_and_gradients(
            lambda e: supervised_contrastive_loss(
                e, torch.tensor(labels), temperature=0.1, **{k: torch.tensor(v) for k, v in masks.items()}
            ),
            unit_vectors(len(labels), 8, seed=0).to(dtype),
        )
        assert value == 0
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.1, 0.01, 0.001])
def test_contrastive_loss_does_not_overflow_under_autocast(dtype: torch.dtype, temperature: float) -> None:
    z = unit_vectors(32, 16, seed=0).to(dtype)
    labels = torch.arange(32) % 4
    with torch.autocast("cpu", dtype=dtype):
        value, gradient = value_and_gradients(
            lambda e: supervised_contrastive_loss(e, labels, temperature=temperature), z
        )
    assert value.dtype == torch.float32 and value.isfinite() and gradient.isfinite().all()
    expected = supervised_contrastive_loss(z.double(), labels, temperature=temperature)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)


def test_contrastive_loss_of_equal_embeddings() -> None:
    """All alike: every term is log(n - 1)."""
    z = torch.zeros(6, 4)
    z[:, 0] = 1
    value = supervised_contrastive_loss(z, torch.tensor([0, 0, 0, 1, 1, 1]), temperature=0.07)
    assert value.item() == pytest.approx(math.log(5), rel=1e-6)


# --- synthetic-aware loss ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", NOISE_STRATEGIES)
@pytest.mark.parametrize(("classes", "batch"), [(10, 4), (10, 16), (10, 64), (100, 4), (100, 24)])
def test_synthetic_aware_loss_is_the_loop(strategy: NoiseStrategy, classes: int, batch: int) -> None:
    z2, z3, labels, synthetic, prototypes2, prototypes3 = scene(classes, batch, 7 * batch)
    rest = (labels, synthetic, prototypes2, prototypes3)
    loss, trusted = synthetic_aware_loss(z2, z3, *rest, temperature=0.1, strategy=strategy)
    expected_trust = trusted_loop(z2, z3, labels.tolist(), synthetic.tolist(), prototypes2, prototypes3)
    assert loss.dtype == torch.float64
    assert trusted.tolist() == expected_trust
    ours = value_and_gradients(
        lambda a, b: synthetic_aware_loss(a, b, *rest, temperature=0.1, strategy=strategy)[0], z2, z3
    )
    expected = value_and_gradients(
        lambda a, b: synthetic_aware_loop(
            a, b, labels.tolist(), expected_trust, prototypes2, prototypes3, 0.1, strategy
        ),
        z2,
        z3,
    )
    assert_same(ours, expected)


@pytest.mark.parametrize("strategy", NOISE_STRATEGIES)
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_synthetic_aware_loss_is_that_of_each_anchor(strategy: NoiseStrategy, classes: int) -> None:
    z2, z3, *rest = scene(classes, 128, classes)
    ours, expected = (
        value_and_gradients(lambda a, b, form=form: form(a, b)[0], z2, z3)
        for form in (
            lambda a, b: synthetic_aware_loss(a, b, *rest, temperature=0.1, strategy=strategy),
            lambda a, b: synthetic_aware_by_anchor(a, b, *rest, temperature=0.1, strategy=strategy),
        )
    )
    assert_same(ours, expected)
    _, trusted = synthetic_aware_loss(z2, z3, *rest, temperature=0.1, strategy=strategy)
    assert torch.equal(trusted, synthetic_aware_by_anchor(z2, z3, *rest, temperature=0.1, strategy=strategy)[1])
    _, synthetic, *_ = rest
    assert trusted[synthetic].any() and not trusted[synthetic].all()


@pytest.mark.parametrize("strategy", NOISE_STRATEGIES)
@pytest.mark.parametrize("synthetic_share", [0.0, 0.5, 1.0])
def test_synthetic_aware_loss_equals_boolean_indexing(strategy: NoiseStrategy, synthetic_share: float) -> None:
    z2, z3, labels, _, prototypes2, prototypes3 = scene(10, 48, 3)
    synthetic = torch.arange(48) < synthetic_share * 48
    noise = ~label_check(z2, z3, labels, synthetic, prototypes2, prototypes3)
    classes = torch.arange(10)

    def indexed(a: Tensor, b: Tensor) -> Tensor:
        keep = ~noise if strategy == "drop" else torch.ones_like(noise)
        view_labels = torch.cat((labels[keep], classes))
        z = torch.cat((a[keep], prototypes2, b[keep], prototypes3))
        own = torch.zeros(int(keep.sum()) + 10, dtype=torch.bool)
        own[: int(keep.sum())] = noise[keep]
        view_labels[own] = 100 + torch.arange(int(own.sum()))
        y, is_noise = view_labels.repeat(2), own.repeat(2)
        n = len(z)
        off_diagonal = ~torch.eye(n, dtype=torch.bool)
        similarity = (z @ z.T / 0.1)[off_diagonal].view(n, n - 1)
        positive = (y[:, None] == y)[off_diagonal].view(n, n - 1)
        log_share = similarity.log_softmax(dim=1)
        rows = ~is_noise if strategy == "neg_only" else torch.ones_like(is_noise)
        return -((log_share * positive).sum(dim=1) / positive.sum(dim=1))[rows].mean()

    ours = value_and_gradients(
        lambda a, b: synthetic_aware_loss(
            a, b, labels, synthetic, prototypes2, prototypes3, temperature=0.1, strategy=strategy
        )[0],
        z2,
        z3,
    )
    assert noise.any() == (synthetic_share > 0)
    assert_same(ours, value_and_gradients(indexed, z2, z3))


def test_strategies_differ_only_where_there_is_noise() -> None:
    inputs = scene(10, 32, 5)
    losses = {s: synthetic_aware_loss(*inputs, temperature=0.1, strategy=s)[0].item() for s in NOISE_STRATEGIES}
    assert len(set(losses.values())) == 3
    z2, z3, labels, _, prototypes2, prototypes3 = inputs
    real = torch.zeros(32, dtype=torch.bool)
    clean = {
        synthetic_aware_loss(z2, z3, labels, real, prototypes2, prototypes3, temperature=0.1, strategy=s)[0].item()
        for s in NOISE_STRATEGIES
    }
    assert len(clean) == 1


def test_prototypes_have_no_gradient() -> None:
    z2, z3, labels, synthetic, prototypes2, prototypes3 = scene(10, 8, 0)
    z2, z3, prototypes2, prototypes3 = (t.requires_grad_() for t in (z2, z3, prototypes2, prototypes3))
    loss, _ = synthetic_aware_loss(
        z2, z3, labels, synthetic, prototypes2, prototypes3, temperature=0.1, strategy="pos_neg"
    )
    loss.backward()
    assert prototypes2.grad is None and prototypes3.grad is None
    assert z2.grad is not None and z2.grad.abs().sum() > 0


@pytest.mark.parametrize("strategy", NOISE_STRATEGIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_synthetic_aware_loss_under_autocast(strategy: NoiseStrategy, dtype: torch.dtype) -> None:
    z2, z3, labels, synthetic, prototypes2, prototypes3 = scene(10, 32, 0)
    half2, half3 = z2.to(dtype).requires_grad_(), z3.to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        loss, _ = synthetic_aware_loss(
            half2,
            half3,
            labels,
            synthetic,
            prototypes2.float(),
            prototypes3.float(),
            temperature=0.05,
            strategy=strategy,
        )
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite()
    assert half2.grad is not None and half2.grad.isfinite().all()
    expected, _ = synthetic_aware_loss(
        half2.detach().double(),
        half3.detach().double(),
        labels,
        synthetic,
        prototypes2.float().double(),
        prototypes3.float().double(),
        temperature=0.05,
        strategy=strategy,
    )
    torch.testing.assert_close(loss.detach().double(), expected, rtol=1e-5, atol=0)


def test_nothing_makes_the_host_wait() -> None:
    z2, z3, labels, synthetic, prototypes2, prototypes3 = scene(10, 16, 0)
    logits, counts = unit_vectors(16, 10, seed=1).requires_grad_(), torch.arange(1, 11)
    lam, z2 = torch.tensor(0.3), z2.requires_grad_()
    with HostWaits() as waits:
        loss = mixed_cross_entropy(logits, labels, labels.flip(0), lam)
        adjusted, weights = logits + prior_offsets(counts.float(), 0.75), torch.full((16,), 0.5)
        loss = loss + cross_entropy(adjusted, labels) + cross_entropy(adjusted, labels, weights=weights)
        loss = loss + mixed_cross_entropy(adjusted, labels, labels.flip(0), lam, weights=(weights, weights))
        for strategy in NOISE_STRATEGIES:
            loss = (
                loss
                + synthetic_aware_loss(
                    z2, z3, labels, synthetic, prototypes2, prototypes3, temperature=0.1, strategy=strategy
                )[0]
            )
        loss.backward()
    assert waits.found == []


# --- bad input ---------------------------------------------------------------------------------------------------


def test_bad_input_is_named() -> None:
    z, labels = unit_vectors(4, 8, seed=0), torch.zeros(4, dtype=torch.int64)
    synthetic, prototypes = labels == 0, unit_vectors(3, 8, seed=1)
    with pytest.raises(ValueError, match=r"labels must be \[n\] = \[4\], got \[3\]"):
        supervised_contrastive_loss(z, labels[:3], temperature=0.1)
    with pytest.raises(ValueError, match=r"present must be \[n\] = \[4\], got \[4, 1\]"):
        supervised_contrastive_loss(z, labels, temperature=0.1, present=synthetic[:, None])
    with pytest.raises(
        ValueError, match=r"labels must be \[4\], got \[2\]; prototypes3 must be \[3, 8\], got \[2, 8\]"
    ):
        label_check(z, z, labels[:2], synthetic, prototypes, prototypes[:2])
    with pytest.raises(ValueError, match=r"labels must be \[b\] = \[4\], got \[3\]"):
        mixed_cross_entropy(z, labels, labels[:3], 0.5)
    with pytest.raises(ValueError, match=r"labels must be \[b\] = \[4\], got \[3\]"):
        cross_entropy(z, labels[:3])
    with pytest.raises(ValueError, match=r"weights must be \[b\] = \[4\], got \[3\]"):
        cross_entropy(z, labels, weights=torch.ones(3))
    for pair in ((torch.ones(4), torch.ones(3)), (torch.ones(3), torch.ones(4))):
        with pytest.raises(ValueError, match=r"weights must be \[b\] = \[4\], got \[3\]"):
            mixed_cross_entropy(z, labels, labels, 0.5, weights=pair)


# --- balanced contrastive learning --------------------------------------------------------------------------------


def plain_balanced_contrastive(z: Tensor, labels: Tensor, prototypes: Tensor, temperature: float) -> Tensor:
    """Zhu et al. 2022, one anchor at a time: each class is in the denominator with the mean of its terms."""
    terms = []
    for i in range(len(z)):
        members: dict[int, list[Tensor]] = {k: [prototypes[k]] for k in range(len(prototypes))}
        for j in range(len(z)):
            if j != i:
                members[int(labels[j])].append(z[j])
        denominator = sum(
            sum(torch.exp(z[i] @ vector / temperature) for vector in vectors) / len(vectors)
            for vectors in members.values()
        )
        own = members[int(labels[i])]
        terms.append(-sum(torch.log(torch.exp(z[i] @ p / temperature) / denominator) for p in own) / len(own))
    return sum(terms) / len(terms)  # type: ignore[return-value]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "classes", "present"), [(8, 3, 3), (12, 5, 2), (2, 4, 1), (9, 2, 2)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_balanced_contrastive_loss_is_the_plain_loop(
    n: int, classes: int, present: int, temperature: float, seed: int
) -> None:
    z, prototypes = unit_vectors(n, 6, seed=seed), unit_vectors(classes, 6, seed=100 + seed)
    labels = torch.randint(present, (n,), generator=torch.Generator().manual_seed(seed))
    assert_same(
        value_and_gradients(
            lambda a, b: balanced_contrastive_loss(a, labels, b, temperature=temperature), z, prototypes
        ),
        value_and_gradients(lambda a, b: plain_balanced_contrastive(a, labels, b, temperature), z, prototypes),
    )


def test_with_classes_of_one_size_the_balanced_loss_is_the_supervised_one_up_to_what_averaging_takes() -> None:
    """All classes have m terms but the anchor's own, which has m - 1: with m large both losses agree up to log m."""
    labels = torch.arange(3).repeat(40)
    z, prototypes = unit_vectors(120, 5, seed=0), unit_vectors(3, 5, seed=1)
    balanced = balanced_contrastive_loss(z, labels, prototypes, temperature=1.0)
    everything, both = torch.cat((z, prototypes)), torch.cat((labels, torch.arange(3)))
    anchors = torch.arange(123) < 120
    supervised = supervised_contrastive_loss(everything, both, temperature=1.0, anchors=anchors)
    assert float(balanced) == pytest.approx(float(supervised) - math.log(41), abs=0.02)


def test_balanced_contrastive_loss_of_half_precision_is_computed_in_float32_and_waits_for_nothing() -> None:
    z, prototypes = unit_vectors(10, 8, seed=0).bfloat16(), unit_vectors(4, 8, seed=1).bfloat16()
    labels = torch.arange(10) % 4
    with HostWaits() as waits:
        loss = balanced_contrastive_loss(z, labels, prototypes, temperature=0.1)
    assert waits.found == []
    assert loss.dtype == torch.float32
    assert float(loss) == float(balanced_contrastive_loss(z.float(), labels, prototypes.float(), temperature=0.1))


@pytest.mark.parametrize(
    ("labels", "prototypes", "message"),
    [
        (3, (2, 4), r"labels must be \[n\] = \[5\] and prototypes \[K, d\] with d = 4, got \[3\] and \[2, 4\]"),
        (5, (2, 3), r"labels must be \[n\] = \[5\] .* got \[5\] and \[2, 3\]"),
    ],
)
def test_balanced_contrastive_loss_refuses_what_does_not_fit(
    labels: int, prototypes: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        balanced_contrastive_loss(
            torch.zeros(5, 4), torch.zeros(labels).long(), torch.zeros(prototypes), temperature=0.1
        )


# --- margins and weights by the number of images ------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[5000.0, 500.0, 50.0], [2.0, 2.0], [1.0, 100.0]])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 1 - 1e-9])
def test_class_balanced_weights_are_those_of_the_effective_number(counts: list[float], beta: float) -> None:
    from fractions import Fraction  # exact: at beta near 1 floating point would lose the digits

    exact = Fraction(beta)
    effective = [1 / (1 - exact ** int(count)) if beta else Fraction(1) for count in counts]
    mean = sum(effective) / len(effective)
    found = class_balanced_weights(torch.tensor(counts), beta=beta)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([float(weight / mean) for weight in effective], rel=1e-5)


def test_ldam_margins_grow_with_the_fourth_root() -> None:
    assert ldam_margins(torch.tensor([1600.0, 100.0, 16.0, 1.0]).double(), largest=0.5).tolist() == pytest.approx(
        [0.5 / 1600**0.25, 0.5 / 100**0.25, 0.25, 0.5]
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_ldam_is_cross_entropy_with_the_true_cosine_lowered(weighted: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    logits = 30 * (2 * torch.rand(7, 4, dtype=torch.float64, generator=draws) - 1)
    labels = torch.randint(4, (7,), generator=draws)
    margins = torch.tensor([0.1, 0.2, 0.3, 0.5], dtype=torch.float64)
    weights = torch.rand(7, dtype=torch.float64, generator=draws) if weighted else torch.ones(7, dtype=torch.float64)
    lowered = logits.clone()
    for i, label in enumerate(labels.tolist()):
        lowered[i, label] -= 30 * float(margins[label])
    terms = F.cross_entropy(lowered, labels, reduction="none")
    found = ldam_loss(logits, labels, margins, scale=30, weights=weights if weighted else None)
    torch.testing.assert_close(found, (terms * weights).sum() / weights.sum(), **EXACT)
    without = ldam_loss(logits, labels, 0 * margins, scale=30)
    torch.testing.assert_close(without, F.cross_entropy(logits, labels), **EXACT)


def test_ldam_refuses_another_number_of_labels() -> None:
    with pytest.raises(ValueError, match=r"labels must be \[b\] = \[5\], got \[3\]"):
        ldam_loss(torch.zeros(5, 4), torch.zeros(3).long(), torch.zeros(4), scale=30)
