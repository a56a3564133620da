"""What a text-to-image pipeline is asked for: one line of text for each image of each class.

Image i of a class takes line i of its lines, and starts over after the last, so an image's prompt depends on nothing
but its class and its number. The lines are templates, with the class's name for `{class}`, or come from a file:

    crane:                              # YAML, or the same in JSON
      - a photo of a crane, the bird, in shallow water
      - a {class} in flight
    apple: a photo of an apple          # one line needs no list

A class that the file does not name gets the templates; `PromptBook.templated` says which those are.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saukit.core.documents import MIB, read_json, read_yaml
from saukit.core.errors import UsageError
from saukit.core.words import shortened, shown

MAX_PROMPT_BYTES = 4 * MIB
PLACE = "{class}"
TEMPLATES = (
    "a photo of a {class}",
    "a close-up photo of a {class}",
    "a photo of a {class} from a distance",
    "a bright photo of a {class}",
    "a dark photo of a {class}",
    "a photo of a {class} in its usual surroundings",
)
# A WordNet number (n02099601), with which ImageNet's folders begin, and often end.
_WORDNET = re.compile(r"^n\d{8}(?:[-_ .]+|$)")
_ARTICLE = re.compile(r"\b([Aa]) (?=\{class\})")


@dataclass(frozen=True)
class PromptBook:
    """The prompts of K classes.

    `lines` [K] holds each class's prompts. `templated` names the classes that a prompts file left out, `unclear` those
    whose templates say nothing of what they are, such as "7" or "n02099601": they want a description.
    """

    classes: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    templated: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()

    @staticmethod
    def of(
        classes: Sequence[str],
        *,
        templates: Sequence[str] = TEMPLATES,
        descriptions: Mapping[str, str] | None = None,
        prompts: Path | None = None,
    ) -> PromptBook:
        """The prompts of `classes`: those of the file `prompts` where it names the class, else the templates.

        `descriptions` holds what stands for `{class}` where the class's name will not do ("crane" is a bird or a
        machine: "crane, the bird").

        Raises: UsageError that lists every template without `{class}`, every unknown class and every empty prompt.
        """
        given = {} if prompts is None else read_prompts(prompts)
        described = dict(descriptions or {})
        problems = [*_template_problems(templates)]
        problems += [f"descriptions: {problem}" for problem in _unknown(described, classes)]
        problems += [f"descriptions: {name!r} is described by nothing" for name in described if not described[name]]
        problems += [f"{prompts}: {problem}" for problem in _unknown(given, classes)]
        if problems:
            raise UsageError("; ".join(problems))
        lines = []
        for name in classes:
            text = described.get(name) or describe_class_name(name)
            lines.append(tuple(_filled(line, text) for line in given.get(name) or templates))
        templated = tuple(name for name in classes if prompts is not None and name not in given)
        unclear = (name for name in classes if name not in given and name not in described and says_nothing(name))
        return PromptBook(tuple(classes), tuple(lines), templated, tuple(unclear))

    def prompt(self, label: int, ordinal: int) -> str:
        """The prompt of image `ordinal` of class `label`."""
        lines = self.lines[label]
        return lines[ordinal % len(lines)]

    @property
    def digest(self) -> str:
        """SHA-256 of the classes and their prompts, in their order."""
        return hashlib.sha256(json.dumps([self.classes, self.lines]).encode()).hexdigest()


def describe_class_name(name: str) -> str:
    """A class folder's name as words: `golden_retriever` and `n02099601-golden_retriever` are a golden retriever."""
    words = " ".join(_WORDNET.sub("", name).replace("_", " ").split())
    return words or name


def says_nothing(name: str) -> bool:
    """Whether a class's name is a number, or nothing but a WordNet number."""
    return not any(map(str.isalpha, _WORDNET.sub("", name)))


def read_prompts(path: Path) -> dict[str, tuple[str, ...]]:
    """The prompts of each class that a YAML or JSON file names; every name and prompt is text, `7` and `no` too.

    Raises: UsageError if the file is not there or not a mapping, or one that lists all in it that is not a prompt.
    """
    document = _parsed(path)
    if not isinstance(document, dict) or not document:
        raise UsageError(f"{path} does not map classes to prompts: write lines such as `cat: [a photo of a cat]`")
    problems: list[str] = []
    prompts: dict[str, tuple[str, ...]] = {}
    for name, value in document.items():
        lines = value if isinstance(value, list) else [value]
        if not lines:
            problems.append(f"{name!r} has no prompt")
        for number, line in enumerate(lines, start=1):
            if not isinstance(line, str):
                problems.append(f"prompt {number} of {name!r} is not text, got {shown(line)}")
            elif not line.strip():
                problems.append(f"prompt {number} of {name!r} is empty")
        if not problems:
            prompts[name] = tuple(" ".join(line.split()) for line in lines)
    if problems:
        raise UsageError(f"{path}: " + "; ".join(problems))
    return prompts


def read_texts(path: Path) -> dict[str, str]:
    """One text for each class that a YAML or JSON file names. Raises: UsageError as `read_prompts`."""
    prompts = read_prompts(path)
    several = [name for name, lines in prompts.items() if len(lines) > 1]
    if several:
        raise UsageError(f"{path}: one text per class, got several for {', '.join(several)}")
    return {name: lines[0] for name, lines in prompts.items()}


def _parsed(path: Path) -> Any:
    remedy = "give a YAML or JSON file with one line per class"
    missing = f"no file {path}: {remedy}"
    if path.suffix.lower() == ".json":
        return read_json(path, fault=UsageError, remedy=remedy, missing=missing, mapping=False)
    # Text alone: a class may be called 7, no or null.
    return read_yaml(path, fault=UsageError, remedy=remedy, missing=missing, most=MAX_PROMPT_BYTES, texts=True)


def _template_problems(templates: Sequence[str]) -> Iterator[str]:
    if not templates:
        yield f"no template: give at least one, such as {TEMPLATES[0]!r}"
    for template in templates:
        if PLACE not in template:
            yield f"template {template!r} has no {PLACE}, so all classes would look the same"


def _unknown(given: Mapping[str, object], classes: Sequence[str]) -> Iterator[str]:
    for name in given:
        if name not in classes:
            close = difflib.get_close_matches(name, classes, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the classes are {shortened(classes, limit=10)}"
            yield f"unknown class {name!r} ({hint})"


def _filled(template: str, text: str) -> str:
    """`template` with `text` for the class, and "an" for the article right before it where a vowel follows."""
    if text[:1].lower() in set("aeiou"):
        template = _ARTICLE.sub(r"\1n ", template)
    return template.replace(PLACE, text)
