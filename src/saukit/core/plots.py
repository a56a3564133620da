"""The look of saukit's figures: one palette and style, saved as PNG beside an artefact, or inline SVG for the page.

A figure is drawn in the light colours. In the page's SVG each of them is a CSS variable of its name, so that dark mode
and the page's font apply.
"""

from __future__ import annotations

import functools
import io
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from xml.sax.saxutils import escape

from saukit.core.words import brief, shortened
from saukit.core.writing import atomic_path

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Light and dark. Every light colour is there once: it stands for its name.
PALETTE = {
    "paper": ("#fcfbf9", "#11151a"),
    "ink": ("#1c2430", "#e7eaee"),
    "soft": ("#56606d", "#a3adb9"),
    "line": ("#e2dfd9", "#2c343e"),
    "many": ("#2f6db3", "#6ea8e8"),
    "medium": ("#e0912f", "#eba54e"),
    "few": ("#b8374a", "#f08296"),
    "real": ("#5b6675", "#98a4b3"),
    "synthetic": ("#0b7f72", "#4fc3b0"),
    "better": ("#0b6e63", "#5fc9b7"),
    "worse": ("#a32a3f", "#f08a9b"),
    "unclear": ("#6b5a1e", "#dfc469"),
    "c0": ("#2e6cb2", "#6fa9e9"),
    "c1": ("#c2571a", "#ee9a5c"),
    "c2": ("#8a4fa3", "#c793de"),
    "c3": ("#7a6a12", "#cdbd57"),
}
WIDTH, NARROW = 3.7, 3.1  # inches: a phone shows one, a laptop two or three side by side
LETTERS_PER_INCH = 12  # of a title: wide ones
FONTS = (  # the first to look in: matplotlib's own, then ones with Chinese, Japanese and Korean
    "DejaVu Sans", "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Source Han Sans",
    "WenQuanYi Zen Hei", "Hiragino Sans", "PingFang SC", "Yu Gothic", "Microsoft YaHei", "Malgun Gothic",
)  # fmt: skip
LONGEST_NAME = 20
SCALE = 2  # pictures of images are drawn at twice the size, for sharp text on dense screens

P = ParamSpec("P")
T = TypeVar("T")


def colour(name: str) -> str:
    """The light colour of a name."""
    return PALETTE[name][0]


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in saukit's style, whatever matplotlibrc says."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        import matplotlib

        style: dict[str, Any] = {
            "font.size": 9, "text.color": colour("ink"), "text.parse_math": False,
            "axes.labelcolor": colour("soft"), "axes.edgecolor": colour("line"), "axes.axisbelow": True,
            "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
            "axes.titlesize": 10, "axes.titlelocation": "left", "axes.titlecolor": colour("ink"),
            "axes.grid": True, "axes.grid.axis": "x", "grid.color": colour("line"), "grid.linewidth": 0.8,
            "xtick.color": colour("line"), "xtick.labelcolor": colour("soft"), "xtick.labelsize": 8,
            "ytick.left": False, "ytick.labelcolor": colour("ink"), "ytick.labelsize": 8.5,
            "legend.frameon": False, "legend.fontsize": 8,
            "legend.handlelength": 1.0, "legend.borderaxespad": 0, "axes.unicode_minus": False,
        }  # fmt: skip
        while True:
            style["font.family"] = before = fonts()
            with matplotlib.rc_context(style):
                result = draw(*args, **kwargs)
            if fonts() == before:
                return result  # else a name asked for another font while it was drawn

    return wrapper


