"""Classify pictures with an exported model.onnx, without saukit: python examples/onnx_predict.py MODEL PICTURE...

MODEL is a folder of `saukit export --format onnx`. The classes are those of `saukit predict`, and of `saukit eval` for
the files of a test set.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepared(file: str | Path, facts: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A picture as the uint8 [3, H, W] that the model was evaluated on; `facts` is "input" of classes.json."""
    size, fit = facts["shape"][2], facts["fit"]
    picture: Image.Image = Image.open(file)
    wanted = [1 if fit == "pad" and side < max(picture.size) else 2 * size for side in picture.size]
    picture.draft(None, (wanted[0], wanted[1]))  # a large JPEG is reduced while it is decoded
    picture = ImageOps.exif_transpose(picture).convert("RGB")
    width, height = picture.size
    target = (size, size)
    if fit == "crop":
        left, top, side = (width - min(width, height)) // 2, (height - min(width, height)) // 2, min(width, height)
        picture = picture.crop((left, top, left + side, top + side))
    elif fit == "pad":
        longer = max(width, height)
        target = (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    picture = picture.resize(target, Image.Resampling.BICUBIC, reducing_gap=2.0)
    if target != (size, size):
        square = Image.new("RGB", (size, size), facts["background"])
        square.paste(picture, ((size - target[0]) // 2, (size - target[1]) // 2))
        picture = square
    if facts["stored_as"]:
        stored = io.BytesIO()
        picture.save(stored, **facts["stored_as"])
        picture = Image.open(stored)
    return np.asarray(picture).transpose(2, 0, 1)


def main(model: str, *pictures: str) -> None:
    document = json.loads((Path(model) / "classes.json").read_text("utf-8"))
    session = onnxruntime.InferenceSession(Path(model) / "model.onnx", providers=["CPUExecutionProvider"])
    print("image,class,probability")
    for picture in pictures:
        logits = session.run(["logits"], {"images": prepared(picture, document["input"])[None]})[0][0]
        shares = np.exp(logits - logits.max())
        print(f"{picture},{document['classes'][logits.argmax()]},{shares.max() / shares.sum():.6f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
