"""README.md of an exported model: the model card that the Hugging Face Hub shows, with its front matter."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from saukit.core.artifacts import CONFIG_NAME, Manifest
from saukit.core.config import load_saved
from saukit.core.words import format_share, markdown, shortened
from saukit.data.shots import GROUP_NAMES
from saukit.evaluation.evaluate import RESULTS_NAME, read_results
from saukit.models.model_file import ModelSpec, preparation
from saukit.training.config import ResolvedTrainConfig

TAGS = ["image-classification", "long-tailed-recognition", "saukit"]


def readme(spec: ModelSpec, path: Path, run: Manifest | None) -> str:
    """What the model is, how it was trained, how good it is if `saukit eval` said so, and what not to expect of it.

    `path` is the run's folder, and `run` its manifest; None for a model that comes without its run.
    """
    name = path.name if run is not None else f"{spec.method} {spec.backbone}"
    results = None
    if run is not None and RESULTS_NAME in run.files:
        results = read_results(path, spec.classes)
    sections = [
        f"---\n{_front_matter(name, results).to_yaml()}\n---",
        f"# {name}",
        f"An image classifier of {len(spec.classes)} classes for images of {spec.image_size[0]} x "
        f"{spec.image_size[1]} pixels ({spec.backbone}), trained with saukit on a long-tailed set.",
        "> No licence is stated. Whoever publishes this model adds `license:` to the lines at the top, and minds the "
        "terms of the training images.",
        _usage(spec),
        "## Training\n\n" + "\n".join(f"- {line}" for line in _training(spec, path, run)),
        _accuracy(results),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in _limits(spec, results)),
        "## Classes\n\n" + ", ".join(map(markdown, spec.classes)),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(name: str, results: Mapping[str, Any] | None) -> ModelCardData:
    measured = None
    if results is not None:
        source = results["split"]["source"]
        measured = [
            EvalResult(
                task_type="image-classification",
                dataset_type=source,
                dataset_name=f"{source}, the whole test set",
                metric_type=kind,
                metric_name=title,
                metric_value=round(results[field], 4),
            )
            for field, kind, title in (
                ("top1", "accuracy", "top-1 accuracy"),
                ("balanced_accuracy", "balanced_accuracy", "balanced accuracy"),
                ("macro_f1", "f1", "macro F1"),
            )
        ]
    return ModelCardData(
        library_name="saukit",
        pipeline_tag="image-classification",
        tags=TAGS,
        model_name=name if measured else None,
        eval_results=measured,
    )


def _usage(spec: ModelSpec) -> str:
    return f"""## Use

```bash
saukit predict FOLDER_OF_THIS_FILE pictures/
```

```python
import saukit

classifier = saukit.load_classifier("FOLDER_OF_THIS_FILE")
logits = classifier(images)  # float32 [batch, 3, {spec.image_size[0]}, {spec.image_size[1]}] in [0, 1], RGB
```

From the Hub: `saukit.ImageClassifier.from_pretrained("OWNER/NAME")`. The normalisation is inside the model."""


def _training(spec: ModelSpec, path: Path, run: Manifest | None) -> list[str]:
    if run is None:
        return [f"method: {spec.method}", "nothing more is known: the model was exported without its run"]
    summary, config = run.summary, load_saved(ResolvedTrainConfig, path / CONFIG_NAME)
    lines = [
        f"method: {spec.method}",
        f"images: {summary['real_images']:,} real and {summary['synthetic_images']:,} synthetic",
        f"length: {summary['steps']:,} steps of {summary['batch_size']} images, learning rate {config.lr:g}, "
        f"weight decay {config.weight_decay:g}, seed {config.seed}",
        f"chosen by: {summary['chosen_by']}",
        f"parameters in training: {summary['parameters']:,}",
    ]
    if config.prior_correction is not None:
        lines.append(f"prior correction: {config.prior_correction:g}")
    return lines


def _accuracy(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "## Accuracy\n\nNot measured: `saukit eval` was not run before the export."
    rows = [
        ("top-1", results["top1"], f"{results['test_images']:,}"),
        ("balanced", results["balanced_accuracy"], f"{results['test_images']:,}"),
        ("macro F1", results["macro_f1"], f"{results['test_images']:,}"),
    ]
    for name in GROUP_NAMES:
        group = results["groups"][name]
        rows.append((f"{name}-shot classes", group and group["top1"], "-" if group is None else f"{group['images']:,}"))
    table = "\n".join(f"| {name} | {format_share(share)} | {images} |" for name, share, images in rows)
    return (
        f"## Accuracy\n\nOn the test set of {results['split']['source']} ({results['groups_rule']}); calibration error "
        f"{format_share(results['ece'])} %.\n\n| accuracy | % | test images |\n|---|---|---|\n{table}"
    )


def _limits(spec: ModelSpec, results: Mapping[str, Any] | None) -> list[str]:
    lines = [
        "It knows its classes alone and names one of them for every image, also for one that shows none of them.",
        f"What it sees of an image is {preparation(spec)}: what that loses, the model does not see.",
        "Its probabilities are not calibrated further than the calibration error says, if it was measured.",
        "It was measured on images like its training images, if at all; other cameras, places and times are untested.",
    ]
    rare = [] if results is None else [row for row in results["per_class"] if row["train_images"] < 20]
    if rare:
        named = shortened(f"{markdown(row['class'])} ({row['train_images']})" for row in rare)
        lines.append(f"Trained on fewer than 20 real images: {named}.")
    return lines
