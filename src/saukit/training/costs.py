"""What a training run costs besides its time, from shapes alone: operations, bytes, memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from saukit.core.device import peak_flops
from saukit.models.backbones import count_parameters
from saukit.models.dual_branch import DualBranchNet
from saukit.training.plan import TrainingPlan

FORWARD_SHARE = 1 / 3  # of the operations of forward and backward pass


@dataclass(frozen=True)
class Costs:
    """`image_passes`: images that go through the backbone. `flops` as `step_flops` counts them, of all processes.
    `image_bytes`: the images as they are stored; `disk_bytes`: the run's folder at most. `memory_bytes`, of each
    process, about: weights, gradients, the optimizer's moments, what a backward pass needs, and resident images.
    """

    image_passes: int
    flops: int
    image_bytes: int
    disk_bytes: int
    memory_bytes: int


def run_costs(plan: TrainingPlan, *, processes: int = 1) -> Costs:
    """The costs of a run, shared by some processes. Nothing is computed, and no image is read."""
    config, method = plan.config, plan.method
    stored = plan.split.train.images.nbytes + (0 if plan.cache is None else plan.cache.images.nbytes)
    real, seen = len(plan.split.train.labels), plan.images_of(plan.total_steps)

    def flops(classifier: int, projection: int) -> float:
        """Of one image, forward and backward."""
        spec = plan.model_spec
        passes = {"classifier_passes": classifier, "projection_passes": projection}
        return step_flops(config.backbone, plan.split.num_classes, spec.image_size, 2, **passes) / 2

    if config.tune == "head":
        passes = plan.training_images * plan.model_spec.crops
        operations = passes * flops(1, 0) * FORWARD_SHARE
    else:
        prototypes = 2 * real * math.ceil(plan.total_steps / plan.steps_per_epoch) if method.prototypes else 0
        passes = seen * method.views_per_step + prototypes
        operations = seen * flops(method.classifier_passes, method.projection_passes)
        operations += prototypes * flops(0, 1) * FORWARD_SHARE if prototypes else 0
    resident = stored if isinstance(plan.split.train.images, np.ndarray) else 0
    return Costs(
        image_passes=passes,
        flops=round(operations),
        image_bytes=stored,
        disk_bytes=plan.disk_bytes,
        memory_bytes=_state_bytes(plan) + _activation_bytes(plan, math.ceil(plan.batch_size / processes)) + resident,
    )


def share_of_peak(plan: TrainingPlan, images_per_second: float) -> float | None:
    """The network's arithmetic as a share of the GPU's bf16 or fp16 peak; None where that is not known."""
    config, method = plan.config, plan.method
    if (peak := peak_flops(plan.device, config.amp)) is None or config.tune == "head":
        return None
    flops = step_flops(
        config.backbone,
        plan.split.num_classes,
        plan.split.image_size,
        plan.batch_size,
        classifier_passes=method.classifier_passes,
        projection_passes=method.projection_passes,
    )
    return images_per_second * flops / plan.batch_size / peak


def _network(plan: TrainingPlan) -> DualBranchNet:
    with torch.device("meta"):
        return plan.model_spec.build_network()


def _state_bytes(plan: TrainingPlan) -> int:
    """Weights, an average of them, and for those that learn a gradient and the optimizer's moments."""
    network, config = _network(plan), plan.config
    every = count_parameters(network)
    learning = every if config.tune == "all" else every - count_parameters(network.backbone)
    moments = 1 if config.optimizer == "sgd" else 2
    return 4 * (every * (1 + (config.average is not None)) + learning * (1 + moments))


def _activation_bytes(plan: TrainingPlan, images: int) -> int:
    """What the passes that go backward together keep for it: one into the classifier, or both views' projections."""
    network, kept = _network(plan), dict[int, Tensor]()
    own = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    network.train()
    head = plan.config.tune == "head"
    shape = (network.classifier.in_features,) if head else (3, *plan.split.image_size)
    x = torch.empty(images, *shape, device="meta")

    def keep(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()._cdata) not in own:
            kept[storage] = tensor  # held, or another tensor's storage would get its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    views = 2 if plan.method.projection_passes else 1
    return round(views * size * (1.0 if plan.config.amp == "off" else 0.5))


@lru_cache(maxsize=8)
def step_flops(
    backbone: str,
    num_classes: int,
    image_size: tuple[int, int],
    batch_size: int,
    *,
    classifier_passes: int,
    projection_passes: int,
) -> int:
    """Floating-point operations of one optimiser step's forward and backward passes through the network.

    Matrix products and convolutions only, two operations a multiply-add, as peaks are stated. Augmentation, losses,
    BatchNorm, the optimiser and an epoch's prototypes are left out. `classifier_passes` and `projection_passes` say
    how often a batch goes through backbone and classifier, and through backbone and projection; image_size is height
    and width in pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode  # loads a compiler

    # Nothing is computed on the meta device: the operations are counted from shapes alone.
    with torch.device("meta"):
        network = DualBranchNet(backbone, num_classes, projection=projection_passes > 0)
        images = torch.empty(batch_size, 3, *image_size)
    total = 0
    for passes, forward in ((classifier_passes, network), (projection_passes, network.project)):
        if passes:
            counter = FlopCounterMode(
                display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flops}
            )
            with counter:
                forward(images).sum().backward()
            total += passes * counter.get_total_flops()
    return total


def _convolution_backward_flops(
    out_gradient: Sequence[int], _images: Sequence[int], weight: Sequence[int], *others: object, **_: object
) -> int:
    """As many operations as forward for each gradient asked for, the input's and the weight's.

    torch's own formula (seen in 2.15) forgets the groups in the weight's gradient: 56 % too much for a ResNeXt-50.
    """
    wanted = others[-1]  # which of input, weight and bias need a gradient
    assert isinstance(wanted, Sequence)
    return 2 * math.prod(out_gradient) * math.prod(weight[1:]) * sum(map(bool, wanted[:2]))
