"""The methods against a plain re-computation, image by image, in float32 on a tiny network."""

import copy
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from support import resolved
from torch import Tensor

from saukit.core.device import Precision
from saukit.models.dual_branch import DualBranchNet
from saukit.training import context as context_room
from saukit.training.config import Method, TrainConfig
from saukit.training.context import StepContext, class_prototypes
from saukit.training.losses import balanced_contrastive_loss
from saukit.training.methods import METHODS, logit_offsets
from saukit.training.training_set import Batch
from saukit.training.views import Views

CLASSES, SIDE, BATCH = 3, 8, 12
NOISES = ("pos_neg", "neg_only", "drop")
# No prior and no weights; a prior; weights; both.
KNOBS = [(0.0, 1.0), (0.75, 1.0), (0.0, 0.25), (0.75, 0.5)]
COUNTS = [50.0, 10.0, 2.0]
pytestmark = pytest.mark.usefixtures("narrow_projection")


def views(*, flip: bool = True) -> Views:
    return Views(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25]), flip)


def network(seed: int, *, projection: bool = True, **heads: Any) -> DualBranchNet:
    torch.manual_seed(seed)
    return DualBranchNet("convnet-small", CLASSES, projection=projection, **heads).train()


def network_of(method: Any, seed: int) -> DualBranchNet:
    entry = METHODS[method]
    heads = {name: getattr(entry, name) for name in ("projection", "class_projection", "consistency", "classifier")}
    return network(seed, **heads)


