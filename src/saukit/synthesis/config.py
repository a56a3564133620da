"""The options of `saukit synth`. Imports no torch, so that `--help` is quick."""

from dataclasses import dataclass
from typing import Any, Literal

from saukit.core.config import Amp
from saukit.core.options import Paths, option

PresetName = Literal["tiny", "small", "base"]
Sampler = Literal["dpm++", "unipc"]
FilterName = Literal["none", "classifier", "clip", "classifier+clip", "aid"]

OWN, PIPELINES, FOLDER = "The split's own diffusion model", "Pretrained pipelines", "A folder of images"
SELECTION = "Selection and audit"
OF_OWN: dict[str, Any] = {"panel": OWN, "needs": {"generator": "diffusion"}}
OF_TRAINING: dict[str, Any] = {"panel": OWN, "needs": ({"generator": "diffusion"}, {"model": None})}
OF_PIPELINES: dict[str, Any] = {"panel": PIPELINES, "needs": {"generator": "pipeline"}}
OF_FOLDERS: dict[str, Any] = {"panel": FOLDER, "needs": {"generator": "folder"}}
MOST_TRIES = 100  # candidates per image wanted
SAMPLES = {"generator": ("diffusion", "pipeline")}
OF_SAMPLING: dict[str, Any] = {"shown": "from the preset or the pipeline", "preset": True, "needs": SAMPLES}
# Options that change which candidates are kept, not which are sampled.
SELECTS: dict[str, Any] = {"panel": SELECTION, "reselects": True}
BY_CLASSIFIER = {"filter": ("classifier", "classifier+clip")}
BY_DISTANCE = {"filter": "aid"}
BY_CLIP = {"filter": ("clip", "classifier+clip")}


