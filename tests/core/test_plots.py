"""Figures as PNG and as SVG inside a page."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from saukit.core import plots
from saukit.core.plots import PALETTE, colour, labels, new_figure, numbered, save_figure, styled, svg

TEXT = "a < b > c & $x$ #2f6db3 lr0.00125"
NAMES = "{http://www.w3.org/2000/svg}"


@styled
def drawn() -> Figure:
    figure, (axes,) = new_figure(2.0)
    axes.plot([0, 1], [0, 1], "o", color=colour("synthetic"))
    axes.set_xlabel(TEXT)
    figure.legend(handles=[])
    return figure


def test_the_light_colours_are_all_different() -> None:
    light = [light for light, _ in PALETTE.values()]
    assert len(set(light)) == len(light) and all(re.fullmatch("#[0-9a-f]{6}", one) for one in light)


def test_the_svg_is_well_formed_and_has_variables_for_colours() -> None:
    text = svg(drawn(), "Title <1>")
    tree = ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="x" ', 1))
    assert tree.attrib["role"] == "img" and tree[0].tag == f"{NAMES}title" and tree[0].text == "Title <1>"
    assert TEXT in [element.text for element in tree.iter(f"{NAMES}text")]  # no mathematics, no glyphs
    assert "fill: var(--synthetic)" in text and "stroke: var(--line)" in text
    tags = "".join(re.findall("<[^>]+>", text))
    assert not [name for name, (light, _) in PALETTE.items() if light in tags]
    assert "font-size: 9px" in text and "DejaVu" not in text and "<style" not in text and "<metadata" not in text


def test_ids_are_those_that_are_used_and_differ_between_figures() -> None:
    first, second = svg(drawn(), "one"), svg(drawn(), "two")
    ids = [set(re.findall(r'id="([^"]+)"', text)) for text in (first, second)]
    assert ids[0] and ids[0] == set(re.findall(r"[\"(]#(\w+)", first)) and not ids[0] & ids[1]
    assert svg(drawn(), "one") == first


def test_the_png_is_the_figure_in_light_colours(tmp_path: Path) -> None:
    save_figure(drawn(), tmp_path / "a.png", dpi=100)
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert pixels.shape[:2] == (200, round(100 * plots.WIDTH))
    synthetic = [int(colour("synthetic")[at : at + 2], 16) for at in (1, 3, 5)]
    assert (np.abs(pixels - synthetic).max(axis=-1) < 3).sum() > 10


def test_names_are_short_and_have_characters_that_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["cat", "a name longer than its column", "\U0001f9ff\u1783", "été", "new\nline \x1b[1m"]
    assert labels(names) == ["cat", "a name longer …olumn", "class 2", "été", r"new\nline \x1b[1m"]
    assert labels(names[:4], longest=9) == ["cat", "a name…mn", "class 2", "été"]
    note = "In figures, class 1 is \U0001f9ff\u1783: no installed font has all of their characters"
    assert (numbered(names[1:3]), numbered(names[:2])) == (note, None)
    monkeypatch.setattr(plots, "_font_of", {"猫": "A Font", "犬": None})
    assert labels(["猫", "犬"]) == ["猫", "class 1"]  # whatever the fonts have


def test_a_character_is_drawn_in_a_font_that_is_installed_and_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    monkeypatch.setattr(plots, "_font_of", {})
    letter = "\u210c"  # no DejaVu Sans is needed to have it; STIX comes with matplotlib
    monkeypatch.setattr(plots, "FONTS", ("cmb10",))

    @styled
    def draw() -> Figure:
        figure, (axes,) = new_figure(2.0)
        axes.set_xlabel(labels([f"{letter}x"])[0])
        return figure

    (written,) = [text for text in draw().findobj(Text) if text.get_text() == f"{letter}x"]
    first, other = written.get_fontfamily()
    assert first == "cmb10" and other != "cmb10"
    faces = [face for face in fontManager.ttflist if face.name == other]
    assert any(ord(letter) in FT2Font(face.fname).get_charmap() for face in faces)


def test_before_matplotlib_joined_letters_names_from_right_to_left_are_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import ft2font

    monkeypatch.setattr(plots, "_font_of", {})
    monkeypatch.setattr(ft2font, "__libraqm_version__", "0.10", raising=False)
    assert labels(["قط", "cat"]) == ["قط", "cat"]  # DejaVu Sans, which matplotlib brings, has it
    monkeypatch.setattr(plots, "_font_of", {})
    monkeypatch.delattr(ft2font, "__libraqm_version__")
    assert labels(["قط", "cat"]) == ["class 0", "cat"]
