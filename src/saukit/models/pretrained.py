"""Weights that a backbone starts from: a safetensors file, an earlier run, or a library's pretrained ones."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault
from saukit.core.extras import TIMM, fetching
from saukit.core.files import check_regular
from saukit.core.words import shortened
from saukit.models.backbones import TimmNetwork
from saukit.models.model_file import MODEL_NAME, load_model

LISTED = 4
HEADS = ("classifier.", "head.", "fc.", "head_dist.")  # of the classes that the weights were trained on


def load_pretrained(backbone: nn.Module, name: str) -> None:
    """Give `backbone`, called timm/..., its pretrained weights, from timm's cache or the Hub.

    Raises: EnvironmentFault that names the ways on if they cannot be loaded.
    """
    try:
        with fetching():
            state = TimmNetwork(name.removeprefix(TIMM), pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EnvironmentFault(
            f"the pretrained weights of {name} cannot be loaded ({reason}): "
            "check the network, or give --weights FILE.safetensors, or train from scratch with --preset small"
        ) from error
    backbone.load_state_dict(state)


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Give `backbone` the weights of a safetensors file, or those of a run's model.

    The file has the network's own names, as timm and torchvision write them; a classifier in it is passed over.
    Raises: DataError with what does not fit, CorruptArtifactError if the file is not one of safetensors or not finite.
    """
    found = _read(path)
    network = backbone.network if hasattr(backbone, "network") else backbone
    assert isinstance(network, nn.Module)
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in found]
    other = [name for name, value in found.items() if name in wanted and value.shape != wanted[name].shape]
    unknown = [name for name in found if name not in wanted and not name.startswith(HEADS)]
    if missing or other or unknown:
        parts = [
            f"{word} {shortened(names, limit=LISTED)}"
            for word, names in (("missing:", missing), ("another shape:", other), ("not in the network:", unknown))
            if names
        ]
        matched = len(wanted) - len(missing) - len(other)
        raise DataError(
            f"the weights in {path} do not fit the backbone: {matched} of {len(wanted)} tensors match; "
            f"{'; '.join(parts)}; give the weights of this --backbone"
        )
    if broken := [name for name in wanted if not found[name].isfinite().all()]:
        raise CorruptArtifactError(
            f"the weights in {path} are not finite in {shortened(broken, limit=LISTED)}: give another --weights"
        )
    network.load_state_dict({name: found[name] for name in wanted})


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_dir():  # a run's folder
        path = path / MODEL_NAME
        network, _ = load_model(path)
        inner = network.backbone.network if hasattr(network.backbone, "network") else network.backbone
        assert isinstance(inner, nn.Module)
        return dict(inner.state_dict())
    try:
        check_regular(path)
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptArtifactError(f"{path} is not a safetensors file ({error}): give another --weights") from None
