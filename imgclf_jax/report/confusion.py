"""The confusion matrix as a table whose numbers lead to images. It needs no script: a link shows what it points to."""

from collections.abc import Mapping, Sequence

import numpy as np

from imgclf_jax.report.markup import Markup, join, name, scrolling, tag

DEEPEST = 55  # percent of color in a full cell: its number stays readable on the white and on the black page


def table(matrix: np.ndarray, names: Sequence[str], anchors: Mapping[tuple[int, int], str]) -> Markup:
    """The matrix as a table, shaded by the square root of the share of the true class, to show rare mistakes.

    Args:
        matrix: int [C, C], rows are true classes.
        names: of the classes.
        anchors: (row, column) -> the id of the `panel` of the cell.
    """
    shares = np.sqrt(matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))
    head = tag(
        "tr",
        tag("th", "true, predicted:", scope="col"),
        *(tag("th", tag("div", name(n, 18)), scope="col") for n in names),
    )
    rows = [
        tag(
            "tr",
            tag("th", name(names[row], 18), scope="row"),
            *(
                tag(
                    "td",
                    link(f"{count:,}", anchors.get((row, column))),
                    style=f"--shade: {DEEPEST * shares[row, column]:.0f}%",
                    css="right" if row == column else None,
                )
                for column, count in enumerate(counts)
            ),
        )
        for row, counts in enumerate(matrix)
    ]
    label = f"confusion matrix of {len(names)} classes: {np.trace(matrix)} of {matrix.sum()} predictions are correct"
    caption = tag("caption", label, css="hidden")
    return scrolling(tag("table", caption, tag("thead", head), tag("tbody", *rows), css="confusion"))


def link(text: str, anchor: str | None) -> Markup | str:
    """A number as a link to its images, if there are any on the page."""
    return tag("a", text, href=f"#{anchor}") if anchor else text


def panel(anchor: str, names: Sequence[str], cell: tuple[int, int], count: int, images: Sequence[Markup]) -> Markup:
    """The images of a cell, which are hidden until a link leads to them.

    Args:
        anchor: the id.
        names: of the classes.
        cell: (true class, predicted class).
        count: of the examples of the cell.
        images: some of them, the most confident first.
    """
    true, predicted = (name(names[label], 30) for label in cell)
    what = join([true, " recognized"] if cell[0] == cell[1] else [true, " taken for ", predicted], "")
    shown = f", the {len(images)} surest of {count:,}" if count > len(images) else f", all {count}"
    head = tag("p", tag("strong", what), shown if count > 1 else "")
    return tag("div", head, tag("div", *images, css="grid cell"), id=anchor, css="panel")
