"""Colours of float32 images [b, 3, H, W] in [0, 1]: hue, grey, and colour jitter of one photo.

`saukit.training.photos` compiles these functions, so names of this module that are not functions are arguments here.
"""

import torch
from torch import Tensor

GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def adjust_hue(images: Tensor, hue: Tensor) -> Tensor:
    """Turn each sample's hue by a fraction of the colour circle, keeping value and saturation.

    Shapes: images float32 [b, 3, H, W] in [0, 1]; hue float32 [b], turns in [-0.5, 0.5]; returns [b, 3, H, W].
    """
    red, green, blue = images.unbind(1)
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    # In sixths of the circle from cyan on. How far that is follows from how far green and blue together are ahead of
    # red, whichever of the three is the largest; the sign is that of blue - green. Without chroma no hue matters.
    ahead = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1.2e-38))  # a number above 0, not a subnormal one
    sixths = ahead.neg_().add_(2).copysign_(blue - green).add_(6 * hue[:, None, None])
    sixths.sub_((sixths / 6).round_(), alpha=6)
    # A channel is full within a sixth of its own hue and has nothing from two sixths on.
    turned = torch.empty_like(images)
    torch.addcmul(low, chroma, sixths.abs().sub_(1).clamp_(0, 1), out=turned[:, 0])
    torch.addcmul(low, chroma, (sixths + 1).abs_().neg_().add_(2).clamp_(0, 1), out=turned[:, 1])
    torch.addcmul(low, chroma, (sixths - 1).abs_().neg_().add_(2).clamp_(0, 1), out=turned[:, 2])
    return turned


def grayscale(images: Tensor) -> Tensor:
    """Grey images in three equal channels: images float32 [b, 3, H, W]; returns the same shape."""
    return luma(images).expand_as(images)


def luma(images: Tensor, weights: tuple[float, float, float] = GRAY_WEIGHTS) -> Tensor:
    """The grey of each pixel: images float32 [b, 3, H, W]; returns [b, 1, H, W]."""
    red, green, blue = images.unbind(1)
    return (weights[0] * red).add_(green, alpha=weights[1]).add_(blue, alpha=weights[2]).unsqueeze(1)


def jittered(photo: Tensor, order: list[int], factors: list[float]) -> Tensor:
    """Brightness (0), contrast (1), saturation (2) and hue (3) of one photo [1, 3, H, W], in this order.

    `factors` are those of the first three, and the turn of the last; the memory of `photo` may be overwritten.
    """
    for operation in order:
        if operation == 3:
            photo = adjust_hue(photo, torch.tensor([factors[3]]))
            continue
        rest = 1.0 - factors[operation]
        if operation == 0:
            photo.mul_(factors[operation])
        elif operation == 1:
            flat = luma(photo).mean()
            photo.mul_(factors[operation]).add_(flat, alpha=rest)
        else:
            gray = luma(photo)
            photo.mul_(factors[operation]).add_(gray, alpha=rest)
        photo.clamp_(0, 1)
    return photo
