"""The part of `make-lt`'s configuration that a source reads when it is opened. Imports no numpy."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from saukit.core.errors import UsageError
from saukit.core.options import Paths, option

DEFAULT_TEST_FRACTION = 0.2
COLUMN_ROLES = ("path", "label", "group", "split")
PANEL = "Images of your own"
LISTED = ("list", "imagenet-lt", "places-lt", "inat2018")
OF_FILES: dict[str, Any] = {"panel": PANEL, "needs": {"dataset.own_files": True}}
OF_LISTS: dict[str, Any] = {"panel": PANEL, "metavar": "FILE", "path": True, "needs": {"dataset": "list"}}
LIST_HELP = "List of {}: `path label` a line, or a CSV, TSV or Parquet table."


def parse_columns(text: str) -> dict[str, str]:
    """`path=file,label=species` as a mapping. Raises: UsageError for anything else."""
    columns = {}
    for item in text.split(","):
        role, equals, name = item.partition("=")
        if not equals or role not in COLUMN_ROLES or role in columns:
            known = ", ".join(f"{known}=NAME" for known in COLUMN_ROLES)
            raise UsageError(f"columns {text!r}: {item!r} is not one of {known}, each once")
        columns[role] = name
    return columns


def _columns_problems(columns: dict[str, str]) -> list[str]:
    unknown = [role for role in columns if role not in COLUMN_ROLES]
    return [f"columns has the roles {', '.join(COLUMN_ROLES)}, not {', '.join(unknown)}"] if unknown else []


def _pattern_problems(pattern: str) -> list[str]:
    try:
        re.compile(pattern)
    except re.error as error:
        return [f"group_by {pattern!r} is not a regular expression: {error}"]
    return []


Fit = Literal["crop", "pad", "stretch"]  # how a picture becomes a square: `data.decoding.fitted`


def colour_problems(text: str) -> list[str]:
    """What is wrong with a colour."""
    try:
        parse_colour(text)
    except ValueError:
        return [f"{text!r} is not a colour: write R,G,B with numbers from 0 to 255, #rrggbb, or a name such as white"]
    return []


def parse_colour(text: str) -> tuple[int, int, int]:
    """`255,0,0`, `#ff0000` or `red` as red, green and blue. Raises: ValueError for anything else."""
    if "," in text:
        values = [int(part) for part in text.split(",")]
    else:
        from PIL import ImageColor

        values = list(ImageColor.getrgb(text))[:3]
    if len(values) != 3 or not all(0 <= value <= 255 for value in values):
        raise ValueError(text)
    return values[0], values[1], values[2]


@dataclass(frozen=True, kw_only=True)
class SourceConfig(Paths):
    """Which source, and how its files are to be understood; `SplitConfig` adds what is chosen from it."""

    dataset: str = option("digits", "A row of the table of sources.")
    fit: Fit = option(
        "crop",
        "How a picture becomes a square: its centre, all of it on a background, or all of it out of proportion.",
        **OF_FILES,
    )
    background: str = option(
        "white",
        "Colour behind transparent and padded pictures: R,G,B, #rrggbb or a name.",
        check=colour_problems,
        metavar="COLOUR",
        **OF_FILES,
    )
    white_level: int | None = option(
        None,
        "Value that is white in images of 16 bits; 4095 for 12 bits.",
        shown="by the set's largest",
        least=1,
        most=65535,
        **OF_FILES,
    )
    test_dir: str | None = option(
        None,
        "Folder or split of --root that is the test set, such as val.",
        panel=PANEL,
        metavar="NAME",
        shown="test",
        needs={"dataset": ("folder", "huggingface")},
        excludes=("test_fraction",),
    )
    train_list: str | None = option(None, LIST_HELP.format("training images"), **OF_LISTS)
    val_list: str | None = option(None, LIST_HELP.format("validation images"), **OF_LISTS)
    test_list: str | None = option(None, LIST_HELP.format("test images"), **OF_LISTS)
    columns: dict[str, str] | None = option(
        None,
        "Columns of a table: path=file,label=species,group=patient,split=part.",
        panel=PANEL,
        cli_type=str | None,
        parse=parse_columns,
        metavar="ROLE=NAME,...",
        shown="by their names",
        needs={"dataset": ("list", "huggingface")},
        check=_columns_problems,
    )
    class_names: str | None = option(
        None,
        "File with a class name on each line, the one of label 0 first.",
        panel=PANEL,
        metavar="FILE",
        path=True,
        shown="the labels",
        needs={"dataset": (*LISTED, "medmnist")},
    )
    group_by: str | None = option(
        None,
        "Keep groups on one side: a column, or an expression whose first group is the key in a path.",
        metavar="COLUMN|REGEX",
        check=_pattern_problems,
        **OF_FILES,
    )
    skip_bad: bool = option(
        False, "Skip unreadable and missing images, and count them.", flags=("--skip-bad",), **OF_FILES
    )
    class_depth: Literal["top", "leaf"] | None = option(
        None,
        "Which folders are the classes: the top ones, or the innermost ones.",
        shown="top, unless those inside may be",
        needs={"dataset": "folder"},
    )
    min_images: int = option(0, "Leave out classes with fewer training images.", least=0, shown="none may be empty")
    test_fraction: float | None = option(
        None,
        "Share of each class for testing, where there is no test set.",
        shown=str(DEFAULT_TEST_FRACTION),
        above=0,
        below=1,
        needs={"dataset.test_set": (False, None)},
    )
