"""Small pieces of HTML. Whatever is not markup is escaped here and nowhere else."""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 24
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class Markup(str):
    """Text that is HTML already."""


def clean(text: Any) -> str:
    """Returns a text without the characters that a page must not hold.

    Control characters, and those that change the direction of the text that follows, become replacement characters.
    Halves of characters, which come from strange file names, become question marks.
    """
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(c) else c for c in whole)


def _is_control(c):
    return unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in _TURNING


def shorten(text: Any, longest: int = LONGEST) -> str:
    """`clean` text, cut where it is too long."""
    whole = clean(text)
    return whole if len(whole) <= longest else whole[: longest - 1].rstrip() + "…"


def escape(value: Any) -> Markup:
    """A value as HTML; `Markup` stays what it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(value), quote=True))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element. `css` stands for the attribute class, `None` leaves an attribute out, `_` in names is a hyphen."""
    inside = "".join(escape(item) for item in content)
    return Markup(f"<{name}{_attributes(attributes)}>{inside}</{name}>")


def name(text: Any, longest: int = LONGEST) -> Markup:
    """A name that may be long: shortened, with the whole of it as a tooltip."""
    short = shorten(text, longest)
    return escape(short) if short == clean(text) else tag("span", short, title=clean(text))


def join(items: Iterable[Any], between: str = "\n") -> Markup:
    """Pieces one after the other."""
    return Markup(between.join(escape(item) for item in items))


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], foot: Sequence[Any] = (), text: int = 1, css: str | None = None
) -> Markup:
    """A table that scrolls sideways where it is too wide; its first `text` columns hold text, the others numbers."""

    def row(cells, element):
        filled = [tag(element, cell, css=None if index < text else "number") for index, cell in enumerate(cells)]
        return tag("tr", *filled)

    parts = [tag("thead", row(head, "th")), tag("tbody", *(row(cells, "td") for cells in rows))]
    if foot:
        parts.append(tag("tfoot", row(foot, "td")))
    return tag("div", tag("table", *parts, css=css), css="scroll")


def image(png: str, alt: str, pixelated: bool = False, title: str | None = None) -> Markup:
    """A picture that is part of the page, from its PNG in base64."""
    source = f"data:image/png;base64,{png}"
    given = {"css": "pixels" if pixelated else None, "src": source, "alt": alt, "title": title}
    return Markup(f"<img{_attributes(given)}>")


def _attributes(given):
    renamed = {("class" if key == "css" else key.replace("_", "-")): value for key, value in given.items()}
    return "".join(f' {key}="{escape(value)}"' for key, value in renamed.items() if value is not None)
