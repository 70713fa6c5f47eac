"""The frame of a page: its head, contents and sections. It is one file and needs nothing external."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imgclf_jax.report.drawing import Picture
from imgclf_jax.report.markup import Markup, clean, join, tag

_STYLE = Path(__file__).with_name("style.css")
# No script can run and nothing can be fetched, even if the text contains something unexpected.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Section(NamedTuple):
    """A section of a page.

    Attributes:
        anchor: its id on the page, without the prefix of the run.
        title: its heading.
        body: its content.
        pictures: to write as files.
    """

    anchor: str
    title: str
    body: Markup
    pictures: tuple[Picture, ...] = ()


def document(title: str, body: Iterable[Markup], kind: str = "report") -> str:
    """A whole page.

    Args:
        title: the page's title.
        body: the content.
        kind: the command that writes the page; see `generator`.
    """
    head = [
        Markup('<meta charset="utf-8">'),
        generator(kind),
        Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        Markup('<meta name="color-scheme" content="light dark">'),
        tag("title", f"{clean(title)} – {kind}"),
        tag("style", Markup(_STYLE.read_text(encoding="utf-8"))),
    ]
    page = tag("html", tag("head", join(head)), tag("body", tag("main", join(body))), lang="en")
    return f"<!doctype html>\n{page}\n"


def generator(kind: str) -> Markup:
    """The element by which a page of this kind is recognized."""
    return Markup(f'<meta name="generator" content="imgclf_jax.{kind}">')


def contents(shown: Sequence[Section], more: Sequence[tuple[str, Any]] = ()) -> Markup:
    """Links to sections and to (id, title) of what follows them."""
    links = [(section.anchor, section.title) for section in shown] + [*more]
    return tag("nav", *(tag("a", title, href=f"#{anchor}") for anchor, title in links), aria_label="contents")


def section(shown: Section, prefix: str = "", heading: str = "h2") -> Markup:
    """A section as HTML."""
    return tag("section", tag(heading, shown.title), shown.body, id=f"{prefix}{shown.anchor}")
