"""Places names at the points of a chart so that they cover neither each other nor a point."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from imgclf_jax.report.drawing import INK, MUTED

SIZE = 8.0  # of the letters, in points
# Width of a letter and height of a line, relative to the size. Fonts of browsers are narrower than the one measured.
_WIDTH, _HEIGHT = 0.62, 1.25
# Offsets of the center of a text from its point in half widths and lines, from near to far.
_RING = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
_PLACES = [(x, y * far) for far in (1, 2, 3, 4.5) for x, y in _RING if far == 1 or y]


class _Box(NamedTuple):
    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: "_Box") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top
        )


def place(
    figure: Figure,
    axes: Any,
    texts: Sequence[tuple[float, float, str]],
    stairs: Sequence[tuple[float, float]] = (),
    points: Sequence[tuple[float, float]] = (),
) -> int:
    """Writes a text at each point, at the nearest free place; a text that is far away gets a line to its point.

    Call it last: it fixes the layout of the figure.

    Args:
        figure: the figure.
        axes: its axes.
        texts: (x, y, text) of points, the most important first.
        stairs: (x, y) of the corners of a line with the draw style "steps-post", which is not covered either.
        points: (x, y) of points without a text.

    Returns:
        The number of texts for which there was no room.
    """
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    point = figure.dpi / 72
    centers = [axes.transData.transform((x, y)) for x, y, _ in texts]
    others = [axes.transData.transform(other) for other in points]
    taken = [_Box(x - 4 * point, y - 4 * point, x + 4 * point, y + 4 * point) for x, y in [*centers, *others]]
    corners = [axes.transData.transform(corner) for corner in stairs]
    for (x, y), (right, up) in itertools.pairwise(corners):
        taken += [_Box(x, y - point, right, y + point), _Box(right - point, min(y, up), right + point, max(y, up))]
    frame = axes.get_window_extent()
    # Texts may reach beyond the axes as far as the figure does.
    inside = _Box(frame.x0, frame.y0, figure.bbox.x1, min(frame.y1 + 10 * point, figure.bbox.y1))
    left = 0
    for (x, y, text), (at, up) in zip(texts, centers, strict=True):
        width, height = len(text) * SIZE * _WIDTH * point, SIZE * _HEIGHT * point
        for right, lines in _PLACES:
            across = right * (width / 2 + 6 * point)
            above = lines * (height if abs(lines) > 1 or not right else 0.8 * height)
            box = _Box(
                at + across - width / 2, up + above - height / 2, at + across + width / 2, up + above + height / 2
            )
            if not _within(box, inside) or any(map(box.overlaps, taken)):
                continue
            taken.append(box)
            arrow = {"arrowstyle": "-", "color": MUTED, "lw": 0.6, "shrinkA": 0, "shrinkB": 3}
            axes.annotate(
                text,
                (x, y),
                (across / point, above / point),
                textcoords="offset points",
                ha="center",
                va="center",
                fontsize=SIZE,
                color=INK,
                arrowprops=arrow if abs(lines) > 1 else None,
                annotation_clip=False,
            )
            break
        else:
            left += 1
    return left


def _within(box, frame):
    return box.left >= frame.left and box.right <= frame.right and box.bottom >= frame.bottom and box.top <= frame.top
