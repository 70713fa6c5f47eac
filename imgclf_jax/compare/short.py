"""Shortens the names of groups for charts and narrow columns so that they still differ."""

import re

from imgclf_jax.report.markup import Markup, clean, escape, tag


def shorten(text: str, longest: int) -> str:
    """The name, cleaned for a page, with at most `longest` characters.

    In a long name, fields lose the names of their sections ("optim.learning_rate=0.1" becomes "learning_rate=0.1"). If
    that does not suffice, the middle is left out, because names of groups often differ at the end.
    """
    whole = clean(text)
    if len(whole) > longest:
        whole = re.sub(r"\b(?:\w+\.)+(\w+=)", r"\1", whole)
    if len(whole) <= longest:
        return whole
    start = longest // 2
    return f"{whole[:start].rstrip()}…{whole[len(whole) - (longest - 1 - start) :].lstrip()}"


def name(text: str, longest: int = 24) -> Markup:
    """A name for a page; if it is shortened, with the full name as a tooltip."""
    short = shorten(text, longest)
    return escape(short) if short == clean(text) else tag("span", short, title=clean(text))