def batch(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)

    def images() -> Tensor:
        return torch.randint(256, (BATCH, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)

    def labels() -> Tensor:
        return torch.randint(CLASSES, (BATCH,), generator=draw)

    def synthetic() -> Tensor:
        return torch.rand(BATCH, generator=draw) < 0.6

    return Batch(images(), labels(), synthetic(), images(), labels(), synthetic())


def unit_rows(seed: int, dimensions: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    one, other = (F.normalize(torch.randn(CLASSES, dimensions, generator=draw), dim=1) for _ in range(2))
    return one, other


def context_of(net: DualBranchNet, seed: int, *, tau: float = 0.0, **fields: Any) -> StepContext:
    options = ("noise", "temperature", "synthetic_weight", "label_smoothing", "as_published")
    own = {name: fields.pop(name) for name in options if name in fields}
    given: dict[str, Any] = {
        "network": net,
        "views": views(),
        "precision": Precision("off", "cpu"),
        "config": resolved(**own),
        "class_counts": torch.tensor(COUNTS),
        "logit_offsets": tau * torch.tensor(COUNTS).log(),
        "generator": torch.Generator().manual_seed(seed),
        "prototypes": unit_rows(99, 16) if net.projection is not None else None,
    }
    return StepContext(**{**given, **fields})


# --- plain loops --------------------------------------------------------------------------------------------------


def plain_cross_entropy(logits: Tensor, target: list[float]) -> float:
    largest = max(logits.tolist())
    log_sum = largest + math.log(sum(math.exp(value - largest) for value in logits.tolist()))
    return -sum(share * (value - log_sum) for share, value in zip(target, logits.tolist(), strict=True))


def one_hot_mix(label_a: int, label_b: int, share: float) -> list[float]:
    target = [0.0] * CLASSES
    target[label_a] += share
    target[label_b] += 1 - share
    return target


def plain_weighted_mean(logits: Tensor, data: Batch, share: float, *, tau: float, weight: float) -> float:
    """Each label's term with the weight of the image that the label is of; share 1 takes the labels of A alone."""
    sides = [(data.labels, data.synthetic, share), (data.partner_labels, data.partner_synthetic, 1 - share)]
    total = weights = 0.0
    for i in range(BATCH):
        scores = [value + tau * math.log(count) for value, count in zip(logits[i].tolist(), COUNTS, strict=True)]
        for labels, synthetic, part in sides:
            own = part * (weight if bool(synthetic[i]) else 1.0)
            label = int(labels[i])
            total += own * plain_cross_entropy(torch.tensor(scores), one_hot_mix(label, label, 1.0))
            weights += own
    return total / weights


def plain_trust(z2: Tensor, z3: Tensor, data: Batch, prototypes: tuple[Tensor, Tensor]) -> list[bool]:
    trusted = []
    for i in range(BATCH):
        agrees = True
        for z, rows in ((z2, prototypes[0]), (z3, prototypes[1])):
            candidates = [(float(z[i] @ z[j]), int(data.labels[j])) for j in range(BATCH) if not data.synthetic[j]]
            candidates += [(float(z[i] @ rows[k]), k) for k in range(CLASSES)]
            agrees = agrees and max(candidates)[1] == int(data.labels[i])
        trusted.append(agrees or not bool(data.synthetic[i]))
    return trusted


def plain_contrastive(
    z2: Tensor, z3: Tensor, data: Batch, prototypes: tuple[Tensor, Tensor], trusted: list[bool], config: TrainConfig
) -> float:
    """Khosla et al. 2020, Eq. 2, over rows (vector, label, may be an anchor)."""
    rows: list[tuple[Tensor, object, bool]] = []
    for view, (z, prototype) in enumerate(((z2, prototypes[0]), (z3, prototypes[1]))):
        for i in range(BATCH):
            if trusted[i]:
                rows.append((z[i], int(data.labels[i]), True))
            elif config.noise == "pos_neg":
                rows.append((z[i], f"own label of {i}", True))
            elif config.noise == "neg_only":
                rows.append((z[i], f"nobody's label {i} {view}", False))
        rows += [(row, k, True) for k, row in enumerate(prototype)]
    terms = []
    for i, (anchor, label, may) in enumerate(rows):
        positives = [j for j, row in enumerate(rows) if j != i and row[1] == label]
        if not may or not positives:
            continue
        similarity = [float(anchor.double() @ row[0].double()) / config.temperature for row in rows]
        log_sum = math.log(sum(math.exp(value) for j, value in enumerate(similarity) if j != i))
        terms.append(-sum(similarity[j] - log_sum for j in positives) / len(positives))
    return sum(terms) / len(terms)


def plain_sau(
    net: DualBranchNet, data: Batch, context: StepContext, *, tau: float = 0.0, weight: float = 1.0
) -> dict[str, float]:
    """Section 2 of the design with nothing of the package but the four views and the network."""
    generator, prototypes = context.generator, context.prototypes
    assert prototypes is not None
    first = context.views.crop_flip(data.images, generator)
    second = context.views.crop_flip(data.partner_images, generator)
    lam = float(torch.rand((), generator=generator))
    mixed = torch.stack([lam * first[i] + (1 - lam) * second[i] for i in range(BATCH)])
    of_box = float(torch.rand((), generator=generator)) if context.config.as_published else lam
    centre_y, centre_x = (int(torch.randint(SIDE, (), generator=generator)) for _ in range(2))
    half = int(math.sqrt(1 - of_box) * SIDE)
    pasted = [
        (y, x)
        for y in range(centre_y - half // 2, centre_y - half // 2 + half)
        for x in range(centre_x - half // 2, centre_x - half // 2 + half)
        if 0 <= y < SIDE and 0 <= x < SIDE
    ]
    cut = first.clone()
    for y, x in pasted:
        cut[:, :, y, x] = second[:, :, y, x]
    kept = 1 - len(pasted) / SIDE**2
    view2 = context.views.autoaugment(data.images, generator)
    view3 = context.views.simclr(data.images, generator)
    with torch.no_grad():
        logits_mixed, logits_cut = net(mixed), net(cut)
        z2, z3 = net.project(view2), net.project(view3)
    trusted = plain_trust(z2, z3, data, prototypes)

    return {
        "mixup": plain_weighted_mean(logits_mixed, data, lam, tau=tau, weight=weight),
        "cutmix": plain_weighted_mean(logits_cut, data, kept, tau=tau, weight=weight),
        "contrastive": plain_contrastive(z2, z3, data, prototypes, trusted, context.config),
        "lam": lam,
        "kept": kept,
        "trusted": sum(good and bool(data.synthetic[i]) for i, good in enumerate(trusted)),
    }


# --- the methods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("seed", range(4))
def test_sau_is_l_mix_plus_l_sc(seed: int, noise: Any, temperature: float) -> None:
    net = network(seed)
    options: dict[str, Any] = {"noise": noise, "temperature": temperature}
    expected = plain_sau(copy.deepcopy(net), batch(seed), context_of(net, seed, **options))
    context = context_of(net, seed, **options)
    found = {name: float(loss.detach()) for name, loss in METHODS["sau"].step(batch(seed), context)}
    assert list(found) == ["mixup", "cutmix", "contrastive"]
    assert found == pytest.approx({name: expected[name] for name in found}, rel=2e-5)
    assert int(context.metrics["trusted_images"]) == expected["trusted"]
    assert int(context.metrics["synthetic_images"]) == int(batch(seed).synthetic.sum())


@pytest.mark.parametrize("seed", range(3))
def test_sau_as_published_mixes_and_cuts_by_two_shares_and_every_pass_moves_the_projections_statistics(
    seed: int,
) -> None:
    net = network(seed)
    expected = plain_sau(copy.deepcopy(net), batch(seed), context_of(net, seed, as_published=True))
    own = plain_sau(copy.deepcopy(net), batch(seed), context_of(net, seed))
    taken: list[Tensor] = []
    separate = copy.deepcopy(net)
    handle = net.backbone.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0].detach().clone()))
    steps = METHODS["sau"].step(batch(seed), context_of(net, seed, as_published=True))
    found = {name: float(loss.detach()) for name, loss in steps}
    handle.remove()
    assert found == pytest.approx({name: expected[name] for name in found}, rel=2e-5)
    assert found["mixup"] == pytest.approx(own["mixup"], rel=2e-5)
    assert expected["kept"] != own["kept"]
    with torch.no_grad():
        for view in taken:
            separate.project(view)
    for name, value in net.named_buffers():
        torch.testing.assert_close(value, dict(separate.named_buffers())[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tau", "weight"), KNOBS)
@pytest.mark.parametrize("seed", range(3))
def test_prior_and_weights_touch_l_mix_and_nothing_else_of_sau(seed: int, tau: float, weight: float) -> None:
    net = network(seed)
    expected = plain_sau(copy.deepcopy(net), batch(seed), context_of(net, seed), tau=tau, weight=weight)
    context = context_of(net, seed, tau=tau, synthetic_weight=weight)
    found = {name: float(loss.detach()) for name, loss in METHODS["sau"].step(batch(seed), context)}
    assert found == pytest.approx({name: expected[name] for name in found}, rel=2e-5)
    without = dict(METHODS["sau"].step(batch(seed), context_of(network(seed), seed)))
    assert found["contrastive"] == float(without["contrastive"].detach())
    is_on = (tau, weight) != (0.0, 1.0)
    assert [found[name] != float(without[name].detach()) for name in ("mixup", "cutmix")] == [is_on, is_on]


@pytest.mark.parametrize(("tau", "weight"), KNOBS)
@pytest.mark.parametrize("seed", range(3))
def test_mixup_cutmix_is_the_synthetic_unaware_branch_to_the_bit(seed: int, tau: float, weight: float) -> None:
    options: dict[str, Any] = {"tau": tau, "synthetic_weight": weight}
    losses: dict[str, dict[str, float]] = {}
    gradients: dict[str, list[Tensor]] = {}
    for method in ("sau", "mixup-cutmix"):
        net = network(seed)
        steps = METHODS[method].step(batch(seed), context_of(net, seed, **options))  # type: ignore[index]
        losses[method] = {}
        for name, loss in steps:
            if name == "contrastive":
                break
            loss.backward()
            losses[method][name] = float(loss.detach())
        gradients[method] = [p.grad for p in net.backbone.parameters() if p.grad is not None]
    assert losses["sau"] == losses["mixup-cutmix"]
    assert list(losses["mixup-cutmix"]) == ["mixup", "cutmix"]
    for one, other in zip(gradients["sau"], gradients["mixup-cutmix"], strict=True):
        assert torch.equal(one, other)


def test_mixup_cutmix_needs_no_projection() -> None:
    net = network(0, projection=False)
    context = context_of(net, 0)
    assert context.prototypes is None
    assert [name for name, _ in METHODS["mixup-cutmix"].step(batch(0), context)] == ["mixup", "cutmix"]
    assert context.metrics == {}


def test_the_grid_above_has_clipped_boxes_and_both_kinds_of_synthetic_images() -> None:
    """Otherwise it could not tell lam' from lam, nor a label check from none."""
    runs = [plain_sau(network(seed), batch(seed), context_of(network(seed), seed)) for seed in range(6)]
    assert max(abs(run["kept"] - run["lam"]) for run in runs) > 0.1
    trusted, synthetic = sum(run["trusted"] for run in runs), sum(int(batch(s).synthetic.sum()) for s in range(6))
    assert 0 < trusted < synthetic


@pytest.mark.parametrize("noise", NOISES)
def test_the_noise_strategies_give_three_losses(noise: Any) -> None:
    losses = {}
    for name in NOISES:
        pairs = METHODS["sau"].step(batch(0), context_of(network(0), 0, noise=name))
        losses[name] = float(dict(pairs)["contrastive"].detach())
    assert [name for name in NOISES if losses[name] == losses[noise]] == [noise]


def test_cross_entropy_is_that_of_v1_of_a() -> None:
    net = network(1, projection=False)
    data, context = batch(1), context_of(net, 1)
    seen = context.views.crop_flip(data.images, torch.Generator().manual_seed(1))
    logits = copy.deepcopy(net)(seen)
    expected = sum(
        plain_cross_entropy(logits[i], one_hot_mix(label, label, 1.0)) for i, label in enumerate(data.labels.tolist())
    )
    found = [(name, float(loss)) for name, loss in METHODS["ce"].step(data, context)]
    assert found == [("ce", pytest.approx(expected / BATCH, rel=1e-5))]


@pytest.mark.parametrize(("method", "name"), [("ce", "ce"), ("balanced-softmax", "balanced_softmax")])
@pytest.mark.parametrize(("tau", "weight"), KNOBS)
def test_cross_entropy_with_prior_and_weights(method: Any, name: str, tau: float, weight: float) -> None:
    net = network(1, projection=False)
    data, context = batch(1), context_of(net, 1, tau=tau, synthetic_weight=weight)
    seen = context.views.crop_flip(data.images, torch.Generator().manual_seed(1))
    expected = plain_weighted_mean(copy.deepcopy(net)(seen), data, 1.0, tau=tau, weight=weight)
    found = [(key, float(loss)) for key, loss in METHODS[method].step(data, context)]
    assert found == [(name, pytest.approx(expected, rel=1e-5))]


def test_the_weights_of_a_batch() -> None:
    context = context_of(network(0, projection=False), 0, synthetic_weight=0.3)
    weights = context.weights(torch.tensor([True, False, False, True]))
    assert weights is not None
    assert weights.dtype == torch.float32
    assert weights.tolist() == pytest.approx([0.3, 1.0, 1.0, 0.3])


def test_a_smaller_weight_gives_synthetic_images_less_of_the_gradient() -> None:
    """In the limit they have none: the loss is that of the real images alone."""
    data = batch(1)
    losses = {}
    for weight in (1.0, 0.5, 1e-9):
        net = network(1, projection=False)
        losses[weight] = float(dict(METHODS["ce"].step(data, context_of(net, 1, synthetic_weight=weight)))["ce"])
    seen = views().crop_flip(data.images, torch.Generator().manual_seed(1))
    logits = network(1, projection=False)(seen)
    real = ~data.synthetic
    assert losses[1e-9] == pytest.approx(float(F.cross_entropy(logits[real], data.labels[real])), rel=1e-5)
    assert losses[1.0] == float(F.cross_entropy(logits, data.labels))
    assert min(losses[1.0], losses[1e-9]) < losses[0.5] < max(losses[1.0], losses[1e-9])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tau", [None, 0.0, 0.75, 1.0])
def test_offsets_are_those_of_the_real_counts_but_for_methods_with_a_prior_of_their_own(
    method: Any, tau: float | None
) -> None:
    found = logit_offsets(
        METHODS[method], tau, real_counts=torch.tensor(COUNTS), all_counts=torch.tensor([50.0, 30.0, 25.0])
    )
    expected = [(tau or 0.0) * math.log(count) for count in COUNTS]
    if method in ("balanced-softmax", "bcl"):
        expected = [math.log(50), math.log(30), math.log(25)]
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_balanced_softmax_adds_the_log_counts_of_the_training_set() -> None:
    net = network(2, projection=False)
    mixed = torch.tensor([50.0, 10.0, 2.0])
    offsets = logit_offsets(METHODS["balanced-softmax"], None, real_counts=torch.ones(3), all_counts=mixed)
    data, context = batch(2), context_of(net, 2, logit_offsets=offsets)
    seen = context.views.crop_flip(data.images, torch.Generator().manual_seed(2))
    logits = copy.deepcopy(net)(seen)
    prior = [math.log(50), math.log(10), math.log(2)]
    expected = 0.0
    for i, label in enumerate(data.labels.tolist()):
        shifted = torch.tensor([value + add for value, add in zip(logits[i].tolist(), prior, strict=True)])
        expected += plain_cross_entropy(shifted, one_hot_mix(label, label, 1.0))
    found = [(name, float(loss)) for name, loss in METHODS["balanced-softmax"].step(data, context)]
    assert found == [("balanced_softmax", pytest.approx(expected / BATCH, rel=1e-5))]


@pytest.mark.parametrize("second_stage", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_uses_the_views_it_says(method: Any, second_stage: bool) -> None:
    net = network_of(method, 0)
    passes = []
    net.backbone.register_forward_hook(lambda module, inputs, output: passes.append(len(inputs[0])))
    losses = [loss for _, loss in METHODS[method].step(batch(0), context_of(net, 0, second_stage=second_stage))]
    assert passes == [BATCH] * METHODS[method].views_per_step
    assert all(bool(loss.isfinite()) for loss in losses)


def test_methods_with_a_remedy_of_their_own_take_no_prior() -> None:
    assert set(METHODS) == set(get_args(Method))
    for name, entry in METHODS.items():
        own = entry.own_prior or entry.post_hoc or entry.class_balanced or entry.second_stage is not None
        own = own or name in ("class-weights", "glmc")
        assert entry.takes_prior is not own


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("second_stage", [False, True])
def test_ldam_lowers_the_true_cosine_and_defers_the_weights(second_stage: bool, weight: float) -> None:
    """Cao et al. 2019, in a plain loop: margins C / n^(1/4) of at most 0.5, cosines times 30, weights at the end."""
    net = network_of("ldam-drw", 3)
    data, context = batch(3), context_of(net, 3, second_stage=second_stage, synthetic_weight=weight)
    seen = context.views.crop_flip(data.images, torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = copy.deepcopy(net).backbone(seen)
    rows = net.classifier.weight.detach()
    effective = [(1 - 0.9999) / (1 - 0.9999**count) for count in COUNTS]
    total = weights = 0.0
    for i, label in enumerate(data.labels.tolist()):
        cosines = [float(features[i] @ row / (features[i].norm() * row.norm())) for row in rows]
        margin = 0.5 * (min(COUNTS) / COUNTS[label]) ** 0.25
        scores = [30 * (cosine - (margin if k == label else 0.0)) for k, cosine in enumerate(cosines)]
        own = (weight if bool(data.synthetic[i]) else 1.0) * (effective[label] if second_stage else 1.0)
        total += own * plain_cross_entropy(torch.tensor(scores), one_hot_mix(label, label, 1.0))
        weights += own
    found = [(name, float(loss.detach())) for name, loss in METHODS["ldam-drw"].step(data, context)]
    assert found == [("ldam", pytest.approx(total / weights, rel=1e-4))]


def test_crt_trains_all_and_then_the_classifier_alone() -> None:
    net = network_of("crt", 5)
    (name, loss), *others = METHODS["crt"].step(batch(5), context_of(net, 5))
    assert (name, others) == ("ce", [])
    assert float(loss) == float(dict(METHODS["ce"].step(batch(5), context_of(network_of("ce", 5), 5)))["ce"])

    before = copy.deepcopy(net.state_dict())
    (name, loss), *others = METHODS["crt"].step(batch(5), context_of(net, 5, second_stage=True))
    assert (name, others) == ("crt", [])
    loss.backward()
    learning = {key for key, parameter in net.named_parameters() if parameter.grad is not None}
    assert learning == {"classifier.weight", "classifier.bias"}
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training

    seen = views().crop_flip(batch(5).images, torch.Generator().manual_seed(5))
    expected = F.cross_entropy(copy.deepcopy(net).eval()(seen), batch(5).labels)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("method", ["focal", "class-weights"])
def test_focal_loss_and_class_weights_in_a_plain_loop(method: Any, weight: float) -> None:
    """(1 - p)^2 CE of Lin et al. 2017; weights 1 / n_k over their own sum, as torch has class weights."""
    net, data = network_of(method, 3), batch(3)
    seen = views().crop_flip(data.images, torch.Generator().manual_seed(3))
    logits = copy.deepcopy(net)(seen)
    total = weights = 0.0
    for i, label in enumerate(data.labels.tolist()):
        loss = plain_cross_entropy(logits[i], one_hot_mix(label, label, 1.0))
        own = (weight if bool(data.synthetic[i]) else 1.0) * (1 / COUNTS[label] if method == "class-weights" else 1.0)
        total += own * loss * ((1 - math.exp(-loss)) ** 2 if method == "focal" else 1.0)
        weights += own
    found = [float(loss) for _, loss in METHODS[method].step(data, context_of(net, 3, synthetic_weight=weight))]
    assert found == [pytest.approx(total / weights, rel=1e-5)]


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("seed", [0, 3, 6, 8])
def test_cmo_pastes_the_partner_onto_the_batch_in_half_of_the_steps(seed: int, weight: float) -> None:
    """Park et al. 2022, Algorithm 1, pixel by pixel; the seeds have both kinds of step."""
    net, data = network_of("cmo", seed), batch(seed)
    draw = torch.Generator().manual_seed(seed)
    first, second = (views().crop_flip(images, draw) for images in (data.images, data.partner_images))
    lam = float(torch.rand((), generator=draw))
    centre_y, centre_x = (int(torch.randint(SIDE, (), generator=draw)) for _ in range(2))
    half, share = int(math.sqrt(1 - lam) * SIDE), 1.0
    if float(torch.rand((), generator=draw)) < 0.5:
        for y in range(max(0, centre_y - half // 2), min(SIDE, centre_y - half // 2 + half)):
            for x in range(max(0, centre_x - half // 2), min(SIDE, centre_x - half // 2 + half)):
                first[:, :, y, x] = second[:, :, y, x]
                share -= 1 / SIDE**2
    assert (share < 1) is (seed in (6, 8))
    expected = plain_weighted_mean(copy.deepcopy(net)(first), data, share, tau=0.0, weight=weight)
    found = list(METHODS["cmo"].step(data, context_of(net, seed, synthetic_weight=weight)))
    assert [(name, float(loss)) for name, loss in found] == [("cmo", pytest.approx(expected, rel=1e-5))]


def test_cmo_begins_and_ends_with_cross_entropy() -> None:
    found = dict(METHODS["cmo"].step(batch(1), context_of(network_of("cmo", 1), 1, second_stage=True)))
    assert found == dict(METHODS["ce"].step(batch(1), context_of(network_of("ce", 1), 1)))


def test_synaug_is_mixup_and_then_its_last_layer() -> None:
    net, data = network_of("synaug", 2), batch(2)
    mixed = next(METHODS["mixup-cutmix"].step(data, context_of(copy.deepcopy(net), 2)))
    ((name, loss),) = METHODS["synaug"].step(data, context_of(net, 2))
    assert (name, float(loss)) == (mixed[0], float(mixed[1]))
    ((name, loss),) = METHODS["synaug"].step(data, context_of(net, 2, second_stage=True))
    loss.backward()
    assert name == "last_layer"
    assert {key for key, p in net.named_parameters() if p.grad is not None} == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize("method", [name for name in METHODS if METHODS[name].takes_smoothing])
@pytest.mark.parametrize("second_stage", [False, True])
def test_label_smoothing_adds_the_same_share_of_every_class_to_classification(method: Any, second_stage: bool) -> None:
    """The loss is linear in the target, so a half smoothed one lies half way to that of the uniform distribution."""
    losses = []
    for share in (0.0, 0.25, 0.5):
        context = context_of(network_of(method, 4), 4, second_stage=second_stage, label_smoothing=share)
        losses.append({name: float(loss.detach()) for name, loss in METHODS[method].step(batch(4), context)})
    for name in losses[0]:
        none, quarter, half = (found[name] for found in losses)
        assert quarter == pytest.approx((none + half) / 2, rel=1e-5)
        assert (none != half) is (name != "contrastive")


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_bcl_is_balanced_softmax_and_the_balanced_contrastive_loss(temperature: float) -> None:
    net, data = network_of("bcl", 6), batch(6)
    prior = torch.tensor(COUNTS).log()
    context, generator = (
        context_of(net, 6, logit_offsets=prior, temperature=temperature),
        torch.Generator().manual_seed(6),
    )
    copied = copy.deepcopy(net)
    logits = copied(context.views.autoaugment(data.images, generator)) + prior
    z1, z2 = copied.project_views(
        context.views.simclr(data.images, generator), context.views.simclr(data.images, generator)
    )
    weights = copied.classifier.weight
    prototypes = F.normalize(copied.class_projection(weights), dim=1)  # type: ignore[misc]
    expected = {
        "balanced_softmax": 2.0 * float(F.cross_entropy(logits, data.labels)),
        "contrastive": 0.6
        * float(
            balanced_contrastive_loss(
                torch.cat((z1, z2)), torch.cat((data.labels, data.labels)), prototypes, temperature=temperature
            )
        ),
    }
    losses = dict(METHODS["bcl"].step(data, context))
    assert {name: float(loss.detach()) for name, loss in losses.items()} == pytest.approx(expected, rel=1e-5)
    losses["contrastive"].backward()  # the prototypes teach the classifier
    assert net.classifier.weight.grad is not None
    assert float(net.classifier.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("done", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_glmc_in_a_plain_loop(seed: int, done: float, weight: float) -> None:
    """Du et al. 2023, pixel by pixel and label by label; gradients: that of the projections is stopped."""
    net, data = network_of("glmc", seed), batch(seed)
    copied, draw = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    first, second = (views().crop_flip(images, draw) for images in (data.images, data.partner_images))
    lam = float(torch.rand((), generator=draw))
    mixed = lam * first + (1 - lam) * second
    cut, second = (views().crop_flip(images, draw) for images in (data.images, data.partner_images))
    centre_y, centre_x = (int(torch.randint(SIDE, (), generator=draw)) for _ in range(2))
    half, share = int(math.sqrt(1 - lam) * SIDE), 1.0
    for y in range(max(0, centre_y - half // 2), min(SIDE, centre_y - half // 2 + half)):
        for x in range(max(0, centre_x - half // 2), min(SIDE, centre_x - half // 2 + half)):
            cut[:, :, y, x] = second[:, :, y, x]
            share -= 1 / SIDE**2
    assert 0 < share < 1

    rare = [count**-1.2 for count in COUNTS]
    of_class = [value / (sum(rare) / CLASSES) for value in rare]
    heads, outputs = copied.consistency, []
    assert heads is not None
    expected = torch.zeros(())
    for pixels, kept in ((mixed, lam), (cut, share)):
        features = copied.backbone(pixels)
        projected = heads["projection"](features)
        outputs.append((projected, heads["prediction"](projected)))
        plain, own = heads["classifier"](features).log_softmax(1), copied.classifier(features).log_softmax(1)
        terms: dict[str, list[Tensor]] = {"plain": [], "own": []}
        counted, class_weights = 0.0, 0.0
        for i in range(BATCH):
            sides = ((data.labels, data.synthetic, kept), (data.partner_labels, data.partner_synthetic, 1 - kept))
            for labels, synthetic, part in sides:
                label, factor = int(labels[i]), part * (weight if bool(synthetic[i]) else 1.0)
                terms["plain"].append(-factor * plain[i, label])
                terms["own"].append(-factor * of_class[label] * own[i, label])
                counted += factor
                class_weights += factor * of_class[label]
        scale = sum(
            kept * of_class[a] + (1 - kept) * of_class[b]
            for a, b in zip(data.labels.tolist(), data.partner_labels.tolist(), strict=True)
        )
        expected = expected + (1 - done**2) * sum(terms["plain"]) / counted
        expected = expected + done**2 * sum(terms["own"]) / class_weights * scale / BATCH
    for (_, predicted), (other, _) in (outputs, reversed(outputs)):
        for i in range(BATCH):
            expected = expected - 4 * F.cosine_similarity(predicted[i], other[i].detach(), dim=0) / BATCH
    expected.backward()

    context = context_of(net, seed, done=torch.tensor(done), synthetic_weight=weight)
    ((name, loss),) = METHODS["glmc"].step(data, context)
    loss.backward()
    assert (name, float(loss)) == ("glmc", pytest.approx(float(expected), rel=2e-5, abs=2e-5))
    for own, its in zip(net.parameters(), copied.parameters(), strict=True):
        assert own.grad is not None and its.grad is not None
        torch.testing.assert_close(own.grad, its.grad, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize("noise", NOISES)
def test_before_the_label_check_every_label_is_trusted_and_there_are_no_prototypes(noise: Any) -> None:
    net, data = network(2), batch(2)
    nothing = torch.zeros(CLASSES, 16)
    context = context_of(net, 2, noise=noise, prototypes=(nothing, nothing))
    found = dict(METHODS["sau-aware"].step(data, context))["contrastive"]
    copied, draw = network(2), torch.Generator().manual_seed(2)
    context.views.crop_flip(data.images, draw)
    with torch.no_grad():
        z2 = copied.project(context.views.autoaugment(data.images, draw))
        z3 = copied.project(context.views.simclr(data.images, draw))
    none = torch.zeros(0, 16), torch.zeros(0, 16)
    expected = plain_contrastive(z2, z3, data, none, [True] * BATCH, context.config)
    assert float(found.detach()) == pytest.approx(expected, rel=2e-5)
    assert int(context.metrics["synthetic_images"]) == int(context.metrics["trusted_images"]) == 0
    found.backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("noise", NOISES)
def test_sau_without_its_unaware_branch_is_cross_entropy_and_the_same_contrastive_loss(noise: Any) -> None:
    data = batch(2)
    net, context = network_of("sau-aware", 2), context_of(network(2), 2, noise=noise)
    found = {
        name: float(loss.detach()) for name, loss in METHODS["sau-aware"].step(data, context_of(net, 2, noise=noise))
    }
    assert list(found) == ["ce", "contrastive"]
    assert found["ce"] == float(dict(METHODS["ce"].step(data, context_of(network(2), 2)))["ce"])
    generator, prototypes = torch.Generator().manual_seed(2), context.prototypes
    context.views.crop_flip(data.images, generator)
    copied = network(2)
    with torch.no_grad():
        z2 = copied.project(context.views.autoaugment(data.images, generator))
        z3 = copied.project(context.views.simclr(data.images, generator))
    assert prototypes is not None
    trusted = plain_trust(z2, z3, data, prototypes)
    assert found["contrastive"] == pytest.approx(
        plain_contrastive(z2, z3, data, prototypes, trusted, context.config), rel=2e-5
    )


def test_a_step_waits_for_backward_before_the_next_forward_pass() -> None:
    net = network(0)
    passes = []
    net.backbone.register_forward_hook(lambda module, inputs, output: passes.append(1))
    losses = METHODS["sau"].step(batch(0), context_of(net, 0))
    assert [(next(losses)[0], len(passes)) for _ in range(3)] == [("mixup", 1), ("cutmix", 2), ("contrastive", 4)]


def test_a_step_leaves_the_statistics_of_four_separate_passes() -> None:
    """BatchNorm of each view on its own; one pass over all four views together would leave others."""
    net, data = network(4), batch(4)
    separate, together = copy.deepcopy(net), copy.deepcopy(net)
    taken: list[Tensor] = []
    handle = net.backbone.register_forward_pre_hook(lambda module, inputs: taken.append(inputs[0].detach().clone()))
    list(METHODS["sau"].step(data, context_of(net, 4)))
    handle.remove()
    with torch.no_grad():
        separate(taken[0])
        separate(taken[1])
        separate.project(taken[2])
        separate.project(taken[3])
        together(torch.cat(taken))
    statistics = {name: value for name, value in net.named_buffers() if name.startswith("backbone")}
    assert all(torch.equal(value, dict(separate.named_buffers())[name]) for name, value in net.named_buffers())
    counts = {name: int(value) for name, value in net.named_buffers() if name.endswith("num_batches_tracked")}
    assert {count for name, count in counts.items() if name.startswith("backbone")} == {4}
    assert {count for name, count in counts.items() if name.startswith("projection")} == {2}
    means = [name for name in statistics if name.endswith("running_mean")]
    assert not any(torch.allclose(statistics[name], dict(together.named_buffers())[name]) for name in means)


def test_the_same_generator_gives_the_same_losses_and_another_gives_others() -> None:
    runs = [[float(loss) for _, loss in METHODS["sau"].step(batch(0), context_of(network(0), s))] for s in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert all(one != other for one, other in zip(runs[0], runs[2], strict=True))


# --- views and prototypes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["crop_flip", "autoaugment", "simclr"])
def test_views_are_channels_last_and_keep_the_size(view: str) -> None:
    images = batch(0).images
    seen: Tensor = getattr(views(), view)(images, torch.Generator().manual_seed(0))
    assert seen.shape == images.shape
    assert seen.is_contiguous(memory_format=torch.channels_last)
    assert seen.dtype == torch.float32


def test_crops_move_by_an_eighth_and_cutout_takes_a_quarter_at_most() -> None:
    """At 32 pixels that is the paper's padding of 4 and Cutout of 16."""
    wide = Views(torch.zeros(3), torch.ones(3), flip=False)
    marked = torch.zeros(400, 3, 32, 32, dtype=torch.uint8)
    marked[:, :, 16, 16] = 255
    seen = wide.crop_flip(marked, torch.Generator().manual_seed(0))
    places = seen[:, 0].flatten(1).argmax(1)
    rows, columns = places // 32, places % 32
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (12, 20, 12, 20)
    narrow = Views(torch.full((3,), -1.0), torch.ones(3), flip=False)
    holes = (narrow.autoaugment(marked, torch.Generator().manual_seed(0)) == 0).all(1).flatten(1).sum(1)
    assert int(holes.max()) == 16 * 16
    assert int(holes.min()) >= 8 * 8


@pytest.fixture
def set_of_images() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(7)
    images = torch.randint(256, (70, 3, SIDE, SIDE), generator=draw, dtype=torch.uint8)
    labels = torch.cat((torch.zeros(50), torch.ones(19), torch.full((1,), 2.0))).long()
    return images, labels[torch.randperm(70, generator=draw)]


def test_prototypes_are_normalised_class_means_in_eval_mode(
    set_of_images: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_room, "PROTOTYPE_PIXELS", 32 * SIDE * SIDE)
    images, labels = set_of_images
    net = network(5)
    with torch.no_grad():  # statistics that differ from a batch's own
        net.project(torch.randn(16, 3, SIDE, SIDE) * 3)
    before = copy.deepcopy(net.state_dict())
    found = class_prototypes(images, labels, context_of(net, 0), torch.Generator().manual_seed(3))
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())

    oracle, draw = copy.deepcopy(net).eval(), torch.Generator().manual_seed(3)
    vectors: dict[tuple[int, int], list[Tensor]] = {}
    for start in (0, 32, 64):
        chunk = images[start : start + 32]
        seen = (views().autoaugment(chunk, draw), views().simclr(chunk, draw))
        for view, pixels in enumerate(seen):
            for row, image in enumerate(pixels):
                with torch.no_grad():
                    vector = oracle.project(image[None])[0]
                vectors.setdefault((view, int(labels[start + row])), []).append(vector)
    for view in range(2):
        for label in range(CLASSES):
            of_class = vectors[view, label]
            mean = sum(of_class[1:], start=of_class[0]) / len(of_class)
            assert torch.allclose(found[view][label], mean / mean.norm(), atol=2e-5)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_prototypes_leave_an_eval_network_in_eval_mode(set_of_images: tuple[Tensor, Tensor]) -> None:
    net = network(5).eval()
    class_prototypes(*set_of_images, context_of(net, 0), torch.Generator().manual_seed(3))
    assert not net.training


@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_loss_reaches_the_weights(method: Any, weight: float) -> None:
    entry = METHODS[method]
    net = network_of(method, 0)
    gradients: Callable[[], list[float]] = lambda: [  # noqa: E731
        float(p.grad.abs().sum()) if p.grad is not None else 0.0 for p in net.backbone.parameters()
    ]
    before = gradients()
    for _, loss in entry.step(batch(0), context_of(net, 0, synthetic_weight=weight)):
        loss.backward()
        after = gradients()
        assert all(now != then for now, then in zip(after, before, strict=True))
        before = after
