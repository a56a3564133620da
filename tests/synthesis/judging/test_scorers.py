"""Each scorer against the library that the network comes from: saukit's own, transformers and torchvision."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import SUMMARIES
from torch import nn

from saukit.core import extras
from saukit.core.artifacts import write_manifest
from saukit.core.errors import CorruptArtifactError, DataError, EnvironmentFault
from saukit.models.dual_branch import DualBranchNet
from saukit.models.inference import predict
from saukit.models.model_file import ModelSpec, save_model
from saukit.synthesis.judging import scorers
from saukit.synthesis.judging.scorers import (
    ClassifierScorer,
    ClipScorer,
    InceptionFeatures,
    classifier_scorer,
)

CPU = torch.device("cpu")
CLASSES = ("cat", "dog", "eel")
SPEC = ModelSpec("ce", "convnet-small", CLASSES, (8, 8), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), projection=False)
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 1, 0])


# --- a classifier ------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> DualBranchNet:
    torch.manual_seed(0)
    return DualBranchNet("convnet-small", 3, projection=False).eval()


def written_run(folder: Path, network: DualBranchNet, spec: ModelSpec = SPEC) -> Path:
    save_model(folder / "model.safetensors", network.state_dict(), spec)
    write_manifest(folder, kind="run", files=["model.safetensors"], inputs={}, summary=SUMMARIES["run"], device="cpu")
    return folder


def test_a_classifier_gives_features_probabilities_and_confidence(network: DualBranchNet) -> None:
    scorer = ClassifierScorer(network, SPEC, "ce", CPU)
    expected = predict(network, SPEC, IMAGES, device=CPU)
    for features, probabilities in (scorer(IMAGES), scorer.features_and_probabilities(IMAGES)):
        assert (features == expected.features).all() and (probabilities == expected.probabilities).all()
    confidence = scorer.confidence(IMAGES, LABELS)
    assert confidence.tolist() == [expected.probabilities[i, c] for i, c in enumerate(LABELS)]
    assert confidence.dtype == np.float32 and scorer.name == "ce"


def test_sets_that_are_asked_for_again_are_computed_once(
    network: DualBranchNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last three, as long as their images are there: a judge of photos takes minutes for each."""
    calls: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[2]))
        return predict(*arguments, **options)

    monkeypatch.setattr(scorers, "predict", counting)
    scorer = ClassifierScorer(network, SPEC, "ce", CPU)
    sets = [IMAGES[:count].copy() for count in (2, 3, 4, 5)]
    for images in [*sets[:3], *sets[:3]]:
        assert (scorer(images)[0] == predict(network, SPEC, images, device=CPU).features).all()
    assert calls == [2, 3, 4]
    scorer(sets[3])
    scorer(sets[0])  # forgotten
    assert calls == [2, 3, 4, 5, 2]
    gone = weakref.ref(sets.pop())
    assert gone() is None  # the judge keeps no images


def test_a_run_is_the_classifier_that_was_saved(network: DualBranchNet, tmp_path: Path) -> None:
    scorer = classifier_scorer(written_run(tmp_path / "judge", network), "judge", list(CLASSES), CPU)
    assert scorer.name == "judge"
    assert (scorer(IMAGES)[1] == predict(network, SPEC, IMAGES, device=CPU).probabilities).all()


def test_a_run_of_other_classes_is_refused(network: DualBranchNet, tmp_path: Path) -> None:
    folder = written_run(tmp_path / "judge", network)
    with pytest.raises(DataError, match=r"judge knows cat, dog, eel; this split has cat, eel, dog: train one on this"):
        classifier_scorer(folder, "judge", ("cat", "eel", "dog"), CPU)
    with pytest.raises(DataError, match=r"this split has 0, 1, 2, 3, 4 and 4 more.* `saukit train --name judge --f"):
        classifier_scorer(folder, "judge", tuple("012345678"), CPU)


