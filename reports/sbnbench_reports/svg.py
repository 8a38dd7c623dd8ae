"""A matplotlib figure as SVG that belongs to the page around it.

Matplotlib writes fixed colours, fonts and ids. Inlined, several figures would clash by id, and
none would follow the reader's light or dark setting. Here colours become the page's CSS variables,
text takes the page's font, ids get the figure's prefix, and series become classes that the page
can dim. Points carry their values as tooltips.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

# Colours that no drawing would use by chance; each stands for a CSS variable.
_STANDS_FOR = {"#5bff00": "var(--ink)", "#5bff01": "var(--muted)", "#5bff02": "var(--line)",
               "#5bff03": "var(--page)", "#5bff04": "var(--band)"}  # fmt: skip
INK, MUTED, LINE, PAGE, BAND = _STANDS_FOR

_HUE = "#5b00"
_SERIES = "series-"
_ID = re.compile(r"#([\w-]+)")


def hue(index: int | None) -> str:
    """The colour to draw a style's hue with."""
    return INK if index is None else f"{_HUE}{index:02x}"


def series(index: int) -> str:
    """The gid to give each artist of a series."""
    return f"{_SERIES}{index}"


def inline(
    figure: Figure,
    prefix: str,
    title: str,
    description: str,
    tips: Mapping[int, Sequence[str]] | None = None,
) -> str:
    """`figure` as an <svg> element for an HTML page, every id in it beginning with `prefix`.

    `tips` gives, by series index, the tooltips of that series' markers in drawing order.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    used = {name for e in root.iter() for v in e.attrib.values() for name in _ID.findall(v)}
    for element in root.iter():
        _adapt(element, prefix, used)
    for group in root.iter("g"):
        _add_tips(group, tips or {})
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib.update(
        {"class": "plot", "role": "img", "aria-labelledby": f"{prefix}title {prefix}desc"}
    )
    for at, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, id=f"{prefix}{tag}")
        element.text = text
        root.insert(at, element)
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _adapt(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Plain names, the page's colours and fonts, and ids only where something refers to them."""
    element.tag = _local(element.tag)
    if element.text and not element.text.strip():
        element.text = None
    element.tail = None
    attributes = {}
    for name, value in element.attrib.items():
        name = _local(name)
        if name == "id":
            if value.startswith(_SERIES):
                attributes["class"] = f"s {value.replace(_SERIES, 's')}"
            elif value in used:
                attributes["id"] = prefix + value
        elif name == "href":
            attributes["href"] = "#" + prefix + value[1:]
        elif value.startswith("rotate(-0 "):
            continue
        elif name == "style":
            attributes["style"] = _style(value)
        elif "url(#" in value:
            attributes[name] = value.replace("url(#", f"url(#{prefix}")
        else:
            attributes[name] = re.sub(r"(\.\d\d)\d+", r"\1", value) if name in "dxy" else value
    element.attrib.clear()
    element.attrib.update(attributes)


def _style(text: str) -> str:
    for colour, variable in _STANDS_FOR.items():
        text = text.replace(colour, variable)
    text = re.sub(_HUE + r"(\w\w)", lambda m: f"var(--s{int(m[1], 16)})", text)
    # Matplotlib 3.11 writes font-family; before, the shorthand `font: 700 12px 'DejaVu Sans'`.
    text = re.sub(r"font-family: [^;]*(; )?", "", text)
    text = re.sub(r"font: (\w+) ([\d.]+px) [^;]*", r"font-weight: \1; font-size: \2", text)
    return re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", text)


def _add_tips(group: ElementTree.Element, tips: Mapping[int, Sequence[str]]) -> None:
    name = group.get("class", "")
    if not name.startswith("s s"):
        return
    marks = list(group.iter("use"))
    texts = tips.get(int(name[3:]), ())
    if len(marks) != len(texts):  # matplotlib drops marks outside the axes
        return
    for mark, text in zip(marks, texts, strict=True):
        ElementTree.SubElement(mark, "title").text = text


def symbol(index: int, colour: int | None, marker: str, dash: Sequence[float]) -> str:
    """A series' line and marker as <symbol id="k3">, for legends and tables."""
    style = MarkerStyle(marker)
    shape = style.get_path().transformed(style.get_transform())
    points = io.StringIO()
    for corners, code in shape.iter_segments(simplify=False):
        letter = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}.get(code)
        if letter is None:
            points.write("Z")
            continue
        # markers are a unit wide and point up; the symbol is 28 by 12 and y goes down
        pairs = zip(corners[::2], corners[1::2], strict=True)
        points.write(letter + " ".join(f"{14 + 8 * x:.2f} {6 - 8 * y:.2f}" for x, y in pairs))
    paint = _style(hue(colour))
    dashes = " ".join(str(d * 1.3) for d in dash)
    return (
        f'<symbol id="k{index}" viewBox="0 0 28 12">'
        f'<path d="M1 6H27" fill="none" style="stroke:{paint}" stroke-width="1.5" '
        f'stroke-dasharray="{dashes}"/>'
        f'<path d="{points.getvalue()}" style="fill:{paint};stroke:var(--page)"/></symbol>'
    )
