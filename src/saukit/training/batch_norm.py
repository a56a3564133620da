"""BatchNorm whose statistics are those of the batch over all processes (`--sync-batchnorm`), on any device.

torch's own SyncBatchNorm has no kernels for a CPU; this is plain tensor arithmetic, tested there, and what GPUs run.
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from saukit.training.distributed import total


def synchronise_batch_norm(network: nn.Module, *, without: str) -> None:
    """Have the network's BatchNorms, but those of the part called `without`, take their statistics over all processes.

    `without`: what every process computes from parameters alone, whose statistics are the same already.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not name.startswith(f"{without}."):
            module.synced = True  # type: ignore[assignment]
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: Any, x: Tensor) -> Tensor:
    if not module.training:
        found: Tensor = type(module).forward(module, x)
        return found
    y: Tensor
    y, mean, variance, count = _Normalise.apply(x, module.weight, module.bias, module.eps)
    if module.track_running_stats:
        with torch.no_grad():
            module.num_batches_tracked += 1
            module.running_mean.lerp_(mean.to(module.running_mean), module.momentum)
            module.running_var.lerp_((variance * (count / (count - 1))).to(module.running_var), module.momentum)
    if hasattr(module, "act"):  # timm's BatchNorm with an activation
        y = module.act(module.drop(y))
    return y


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ioffe and Szegedy 2015, Algorithm 1) over the batches of all
    processes, in two passes: E[x^2] - E[x]^2 would lose digits. Its backward pass is the paper's, Section 3.

    Shapes: x [b, C, ...]; weight, bias [C]; returns y as x, mean and biased variance [C], and their count [].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims, shape = (0, *range(2, x.ndim)), (1, -1, *(1,) * (x.ndim - 2))
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        number = values.new_full((1,), x.numel() // x.shape[1])
        sums = total(torch.cat((values.sum(dims), number)))
        count = sums[-1]
        mean = sums[:-1] / count
        centred = values - mean.view(shape)
        variance = total(centred.square().sum(dims)) / count
        scale = (variance + eps).rsqrt()
        normalised = centred * scale.view(shape)
        ctx.save_for_backward(normalised, weight, scale, count)
        ctx.mark_non_differentiable(mean, variance, count)
        y = normalised * weight.view(shape) + bias.view(shape)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        normalised, weight, scale, count = ctx.saved_tensors
        given = gradients[0].to(normalised.dtype)
        dims, shape = (0, *range(2, given.ndim)), (1, -1, *(1,) * (given.ndim - 2))
        own = torch.stack((given.sum(dims), (given * normalised).sum(dims)))
        of_bias, of_weight = total(own.clone()) / count
        inner = given - of_bias.view(shape) - normalised * of_weight.view(shape)
        return (inner * (weight * scale).view(shape)).to(gradients[0].dtype), own[1], own[0], None
