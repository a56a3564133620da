"""Optimizers over a network's parameters, in groups with learning rates of their own."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from saukit.models.backbones import TimmNetwork
from saukit.models.dual_branch import DualBranchNet
from saukit.training.config import ResolvedTrainConfig

MOMENTUM = 0.9
SCALE = "lr_scale"  # of a group: what its learning rate is multiplied by


def build_optimizer(network: DualBranchNet, config: ResolvedTrainConfig, device: torch.device) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW (Loshchilov and Hutter 2019), over the parameters that learn.

    AdamW decays matrices and kernels alone, as is usual for fine-tuning: no biases, no norms. The learning rate of each
    group is a tensor that stays where it is (`set_learning_rate`), because a recorded step reads it from its address.
    """
    groups = list(_groups(network, config))
    for group in groups:
        group["lr"] = torch.zeros((), device=device)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=MOMENTUM, fused=True)
    return torch.optim.AdamW(groups, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group its share of a step's learning rate, in place."""
    for group in optimizer.param_groups:
        group["lr"].fill_(learning_rate * group[SCALE])


def _groups(network: DualBranchNet, config: ResolvedTrainConfig) -> Iterator[dict[str, Any]]:
    """The parameters that learn, each once: the backbone's layers first where they decay, then the heads."""
    rest = network.named_parameters()
    if config.layer_decay != 1:
        from timm.optim import param_groups_layer_decay

        assert isinstance(network.backbone, TimmNetwork)
        for group in param_groups_layer_decay(
            network.backbone.network, config.weight_decay, layer_decay=config.layer_decay
        ):
            yield {"params": group["params"], "weight_decay": group["weight_decay"], SCALE: group["lr_scale"]}
        rest = ((name, parameter) for name, parameter in rest if not name.startswith("backbone."))
    learning = [parameter for _, parameter in rest if parameter.requires_grad]
    decayed = learning
    if config.optimizer == "adamw":
        decayed = [parameter for parameter in learning if parameter.ndim > 1]
        yield {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0, SCALE: 1.0}
    yield {"params": decayed, "weight_decay": config.weight_decay, SCALE: 1.0}


def set_training_mode(network: DualBranchNet, config: ResolvedTrainConfig, *, head_only: bool) -> None:
    """Train mode, except for a backbone that waits (`head_share`) and for BatchNorm that is frozen (`freeze_bn`)."""
    network.train()
    if config.head_share:
        for name, parameter in network.backbone.named_parameters():
            parameter.requires_grad_(not head_only and (config.tune == "all" or ".lora_" in name))
    if head_only:
        network.backbone.eval()
    elif config.freeze_bn:
        for module in network.backbone.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
