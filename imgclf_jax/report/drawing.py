"""The style and output of pictures: each drawing becomes inline SVG in the page, and an SVG and a PNG file."""

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from imgclf_jax.report.markup import Markup, clean, escape, tag

# Colors by role, on white. On the page each becomes a variable of the style sheet, with another value in dark mode.
# Most color-blind people can distinguish the colors of the series (after Okabe and Ito 2008,
# https://jfly.uni-koeln.de/color/).
INK, MUTED, GRID, PAPER = "#1f2428", "#59636e", "#d8dee4", "#ffffff"
BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY = "#0067a9", "#c64f00", "#00785a", "#a0498a", "#8a6a00", "#3b7f9e"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY)
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    PAPER: "paper",
    **{color: f"series{index}" for index, color in enumerate(SERIES, start=1)},
}
_STYLE: Any = {
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # Names of classes and files may contain dollar signs.
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # Text stays text: it is searchable, and browsers have more glyphs than one font.
    "svg.hashsalt": "imgclf_jax",  # for reproducible files
    "figure.constrained_layout.use": True,
}
_DPI = 160


class Picture(NamedTuple):
    """A finished drawing.

    Attributes:
        name: of its files, unique on the page.
        alt: text alternative.
        svg: content of the SVG file.
        png: content of the PNG file.
        tooltips: texts by the id of an element of the SVG.
    """

    name: str
    alt: str
    svg: str
    png: bytes
    tooltips: dict[str, str]


@contextlib.contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A new figure of the given size in inches, in the style of the report. Draw and `finish` it within the block."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing"
        )  # Browsers have the glyphs that the font of the PNG lacks.
        yield Figure(figsize=(width, height), dpi=_DPI, facecolor=PAPER)


def finish(figure: Figure, name: str, alt: str, tooltips: dict[str, str] | None = None) -> Picture:
    """Renders the figure.

    Args:
        figure: from `drawing`.
        name: of the files of the picture.
        alt: text alternative.
        tooltips: texts by the gid of an artist.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.set_layout_engine("none")  # It is laid out already.
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    FigureCanvasSVG(figure).print_svg(svg, metadata=no_metadata)
    return Picture(name, alt, svg.getvalue().decode(), png.getvalue(), tooltips or {})


def inline(picture: Picture, prefix: str, wide: bool = False) -> Markup:
    """The picture as part of a page: in the colors and fonts of the page, with ids that are unique on it.

    Args:
        picture: the picture.
        prefix: of the run that it belongs to.
        wide: whether it scrolls on narrow screens instead of shrinking.
    """
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", svg)
    unique = f"{prefix}-{picture.name}-"
    svg = re.sub(r'(\sid="|xlink:href="#|url\(#)', lambda match: match[1] + unique, svg)
    for gid, text in picture.tooltips.items():
        start = f'<g id="{unique}{gid}">'
        svg = svg.replace(start, f"{start}<title>{escape(text)}</title>", 1)
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var(--{variable})")
    size = re.search(r'width="([\d.]+)pt" height="[\d.]+pt"', svg)
    assert size
    width = round(float(size[1]) * 1.3)  # points to pixels, so that text is as large as in the captions of the page
    svg = svg.replace(size[0], f'role="img" aria-label="{escape(clean(picture.alt))}" style="max-width:{width}px"', 1)
    return tag("div", Markup(svg), css="chart wide" if wide else "chart")


def save(picture: Picture, folder: Path) -> None:
    """Writes `NAME.svg` and `NAME.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{picture.name}.svg").write_text(picture.svg, encoding="utf-8")
    (folder / f"{picture.name}.png").write_bytes(picture.png)
