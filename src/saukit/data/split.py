"""A long-tailed split: planned from a source, written as data, read back verified.

    split/  config.yaml  manifest.json  train.safetensors  test.safetensors  [val.safetensors]  counts.png
           [files.csv]  [duplicates.csv]

Images of more than 64 pixels a side lie beside that, encoded: train-00000.safetensors and so on (`data.images`).

Class counts and shot groups are those of `train`: the real training images that are left once the validation part is
taken. A split is written beside its place and swapped in at the end, so that a full disk or a kill leaves an earlier
one untouched.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saukit.core.artifacts import (
    CONFIG_NAME,
    MANIFEST_NAME,
    Manifest,
    check_disk_space,
    load_tensors,
    read_manifest,
)
from saukit.core.config import from_mapping, load_saved
from saukit.core.console import Reporter
from saukit.core.documents import REMAKE
from saukit.core.errors import CorruptArtifactError, UsageError
from saukit.core.words import shortened
from saukit.core.workspace import Workspace, claim, existing_state, require
from saukit.core.writing import recover_folder
from saukit.data.config import ResolvedSplitConfig, SplitConfig, resolve, settled
from saukit.data.decoding import CROP, MOST_VALUE, Fitting, refuse_or_warn
from saukit.data.duplicates import DUPLICATES_NAME, Duplicates, Pool, find_duplicates
from saukit.data.encoding import StoredFiles
from saukit.data.fingerprints import Hashes, compared_size, fingerprints
from saukit.data.images import EncodedImages, ImageStore, mapped, shard_paths
from saukit.data.long_tail import class_counts
from saukit.data.plan import SplitPlan, plan_of, resolved_for, without
from saukit.data.shots import GROUP_NAMES, ShotGroups
from saukit.data.source import IMAGE_SIZES, Channels, Pixels, Source
from saukit.data.source_config import Fit, colour_problems
from saukit.data.sources.table import TABLE, check_root, open_source
from saukit.data.split_writing import KIND, write_split
from saukit.data.types import Images, Integers

COMMAND = "saukit make-lt"
STORE_NAME = ".split.images"  # in the workspace, while a split of files is made


@dataclass(frozen=True)
class Part:
    """Images of one part of a split, in memory or encoded on disk.

    Shapes: images [N, 3, H, W]; labels int64 [N]; source_indices int64 [N], positions in the source's own order
    of the part (of its training part, where it has no such part of its own).
    """

    images: ImageStore
    labels: Integers
    source_indices: Integers


@dataclass(frozen=True)
class Split:
    """What training may see of a split: its training part and its validation part, never its test set.

    mean, std: per channel, for pixels in [0, 1]. flip: whether a mirrored image keeps its class. fitting: how its
    pictures became squares.
    """

    source: str
    classes: tuple[str, ...]
    train: Part
    val: Part | None
    mean: Channels
    std: Channels
    flip: bool
    groups: ShotGroups
    manifest: Manifest
    fitting: Fitting = CROP

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.images.shape[2:]
        return height, width

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def class_counts(self) -> Integers:
        """Training images of each class, int64 [K]."""
        return class_counts(self.train.labels, self.num_classes)


@dataclass(frozen=True)
class SplitResult:
    """What `make_split` did: "new" if it wrote the split, "complete" if the same one was there already.

    summary: of `SplitPlan`, and skipped (unreadable images skipped), mean, std, flip; root and source_files (a hash
    of names and sizes in a folder) are for information, and to notice another folder under the same configuration.
    """

    state: Literal["new", "complete"]
    config: ResolvedSplitConfig
    manifest: Manifest

    @property
    def summary(self) -> dict[str, Any]:
        """The manifest's summary."""
        return self.manifest.summary

    @property
    def groups(self) -> ShotGroups:
        """The shot groups of the summary."""
        index = {name: position for position, name in enumerate(self.summary["classes"])}
        members = {group: [index[name] for name in names] for group, names in self.summary["groups"].items()}
        return _groups(self.summary["groups_rule"], members)


def load_split(workspace: Workspace) -> Split:
    """The verified split of `workspace`, without its test set.

    Raises: DataError if there is none, CorruptArtifactError if a file of it is damaged.
    """
    manifest = require(workspace.split, kind=KIND, command=COMMAND)
    train, facts = _load_part(workspace.split, "train")
    if gone := [name for name, count in zip(facts.classes, class_counts(train.labels, facts.count), strict=True)
                if not count]:  # fmt: skip
        raise _damaged(workspace.split / "train.safetensors", [f"it has no image of {shortened(gone)}"])
    return Split(
        source=facts.source,
        classes=facts.classes,
        train=train,
        val=_load_part(workspace.split, "val", (train, facts))[0] if "val.safetensors" in manifest.files else None,
        mean=facts.mean,
        std=facts.std,
        flip=facts.flip,
        fitting=Fitting(facts.fit, facts.background, facts.white_level),
        groups=_groups(facts.groups_rule, facts.groups),
        manifest=manifest,
    )


