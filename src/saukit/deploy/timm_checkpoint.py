"""A classifier on a network of timm as a timm checkpoint, which `transformers.pipeline` loads without remote code.

config.json          architecture, label_names, pretrained_cfg (how a picture becomes the input)
model.safetensors    the network's weights under timm's names, its classifier among them
"""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn

from saukit.core.artifacts import safetensors_writing, write_json
from saukit.core.errors import UsageError
from saukit.core.extras import TIMM
from saukit.models.classifier import ImageClassifier
from saukit.models.dual_branch import Standardize
from saukit.models.model_file import MODEL_NAME, ModelSpec

CONFIG_NAME = "config.json"
CROP_MODES = {"crop": "center", "stretch": "squash"}  # timm's words


def require_timm_form(spec: ModelSpec) -> None:
    """Raises: UsageError for a classifier that is more than a network of timm."""
    for is_so, what, fix in (
        (not spec.backbone.startswith(TIMM), f"backbone {spec.backbone} is not timm's", "use --format hub or onnx"),
        (spec.crops > 1, f"the model averages {spec.crops} views of an image", "train with --single-crop"),
        (spec.classifier != "linear", "its classifier is a cosine", "use --format hub or onnx"),
        (spec.fit not in CROP_MODES, "timm pads no picture on a colour", "make the split with --fit crop"),
    ):
        if is_so:
            raise UsageError(f"format transformers is for a network of timm with a linear classifier; {what}: {fix}")


def write_checkpoint(classifier: ImageClassifier, folder: Path) -> nn.Module:
    """Write it to `folder`, and read it back; the network takes normalised images. Raises: as `require_timm_form`."""
    spec, source = classifier.spec, classifier.network
    require_timm_form(spec)
    weight, bias = source.classifier.weight.double(), source.classifier.bias.double()
    if isinstance(source.standardize, Standardize):  # W (x - mean) / std + b is linear too
        weight = weight / source.standardize.std
        bias = bias - weight @ source.standardize.mean.double()
    network, head = _network(spec)
    if not isinstance(head, nn.Linear) or head.weight.shape != weight.shape:
        raise UsageError(f"format transformers needs a linear classifier, and {spec.backbone} has another: use hub")
    backbone = source.backbone.network
    assert isinstance(backbone, nn.Module)
    state = network.state_dict() | backbone.state_dict()
    for name, module in network.named_modules():
        if module is head:
            state |= {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}
    folder.mkdir()
    tensors = {name: value.detach().contiguous() for name, value in state.items()}
    with safetensors_writing():
        save_file(tensors, folder / MODEL_NAME, {"format": "pt"})
    write_json(folder / CONFIG_NAME, _config(spec, network))
    loaded, _ = _network(spec)
    loaded.load_state_dict(load_file(folder / MODEL_NAME))
    return loaded


def _network(spec: ModelSpec) -> tuple[nn.Module, Any]:
    """The network in eval mode, its weights at random, and its classifier."""
    import timm

    network = timm.create_model(spec.backbone.removeprefix(TIMM), num_classes=len(spec.classes)).eval()
    return network, network.get_classifier()


def _config(spec: ModelSpec, network: Any) -> dict[str, Any]:
    known = network.pretrained_cfg
    return {
        "architecture": known["architecture"],
        "num_classes": len(spec.classes),
        "num_features": network.num_features,
        "label_names": list(spec.classes),
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, *spec.image_size],
            "fixed_input_size": known.get("fixed_input_size", False),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": CROP_MODES[spec.fit],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(spec.classes),
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }
