"""Write a split: images block by block, so that memory does not grow with their number; the manifest last."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from saukit.core.artifacts import CONFIG_NAME, Manifest, save_tensors, save_with_images, write_manifest
from saukit.core.config import to_yaml
from saukit.core.plots import save_figure
from saukit.core.writing import staged_folder, write_text
from saukit.data.charts import counts_figure
from saukit.data.duplicates import Duplicates, write_duplicates
from saukit.data.encoding import StoredFiles, encoded_arrays, statistics_of
from saukit.data.images import RAW_UP_TO, chunks, write_shards
from saukit.data.part_files import encodable, write_part_files
from saukit.data.plan import SplitPlan
from saukit.data.source import Channels, Pixels
from saukit.data.sources.table import TABLE
from saukit.data.types import Images, Integers

KIND = "split"
CHART_NAME = "counts.png"


def write_split(
    folder: Path,
    plan: SplitPlan,
    pixels: Pixels,
    store: StoredFiles | None,
    duplicates: Duplicates,
    root: Path | None,
) -> Manifest:
    """Write the artefact beside its place, vouch for it, and swap it in."""
    config, choice, source, row = plan.config, plan.choice, plan.source, TABLE[plan.config.dataset]
    size, encoded = config.image_size, config.image_size > RAW_UP_TO
    parts = {"train": choice.train, "test": choice.test, "val": choice.val}
    with staged_folder(folder, kind=KIND) as staging:
        mean, std = row.mean, row.std
        for name, positions in parts.items():
            if name == "val" and not len(positions):
                continue
            of, labels = source.pool(name)
            tensors = {"labels": labels[positions], "source_indices": positions.astype(np.int64)}
            if encoded:
                images = encoded_arrays(pixels, of, positions, size) if store is None else store.encoded(of, positions)
                found = statistics_of(write_shards(staging, name, images), size**2)
            elif mean is None or std is None:
                found = _statistics(_blocks(pixels, of, positions, size))
            if mean is None or std is None:
                mean, std = found  # the training part comes first
            metadata: dict[str, Any] = {
                "part": name,
                "source": config.dataset,
                "classes": list(plan.classes),
                "mean": list(mean),
                "std": list(std),
                "flip": config.flip,
                "fit": config.fit,
                "background": config.background,
                "white_level": config.white_level,
                "groups_rule": plan.groups.rule,
                "groups": {group: list(members) for group, members in plan.groups.members.items()},
            }
            path = staging / f"{name}.safetensors"
            if encoded:
                save_tensors(path, tensors, {**metadata, "image_size": size})
            else:
                shape = (len(positions), 3, size, size)
                save_with_images(path, tensors, metadata, shape, _blocks(pixels, of, positions, size))
        chart = counts_figure(plan.classes, plan.train_counts, plan.groups, title=plan.groups.rule)
        save_figure(chart, staging / CHART_NAME)
        write_text(staging / CONFIG_NAME, to_yaml(config))
        if source.files is not None:
            names = source.files()
            chosen = {part: (*source.pool(part), positions) for part, positions in parts.items()}
            write_part_files(
                staging,
                plan.classes,
                {part: (labels[at], [names[of][i] for i in at]) for part, (of, labels, at) in chosen.items()},
            )
        if not duplicates.kept.all():
            write_duplicates(staging, duplicates, plan.classes, dropped=config.drop_duplicates)
        summary = {
            **plan.summary,
            "duplicates": duplicates.summary,
            "skipped": len(pixels.bad),
            **{name: metadata[name] for name in ("mean", "std", "flip")},
            "root": None if root is None else encodable(str(root)),
            "source_files": source.fingerprint,
        }
        files = [path.name for path in staging.iterdir()]
        return write_manifest(staging, kind=KIND, files=files, inputs={}, summary=summary, device="cpu")


def _blocks(pixels: Pixels, part: str, positions: Integers, size: int) -> Iterator[Images]:
    """The images at `positions`, a few hundred at a time."""
    for some in chunks(positions):
        yield pixels.read(part, some, size)


def _statistics(blocks: Iterable[Images]) -> tuple[Channels, Channels]:
    """Mean and standard deviation of each channel for pixels in [0, 1], in float64 from exact integer counts."""
    histograms = np.zeros((3, 256), np.int64)
    for images in blocks:
        for channel in range(3):
            histograms[channel] += np.bincount(images[:, channel].ravel(), minlength=256)
    means, deviations = [], []
    values = np.arange(256) / 255
    for histogram in histograms:
        mean = float(histogram @ values / histogram.sum())
        deviation = float(np.sqrt(histogram @ (values - mean) ** 2 / histogram.sum()))
        means.append(mean)
        deviations.append(deviation if deviation > 0 else 1.0)  # a channel of one value: leave its scale alone
    return tuple(means), tuple(deviations)
