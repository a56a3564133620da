"""The stage `export`: a trained classifier as files for other programs, each one checked against the classifier.

    model.pt2                                    torch    a program of torch.export
    model.onnx                                   onnx     for ONNX runtimes
    config.json  model.safetensors  README.md    hub      a Hugging Face model; `saukit predict` reads it too
    transformers/                                transformers   a timm checkpoint for transformers' pipelines
    classes.json                                 always   labels in the order of the logits, inputs, and the checks

torch and hub take images float32 [batch, 3, H, W] in [0, 1], normalisation inside; onnx takes pictures uint8 [batch, 3,
any, any] and resizes them too. Logits are float32 [batch, K]. A folder is made beside its place and swapped in when all
of it is checked.
"""

import contextlib
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from saukit.core.artifacts import Manifest, read_manifest, safetensors_writing, write_sealed
from saukit.core.console import Reporter
from saukit.core.documents import read_json
from saukit.core.errors import SaukitError, UsageError
from saukit.core.extras import require_extra
from saukit.core.locks import hold
from saukit.core.options import check
from saukit.core.version import __version__
from saukit.core.words import is_text, shortened
from saukit.core.workspace import Workspace
from saukit.core.writing import sha256_file, staged_folder
from saukit.data.images import JPEG, RAW_UP_TO
from saukit.deploy.config import ExportConfig, Format
from saukit.deploy.hub import readme
from saukit.deploy.prepared import Prepared
from saukit.deploy.timm_checkpoint import require_timm_form, write_checkpoint
from saukit.models.classifier import (
    CLASSES_NAME,
    HUB_CONFIG_NAME,
    ImageClassifier,
    load_classifier,
    locate_model,
    split_of,
)
from saukit.models.model_file import MODEL_NAME, preparation

TORCH_NAME = "model.pt2"
ONNX_NAME = "model.onnx"
README_NAME = "README.md"
TRANSFORMERS_FOLDER = "transformers"
WRITTEN = frozenset(
    {CLASSES_NAME, TORCH_NAME, ONNX_NAME, README_NAME, HUB_CONFIG_NAME, MODEL_NAME, TRANSFORMERS_FOLDER}
)
TOLERANCE = 1e-4  # largest difference of a logit
CHECKED_IMAGES = 32
BATCH_SIZES = (1, 5, CHECKED_IMAGES)
MOST_BATCHES = 8  # of a size

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Check:
    """How far the logits of one exported format are from the classifier's, at most."""

    format: Format
    max_difference: float


@dataclass(frozen=True)
class ExportResult:
    """Where the files are, what was checked, and on which images."""

    folder: Path
    model: Path
    files: tuple[str, ...]
    checks: tuple[Check, ...]
    checked_on: str

    @property
    def document(self) -> dict[str, Any]:
        """The JSON document: classes.json, and where it all is."""
        content = read_json(self.folder / CLASSES_NAME)
        return {"folder": str(self.folder), "model": str(self.model), "files": list(self.files), **content}


def export(
    config: ExportConfig, model: str | Path, to: Path, workspace: Workspace, *, force: bool, reporter: Reporter
) -> ExportResult:
    """Write the classifier of `model` (what `locate_model` finds) to the folder `to` in each of the formats.

    Raises: UsageError for unknown formats, a model that is no timm checkpoint with `transformers`, or a folder that is
    there; EnvironmentFault without the extra `onnx`; SaukitError if an exported file gives other logits: then
    nothing is left behind.
    """
    check(config)
    if "onnx" in config.formats:
        require_extra("onnx", purpose="the format onnx")
    folder = Path(os.path.realpath(to))  # Path.resolve raises for links in a loop
    _check_target(folder, force=force)
    path = locate_model(model, workspace)
    classifier = load_classifier(path)
    if "transformers" in config.formats:
        require_timm_form(classifier.spec)
    home = path.parent if path.name == MODEL_NAME else path
    run = read_manifest(home, kind="run", verify=False)  # None for a model without its run; it was verified above
    images, checked_on = _images_to_check(classifier, path, run, reporter)
    lock = hold(folder.with_name(f".{folder.name}.lock"), folder)
    with lock, staged_folder(folder) as staging:
        checks = []
        for name in config.formats:
            reporter.say(f"exporting {path} as {name}")
            loaded = _WRITERS[name](classifier, home, run, staging)
            difference = largest_difference(classifier, loaded, images)
            if not difference <= TOLERANCE:
                raise SaukitError(
                    f"the exported {name} model gives other logits than {path}: they differ by {difference:.3g}, "
                    f"at most {TOLERANCE:g} is allowed; nothing was written, and the other formats may do"
                )
            checks.append(Check(name, difference))
        written = [file for file in sorted(staging.rglob("*")) if file.is_file()]
        hashes = {file.relative_to(staging).as_posix(): sha256_file(file) for file in written}
        write_sealed(staging / CLASSES_NAME, _classes_document(classifier, checks, checked_on) | {"hashes": hashes})
        files = tuple(sorted([*hashes, CLASSES_NAME]))
    return ExportResult(folder, path, files, tuple(checks), checked_on)


