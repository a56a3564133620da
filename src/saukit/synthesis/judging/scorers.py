"""What scores an image: a classifier of the split's classes, CLIP, and the features of Inception-v3.

Each takes images uint8 [n, 3, H, W] and returns numpy arrays in float32, a batch at a time on its device. Which scores
an image has to reach is `saukit.synthesis.judging.selection`'s.
"""

import contextlib
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from saukit.core.errors import DataError, EnvironmentFault
from saukit.core.extras import fetching, is_offline, require_extra
from saukit.core.files import check_regular, check_tree, reading
from saukit.core.machine import slices
from saukit.core.words import first_line, shortened
from saukit.core.workspace import require
from saukit.data.images import ImageStore
from saukit.data.types import Floats, Images, Integers
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import predict
from saukit.models.model_file import MODEL_NAME, ModelSpec, load_model

REMEMBERED = 3  # sets of images whose features a judge keeps: the audit asks for its three several times
CLIP_BATCH = 128
INCEPTION_BATCH = 64
INCEPTION_SIDE = 299  # pixels
INCEPTION_NAME = "Inception-v3 (torchvision), pool features"


class ClassifierScorer:
    """A trained network as a judge of images; `name` says which one in messages and manifests."""

    def __init__(self, network: DualBranchNet, spec: ModelSpec, name: str, device: torch.device) -> None:
        self.name = name
        self._network, self._spec, self._device = network, spec, device
        self._seen: list[tuple[weakref.ref[ImageStore], tuple[Floats, Floats]]] = []  # the latest first

    @property
    def is_pretrained(self) -> bool:
        """Whether its features are those of a pretrained backbone that saw no image of the split."""
        return self._spec.standardize

    @property
    def features_of(self) -> str:
        """Whose features they are, in words."""
        how = "pretrained and frozen" if self.is_pretrained else "trained on the split's real images"
        return f"{self._spec.backbone}, {how} ({self.name})"

    def features_and_probabilities(self, images: ImageStore) -> tuple[Floats, Floats]:
        """The backbone's features [n, d] and the classifier's probabilities [n, K]."""
        self._seen = [entry for entry in self._seen if entry[0]() is not None]
        for seen, known in self._seen:
            if seen() is images:
                return known
        found = predict(self._network, self._spec, images, device=self._device)
        known = found.features, found.probabilities
        self._seen = [(weakref.ref(images), known), *self._seen][:REMEMBERED]
        return known

    __call__ = features_and_probabilities

    def features(self, images: ImageStore) -> Floats:
        """The backbone's features [n, d]."""
        return self.features_and_probabilities(images)[0]

    def confidence(self, images: Images, labels: Integers) -> Floats:
        """The probability of each image's own class. Shapes: labels [n]; returns [n]."""
        return _own(self.features_and_probabilities(images)[1], labels)


def classifier_scorer(run_folder: Path, name: str, classes: Sequence[str], device: torch.device) -> ClassifierScorer:
    """The scorer of a complete run called `name`, every file of it verified.

    Raises: DataError if the run is not complete or its classes differ from `classes`, CorruptArtifactError if it is
    damaged.
    """
    command = f"saukit train --name {name}"
    require(run_folder, kind="run", command=command)
    network, spec = load_model(run_folder / MODEL_NAME)
    if spec.classes != tuple(classes):
        known, here = (shortened(names, limit=5) for names in (spec.classes, classes))
        raise DataError(
            f"the classifier of {run_folder} knows {known}; this split has {here}: "
            f"train one on this split with `{command} --force`"
        )
    return ClassifierScorer(network, spec, name, device)


