"""The sentences of the page, made from its numbers; the verdict's own are in `evaluation.comparison_files`."""

from markupsafe import Markup

from saukit.core.words import brief, format_share
from saukit.evaluation.comparison_files import footnotes, points
from saukit.report.collect import Contents, Document
from saukit.synthesis.generators.table import GENERATORS

MOST_NAMED = 3  # classes that gained or lost the most


def title(contents: Contents) -> str:
    """What a page is called if nobody says it."""
    split = contents.split
    return f"Long-tailed {'images' if split.source == 'folder' else split.source}, {split.num_classes:,} classes"


def data_sentence(contents: Contents) -> str:
    """The data in a sentence."""
    split, counts = contents.split, contents.split.class_counts
    summary, imb = split.manifest.summary, contents.split_config.get("imb")
    reached = f"{summary['imb_reached']:.4g}"
    ratio = f"ratio {reached} : 1"
    if contents.split_config.get("profile") in ("exp", "step", "pareto") and f"{imb:.4g}" != reached:
        ratio = f"ratio {imb:g} asked for, {reached} : 1 in whole images"
    text = (
        f"{'A folder of images' if split.source == 'folder' else split.source}: {len(split.train.labels):,} real "
        f"training images in {split.num_classes:,} classes, from {counts.max():,} down to {counts.min():,} per class "
        f"({ratio})"
    )
    if contents.cache is not None:
        text += f", and {len(contents.cache.images.labels):,} synthetic images on top"
    return f"{text}. Accuracies are on {summary['test_images']:,} test images that nothing was trained or chosen on."


def hints(contents: Contents) -> list[str]:
    """What the workspace does not have yet, and the command that makes it."""
    found = []
    if contents.cache is None:
        found.append("There are no synthetic images: `saukit synth` makes them.")
    if not contents.entries:
        found.append("There is no evaluated run yet: `saukit train`, then `saukit eval`.")
    elif contents.comparison is None:
        runs = f"{len(contents.runs):,} evaluated run{'s' if len(contents.runs) > 1 else ''}"
        best = max(contents.entries, key=lambda method: method["mean"]["balanced_accuracy"] or 0.0)
        found.append(
            f"Of {runs}, the best balanced accuracy is "
            f"{format_share(best['mean']['balanced_accuracy'])} % ({best['label']}, {best['steps']:,} steps of "
            f"{best['batch_size']}). There is no comparison, so these numbers have no intervals: `saukit compare` "
            "makes one."
        )
    return found


def changes_per_class(document: Document) -> list[str]:
    """Which classes gain and lose with the best method on synthetic images."""
    methods = {method["label"]: method for method in document["methods"]}
    ours, theirs = (methods[document["verdict"][side]]["per_class"] for side in ("ours", "theirs"))
    classes, counts = (document["split"][name] for name in ("classes", "class_counts"))
    pairs = enumerate(zip(ours, theirs, strict=True))
    changes = sorted((mine - other, c) for c, (mine, other) in pairs if mine is not None and other is not None)
    sentences: list[str] = []
    named_change = Markup("<bdi>{}</bdi> ({:,} real images) {}")
    for text, chosen in (
        ("Gained most", [entry for entry in changes[::-1] if entry[0] > 0]),
        ("Lost most", [entry for entry in changes if entry[0] < 0]),
    ):
        named = [named_change.format(brief(classes[c]), counts[c], points(change)) for change, c in chosen[:MOST_NAMED]]
        if named:
            sentences.append(Markup("{}: {} points.").format(text, Markup(", ").join(named)))
    return sentences


def protocol(contents: Contents) -> list[str]:
    """How models were chosen and what the test set was used for."""
    found = []
    ways = sorted({run["chosen_by"] for method in contents.entries for run in method["runs"]})
    if ways == ["last step"]:
        found.append("Every model is that of the last step: nothing was chosen by looking at results.")
    elif ways:
        found.append(f"Models were chosen by: {', '.join(ways)}. The table of every run says which.")
    audit = ", and the audit of the synthetic images looks at it only to report." if contents.cache is not None else "."
    return [*found, f"The test set is for evaluation alone: training never reads it{audit}"]


def limits(contents: Contents) -> list[str]:
    """What the numbers of the page cannot say."""
    split, entries, document = contents.split, contents.entries, contents.document
    found = [
        f"One split of one data set: another sample of the {len(split.train.labels):,} training images would give "
        "other numbers, and no interval here covers that."
    ]
    if contents.runs:
        few = contents.runs[0].results["groups"]["few"]
        tests = split.manifest.summary["test_images"]
        text = f"{tests:,} test images: one of them is {100 / tests:.2g} points of top-1"
        if few is not None:
            text += f", and {100 / few['images']:.2g} points among the {few['images']:,} of few-shot classes"
        found.append(f"{text}.")
    if document is not None:
        seeds = len(document["methods"][0]["runs"])
        found.append(
            f"{seeds} training seed{'s' if seeds > 1 else ''} per method. Intervals are Student's, over differences of "
            "the same seed: they cover initialisation, order and augmentation, need at least three seeds, and are wide "
            "with few."
        )
        if document["verdict"] is not None:
            found.append(
                "The best methods were chosen by the test accuracies that are shown. Holm's correction over every "
                "method with synthetic images covers that choice in the verdict; the accuracies themselves flatter."
            )
    elif entries:
        found.append("Runs without a comparison: differences of a few points between them may be noise.")
    if document is not None:
        found += [note.replace("†", "Marked rows:") for note in footnotes(document)]
    views = {method["views_per_step"] for method in entries}
    if len(views) > 1:
        found.append(
            f"Methods see {min(views)} to {max(views)} views of an image per step: equal steps are not equal compute."
        )
    if contents.cache is not None:
        generator = GENERATORS.get(contents.cache.config.get("generator", ""))
        found.append(
            "One cache of synthetic images: another seed of the generator would give other images. "
            + (
                "The generator saw the split's training images alone: it varies what is there and adds nothing new."
                if generator is not None and generator.of_split_alone
                else "It was made with more than this split, which may include images like those of the test set."
            )
        )
    if "thirds" in split.groups.rule:
        found.append(
            "The shot groups are thirds of the classes by rank: “few” means the rarest third here, not fewer than 20 "
            "images."
        )
    return found