@torch.inference_mode()
def largest_difference(classifier: ImageClassifier, other: Logits, images: Tensor) -> float:
    """The largest absolute difference of a logit, over batches of several sizes; NaN if one is NaN."""
    differences = []
    for size in BATCH_SIZES:
        for part in torch.split(images[: size * MOST_BATCHES], size):
            differences.append((other(part) - classifier(part)).abs().max())
    return float(torch.stack(differences).max())


def _write_torch(classifier: ImageClassifier, path: Path, run: Manifest | None, folder: Path) -> Logits:
    example = torch.zeros(2, 3, *classifier.image_size)  # a batch of one would become a constant
    program = _program(classifier, example, ("batch",))
    archive = io.BytesIO()  # on a full disk, torch's own writer ends the process
    torch.export.save(program, archive, extra_files={CLASSES_NAME: json.dumps(classifier.classes)})
    (folder / TORCH_NAME).write_bytes(archive.getbuffer())
    return torch.export.load(folder / TORCH_NAME).module()


def _write_onnx(classifier: ImageClassifier, path: Path, run: Manifest | None, folder: Path) -> Logits:
    import onnx
    import onnxruntime

    height, width = classifier.image_size
    example = torch.zeros(2, 3, height + 1, width + 2, dtype=torch.uint8)
    with _silence():
        exported = torch.onnx.export(
            _program(Prepared(classifier).eval(), example, ("batch", "height", "width")),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "batch", 2: "height", 3: "width"}},
            verbose=False,
        )
        assert exported is not None
        exported.save(folder / ONNX_NAME, external_data=False)
    content = onnx.load(folder / ONNX_NAME)
    onnx.helper.set_model_props(content, {"classes": json.dumps(classifier.classes)})
    onnx.checker.check_model(content, full_check=True)
    onnx.save(content, folder / ONNX_NAME)
    session = onnxruntime.InferenceSession(folder / ONNX_NAME, providers=["CPUExecutionProvider"])

    def logits(images: Tensor) -> Tensor:
        pictures = (images * 255).round().to(torch.uint8)
        return torch.from_numpy(session.run(["logits"], {"images": pictures.numpy()})[0])

    return logits


def _write_hub(classifier: ImageClassifier, path: Path, run: Manifest | None, folder: Path) -> Logits:
    (folder / README_NAME).write_text(readme(classifier.spec, path, run), encoding="utf-8")
    with safetensors_writing():
        classifier.save_pretrained(folder)  # it leaves a README.md that is there alone
    return load_classifier(folder)


def _write_transformers(classifier: ImageClassifier, path: Path, run: Manifest | None, folder: Path) -> Logits:
    network = write_checkpoint(classifier, folder / TRANSFORMERS_FOLDER)
    return lambda images: network((images - classifier.mean) / classifier.std)


_WRITERS: dict[Format, Callable[[ImageClassifier, Path, Manifest | None, Path], Logits]] = {
    "torch": _write_torch,
    "onnx": _write_onnx,
    "hub": _write_hub,
    "transformers": _write_transformers,
}


def _program(module: nn.Module, example: Tensor, names: tuple[str, ...]) -> torch.export.ExportedProgram:
    """A module as a graph of tensor operations; `names` are of the sizes of its images that are any: 0, 2 and 3."""
    sizes = {axis: torch.export.Dim(name, min=1) for axis, name in zip((0, 2, 3), names, strict=False)}
    program = torch.export.export(module, (example,), dynamic_shapes={"images": sizes})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, of no use elsewhere
    return program