@dataclass(frozen=True, kw_only=True)
class SynthConfig(Paths):
    """A cache of synthetic images. Every default of `synth` lives here; None is "from the preset", or off.

    `per_class_target` counts real and synthetic images of a class together; None is the size of the largest class.
    """

    per_class_target: int | None = option(
        None, "Real + synthetic images per class.", shown="the largest class", least=1, most=10**7
    )
    generator: str = option(
        "diffusion",
        "diffusion: trained on the split; pipeline: pretrained; folder: images made elsewhere; cmo: real images' "
        "boxes on others.",
        displaces=("model", "guidance", "sampler_steps", "sample_batch_size"),
    )
    model: str | None = option(
        None,
        "The pipeline, a folder or a name on the Hub; or another workspace's synth/generator, which is then not "
        "trained.",
        path=True,
        needs=SAMPLES,
    )
    guidance: float | None = option(None, "Classifier-free guidance; 1 is none.", least=0, most=50, **OF_SAMPLING)
    sampler_steps: int | None = option(None, "Solver steps per image.", least=1, most=999, **OF_SAMPLING)
    sample_batch_size: int | None = option(
        None,
        "Images per batch in sampling.",
        shown="from the preset; on a GPU found by trying",
        preset=True,
        least=1,
        most=65536,
    )
    seed: int = option(0, "Seed of the generator and of every image.")

    preset: Literal["auto", PresetName] = option("auto", "Size and budget: tiny for a CPU, base for a GPU.", **OF_OWN)
    balance: float = option(
        1.0,
        "Training batches: 1 samples classes equally often, 0 as often as they are.",
        least=0,
        most=1,
        **OF_TRAINING,
    )
    tail: Literal["none", "cbdm"] = option("none", "Class-balancing regulariser for the tail (CBDM).", **OF_TRAINING)
    variation: float | None = option(
        None,
        "Start from a real image of the class with this share of noise (SDEdit); more is further from it.",
        shown="off: from noise alone",
        least=0.05,
        most=1,
        note="the share of noise",
        **OF_OWN,
    )
    sampler: Sampler = option("dpm++", "DPM-Solver++ 2M or UniPC.", **OF_OWN)
    train_steps: int | None = option(None, "Training steps of the generator.", preset=True, least=1, **OF_TRAINING)
    train_batch_size: int | None = option(
        None, "Images per batch in training.", preset=True, least=1, most=65536, **OF_TRAINING
    )
    train_parts: int = option(
        1,
        "Parts of a training batch, one after the other; under torchrun so many processes share them.",
        least=1,
        most=1024,
        **OF_TRAINING,
    )
    amp: Amp = option("auto", "Precision of the forward passes.", **OF_OWN)

    prompts: str | None = option(
        None, "YAML or JSON file: prompts of each class, one or several.", path=True, **OF_PIPELINES
    )
    descriptions: str | None = option(
        None, "YAML or JSON file: what a class is, where its name does not say it.", path=True, **OF_PIPELINES
    )
    templates: tuple[str, ...] | None = option(
        None,
        "A prompt with {class} in it, for classes without --prompts; several are used in turn.",
        shown="a photo of a {class}, and others",
        flags=("--template",),
        cli_type=list[str] | None,
        **OF_PIPELINES,
    )
    negative_prompt: str | None = option(None, "What the images are not to show.", **OF_PIPELINES)
    class_ids: str | None = option(
        None, "YAML or JSON file: the class numbers of a class-conditional model.", path=True, **OF_PIPELINES
    )
    lora: str | None = option(None, "LoRA weights: a file or a folder.", path=True, **OF_PIPELINES)
    lora_scale: float = option(
        1.0,
        "Weight of the LoRA; 0 is none.",
        least=0,
        most=10,
        panel=PIPELINES,
        needs=({"generator": "pipeline"}, {"lora": True}),
    )
    pipeline_size: int | None = option(
        None, "Side in pixels that the pipeline samples at.", shown="its own", least=16, most=4096, **OF_PIPELINES
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", "Precision of the pipeline.", **OF_PIPELINES
    )

    from_folder: str | None = option(
        None, "Folder of images, one sub-folder per class.", flags=("--from",), path=True, **OF_FOLDERS
    )
    skip_bad: bool = option(False, "Leave out images that cannot be read.", flags=("--skip-bad",), **OF_FOLDERS)

    filter: FilterName = option(
        "none",
        "Who judges the candidates: a classifier of the real images, CLIP; aid: how far they are from real ones.",
        **SELECTS,
    )
    classifier: str | None = option(
        None,
        "A run on real images as the judge.",
        shown="balanced-softmax, trained if it is not there",
        needs={"filter": ("classifier", "classifier+clip", "aid"), "audit": True, "preflight": True},
        **SELECTS,
    )
    clip_model: str = option(
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "CLIP model, a folder or a name on the Hub (extra clip).",
        path=True,
        needs=BY_CLIP,
        **SELECTS,
    )
    min_confidence: float = option(
        0.5, "Least probability of its own class, by the classifier.", least=0, most=1, needs=BY_CLASSIFIER, **SELECTS
    )
    min_clip: float = option(
        0.2, "Least cosine to the class's prompts, by CLIP.", least=-1, most=1, needs=BY_CLIP, **SELECTS
    )
    min_distance: float = option(
        0.5,
        "Least distance to the nearest real image of its class, in the classifier's features; 1 is that of real ones.",
        least=0,
        needs=BY_DISTANCE,
        **SELECTS,
    )
    max_distance: float = option(1.5, "Largest such distance.", above=0, needs=BY_DISTANCE, **SELECTS)
    reject_copies: bool = option(False, "Reject near-duplicates of real training images.", **SELECTS)
    max_tries: float = option(
        4.0,
        "Candidates per image wanted, at most.",
        panel=SELECTION,
        least=1,
        most=MOST_TRIES,
        needs={
            "filter": ("classifier", "clip", "classifier+clip", "aid"),
            "reject_copies": True,
            "generator": "pipeline",
        },
    )
    preflight: int = option(
        8, "Images per class to judge before the long run; 0 is none.", panel=SELECTION, least=0, most=1000
    )
    audit: bool = option(True, "Audit what is kept: audit.json, closest.png.", **SELECTS)
    inception: str | None = option(
        None,
        "Weights of Inception-v3, for distances in its features too.",
        path=True,
        needs={"audit": True},
        **SELECTS,
    )

    @property
    def filters(self) -> tuple[str, ...]:
        """The scores that images have to pass: of ("classifier", "clip", "aid")."""
        return () if self.filter == "none" else tuple(self.filter.split("+"))

    @property
    def classifier_filters(self) -> bool:
        """Whether a classifier of the split's real images, or its features, decide what is kept."""
        return not {"classifier", "aid"}.isdisjoint(self.filters)

    @property
    def needs_classifier(self) -> bool:
        """Whether a classifier of the split's real images judges something."""
        judged_by_clip = "clip" in self.filters
        return self.classifier_filters or self.audit or bool(self.preflight and not judged_by_clip)

    @property
    def rejects(self) -> bool:
        """Whether a candidate may be rejected, so that others are sampled in its place."""
        return bool(self.filters) or self.reject_copies or self.generator == "pipeline"


@dataclass(frozen=True, kw_only=True)
class ResolvedSynthConfig(SynthConfig):
    """A cache with nothing left open that every generator has: what config.yaml holds."""

    per_class_target: int
    sample_batch_size: int
