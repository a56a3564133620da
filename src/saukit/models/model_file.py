"""A trained network as one safetensors file that says how to rebuild it and how to feed it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from saukit.core.artifacts import load_tensors, save_tensors
from saukit.core.config import from_mapping
from saukit.core.documents import REMAKE
from saukit.core.errors import CorruptArtifactError, UsageError
from saukit.core.state import is_finite
from saukit.core.words import shown
from saukit.data.decoding import MOST_VALUE, Fitting
from saukit.data.source import IMAGE_SIZES
from saukit.data.source_config import Fit
from saukit.models.backbones import BACKBONES
from saukit.models.dual_branch import Classifier, Crops, DualBranchNet

MODEL_NAME = "model.safetensors"  # of a run


@dataclass(frozen=True)
class ModelSpec:
    """What a model file knows of itself: enough to rebuild the network and to prepare its images."""

    method: str
    backbone: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    projection: bool
    class_projection: bool = False
    consistency: bool = False
    classifier: Classifier = "linear"
    standardize: bool = False
    crops: Crops = 1
    fit: Fit = "crop"
    background: str = "white"
    white_level: int | None = None

    @property
    def fitting(self) -> Fitting:
        """How pictures become its images."""
        return Fitting(self.fit, self.background, self.white_level)

    def __post_init__(self) -> None:
        """Raises: UsageError for what no network has; a file may say anything."""
        sizes, (least, most) = self.image_size, IMAGE_SIZES
        problems = [
            *(["classes must be names, each once"] if not 0 < len(set(self.classes)) == len(self.classes) else []),
            *([] if len(sizes) == 2 and all(least <= side <= most for side in sizes) else
              [f"image_size must be two sides of {least} to {most} pixels, got {shown(sizes)}"]),
            *([] if self.white_level is None or 0 < self.white_level <= MOST_VALUE else
              [f"white_level must be from 1 to {MOST_VALUE}, got {shown(self.white_level)}"]),
            *(f"{name} must be three numbers{' above 0' if positive else ''}, got {shown(values)}"
              for name, values, positive in (("mean", self.mean, False), ("std", self.std, True))
              if len(values) != 3 or not all(map(math.isfinite, values)) or (positive and min(values) <= 0)),
        ]  # fmt: skip
        if problems:
            raise UsageError("; ".join(problems))

    def build_network(self) -> DualBranchNet:
        """A new network of this kind, its weights at random. Raises: KeyError for an unknown backbone."""
        if self.backbone not in BACKBONES:
            raise KeyError(f"backbone {self.backbone!r}")
        return DualBranchNet(
            self.backbone,
            len(self.classes),
            projection=self.projection,
            class_projection=self.class_projection,
            consistency=self.consistency,
            classifier=self.classifier,
            standardize=self.standardize,
            crops=self.crops,
        )


def preparation(spec: ModelSpec) -> str:
    """How an image becomes the network's input, in words."""
    height, width = spec.image_size
    what = {
        "crop": "the centre square",
        "pad": f"the whole of it, padded to a square on {spec.background}",
        "stretch": "the whole of it, stretched to a square",
    }
    levels = "" if spec.white_level is None else f"; {spec.white_level:,} is white in 16-bit images"
    return f"{what[spec.fit]}, resized to {height} x {width} pixels, bicubic with antialiasing{levels}"


def save_model(path: Path, state: dict[str, torch.Tensor], spec: ModelSpec) -> None:
    """Write a network's state and its spec, atomically."""
    save_tensors(path, {name: value.detach().cpu().numpy() for name, value in state.items()}, {"model": asdict(spec)})


def load_model(path: Path) -> tuple[DualBranchNet, ModelSpec]:
    """The network in eval mode on the CPU, and its spec. Raises: CorruptArtifactError if the file is no model."""
    tensors, metadata = load_tensors(path)
    try:
        spec = from_mapping(ModelSpec, metadata["model"], where=str(path))
        network = spec.build_network()
        network.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()})
        check_finite(network.state_dict())
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, UsageError) as error:
        raise CorruptArtifactError(f"{path} holds no saukit model: {error}; {REMAKE}") from None
    return network.eval(), spec


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Raises: ValueError for weights of which some are NaN or infinite."""
    if not is_finite(state):
        raise ValueError("its weights are not finite")