def _images_to_check(
    classifier: ImageClassifier, path: Path, run: Manifest | None, reporter: Reporter
) -> tuple[Tensor, str]:
    """Images float32 [n, 3, H, W], 255ths, and what they are: real ones if the run lies in its workspace."""
    if run is not None:
        try:
            split, _ = split_of(path)
        except SaukitError as error:
            reporter.say(f"random images check the export, since its training images are not there: {error}")
        else:
            chosen = np.linspace(0, len(split.train.images) - 1, CHECKED_IMAGES).round().astype(np.int64)
            real = torch.from_numpy(split.train.images[chosen])
            return real.to(torch.float32) / 255, f"{CHECKED_IMAGES} training images"
    size = (CHECKED_IMAGES, 3, *classifier.image_size)
    noise = torch.randint(256, size, generator=torch.Generator().manual_seed(0)) / 255
    return noise, f"{CHECKED_IMAGES} images of random pixels"


def _classes_document(classifier: ImageClassifier, checks: list[Check], checked_on: str) -> dict[str, Any]:
    height, width = classifier.image_size
    any_size = {"name": "images", "shape": ["batch", 3, "height", "width"], "dtype": "uint8", "range": [0, 255]}
    return {
        "saukit": __version__,
        "classes": list(classifier.classes),
        "input": {
            "name": "images",
            "shape": ["batch", 3, height, width],
            "dtype": "float32",
            "range": [0, 1],
            "channels": "RGB",
            "preparation": preparation(classifier.spec),
            "fit": classifier.spec.fit,
            "background": classifier.spec.background,
            "white_level": classifier.spec.white_level,
            # What Pillow's save takes: a split stores its images so, and what is read back is evaluated.
            "stored_as": {"format": "JPEG", **JPEG} if max(height, width) > RAW_UP_TO else None,
        },
        **({"onnx_input": any_size | {"channels": "RGB"}} if any(check.format == "onnx" for check in checks) else {}),
        "output": {"name": "logits", "shape": ["batch", len(classifier.classes)], "dtype": "float32"},
        "checks": {check.format: check.max_difference for check in checks},
        "checked_on": f"{checked_on}, in batches of {', '.join(map(str, BATCH_SIZES))}",
        "tolerance": TOLERANCE,
    }


def _check_target(folder: Path, *, force: bool) -> None:
    """Raises: UsageError for a folder with something in it, unless it is an older export and `force` is set, and for
    one whose name the libraries that write there cannot take."""
    if not is_text(folder):
        raise UsageError(f"{folder} is not UTF-8, as safetensors and torch need it: give another folder as --to")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is {'a file' if folder.is_file() else 'not a folder'}: give a folder as --to")
    if Path.cwd().is_relative_to(folder):  # it is swapped, and a shell would stay in the old one
        raise UsageError(f"{folder} is the working folder, or holds it: give another folder as --to")
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        document = read_json(folder / CLASSES_NAME)
    except SaukitError:
        document = {}
    foreign = f"{folder} holds what `saukit export` did not write"
    if "saukit" not in document:
        raise UsageError(f"{foreign}: give another folder as --to")
    if mine := [name for name in _names(folder) if not _is_own(folder, name, document.get("hashes"))]:
        raise UsageError(f"{foreign}: move {shortened(mine)} away, or give another folder as --to")
    if not force:
        raise UsageError(f"{folder} holds an export already: replace it with --force, or give another folder as --to")


def _names(folder: Path) -> list[str]:
    """What is in `folder` and below but folders."""
    there = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path.relative_to(folder).as_posix() for path in there)


def _is_own(folder: Path, name: str, hashes: Any) -> bool:
    """Whether an export with these hashes has the file `name`, which then may be replaced: a README.md with its text
    alone, since people write into theirs. Exports of earlier versions have no hashes."""
    if name == CLASSES_NAME or not isinstance(hashes, dict):
        return name == CLASSES_NAME or name.split("/")[0] in WRITTEN
    return name in hashes and (name != README_NAME or sha256_file(folder / name) == hashes[name])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep what the ONNX exporter prints, warns of and logs away from the user; errors still raise."""
    nowhere = io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