def test_a_run_that_is_not_whole_is_refused(network: DualBranchNet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the run in .*judge is not there: run `saukit train --name judge -w"):
        classifier_scorer(tmp_path / "judge", "judge", CLASSES, CPU)
    folder = written_run(tmp_path / "judge", network)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=r"model\.safetensors was changed after it was written"):
        classifier_scorer(folder, "judge", CLASSES, CPU)


# --- CLIP --------------------------------------------------------------------------------------------------------

PROMPTS = [["a photo of a cat", "a cat"], ["a photo of a dog"], ["an eel", "a blurry photo of an eel", "eel"]]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    return tiny_pipelines.save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> ClipScorer:
    return ClipScorer(str(clip_folder), PROMPTS, CPU)


def logits_by_transformers(folder: Path, texts: list[str], images: np.ndarray) -> tuple[np.ndarray, float]:
    """transformers' own logits [n, texts] of one text and one PIL image at a time, and its scale."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(folder).eval()
    tokenizer, processor = CLIPTokenizer.from_pretrained(folder), CLIPImageProcessor.from_pretrained(folder)
    logits = np.empty((len(images), len(texts)))
    for i, image in enumerate(images):
        pixels = processor(images=Image.fromarray(image.transpose(1, 2, 0)), return_tensors="pt")["pixel_values"]
        for t, text in enumerate(texts):
            tokens = tokenizer([text], return_tensors="pt", truncation=True, max_length=24)
            with torch.no_grad():
                logits[i, t] = model(**tokens, pixel_values=pixels).logits_per_image.item()
    return logits, model.logit_scale.exp().item()


def test_with_one_prompt_a_class_clip_is_transformers_own(clip_folder: Path) -> None:
    texts = ["cat", "a photo of a dog", "a long description of an eel that does not fit into the positions there are"]
    scorer = ClipScorer(str(clip_folder), [[text] for text in texts], CPU)
    logits, scale = logits_by_transformers(clip_folder, texts, IMAGES)
    assert np.ptp(logits, axis=0).min() > 0.1 and np.ptp(logits, axis=1).min() > 0.1  # a tie would hide a mistake
    cosines = logits[np.arange(len(LABELS)), LABELS] / scale
    np.testing.assert_allclose(scorer.similarity(IMAGES, LABELS), cosines, atol=1e-5)
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = scorer.probabilities(IMAGES)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.dtype == scorer.similarity(IMAGES, LABELS).dtype == np.float32


def test_a_class_is_the_mean_direction_of_its_prompts(clip: ClipScorer, clip_folder: Path) -> None:
    embeddings = clip.embeddings(IMAGES)
    assert (embeddings**2).sum(1) == pytest.approx(np.ones(5), abs=1e-5)
    texts = [text for prompts in PROMPTS for text in prompts]
    logits, scale = logits_by_transformers(clip_folder, texts, IMAGES)
    cosines = logits / scale  # of the image to each prompt; the mean's cosine is their mean over the mean's length
    gram = prompt_cosines(clip_folder, texts)
    for c, part in enumerate((slice(0, 2), slice(2, 3), slice(3, 6))):
        expected = cosines[:, part].mean(1) / np.sqrt(gram[part, part].mean())
        np.testing.assert_allclose(clip.similarity(IMAGES, np.full(5, c)), expected, atol=1e-5)


def prompt_cosines(folder: Path, texts: list[str]) -> np.ndarray:
    from transformers import CLIPModel, CLIPTokenizer

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    pixels = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        rows = [model(**tokenizer([text], return_tensors="pt"), pixel_values=pixels).text_embeds[0] for text in texts]
    return np.array([[torch.dot(a, b).item() for b in rows] for a in rows])


def test_batches_change_nothing(clip: ClipScorer, clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clip.probabilities(IMAGES)
    monkeypatch.setattr("saukit.synthesis.judging.scorers.CLIP_BATCH", 2)
    np.testing.assert_allclose(ClipScorer(str(clip_folder), PROMPTS, CPU).probabilities(IMAGES), whole, atol=1e-5)
    assert clip.probabilities(IMAGES[:0]).shape == (0, 3)


@pytest.mark.parametrize("side", [3, 64])
def test_images_of_any_size_are_resized_as_transformers_does(clip_folder: Path, side: int) -> None:
    images = np.random.default_rng(1).integers(0, 256, (3, 3, side, side), dtype=np.uint8)
    scorer = ClipScorer(str(clip_folder), [["cat"]], CPU)
    logits, scale = logits_by_transformers(clip_folder, ["cat"], images)
    np.testing.assert_allclose(scorer.similarity(images, np.zeros(3, np.int64)), logits[:, 0] / scale, atol=1e-5)


def test_half_precision_is_near(clip: ClipScorer, clip_folder: Path) -> None:
    half = ClipScorer(str(clip_folder), PROMPTS, CPU, torch.bfloat16)
    found = half.similarity(IMAGES, LABELS)
    assert found.dtype == np.float32
    assert 0 < np.abs(found - clip.similarity(IMAGES, LABELS)).max() < 0.05


def test_the_name_says_which_model(clip: ClipScorer, clip_folder: Path) -> None:
    assert (clip.name, clip.revision) == (f"CLIP ({clip_folder})", None)


def test_without_the_extra_the_remedy_is_named(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "missing_packages", lambda extra: ["transformers"])
    with pytest.raises(EnvironmentFault, match=r"CLIP similarity needs transformers: pip install 'saukit\[clip\]'"):
        ClipScorer(str(clip_folder), PROMPTS, CPU)


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickled_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def half_the_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def without_projection(folder: Path) -> None:
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if "visual_projection" not in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)


def without_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_weights, "model.safetensors"),
        (pickled_weights, "safetensors"),
        (half_the_weights, ""),
        (without_projection, "it lacks the weights visual_projection.weight"),
        (without_tokenizer, "its tokenizer knows 2 tokens, its text model 74"),
        (without_processor, "image processor"),
    ],
)
def test_a_model_that_is_not_whole_is_told(
    clip_folder: Path, tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    spoil(folder)
    with pytest.raises(EnvironmentFault) as caught:
        ClipScorer(str(folder), PROMPTS, CPU)
    message = str(caught.value)
    assert message.startswith(f"the CLIP model {folder} cannot be loaded (") and reason in message
    assert message.endswith("or a name on the Hub that can be reached")


def test_a_name_is_not_looked_up_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    import socket

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("SAUKIT_OFFLINE", "1")
    with pytest.raises(EnvironmentFault, match=r"the CLIP model nobody/nothing cannot be loaded \("):
        ClipScorer("nobody/nothing", PROMPTS, CPU)


# --- Inception-v3 ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception() -> nn.Module:
    """Inception-v3 as torchvision builds it with weights, but the weights are random."""
    from torchvision.models import inception_v3

    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False, transform_input=True)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network.eval()


@pytest.fixture(scope="module")
def weights(inception: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file({name: value.contiguous() for name, value in inception.state_dict().items()}, path)
    return path


def test_inception_gives_torchvisions_features_before_the_classifier(inception: nn.Module, weights: Path) -> None:
    from torchvision.models import Inception_V3_Weights
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as tv

    extractor = InceptionFeatures(weights, CPU)
    assert isinstance(extractor, InceptionFeatures)
    assert extractor.name == "Inception-v3 (torchvision), pool features"
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 400, 500), dtype=np.uint8)
    images[1, :, :200] = 255
    found, _ = extractor(images)

    preset = Inception_V3_Weights.IMAGENET1K_V1.transforms()
    large = tv.resize(torch.from_numpy(images).double() / 255, [299, 299], InterpolationMode.BILINEAR, antialias=True)
    pixels = tv.normalize(large.float(), preset.mean, preset.std)
    pooled: list[torch.Tensor] = []
    hook = inception.get_submodule("avgpool").register_forward_hook(
        lambda module, inputs, output: pooled.append(output.flatten(1))
    )
    with torch.no_grad():
        inception(pixels)
    hook.remove()
    assert found.shape == (2, 2048) and found.dtype == np.float32
    assert np.ptp(found, axis=0).max() > 0.02 * found.max()  # the two images differ by much more than the tolerance
    np.testing.assert_allclose(found, pooled[0].numpy(), rtol=1e-3, atol=1e-4 * float(np.abs(found).max()))
    assert extractor(images[:0])[0].shape == (0, 2048)


def test_inception_loads_a_pth_without_auxiliary_classifier(weights: Path, tmp_path: Path) -> None:
    state = load_file(weights)
    torch.save({name: value for name, value in state.items() if "AuxLogits" not in name}, tmp_path / "inception.pth")
    network = InceptionFeatures(tmp_path / "inception.pth", CPU)._network
    assert torch.equal(
        network.state_dict()["Mixed_7c.branch_pool.conv.weight"], state["Mixed_7c.branch_pool.conv.weight"]
    )


class Trap:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("a pickle ran",))


def test_a_file_that_does_not_fit_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"x\.pth cannot be read \(.*No such file"):
        InceptionFeatures(tmp_path / "x.pth", CPU)
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(
        DataError, match=r"other\.pth does not hold the weights of torchvision's inception_v3 \(.*conv\.w"
    ):
        InceptionFeatures(tmp_path / "other.pth", CPU)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(DataError, match=r"list\.pth holds a list, not a state dict"):
        InceptionFeatures(tmp_path / "list.pth", CPU)
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("no weights")
        with pytest.raises(DataError, match=rf"{name} cannot be read \("):
            InceptionFeatures(tmp_path / name, CPU)
    torch.save({"weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(DataError, match=r"trap\.pth cannot be read \("):
        InceptionFeatures(tmp_path / "trap.pth", CPU)
    assert "a pickle ran" not in capsys.readouterr().out