class ClipScorer:
    """How well an image shows its class, by CLIP (Radford et al. 2021, arXiv 2103.00020).

    A class is the mean of the normalised embeddings of its prompts, normalised again (their Sec. 3.1.4). Needs the
    extra `clip`. `name` says which model; `revision` is its commit on the Hub, None for a folder.
    """

    def __init__(
        self,
        model: str,
        prompts: Sequence[Sequence[str]],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load `model`, a name on the Hub or a folder, and embed `prompts`: one or more for each of K classes.

        Raises: EnvironmentFault if the extra is not installed or the model cannot be loaded.
        """
        require_extra("clip", purpose="CLIP similarity")
        self.name = f"CLIP ({model})"
        self._device, self._dtype = device, dtype
        self._model, self._processor, tokenizer = _load_clip(model)
        self._scale = float(self._model.logit_scale.detach().double().exp())  # before it is rounded to dtype
        self._model.to(device, dtype)
        self.revision: str | None = getattr(self._model.config, "_commit_hash", None)
        self._classes = self._class_embeddings(prompts, tokenizer)  # [K, d]

    def similarity(self, images: Images, labels: Integers) -> Floats:
        """Cosine similarity of each image to its own class. Shapes: labels [n]; returns [n]."""
        return _own(self._cosines(images), labels)

    def probabilities(self, images: Images) -> Floats:
        """Zero-shot class probabilities [n, K]: a softmax of the cosines times the model's own scale."""
        return torch.from_numpy(self._cosines(images)).mul(self._scale).softmax(1).numpy()

    def embeddings(self, images: Images) -> Floats:
        """L2-normalised image embeddings [n, d]."""
        rows = np.empty((len(images), self._classes.shape[1]), np.float32)
        for part in slices(len(images), CLIP_BATCH):
            pictures = [torch.from_numpy(image) for image in images[part]]
            pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"]
            with torch.no_grad():
                pooled = self._model.vision_model(pixel_values=pixels.to(self._device, self._dtype)).pooler_output
                embedded = F.normalize(self._model.visual_projection(pooled).float(), dim=1)
            rows[part] = embedded.cpu().numpy()
        return rows

    def _cosines(self, images: Images) -> Floats:
        return self.embeddings(images) @ self._classes.T

    def _class_embeddings(self, prompts: Sequence[Sequence[str]], tokenizer: Any) -> Floats:
        texts = [text for of_class in prompts for text in of_class]
        rows = []
        for part in slices(len(texts), CLIP_BATCH):
            tokens = tokenizer(
                texts[part],
                padding=True,
                truncation=True,
                max_length=self._model.config.text_config.max_position_embeddings,
                return_tensors="pt",
            ).to(self._device)
            with torch.no_grad():
                pooled = self._model.text_model(
                    input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
                ).pooler_output
                rows.append(F.normalize(self._model.text_projection(pooled).float(), dim=1).cpu())
        by_class = torch.split(torch.cat(rows), [len(of_class) for of_class in prompts])
        means = torch.stack([of_class.mean(0) for of_class in by_class])
        return F.normalize(means, dim=1).numpy()


class InceptionFeatures:
    """The 2048 features before the classifier of torchvision's Inception-v3 (Szegedy et al. 2016, arXiv 1512.00567).

    They are not those of the original FID, whose network has other weights and pooling: distances compare only with
    distances measured so.
    """

    name = features_of = INCEPTION_NAME

    def __init__(self, weights: Path, device: torch.device) -> None:
        """`weights`: a local file, torchvision's state dict as .safetensors or as .pth.

        Raises: DataError if the file is not there, cannot be read or does not fit.
        """
        from torchvision.models import Inception_V3_Weights, inception_v3

        # torchvision's weights are TensorFlow's and expect [-1, 1]; `transform_input` turns ImageNet's scale into it.
        network = inception_v3(weights=None, aux_logits=False, init_weights=False, transform_input=True)
        state = {name: value for name, value in _read_state(weights).items() if not name.startswith("AuxLogits.")}
        try:
            network.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            problem = str(error).strip().splitlines()[-1].strip()
            raise DataError(
                f"{weights} does not hold the weights of torchvision's inception_v3 ({problem[:300]}): "
                "give the file that torchvision's Inception_V3_Weights.IMAGENET1K_V1 names"
            ) from None
        network.fc = nn.Identity()
        preset = Inception_V3_Weights.IMAGENET1K_V1.transforms()
        self._network, self._device = network.to(device).eval(), device
        self._mean, self._std = (
            torch.tensor(value, device=device)[:, None, None] for value in (preset.mean, preset.std)
        )

    def __call__(self, images: ImageStore) -> tuple[Floats, None]:
        """Features [n, 2048] of the whole images, resized to 299 x 299 pixels, bilinear with antialiasing."""
        rows = np.empty((len(images), 2048), np.float32)
        for part in slices(len(images), INCEPTION_BATCH):
            pixels = torch.from_numpy(images[part]).to(self._device).float() / 255
            sides = (INCEPTION_SIDE, INCEPTION_SIDE)
            pixels = F.interpolate(pixels, sides, mode="bilinear", antialias=True, align_corners=False)
            with torch.no_grad():
                rows[part] = self._network((pixels - self._mean) / self._std).cpu().numpy()
        return rows, None


def _load_clip(model: str) -> tuple[Any, Any, Any]:
    """A CLIP model in eval mode, its image processor and its tokenizer."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer
    from transformers.utils import logging

    # A folder is never looked up on the Hub; transformers itself heeds HF_HUB_OFFLINE.
    local = Path(model).is_dir() or is_offline()
    # Their annotations are missing, or do not know of output_loading_info.
    load: Any = CLIPModel.from_pretrained
    hide_bars: Any = logging.disable_progress_bar
    if local:  # else a bar shows the download
        hide_bars()
    try:
        if Path(model).is_dir():
            check_tree(Path(model))
        with contextlib.nullcontext() if local else fetching():
            network, report = load(model, use_safetensors=True, local_files_only=local, output_loading_info=True)
            if report["missing_keys"]:
                raise ValueError(f"it lacks the weights {shortened(sorted(report['missing_keys']), limit=5)}")
            processor = CLIPImageProcessor.from_pretrained(model, local_files_only=local)
            tokenizer = CLIPTokenizer.from_pretrained(model, local_files_only=local)
        # Without its files it is made all the same, and knows nothing but the marks of beginning and end.
        known, size = len(tokenizer), network.config.text_config.vocab_size
        if not size / 2 <= known <= size:
            raise ValueError(f"its tokenizer knows {known} tokens, its text model {size}")
    except Exception as error:  # of transformers, tokenizers, huggingface_hub and safetensors
        raise EnvironmentFault(
            f"the CLIP model {model} cannot be loaded ({first_line(error)}): give the folder of a CLIP model with "
            "safetensors weights, image processor and tokenizer, or a name on the Hub that can be reached"
        ) from error
    return network.eval(), processor, tokenizer


def _read_state(path: Path) -> dict[str, Tensor]:
    with reading(path, remedy="give weights as a .safetensors or .pth"):
        check_regular(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise DataError(f"{path} holds a {type(state).__name__}, not a state dict: give a .safetensors or .pth file")
    return state


def _own(scores: Floats, labels: Integers) -> Floats:
    """Of each row of scores [n, K] the one of its label [n]."""
    return scores[np.arange(len(scores)), labels]
