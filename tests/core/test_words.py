import html
import re

import pytest
from markdown_it import MarkdownIt  # which rich needs

from saukit.core.words import (
    brief,
    format_bytes,
    format_duration,
    format_share,
    markdown,
    name_problem,
    one_line,
    printable,
    shortened,
    shown,
)


def test_a_long_list_says_how_many_more() -> None:
    assert shortened([]) == ""
    assert shortened(range(3)) == "0, 1, 2"
    assert shortened(range(23)) == ", ".join(map(str, range(20))) + " and 3 more"
    assert shortened((name for name in "abc"), "\n  ", limit=2) == "a\n  b\n  and 1 more"


@pytest.mark.parametrize("name", ["sau+synth", "ce-seed1", "a", "7", "A.b_c"])
def test_names_of_folders(name: str) -> None:
    assert name_problem("run name", name) is None
    assert str(name_problem("run name", f"/{name}")).startswith(f"run name '/{name}': use letters, digits, ")


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (38 * 1024, "38 KiB"),
        (1.2 * 1024**3, "1.2 GiB"),
        (5 * 1024**4, "5.0 TiB"),
    ],
)
def test_bytes_for_a_person(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (42.4, "42 s"),
        (60, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (47 * 3600, "47 h 00 min"),
        (48 * 3600, "2.0 days"),
        (3.4 * 86400, "3.4 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(None, "-"), (0.0, "0.0"), (0.8366, "83.7"), (1.0, "100.0")])
def test_an_absent_share_is_a_dash_and_zero_is_zero(share: float | None, text: str) -> None:
    assert format_share(share) == text


def test_a_long_value_is_cut_and_its_ends_are_shown() -> None:
    assert shown("abc") == "'abc'" and shown("abc", quotes=False) == "abc" and shown([1, None]) == "[1, None]"
    assert shown("x" * 50 + "y" * 50_000) == "'" + "x" * 50 + "y" * 9 + "..." + "y" * 9 + "'"
    assert shown(10**80 - 1) == "9" * 80
    assert shown(10**80) == shown(-(10**9000)) == "a whole number of more than 80 digits"


def test_what_acts_on_a_terminal_is_made_visible() -> None:
    assert printable("a\x1b[31mb\rc\x07d\x9be") == r"a\x1b[31mb\rc\x07d\x9be"
    assert printable("\u202eabc\u2028") == r"\u202eabc\u2028"
    assert printable("größe\n\t日本 ✓") == "größe\n\t日本 ✓"


def test_names_of_classes_are_on_one_line_and_cut_by_columns() -> None:
    assert one_line("a\tb\nc\x1bd") == r"a\tb\nc\x1bd"
    assert shortened(["a\nb", "c"], "\n  ") == "a\\nb\n  c"
    assert brief("cat\n") == r"cat\n"
    assert brief("abcdefghijklmnopqrstuvwxyz", 12) == "abcdefgh…xyz"
    assert brief("猫" * 12, 12) == "猫猫猫猫…猫"  # two columns each
    assert brief("L" * 200) == f"{'L' * 29}…{'L' * 10}"


@pytest.mark.parametrize(
    "name",
    [
        *("$x^2$", "under_score_", "[red](x)", "<b>bold</b>", "a|b", "*star*", "`tick`", "~~x~~", "&amp;", "{{x}}"),
        *("\\*", "#hash", "- dash", "+ plus", "1. one", "2) two", "=====", " - x", "a.b-c 猫"),
    ],
)
def test_names_read_letter_by_letter_in_markdown(name: str) -> None:
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rendered = reader.render(f"{markdown(name)}\n\n| x | y |\n| --- | --- |\n| {markdown(name)} | 1 |\n")
    paragraphs = re.findall(r"<(?:p|td)>(.*?)</(?:p|td)>", rendered)
    assert [html.unescape(text) for text in paragraphs] == [name.strip(), name.strip(), "1"]
    assert re.fullmatch(r"[^$]*|(?:[^$]*\\\$)+[^$]*", markdown(name))  # of GitHub's formulas
