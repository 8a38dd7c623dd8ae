"""How a contender looks: the same colour, marker and dash in every figure, light or dark.

Colour and dash tell the normalizer, and the marker is each contender's own, so that nobody depends
on colour alone. The two sets of eight colours were searched for the largest
smallest difference (OKLab distance ≥ 0.1 between any two and the text colour) seen normally and
with protanopia, deuteranopia and tritanopia, at a contrast of about 3 to 1 or more with the page.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LIGHT = (
    "#13499a", "#bd5500", "#28866a", "#b177b3", "#d78414", "#289cf8", "#870061", "#534900",
)  # fmt: skip
DARK = (
    "#4f7adb", "#dd7b55", "#58d99f", "#bd8eb4", "#ebb72b", "#b5bfff", "#b14d84", "#796805",
)  # fmt: skip
LIGHT_INK, LIGHT_PAGE = "#1c1f24", "#ffffff"
DARK_INK, DARK_PAGE = "#e7e9ec", "#14171b"

MARKERS = ("s", "^", "D", "v", "P", "<", "X", ">", "p", "h", "d", "*", "8", "H")
"""Matplotlib's names. The circle is kept for the baseline."""

DASHES: tuple[tuple[float, ...], ...] = ((6, 1.6), (1.4, 1.4), (6, 1.6, 1.4, 1.6))
"""Of normalizers in turn; three and eight have no common divisor, so 24 pairs with the colours.
A solid line is the baseline's normalizer."""


@dataclass(frozen=True)
class Style:
    """One contender's looks. `hue` indexes LIGHT and DARK; None is the ink of the text."""

    index: int
    hue: int | None
    marker: str
    dash: tuple[float, ...]


def styles(contenders: Iterable[str], baseline: str) -> dict[str, Style]:
    """A style for each contender's id, in order; the baseline in the colour of the text."""
    order: dict[str, int] = {}
    found = {baseline: Style(0, None, "o", ())}
    for contender in contenders:
        if contender in found:
            continue
        index = len(found)
        marker = MARKERS[(index - 1) % len(MARKERS)]
        name = normalizer(contender)
        if name == normalizer(baseline):
            found[contender] = Style(index, None, marker, ())
        else:
            place = order.setdefault(name, len(order))
            hue, dash = place % len(LIGHT), DASHES[place % len(DASHES)]
            found[contender] = Style(index, hue, marker, dash)
    return found


def normalizer(contender: str) -> str:
    """`fs` of `fs[ratio=1/16]@triton`."""
    return contender.partition("@")[0].partition("[")[0]


def variables(hues: tuple[str, ...]) -> str:
    """The CSS custom properties --s0, --s1, … of one set."""
    return " ".join(f"--s{i}: {colour};" for i, colour in enumerate(hues))
