"""A few images per class before the long run, judged: which classes does the generator fail at?"""

from collections.abc import Callable
from typing import Any

import numpy as np

from saukit.core.machine import slices
from saukit.core.seeding import derive_seed
from saukit.data.images import ImageStore
from saukit.data.types import Floats, Images, Integers
from saukit.synthesis.generators.protocol import ImageGenerator
from saukit.synthesis.plan import SynthesisPlan

PREFLIGHT_NAME = "preflight.json"
FLOOR = 0.25  # a class of which less than this share is recognised is named
JUDGED_REAL = 64  # real images per class that show whether the judge knows the class at all
Probabilities = Callable[[Images], Floats]


def preflight(
    plan: SynthesisPlan,
    generator: ImageGenerator,
    probabilities: Probabilities,
    *,
    real_images: ImageStore,
    real_labels: Integers,
) -> dict[str, Any]:
    """Sample `plan.config.preflight` images of each class that wants some, and count which are taken for their class.

    `real_recognised` is the same share of real training images: a class whose real images are not recognised either
    says nothing of the generator. `poor` names the classes below a quarter, `unjudged` those that cannot be judged.

    Shapes: real_images uint8 [N, 3, H, W], real_labels [N].
    """
    count = plan.config.preflight
    rows: list[dict[str, Any]] = []
    for label in np.flatnonzero(plan.wanted).tolist():
        n = count if generator.capacity is None else min(count, int(generator.capacity[label]))
        if n == 0:
            continue
        labels = np.full(n, label, dtype=np.int64)
        ordinals = np.arange(n, dtype=np.int64)
        seeds = np.array([derive_seed(plan.config.seed, "preflight", label, i) for i in range(n)], dtype=np.int64)
        batches = slices(n, plan.batch_images)
        sampled = np.concatenate([generator.sample(labels[b], seeds[b], ordinals[b]) for b in batches])
        taken_for = probabilities(sampled).argmax(1)
        real = real_images[np.flatnonzero(real_labels == label)[:JUDGED_REAL]]
        others = taken_for[taken_for != label]
        rows.append(
            {
                "class": plan.classes[label],
                "images": n,
                "recognised": float((taken_for == label).mean()),
                "taken_for": plan.classes[int(np.bincount(others).argmax())] if len(others) else None,
                "real_recognised": float((probabilities(real).argmax(1) == label).mean()),
            }
        )
    return {
        "per_class": rows,
        "unjudged": [row["class"] for row in rows if row["real_recognised"] < 2 * FLOOR],
        "poor": [row["class"] for row in rows if row["recognised"] < FLOOR and row["real_recognised"] >= 2 * FLOOR],
    }


def warning(document: dict[str, Any]) -> str | None:
    """What a preflight found wrong, in words; None if every class looks as it should."""
    poor = [
        f"{row['class']} ({round(row['recognised'] * row['images'])} of {row['images']} recognised"
        + (f", most others taken for {row['taken_for']})" if row["taken_for"] else ")")
        for row in document["per_class"]
        if row["class"] in document["poor"]
    ]
    problems = []
    if poor:
        named = "; ".join(poor)
        problems.append(
            f"images of these classes are not recognised: {named}; look at samples.png before training on them"
        )
    if document["unjudged"]:
        problems.append(
            f"the judge does not recognise real images of {', '.join(document['unjudged'])}: it says nothing of these"
        )
    return "; ".join(problems) or None