def load_test(workspace: Workspace) -> Part:
    """The verified test set of the split of `workspace`. Raises: as `load_split`."""
    require(workspace.split, kind=KIND, command=COMMAND)
    return _load_part(workspace.split, "test", _load_part(workspace.split, "train"))[0]


def make_split(
    config: SplitConfig, workspace: Workspace, *, root: Path | None, force: bool, reporter: Reporter
) -> SplitResult:
    """Write the split that `config` describes, or find that it is there already.

    Raises: UsageError if a split of another configuration is there and not `force`; DataError for sources that are
    missing or unreadable; EnvironmentFault if memory or disk do not suffice. An earlier split is then as it was.
    """
    config = settled(config)
    with workspace.lock(workspace.split):
        recover_folder(workspace.split, kind=KIND)
        claim(workspace.split, ResolvedSplitConfig, kind=KIND, another="another --workspace")
        if not force and (ready := _same_without_looking(config, workspace, root)) is not None:
            return ready
        source = open_source(config, root)
        resolved = resolved_for(config, source)
        if (ready := _existing(resolved, workspace, source.fingerprint, force=force)) is not None:
            return ready
        plan = plan_of(resolved, source)  # before any decoding, so that a bad ratio is an error at once
        store = _store_of(source, resolved, workspace)
        check_disk_space(workspace.root, plan.bytes + (0 if store is None else store.estimated_bytes))
        plan.tell(reporter)
        if source.size_reason is not None and config.image_size is None:
            reporter.say(f"image size {resolved.image_size}: {source.size_reason} (--image-size sets another)")
        if store is not None:
            pixels = store.read(reporter)
        else:
            assert source.load is not None
            pixels = source.load(resolved.image_size, reporter)
        if pixels.bad:
            bad = [f"{file} ({reason})" for file, reason in pixels.bad]
            kept = f"no split was written; {workspace.root / STORE_NAME} keeps what was decoded for the next make-lt"
            refuse_or_warn(bad, skip=resolved.skip_bad, reporter=reporter, written=kept)
            first, plan = plan, plan_of(resolved, source, pixels)
            plan.tell(reporter, told=first)
        if pixels.one_colour:
            have = "image has" if len(pixels.one_colour) == 1 else "images have"
            reporter.warn(f"{len(pixels.one_colour)} {have} a single colour: {shortened(pixels.one_colour)}")
        duplicates = _duplicates(plan, pixels, reporter)
        if resolved.drop_duplicates:
            plan = without(plan, duplicates.kept)
        manifest = write_split(workspace.split, plan, pixels, store, duplicates, check_root(config.dataset, root))
        shutil.rmtree(workspace.root / STORE_NAME, ignore_errors=True)  # that of a split of other files too
    return SplitResult("new", resolved, manifest)


def _duplicates(plan: SplitPlan, pixels: Pixels, reporter: Reporter) -> Duplicates:
    """The copies among the images of the plan, which are told."""
    source = plan.source
    names, size = None if source.files is None else source.files(), plan.config.image_size

    def pool(*parts: tuple[str, Integers]) -> Pool:
        own = [(part, *source.pool(part), positions) for part, positions in parts]
        ends = np.cumsum([len(positions) for _, positions in parts])

        def read(rows: Integers) -> tuple[Images, Hashes]:
            images = np.empty((len(rows), 3, *compared_size(size, size)), np.uint8)
            hashes = np.empty(len(rows), np.uint64)
            which = np.searchsorted(ends, rows, side="right")
            for index in np.unique(which).tolist():
                (_, of, _, positions), mine = own[index], which == index
                places = positions[rows[mine] - ends[index] + len(positions)]
                if pixels.fingerprints is not None:
                    images[mine], hashes[mine] = pixels.fingerprints(of, places)
                else:
                    images[mine], hashes[mine] = fingerprints(pixels.read(of, places, size))
            return images, hashes

        return Pool(
            parts=[part for part, positions in parts for _ in positions],
            rows=[row for _, positions in parts for row in range(len(positions))],
            labels=np.concatenate([labels[positions] for _, _, labels, positions in own]),
            read=read,
            files=None if names is None else [names[of][at] for _, of, _, positions in own for at in positions],
        )

    choice = plan.choice
    training, test = pool(("train", choice.train), ("val", choice.val)), pool(("test", choice.test))
    found = find_duplicates(training, test, flip=plan.config.flip, reporter=reporter)
    for sentence in found.sentences(plan.classes):
        reporter.warn(sentence)
    if not found.kept.all():
        dropped = f"{int((~found.kept).sum()):,} images are left out"
        reporter.say(
            f"{DUPLICATES_NAME} lists them; "
            + (dropped if plan.config.drop_duplicates else "--drop-duplicates leaves them out")
        )
    return found


def _store_of(source: Source, config: ResolvedSplitConfig, workspace: Workspace) -> StoredFiles | None:
    """Where the files of `source` are decoded to first; None where its images are arrays."""
    if source.originals is None:
        return None
    fitting, store = Fitting(config.fit, config.background, config.white_level), workspace.root / STORE_NAME
    return StoredFiles(store, source.originals, size=config.image_size, fitting=fitting, fingerprint=source.fingerprint)


