"""Pictures of any size in, logits out: a classifier behind the very resizing that `make-lt` and `predict` do."""

import torch
from torch import Tensor, nn

from saukit.data.source_config import parse_colour
from saukit.models.classifier import ImageClassifier

COEFFICIENT_BITS = 22  # of Pillow's fixed-point weights for 8-bit pictures (libImaging/Resample.c)
REACH = 2.0  # of the bicubic kernel, in pixels of the smaller picture


class Prepared(nn.Module):
    """`classifier` for uint8 pictures: made square, resized and scaled to [0, 1] inside.

    The resizing is Pillow's bicubic one with antialiasing, to the last bit, across and then down: two products with
    matrices of Pillow's fixed-point weights, whole numbers that float64 holds exactly. It does not first reduce large
    pictures, as `decode_image` does from four times the side on, nor go down first where a picture is not scaled alike
    in both directions, as some versions of Pillow do. It is made of tensor operations alone, of no fixed height and
    width, so that it can be exported. A picture that has the classifier's size stays as it is.
    """

    background: Tensor

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        colour = torch.tensor(parse_colour(classifier.spec.background), dtype=torch.float64)
        self.register_buffer("background", colour[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images uint8 [b, 3, H, W], all of one size -> logits float32 [b, K]."""
        logits: Tensor = self.classifier((self.resized(images) / 255).float())
        return logits

    def resized(self, images: Tensor) -> Tensor:
        """Images uint8 [b, 3, H, W] -> their squares, whole numbers as float64 [b, 3, side, side]."""
        rows, columns = (_positions(line) for line in (images[0, 0, :, 0], images[0, 0, 0, :]))
        sides = torch.stack([rows[-1], columns[-1]]) + 1
        target = torch.tensor(self.classifier.image_size, dtype=torch.float64)
        begin, shown, offset = torch.zeros(2, dtype=torch.float64), sides, torch.zeros(2, dtype=torch.float64)
        fit, part = self.classifier.spec.fit, target
        if fit == "crop":
            shown = sides.min().expand(2)
            begin = torch.floor((sides - shown) / 2)
        elif fit == "pad":
            part = torch.round(target * sides / sides.max()).clamp(min=1)
            offset = torch.floor((target - part) / 2)
        size = self.classifier.image_size
        down, across = (
            _weights(line, begin[axis], shown[axis], size[axis], part[axis], offset[axis])
            for axis, line in enumerate((rows, columns))
        )
        pixels = _rounded(down @ _rounded(images.double() @ across.T))
        if fit != "pad":
            return pixels
        inside = (down != 0).any(1)[:, None] & (across != 0).any(1)
        return torch.where(inside, pixels, self.background)


def _positions(line: Tensor) -> Tensor:
    """0, 1, 2 ... for each pixel of a line, float64."""
    return torch.ones_like(line, dtype=torch.float64).cumsum(0) - 1


def _weights(positions: Tensor, begin: Tensor, span: Tensor, size: int, part: Tensor, offset: Tensor) -> Tensor:
    """Pillow's weights, in units of 2^-22: they resize `span` pixels from `begin` on to `part` from `offset` on.

    Shapes: positions [n]; begin, span, part, offset []; returns [size, n], zeros in the rows outside of the part.
    """
    out = torch.arange(size, dtype=torch.float64)[:, None] - offset
    scale = span / part
    widening = scale.clamp(min=1)
    centre, reach = (out + 0.5) * scale, REACH * widening
    first = torch.floor((centre - reach + 0.5).clamp(min=0))
    end = torch.minimum(torch.floor(centre + reach + 0.5), span)
    at = positions - begin
    kernel = torch.where((at >= first) & (at < end), _bicubic((at - centre + 0.5) * (1 / widening)), 0.0)
    weights = kernel / kernel.sum(1, keepdim=True) * 2.0**COEFFICIENT_BITS
    return torch.where((out >= 0) & (out < part), torch.trunc(weights + torch.where(weights < 0, -0.5, 0.5)), 0.0)


def _bicubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -0.5."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    return torch.where(x < 1, near, torch.where(x < REACH, far, 0.0))


def _rounded(sums: Tensor) -> Tensor:
    return torch.floor(sums / 2.0**COEFFICIENT_BITS + 0.5).clamp(0, 255)
