"""A trained classifier by itself: pixels in, logits out, nothing else needed; saved and published as a Hub model."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from saukit.core.artifacts import CONFIG_NAME, MANIFEST_NAME, read_manifest, read_sealed
from saukit.core.config import from_mapping
from saukit.core.documents import read_json
from saukit.core.errors import CorruptArtifactError, DataError, is_out_of_memory
from saukit.core.files import check_tree
from saukit.core.options import at_home
from saukit.core.words import is_text, name_problem, one_line, shown
from saukit.core.workspace import Workspace, require, require_made_from
from saukit.core.writing import sha256_file
from saukit.data.split import Split, load_split
from saukit.models.dual_branch import DualBranchNet
from saukit.models.model_file import MODEL_NAME, ModelSpec, check_finite, load_model

HUB_CONFIG_NAME = "config.json"
EXPORT_AGAIN = "export it again with --force"
HEADS_OF_TRAINING = ("projection", "class_projection", "consistency")  # which a classifier is without
CLASSES_NAME = "classes.json"  # of an export, with a hash of each file


class ImageClassifier(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="saukit",
    pipeline_tag="image-classification",
    tags=["image-classification", "long-tailed-recognition", "saukit"],
):
    """Normalisation, backbone and classifier of a run.

    Its arguments are what `save_pretrained` writes to config.json and `from_pretrained` builds it from again; `method`
    is what it was trained with. Raises: UsageError for a value of the wrong type, KeyError for an unknown backbone.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        classes: Sequence[str],
        image_size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        method: str,
        classifier: str = "linear",
        standardize: bool = False,
        crops: int = 1,
        fit: str = "crop",
        background: str = "white",
        white_level: int | None = None,
    ) -> None:
        given = locals()
        super().__init__()
        fields = {name: given[name] for name in ModelSpec.__dataclass_fields__ if name not in HEADS_OF_TRAINING}
        self.spec = from_mapping(ModelSpec, {**fields, "projection": False}, where="the classifier")
        self.network = self.spec.build_network()
        for name, values in (("mean", self.spec.mean), ("std", self.spec.std)):
            # Not among the weights: config.json has them.
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.eval()

    @classmethod
    def from_model(cls, network: DualBranchNet, spec: ModelSpec) -> ImageClassifier:
        """What inference needs of a trained network: its backbone and classifier, copied to the CPU."""
        made = cls(**{name: value for name, value in asdict(spec).items() if name not in HEADS_OF_TRAINING})
        needed = made.network.state_dict()
        made.network.load_state_dict({name: value for name, value in network.state_dict().items() if name in needed})
        return made

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names, in the order of the logits."""
        return self.spec.classes

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels that it was trained with."""
        return self.spec.image_size

    def forward(self, images: Tensor) -> Tensor:
        """Images float [b, 3, H, W] in [0, 1] -> logits float32 [b, K]. Raises: TypeError for whole numbers."""
        if not images.is_floating_point():
            raise TypeError(f"images must be floats in [0, 1], got {images.dtype}: divide uint8 images by 255")
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits.float()

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> ImageClassifier:
        """As the mixin's own, but weights that do not fit are an error, and nothing is printed to stdout."""
        with contextlib.redirect_stdout(io.StringIO()):
            loaded: ImageClassifier = super()._from_pretrained(strict=strict, **options)
        return loaded


def locate_model(model: str | Path, workspace: Workspace) -> Path:
    """Where `model` lies: the run of that name in `workspace`, or else the file or folder that it names.

    Raises: DataError that lists the runs there are.
    """
    model = at_home(model)
    name = str(model)
    if name_problem("run", name) is None and workspace.run(name).is_dir():
        return workspace.run(name)
    if Path(model).exists():
        return Path(model)
    runs = workspace.run_names()
    known = f"complete runs: {', '.join(runs)}" if runs else "no run is complete there"
    raise DataError(
        f"no model {name!r}: no complete run of {workspace.root / 'runs'} ({known}) and no file or folder has that "
        f"name; give a run, its folder, a {MODEL_NAME}, or a folder made by `saukit export`"
    )


def split_of(path: Path) -> tuple[Split, Workspace]:
    """The split that the run at `path`, its folder or its model file, was trained on, and the workspace of both.

    Raises: SaukitError if that is no run, or its split is not there any more.
    """
    home = path.parent if path.name == MODEL_NAME else path
    run = read_manifest(home, kind="run", verify=False)
    if run is None:
        raise DataError(f"{path} is a model without its run")
    workspace = Workspace(home.resolve().parent.parent)
    split = load_split(workspace)
    require_made_from(run, home, split=split.manifest, command="saukit train")
    return split, workspace


def load_classifier(path: str | Path) -> ImageClassifier:
    """The classifier of a run's folder, a model.safetensors, or a folder that `save_pretrained` wrote.

    It is in eval mode and on the CPU; nothing is downloaded.
    Raises: DataError if there is none or its run is not complete, CorruptArtifactError if a file is damaged.
    """
    path = Path(path)
    folder = path.parent if path.name == MODEL_NAME else path
    if (folder / MANIFEST_NAME).exists() or (folder / CONFIG_NAME).exists():
        require(folder, kind="run", command="saukit train")
        return ImageClassifier.from_model(*load_model(folder / MODEL_NAME))
    _check_export(folder)
    if (folder / HUB_CONFIG_NAME).exists():
        return _load_pretrained(folder)
    file = folder / MODEL_NAME if path.is_dir() else path
    if not file.is_file() or file.suffix != ".safetensors":
        raise DataError(
            f"{path} holds no {MODEL_NAME}: give a run, its folder, or what `saukit export --format hub` made"
        )
    return ImageClassifier.from_model(*load_model(file))


def _check_export(folder: Path) -> None:
    """Raises: CorruptArtifactError for a file that is not as `saukit export` wrote it, if that made the folder."""
    if not os.path.lexists(folder / CLASSES_NAME):
        return
    noted = read_sealed(folder / CLASSES_NAME, remedy=EXPORT_AGAIN).get("hashes", ())
    for name in (HUB_CONFIG_NAME, MODEL_NAME):
        if name in noted and not ((folder / name).is_file() and sha256_file(folder / name) == noted[name]):
            raise CorruptArtifactError(f"{folder / name} is missing or was changed after its export: {EXPORT_AGAIN}")


def _load_pretrained(folder: Path) -> ImageClassifier:
    if not is_text(folder):
        raise DataError(f"{folder} is not UTF-8, as safetensors needs it: rename it")
    read_json(folder / HUB_CONFIG_NAME, remedy=EXPORT_AGAIN)  # within limits that the mixin's own reader lacks
    try:
        check_tree(folder)
        loaded = ImageClassifier.from_pretrained(folder)
        check_finite(loaded.state_dict())
    except Exception as error:  # of huggingface_hub, safetensors and torch, whatever the files made them raise
        if is_out_of_memory(error):
            raise
        reason = shown(one_line(str(error)), limit=1000, quotes=False)
        raise CorruptArtifactError(f"{folder} holds no saukit classifier: {reason}; {EXPORT_AGAIN}") from None
    return loaded
