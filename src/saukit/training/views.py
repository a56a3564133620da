"""Augmentation of whole batches on the device they live on: per-sample parameters, static shapes, no host sync.

Each operation comes in two parts: `draw_*` draws one set of parameters a sample from the generator passed in (which
lives on the images' device), and a function of the plain name applies given parameters. A sample's result depends on
its own parameters only. `Views` has the views v1, v2 and v3 of the SAU method (arXiv 2408.16273), `PhotoViews` those
that its authors use for ImageNet-LT.

What equals what:

| operation | reference | agreement |
|---|---|---|
| random_crop, horizontal_flip | torchvision RandomCrop (zero padding), hflip | exact |
| AutoAugment's and RandAugment's operations | torchvision on PIL images, see `saukit.training.autoaugment` | exact |
| resized_crop | torchvision resized_crop on float tensors, bilinear, antialias=True | rounding (1e-5) |
| colour_jitter, grayscale | torchvision adjust_* and rgb_to_grayscale on float tensors | rounding (1e-5) |
| gaussian_blur | torchvision gaussian_blur on float tensors, reflect padding | rounding (1e-5) |

v3 stays in floating point from the resized crop on, as torchvision does with float tensors; PIL rounds to 256 levels
after each step. Against torchvision on PIL images its operations lie within one level (contrast 1.5, since PIL rounds
the mean grey too), hue within 5, since PIL knows 256 hues.

Shapes: b samples, height H, width W.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saukit.core.device import using_threads
from saukit.models.inference import normalise
from saukit.training.autoaugment import (
    AutoAugmentParameters,
    autoaugment,
    draw_autoaugment,
    draw_randaugment,
    prepared,
)
from saukit.training.colour import adjust_hue, grayscale, jittered, luma
from saukit.training.crops import (
    CROP_SCALE,
    ResizedCropParameters,
    blur_kernel_size,
    draw_resized_crop,
    gaussian_blur,
    pil_gaussian_blur,
    resized_crop,
)
from saukit.training.distributed import Drawn, Share
from saukit.training.mixup import Box, box_mask
from saukit.training.photo_operations import autoaugmented, changed
from saukit.training.photos import are_photos, compiled, cropped, one_by_one, side_by_side, simclr
from saukit.training.pixel_operations import apply_to_rows

# Colour jitter's operations, as torchvision numbers them.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)

PHOTO_CROP_SCALE = 0.08
JITTER_STRENGTHS = (0.4, 0.4, 0.4, 0.1)
JITTER_PROBABILITY = 0.8
GRAY_PROBABILITY = 0.2
BLUR_PROBABILITY = 0.5
BLUR_SIGMA = (0.1, 2.0)


class JitterParameters(NamedTuple):
    """Colour jitter of each sample.

    Shapes: order int64 [b, 4], the operations in their order, or [b, 3] without hue; brightness, contrast, saturation
        float32 [b], factors around 1; hue float32 [b], a turn in [-0.5, 0.5]; chosen bool [b], the samples that are
        jittered at all.
    """

    order: Tensor
    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Views:
    """The augmented views of a batch of uint8 images [b, 3, H, W]: normalised, channels_last, float32 [b, 3, H, W].

    `mean` and `std`, float32 [3], are for pixels in [0, 1]; `flip` says whether images are ever mirrored. Crop padding
    is an eighth of the shorter side and Cutout's square half of it: SAU's 4 and 16 at 32 pixels. With `crop_scale` v1
    and v2 have a resized crop of at least that share of the area instead, as is usual for photos.
    `as_published`: v2 and v3 as in the code of SAU's authors. AutoAugment fills with grey (128), shears bicubically and
    turns one way; Cutout is black, before the normalisation; the blur is PIL's GaussianBlur.
    `share`: the images are this share of a batch, for all of which the parameters are drawn.
    Raises (each view): ValueError if the images are not uint8 [b, 3, H, W].
    """

    mean: Tensor
    std: Tensor
    flip: bool
    crop_scale: float | None = None
    as_published: bool = False
    share: Share | None = None

    def crop_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v1 of SAU: random crop with zero padding, horizontal flip."""
        crop = self._draw_crop(images, generator)
        return side_by_side(self._crop_flip, images, crop, of_photo=self._crop_flip_photo)

    def autoaugment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v2 of SAU: random crop, flip, AutoAugment (CIFAR-10 policy), Cutout."""
        crop = self._draw_crop(images, generator)
        parameters = self._draw(draw_autoaugment, images, generator)
        centres = self._draw(draw_cutout, images, generator, *images.shape[2:])
        of_photo = None if self.as_published else self._autoaugment_photo
        return side_by_side(self._autoaugment, images, crop, parameters, centres, of_photo=of_photo)

    def simclr(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v3 of SAU, the view of SimCLR: resized crop, flip, colour jitter, grey, Gaussian blur.

        Chen et al. 2020, appendix A, with the colour jitter at (0.4, 0.4, 0.4, 0.1) as SAU has it. The blur's kernel is
        about a tenth of the shorter side (`blur_kernel_size`).
        """
        crop = self._draw_resized_crop(images, generator, CROP_SCALE)
        jitter = self._draw(draw_jitter, images, generator)
        is_gray = self._draw(draw_chosen, images, generator, GRAY_PROBABILITY)
        is_blurred = self._draw(draw_chosen, images, generator, BLUR_PROBABILITY)
        sigma = self._draw(draw_uniform, images, generator, *BLUR_SIGMA)
        of_photo = None if self.as_published else self._simclr_photo
        return side_by_side(self._simclr, images, crop, jitter, is_gray, is_blurred, sigma, of_photo=of_photo)

    def _draw(self, draw: Callable[..., Drawn], images: Tensor, generator: torch.Generator, *numbers: float) -> Drawn:
        """`draw`'s parameters of each image: those of the whole batch are drawn, and of a share its own are kept."""
        count = len(images) if self.share is None else self.share.count
        # A handful of numbers, after which a second thread of torch would wait for more on a core that views need.
        with using_threads(1):
            drawn = draw(count, *numbers, device=images.device, generator=generator)
        return drawn if self.share is None else self.share.take(drawn)

    def _draw_crop(self, images: Tensor, generator: torch.Generator) -> tuple[Any, ...]:
        """Of the crop of v1 and v2: with padding its offsets, and whether it is flipped, or those of a resized one."""
        _check_images(images)
        if self.crop_scale is not None:
            return self._draw_resized_crop(images, generator, (self.crop_scale, 1.0))
        offsets = self._draw(draw_crop, images, generator, _padding(images))
        return (offsets, self._draw(draw_chosen, images, generator, 0.5)) if self.flip else (offsets,)

    def _draw_resized_crop(
        self, images: Tensor, generator: torch.Generator, scale: tuple[float, float]
    ) -> tuple[ResizedCropParameters, Tensor]:
        _check_images(images)
        crop = self._draw(partial(draw_resized_crop, scale=scale), images, generator, *images.shape[2:])
        return crop, self._draw(draw_chosen, images, generator, 0.5 if self.flip else 0.0)

    def _cropped(self, images: Tensor, crop: tuple[Any, ...]) -> Tensor:
        """v1 before the normalisation, uint8."""
        if self.crop_scale is not None:
            return resized_crop(images, *crop).mul_(255).round_().to(torch.uint8)
        (dy, dx), *flips = crop
        padding = _padding(images)
        images = random_crop(images, dy, dx, padding)
        return horizontal_flip(images, *flips) if flips else images

    def _crop_flip(self, images: Tensor, crop: tuple[Any, ...]) -> Tensor:
        return normalise(self._cropped(images, crop), self.mean, self.std)

    def _autoaugment(
        self,
        images: Tensor,
        crop: tuple[Any, ...],
        parameters: AutoAugmentParameters,
        centres: tuple[Tensor, Tensor],
    ) -> Tensor:
        height, width = images.shape[2:]
        images = autoaugment(self._cropped(images, crop), parameters, as_published=self.as_published)
        if not self.as_published:
            images = normalise(images, self.mean, self.std)
        images = images * cutout_mask(*centres, min(height, width) // 2, height, width)
        return normalise(images, self.mean, self.std) if self.as_published else images

    def _simclr(
        self,
        images: Tensor,
        crop: tuple[ResizedCropParameters, Tensor],
        jitter: JitterParameters,
        is_gray: Tensor,
        is_blurred: Tensor,
        sigma: Tensor,
    ) -> Tensor:
        pixels = colour_jitter(resized_crop(images, *crop), jitter)
        pixels = apply_to_rows(is_gray, pixels, grayscale)
        blur = pil_gaussian_blur if self.as_published else gaussian_blur
        return self._normalised(apply_to_rows(is_blurred, pixels, blur, sigma))

    def _crop_flip_photo(self, out: Tensor, photo: Tensor, crop: tuple[Any, ...]) -> None:
        box, *mirrored = crop
        compiled(cropped)(out, photo, [*box], any(mirrored), _padding(photo), self.mean, self.std)

    def _autoaugment_photo(
        self, out: Tensor, photo: Tensor, crop: tuple[Any, ...], parameters: Any, centre: tuple[int, int]
    ) -> None:
        (box, *mirrored), padding, size = crop, _padding(photo), min(photo.shape[2:]) // 2
        changes = prepared(*parameters, *photo.shape[2:])
        compiled(autoaugmented)(
            out, photo, [*box], any(mirrored), padding, *changes, [*centre], size, self.mean, self.std
        )

    def _simclr_photo(
        self, out: Tensor, photo: Tensor, crop: tuple[Any, bool], jitter: Any, gray: bool, blur: bool, sigma: float
    ) -> None:
        order, *factors, chosen = jitter
        kernel_size = blur_kernel_size(*photo.shape[2:])
        (box, mirrored), order, sigma = crop, order if chosen else [], sigma if blur else 0.0
        compiled(simclr)(out, photo, [*box], mirrored, order, factors, gray, sigma, kernel_size, self.mean, self.std)

    def _normalised(self, pixels: Tensor) -> Tensor:
        return pixels.sub(self.mean[:, None, None]).div_(self.std[:, None, None])


class PhotoViews(Views):
    """The views of SAU's authors for ImageNet-LT, at 224 pixels; v2 and v3 are two draws of one.

    Resized crops keep at least `crop_scale` of the area, by default 0.08. v1 has colour jitter (.4, .4, .4, 0) and
    RandAugment, v2 and v3 jitter (.4, .4, .4, .1) for 80 % of the samples and grey for 20 %.
    """

    def crop_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v1: resized crop, flip, jitter, RandAugment."""
        crop = self._draw_crop(images, generator)
        draw = partial(draw_jitter, strengths=(0.4, 0.4, 0.4), probability=1.0)
        jitter = self._draw(draw, images, generator)
        return side_by_side(self._randaugment, images, crop, jitter, self._draw(draw_randaugment, images, generator))

    def autoaugment(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v2, as v3."""
        return self.simclr(images, generator)

    def simclr(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """v3: resized crop, flip, jitter, grey."""
        crop, jitter = self._draw_crop(images, generator), self._draw(draw_jitter, images, generator)
        is_gray = self._draw(draw_chosen, images, generator, GRAY_PROBABILITY)
        return side_by_side(self._jittered, images, crop, jitter, is_gray)

    def _draw_crop(self, images: Tensor, generator: torch.Generator) -> tuple[Any, ...]:
        return self._draw_resized_crop(images, generator, (self.crop_scale or PHOTO_CROP_SCALE, 1.0))

    def _randaugment(
        self, images: Tensor, crop: tuple[Any, ...], jitter: JitterParameters, parameters: AutoAugmentParameters
    ) -> Tensor:
        levels = colour_jitter(resized_crop(images, *crop), jitter).mul_(255).round_().to(torch.uint8)
        return normalise(autoaugment(levels, parameters), self.mean, self.std)

    def _jittered(self, images: Tensor, crop: tuple[Any, ...], jitter: JitterParameters, is_gray: Tensor) -> Tensor:
        pixels = colour_jitter(resized_crop(images, *crop), jitter)
        return self._normalised(apply_to_rows(is_gray, pixels, grayscale))


class FeatureViews(Views):
    """What a frozen backbone made of an image is its only view, float32 [b, d]."""

    def crop_flip(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """The features as they are."""
        return images


def _padding(images: Tensor) -> int:
    return max(1, min(images.shape[-2:]) // 8)


# --- crop, flip, Cutout ------------------------------------------------------------------------------------------


def draw_crop(batch: int, padding: int, *, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Offsets (dy, dx) of a crop from the padded image, uniform in 0 .. 2 padding: int64 [b] each."""
    offsets = torch.randint(2 * padding + 1, (2, batch), device=device, generator=generator)
    return offsets[0], offsets[1]


def draw_chosen(batch: int, probability: float, *, device: torch.device, generator: torch.Generator) -> Tensor:
    """Which samples an operation of this probability applies to: bool [b]."""
    return torch.rand(batch, device=device, generator=generator) < probability


def draw_uniform(batch: int, low: float, high: float, *, device: torch.device, generator: torch.Generator) -> Tensor:
    """Uniform numbers from [low, high): float32 [b]."""
    return low + (high - low) * torch.rand(batch, device=device, generator=generator)


def random_crop(images: Tensor, dy: Tensor, dx: Tensor, padding: int) -> Tensor:
    """Pad with zeros and take the window of the original size at (dy, dx), as torchvision's RandomCrop.

    Shapes: images [b, 3, H, W]; dy, dx int64 [b], from 0 to 2 padding; returns [b, 3, H, W].
    """
    height, width = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view: [b, 3, 2 padding + 1, 2 padding + 1, H, W]
    return windows[torch.arange(len(images), device=images.device), :, dy, dx]


def horizontal_flip(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the chosen samples left to right.

    Shapes: images [b, 3, H, W]; flip bool [b]; returns [b, 3, H, W].
    """
    return apply_to_rows(flip, images.clone(), lambda rows: rows.flip(-1))


def draw_cutout(
    batch: int, height: int, width: int, *, device: torch.device, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Centres (y, x) of Cutout's square, uniform over the pixels: int64 [b] each."""
    centre_y = torch.randint(height, (batch,), device=device, generator=generator)
    centre_x = torch.randint(width, (batch,), device=device, generator=generator)
    return centre_y, centre_x


def cutout_mask(centre_y: Tensor, centre_x: Tensor, size: int, height: int, width: int) -> Tensor:
    """Cutout (DeVries & Taylor 2017): 0 inside each sample's square and 1 elsewhere, float32 [b, 1, H, W].

    On normalised images 0 is the channel mean. The square spans size // 2 pixels before its centre and the rest from it
    on, and is clipped to the image: up to three quarters of it may lie outside.
    """
    top, left = centre_y - size // 2, centre_x - size // 2
    inside = box_mask(Box(top, top + size, left, left + size), height, width)
    return (~inside[:, None]).to(torch.float32)  # to multiply with: quicker than masked_fill on a CPU


# --- SimCLR ------------------------------------------------------------------------------------------------------


def draw_jitter(
    batch: int,
    *,
    device: torch.device,
    generator: torch.Generator,
    strengths: tuple[float, ...] = JITTER_STRENGTHS,
    probability: float = JITTER_PROBABILITY,
) -> JitterParameters:
    """Draw colour jitter for a share of the samples, in an order of its own each.

    `strengths` are those of brightness, contrast, saturation and hue; three of them are without hue.
    """
    order = torch.rand((batch, len(strengths)), device=device, generator=generator).argsort(dim=1)
    spread = 2 * torch.rand((len(strengths), batch), device=device, generator=generator) - 1
    shifts = [strength * share for strength, share in zip(strengths, spread.unbind(0), strict=True)]
    brightness, contrast, saturation, hue = (*shifts, torch.zeros_like(shifts[0]))[: HUE + 1]
    chosen = draw_chosen(batch, probability, device=device, generator=generator)
    return JitterParameters(order, 1 + brightness, 1 + contrast, 1 + saturation, hue, chosen)


def colour_jitter(images: Tensor, jitter: JitterParameters) -> Tensor:
    """Brightness, contrast, saturation and hue of the chosen samples, in each sample's order.

    Shapes: images float32 [b, 3, H, W] in [0, 1], whose memory may be overwritten; returns the same.
    """
    if are_photos(images):
        return one_by_one(_jittered_photo, images, *jitter)
    factors = torch.stack((jitter.brightness, jitter.contrast, jitter.saturation), dim=1)
    for operation in jitter.order.unbind(1):
        is_hue = operation == HUE
        factor = factors.gather(1, operation.clamp(max=SATURATION)[:, None]).squeeze(1)
        images = apply_to_rows(jitter.chosen & ~is_hue, images, _adjust_tone, operation, factor)
        images = apply_to_rows(jitter.chosen & is_hue, images, adjust_hue, jitter.hue)
    return images


def _adjust_tone(images: Tensor, operation: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast or saturation: a blend with black, with the mean grey, with the grey image."""
    operation, factor = operation[:, None, None, None], factor[:, None, None, None]
    gray, rest = luma(images), 1 - factor
    flat = gray.mean(dim=(2, 3), keepdim=True) * (rest * (operation == CONTRAST))
    return (images * factor).add_(gray.mul_(rest * (operation == SATURATION)).add_(flat)).clamp_(0, 1)


def _jittered_photo(photo: Tensor, order: Tensor, *parameters: Tensor) -> Tensor:
    *factors, chosen = parameters
    return jittered(photo, order[0].tolist() if chosen else [], [float(factor) for factor in factors])


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be uint8 [b, 3, H, W], got {images.dtype} {list(images.shape)}")
    if are_photos(images):
        for function in (autoaugmented, changed, cropped, simclr):
            compiled(function)  # once, before several threads would