@dataclass(frozen=True)
class _Facts:
    """What the metadata of a part says of the split."""

    source: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    groups_rule: str
    groups: dict[str, tuple[int, ...]]
    fit: Fit = "crop"
    background: str = "white"
    white_level: int | None = None
    image_size: int | None = None

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    def problems(self) -> list[str]:
        """What no split has."""
        grouped = sorted(index for members in self.groups.values() for index in members)
        values, (least, most) = (*self.mean, *self.std), IMAGE_SIZES
        return [
            *(["its classes are not names, each once"] if not 0 < len({*self.classes}) == self.count else []),
            *(["its groups do not have each class once"]
              if grouped != [*range(self.count)] or not {*self.groups} <= {*GROUP_NAMES} else []),
            *(["its mean and std are not three numbers each, std above 0"]
              if (len(self.mean), len(self.std)) != (3, 3) or not np.isfinite(values).all() or min(self.std) <= 0
              else []),
            *([f"image_size {self.image_size} is not from {least} to {most} pixels"]
              if self.image_size is not None and not least <= self.image_size <= most else []),
            *([f"white_level {self.white_level} is not from 1 to {MOST_VALUE}"]
              if self.white_level is not None and not 0 < self.white_level <= MOST_VALUE else []),
            *colour_problems(self.background),
        ]  # fmt: skip


def _load_part(folder: Path, name: str, beside: tuple[Part, _Facts] | None = None) -> tuple[Part, _Facts]:
    """A part and what it says of the split, which is what the part `beside` it says. Both are checked, for a manifest
    vouches for whatever somebody wrote.

    Raises: CorruptArtifactError.
    """
    path = folder / f"{name}.safetensors"
    tensors, metadata = load_tensors(path, without=("images",))  # its hash is the manifest's: all is there
    known = {name: value for name, value in metadata.items() if name in _Facts.__dataclass_fields__}
    try:
        facts = from_mapping(_Facts, known, where="its metadata")
    except UsageError as error:
        raise _damaged(path, [str(error)]) from None
    if problems := facts.problems():
        raise _damaged(path, problems)
    images: ImageStore
    if facts.image_size is not None:
        images = EncodedImages(shard_paths(folder, name), (facts.image_size,) * 2)
    else:
        images = mapped(path, "images")
    shape = images.shape
    if beside is not None and (facts != beside[1] or shape[1:] != beside[0].images.shape[1:]):
        raise _damaged(path, ["it does not fit train.safetensors"])
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise _damaged(path, [f"its images have the shape {[*shape]}"])
    for kind in ("labels", "source_indices"):
        array = tensors.get(kind)
        if array is None or array.dtype != np.int64 or array.shape != shape[:1]:
            raise _damaged(path, [f"its {kind} are not int64 [{shape[0]}]"])
    labels = tensors["labels"]
    if not len(labels):
        raise _damaged(path, ["it holds no image"])
    if not 0 <= labels.min() <= labels.max() < facts.count:
        raise _damaged(path, [f"its labels go from {labels.min()} to {labels.max()}, for {facts.count} classes"])
    return Part(images, labels, tensors["source_indices"]), facts


def _damaged(path: Path, problems: Sequence[str]) -> CorruptArtifactError:
    return CorruptArtifactError(f"{path} is damaged: {shortened(problems, '; ')}; {REMAKE}")


def _groups(rule: str, members: Mapping[str, Sequence[int]]) -> ShotGroups:
    """Shot groups from a file, where the order of keys is not kept."""
    return ShotGroups(rule, {name: tuple(members[name]) for name in GROUP_NAMES if name in members})


def _same_without_looking(config: SplitConfig, workspace: Workspace, root: Path | None) -> SplitResult | None:
    """The split that is there, if `config` names its configuration without a look at the source; so a workspace
    that was carried to another machine needs no source to say that there is nothing to do."""
    row = TABLE[config.dataset]
    if row.image_size is None or row.test_set is None or not (workspace.split / CONFIG_NAME).exists():
        return None
    if row.embedded:
        check_root(config.dataset, root)
    resolved = resolve(config, image_size=row.image_size, test_set=row.test_set)
    if load_saved(ResolvedSplitConfig, workspace.split / CONFIG_NAME) != resolved:
        return None
    return _existing(resolved, workspace, None, force=False)


def _existing(
    config: ResolvedSplitConfig, workspace: Workspace, fingerprint: str | None, *, force: bool
) -> SplitResult | None:
    """The split that is there, if it is complete and the one that `config` and its source's files describe."""
    started = (workspace.split / CONFIG_NAME).exists()
    if started and (force or not (workspace.split / MANIFEST_NAME).exists()):
        return None
    if existing_state(workspace.split, config, kind=KIND, another="another --workspace") != "complete":
        return None
    manifest = read_manifest(workspace.split, kind=KIND, verify=False)
    assert manifest is not None
    if fingerprint != manifest.summary["source_files"]:
        raise UsageError(
            f"{workspace.split} was made from other files ({manifest.summary['root']}, or they have changed since): "
            "replace it with --force, or give another --workspace"
        )
    return SplitResult("complete", config, manifest)
