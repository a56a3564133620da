"""Low-rank adaptation of a backbone (Hu et al. 2022, arXiv 2106.09685) by peft, merged before a model is saved."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from saukit.core.errors import UsageError
from saukit.core.extras import require_extra
from saukit.models.dual_branch import DualBranchNet


def add_lora(network: DualBranchNet, rank: int, *, name: str) -> None:
    """Give every linear layer of the backbone, called `name`, an update of this rank, which alone learns there.

    The update is zero at first: B A, with A at random (torch's generator) and B zero, times two (alpha = 2 rank).
    Raises: EnvironmentFault without the extra lora, UsageError for a backbone without linear layers.
    """
    require_extra("lora", purpose="--tune lora")
    from peft import LoraConfig, inject_adapter_in_model

    layers = [path for path, module in network.backbone.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError(
            f"tune lora adapts linear layers, and backbone {name} has none: "
            "use a transformer such as timm/vit_base_patch16_224, or tune all"
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
    inject_adapter_in_model(config, network.backbone)


def merged_state(network: DualBranchNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` of a network with low-rank updates as that of the network without, the updates added to its weights.

    A network without any: `state` as it is.
    """
    if not any(".lora_A." in name for name in state):
        return dict(state)
    from peft.tuners.lora import LoraLayer

    merged = copy.deepcopy(network).cpu()
    merged.load_state_dict(state)
    with torch.no_grad():
        for path, module in list(merged.named_modules()):
            if isinstance(module, LoraLayer):
                module.merge()
                parent, _, child = path.rpartition(".")
                setattr(merged.get_submodule(parent), child, module.get_base_layer())
    return merged.state_dict()
