"""The rungs between the reference's step and saukit's trainer, one improvement more each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from inputs import new_network, saukit_views
from reference import MOMENTUM, PreparedViews, Prototypes, ViewBatch
from torch import Tensor

from saukit.core.device import Precision
from saukit.core.seeding import torch_generator
from saukit.training.context import StepContext
from saukit.training.methods import sau_step
from saukit.training.plan import TrainingPlan
from saukit.training.trainer import Trainer
from saukit.training.training_set import Batch
from saukit.training.views import Views

# The last rung on a processor: how the C library treats freed memory is a matter of the whole process, so the rungs
# before, which have its defaults, cannot be in the same one.
KEPT_MEMORY = "freed memory kept = saukit"


@dataclass(frozen=True)
class Rung:
    """A step with saukit's losses, which are masks on static shapes and read nothing back, and what else it has."""

    name: str
    in_place: bool = False
    channels_last: bool = False
    amp: Literal["bf16", "fp16", "off"] = "off"
    fused_sgd: bool = False


def masked_rungs(amp: str) -> list[Rung]:
    """The rungs with saukit's losses, up to fused SGD; without the half-precision one if `amp` is off."""
    rungs = [Rung("masks, no host reads")]
    rungs.append(replace(rungs[-1], name="activations in place", in_place=True))
    rungs.append(replace(rungs[-1], name="channels_last", channels_last=True))
    if amp != "off":
        rungs.append(replace(rungs[-1], name=f"{amp} autocast", amp=amp))  # type: ignore[arg-type]
    rungs.append(replace(rungs[-1], name="fused SGD", fused_sgd=True))
    return rungs


def trainer_plans(plan: TrainingPlan) -> dict[str, TrainingPlan]:
    """The plans of the rungs that are saukit's trainer itself; compiled and recorded ones on a GPU only.

    The trainer calls backward after each loss, so the activations of one forward pass are in memory at a time.
    """
    plans = {"backward a loss (trainer)": plan}
    if plan.device.type == "cuda":
        compiled = replace(plan.config, compile=True)
        plans["torch.compile"] = replace(plan, config=compiled)
        plans["CUDA graph"] = replace(plan, config=replace(compiled, cuda_graph=True))
    return plans


class NchwViews:
    """saukit's views in torch's default memory layout, for the rungs before channels_last."""

    def __init__(self, views: Views) -> None:
        self._views = views

    def crop_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v1."""
        return self._views.crop_flip(images, generator).contiguous()

    def autoaugment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v2."""
        return self._views.autoaugment(images, generator).contiguous()

    def simclr(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v3."""
        return self._views.simclr(images, generator).contiguous()


AnyViews = Views | NchwViews | PreparedViews


def make_views(batch: Batch, views: AnyViews, generator: torch.Generator) -> ViewBatch:
    """The four views of a step: v1 of A and of B, v2 and v3 of A."""
    return ViewBatch(
        v1=views.crop_flip(batch.images, generator),
        partner_v1=views.crop_flip(batch.partner_images, generator),
        v2=views.autoaugment(batch.images, generator),
        v3=views.simclr(batch.images, generator),
        labels=batch.labels,
        partner_labels=batch.partner_labels,
        synthetic=batch.synthetic,
    )


def in_layout(views: ViewBatch, memory_format: torch.memory_format) -> ViewBatch:
    """The same views in another memory layout."""
    images = {
        name: getattr(views, name).contiguous(memory_format=memory_format) for name in ("v1", "partner_v1", "v2", "v3")
    }
    return replace(views, **images)


class MaskedStep:
    """saukit's step, with one backward pass over the sum of its losses and the improvements that `rung` has."""

    def __init__(self, rung: Rung, plan: TrainingPlan, views: AnyViews, prototypes: Prototypes) -> None:
        self.plan, self.views, self.prototypes = plan, views, prototypes
        self.precision = Precision(rung.amp, plan.device.type)
        network = new_network(plan, in_place=rung.in_place)
        if rung.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.optimizer = torch.optim.SGD(
            network.parameters(),
            lr=plan.config.lr,
            momentum=MOMENTUM,
            weight_decay=plan.config.weight_decay,
            # None is what torch does by default.
            fused=True if rung.fused_sgd else None,
        )
        self.scaler = self.precision.scaler()
        self.generator = torch_generator(plan.config.seed, "benchmark-step", device=plan.device)
        self.logit_offsets = torch.zeros(plan.split.num_classes, device=plan.device)
        self.class_counts = torch.ones(plan.split.num_classes, device=plan.device)  # which SAU does not read
        self.losses: dict[str, Tensor] = {}

    def context(self) -> StepContext:
        """What a step has at hand."""
        return StepContext(
            network=self.network,
            views=self.views,  # type: ignore[arg-type]
            precision=self.precision,
            config=self.plan.config,
            class_counts=self.class_counts,
            logit_offsets=self.logit_offsets,
            generator=self.generator,
            prototypes=self.prototypes,
        )

    def __call__(self, batch: Batch) -> None:
        """Views, forward passes, the backward pass and the update."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        losses = dict(sau_step(batch, self.context()))
        self.scaler.scale(torch.stack(list(losses.values())).sum()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.losses = {name: loss.detach() for name, loss in losses.items()}


def trainer_on_prepared_views(plan: TrainingPlan, views: ViewBatch, prototypes: Prototypes) -> Trainer:
    """saukit's trainer inside an epoch, with prototypes there and its augmentation replaced by tensors made before."""
    trainer = Trainer(plan)
    trainer.step_count, trainer.prototypes = 1, prototypes
    prepared = PreparedViews(views)
    trainer.step.context = replace(trainer.step.context, views=prepared)  # type: ignore[arg-type]
    return trainer


def random_prototypes(plan: TrainingPlan) -> Prototypes:
    """Unit vectors, two of [K, d], for steps whose speed is measured without a pass over the data set."""
    generator = torch_generator(plan.config.seed, "benchmark-prototypes")
    final = new_network(plan, in_place=True).projection[-1]  # type: ignore[index]
    drawn = torch.randn((2, plan.split.num_classes, final.out_features), generator=generator)
    z2, z3 = torch.nn.functional.normalize(drawn, dim=2).to(plan.device)
    return z2, z3


def prepared_views(plan: TrainingPlan, batch: Batch) -> ViewBatch:
    """Views of a batch by saukit's augmentation, in its channels_last layout."""
    return make_views(
        batch, saukit_views(plan), torch_generator(plan.config.seed, "benchmark-views", device=plan.device)
    )