def new_figure(height: float, *, width: float = WIDTH, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of `width` x `height` inches with axes beside each other; needs no display."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width * columns, height), layout=ConstrainedLayoutEngine(wspace=0.05))
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save_figure(figure: Figure, path: Path, *, dpi: int = 200) -> None:
    """Write a figure as PNG, atomically."""
    import matplotlib

    if (layout := figure.get_layout_engine()) is not None:  # beforehand: savefig would draw everything once more for it
        figure.dpi = dpi
        layout.execute(figure)
        with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
            figure.set_layout_engine(None)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": "saukit"})


def svg(figure: Figure, title: str) -> str:
    """A figure as an SVG element for a page that defines the palette's names. A page has each title only once."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "svg.image_inline": True}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    box = re.search(r'viewBox="[^"]+"', text)
    assert box is not None
    text = text[text.index("</defs>", text.index("<style")) + len("</defs>") :]
    used = set(re.findall(r'(?:href="|url\()#(\w+)', text))

    def for_the_page(tag: re.Match[str]) -> str:
        kept = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", tag[0])
        for name, (light, _) in PALETTE.items():
            kept = kept.replace(light, f"var(--{name})")
        kept = re.sub(r" ?font-family: [^;\"]+;", "", kept)
        return re.sub(r"\s+", " ", re.sub(r"(\d+\.\d\d)\d+", r"\1", kept))

    text = re.sub(r"\n\s*", "", re.sub(r"<[^>]+>", for_the_page, text))
    return f'<svg class="plot" role="img" {box[0]}><title>{escape(title)}</title>{text}'


_font_of: dict[str, str | None] = {}  # the font of each character that was looked up; None where none has it


def fonts() -> list[str]:
    """The fonts of what was written so far: matplotlib's own, then those that had what it lacks."""
    return list(dict.fromkeys([FONTS[0], *filter(None, _font_of.values())]))


def _look_up(letters: Iterable[str]) -> None:
    """Find a font for each letter among all that are installed, those of `FONTS` first."""
    from matplotlib import ft2font
    from matplotlib.font_manager import fontManager

    wanted = set(letters) - _font_of.keys()
    if not hasattr(ft2font, "__libraqm_version__"):  # before 3.11 matplotlib writes letters as they come, unjoined
        wanted -= (backwards := {letter for letter in wanted if unicodedata.bidirectional(letter) in ("R", "AL")})
        _font_of.update(dict.fromkeys(backwards))
    order = {name: place for place, name in enumerate(FONTS)}
    faces = [face for face in fontManager.ttflist if not face.name.startswith("Last Resort")]
    for face in sorted(faces, key=lambda face: (order.get(face.name, len(order)), face.style != "normal", face.fname)):
        if not wanted:
            return
        opened = ft2font.FT2Font(face.fname)
        found = {letter for letter in wanted if opened.get_char_index(ord(letter))}
        _font_of.update(dict.fromkeys(sorted(found), face.name))
        wanted -= found
    _font_of.update(dict.fromkeys(wanted))


def labels(names: Sequence[str], *, longest: int = LONGEST_NAME) -> list[str]:
    """Names as a figure can write them: short, and by their number where no font has their characters."""
    return [drawable(name, f"class {c}", longest=longest) for c, name in enumerate(names)]


def numbered(names: Sequence[str]) -> str | None:
    """What the numbers of `labels` stand for; None where every name can be written."""
    found = {c: name for c, name in enumerate(names) if drawable(name, "", longest=len(name) + 1) == ""}
    listed = shortened(f"class {c} is {brief(name)}" for c, name in found.items())
    return f"In figures, {listed}: no installed font has all of their characters" if found else None


def drawable(text: str, otherwise: str, *, longest: int) -> str:
    """`text` as a figure can write it, cut in the middle if it is long; `otherwise` if no font has its characters."""
    text = brief(text, longest)
    _look_up(text)
    return text if all(_font_of[letter] for letter in text) else otherwise


def add_legend(figure: Figure, handles: Sequence[Any], *, title: str = "") -> None:
    """A legend above the axes, where it covers nothing."""
    if handles or title:
        columns = 2 if sum(len(handle.get_label()) + 4 for handle in handles) > 56 else max(1, len(handles))
        text = textwrap.fill(title, int(LETTERS_PER_INCH * figure.get_figwidth())) or None
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, title=text, alignment="left")


class Canvas:
    """A white figure addressed by pixels from its upper left corner; made and saved in a function that is `styled`."""

    def __init__(self, width: int, height: int) -> None:
        from matplotlib.figure import Figure

        self.width, self.height, self.dpi = width, height, 100 * SCALE
        self.figure = Figure(figsize=(width / self.dpi, height / self.dpi), dpi=self.dpi)

    def write(self, x: float, y: float, text: str, size: float, ink: str = "ink", **look: Any) -> None:
        """`text` from x on, its baseline at y."""
        self.figure.text(x / self.width, 1 - y / self.height, text, fontsize=size, color=colour(ink), **look)

    def paste(self, image: npt.NDArray[np.uint8], x: int, y: int) -> None:
        """Pixels [H, W, 3] with their upper left corner at (x, y), as they are."""
        self.figure.figimage(image, x, self.height - y - len(image))

    def save(self, path: Path) -> None:
        """Write it as PNG."""
        save_figure(self.figure, path, dpi=self.dpi)


def enlarge(images: npt.NDArray[np.uint8], tile: int) -> npt.NDArray[np.uint8]:
    """uint8 [n, 3, h, w] to [n, H, W, 3], each pixel a block; images larger than a tile stay as they are."""
    factor = max(1, tile // max(images.shape[2:]))
    return images.transpose(0, 2, 3, 1).repeat(factor, axis=1).repeat(factor, axis=2)


def bare(axes: Any) -> None:
    """Take axes' frame, ticks and grid away."""
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(False)
