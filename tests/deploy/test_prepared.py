"""Resizing by matrices against Pillow's own, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from saukit.data.decoding import Fitting, fitted
from saukit.data.source_config import Fit
from saukit.deploy.prepared import Prepared
from saukit.models.classifier import ImageClassifier
from saukit.models.model_file import ModelSpec

SIZES = ((16, 16), (24, 24), (12, 12), (17, 31), (31, 17), (61, 57), (5, 9), (63, 63), (1, 7), (40, 55), (3, 50))


def noise(height: int, width: int) -> Image.Image:
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def contrast(height: int, width: int) -> Image.Image:
    """Black and white blocks, at whose edges a bicubic kernel overshoots."""
    pixels = np.random.default_rng(height).integers(0, 2, (3, 3, 3), dtype=np.uint8) * 255
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def by_pillow(picture: Image.Image, side: int, fitting: Fitting) -> Image.Image:
    """As `fitted`, across first and then down; Pillow may choose the other order where the scales differ."""
    if fitting.fit == "crop":
        return fitted(picture, side, fitting)
    target = (side, side)
    if fitting.fit == "pad":
        target = tuple(max(1, round(side * length / max(picture.size))) for length in picture.size)  # type: ignore[assignment]
    bicubic = Image.Resampling.BICUBIC
    inner = picture.resize((target[0], picture.height), bicubic).resize(target, bicubic)
    square = Image.new("RGB", (side, side), (7, 130, 255))
    square.paste(inner, ((side - target[0]) // 2, (side - target[1]) // 2))
    return square


@pytest.mark.parametrize("picture", [noise, contrast])
@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_pictures_are_resized_to_pillows_bits(fit: Fit, picture: Callable[[int, int], Image.Image]) -> None:
    spec = ModelSpec(
        "ce", "convnet-small", ("a", "b"), (16, 16), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), False,
        fit=fit, background="7,130,255",
    )  # fmt: skip
    classifier = ImageClassifier.from_model(spec.build_network(), spec)
    prepared = Prepared(classifier)
    for height, width in SIZES:  # below 64: from four times the side on Pillow reduces first
        made = picture(height, width)
        expected = np.array(by_pillow(made, 16, spec.fitting)).transpose(2, 0, 1)
        pixels = torch.from_numpy(np.array(made).transpose(2, 0, 1).copy())[None]
        assert np.array_equal(prepared.resized(pixels)[0].numpy(), expected), (height, width)
        with torch.no_grad():
            logits = classifier(torch.from_numpy(expected.copy())[None] / 255)
            assert torch.allclose(prepared(pixels), logits, atol=1e-6)
