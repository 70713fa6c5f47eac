"""Small pieces of HTML. All text is escaped here, and only here."""

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

LONGEST = 24
_DIRECTIONAL = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class Markup(str):
    """Text that is already HTML."""


def clean(text: Any) -> str:
    """Returns the text without the characters that a page must not contain.

    Control characters, and characters that change the direction of the following text, become replacement characters.
    Lone surrogates, which come from file names that are not valid text, become question marks.
    """
    whole = str(text).encode("utf-8", "replace").decode("utf-8")
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_control(c) else c for c in whole)


def _is_control(c):
    return unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in _DIRECTIONAL


def shorten(text: Any, longest: int = LONGEST) -> str:
    """The `clean` text, truncated to `longest` characters."""
    whole = clean(text)
    return whole if len(whole) <= longest else whole[: longest - 1].rstrip() + "…"


def escape(value: Any) -> Markup:
    """A value as HTML; `Markup` is returned unchanged."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(value), quote=True))


def tag(name: str, *content: Any, **attributes: Any) -> Markup:
    """An element. `css` is the attribute class, `None` omits an attribute, and `_` in names becomes a hyphen."""
    inside = "".join(escape(item) for item in content)
    return Markup(f"<{name}{_attributes(attributes)}>{inside}</{name}>")


def name(text: Any, longest: int = LONGEST) -> Markup:
    """A name, shortened if it is long, with the full name as a tooltip."""
    short = shorten(text, longest)
    return escape(short) if short == clean(text) else tag("span", short, title=clean(text))


def join(items: Iterable[Any], between: str = "\n") -> Markup:
    """Joins pieces of HTML."""
    return Markup(between.join(escape(item) for item in items))


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], foot: Sequence[Any] = (), text: int = 1, css: str | None = None
) -> Markup:
    """A table that scrolls sideways if it is too wide. Its first `text` columns are text, the others numbers.

    Without a text in `head`, it has no head.
    """

    def row(cells, element):
        filled = [tag(element, cell, css=None if index < text else "number") for index, cell in enumerate(cells)]
        return tag("tr", *filled)

    parts = [tag("thead", row(head, "th"))] if any(head) else []
    parts.append(tag("tbody", *(row(cells, "td") for cells in rows)))
    if foot:
        parts.append(tag("tfoot", row(foot, "td")))
    return scrolling(tag("table", *parts, css=css))


def scrolling(content: Markup) -> Markup:
    """Lets wide content scroll sideways, with the keyboard too."""
    return tag("div", content, css="scroll", tabindex="0")


def image(source: str, alt: str, pixelated: bool = False, title: str | None = None) -> Markup:
    """A picture embedded in the page, from its data URL."""
    given = {"css": "pixels" if pixelated else None, "src": source, "alt": alt, "title": title}
    return Markup(f"<img{_attributes(given)}>")


def _attributes(given):
    renamed = {("class" if key == "css" else key.replace("_", "-")): value for key, value in given.items()}
    return "".join(f' {key}="{escape(value)}"' for key, value in renamed.items() if value is not None)
