"""Figures as SVG elements of a page, in colors for light and for dark pages.

Matplotlib draws in the light colors. In the SVG each color becomes a CSS variable, and `stylesheet`
gives each variable a light and a dark value.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable

from matplotlib import colormaps, rc_context
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

BLACK, INK, FAINT, GRID = "#000000", "#222222", "#767676", "#e6e6e6"
# The palette of Okabe and Ito, which is safe for color blindness, without the yellow that is too
# pale on white. Line styles and markers repeat the distinction. On dark pages it is lighter.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DARK_COLORS = ("#2f86d6", "#e8702a", "#12b886", "#d98bb8", "#7cc7f5", "#f0b429")
# On a light page the ramp goes from light to dark, on a dark page from dark to light. Both start
# at the color that is close to the background but still visible.
RAMP, DARK_RAMP, RAMP_START, DARK_RAMP_START = "viridis_r", "viridis", 0.12, 0.3


def _dark_colors() -> dict[str, str]:
    """The color on a dark page for each color on a light page."""
    light, dark = colormaps[RAMP], colormaps[DARK_RAMP]
    first = int(RAMP_START * light.N)
    found = {}
    for place in range(first, light.N):
        fraction = (place - first) / (light.N - 1 - first)
        dark_place = DARK_RAMP_START + (1 - DARK_RAMP_START) * fraction
        found[to_hex(light(place))] = to_hex(dark(dark_place))
    return found | {
        BLACK: "#ffffff",
        INK: "#e6e8ea",
        FAINT: "#9aa3ad",
        GRID: "#343a41",
        **dict(zip(COLORS, DARK_COLORS, strict=True)),
    }


DARK = _dark_colors()


def as_svg(figure: Figure, name: str) -> str:
    """Return the figure as a transparent SVG element that needs no font and no file.

    Args:
      figure: A figure whose colors are keys of `DARK`.
      name: A name that is unique on the page. Identifiers in the SVG depend on it.

    Returns:
      The element `<svg>` for an HTML page with the rules of `stylesheet`.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a `$` in the name of a run is no mathematics
    buffer = io.StringIO()
    # With a salt and without a date, equal results give equal pages.
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    drawn = buffer.getvalue()
    view = re.search(r' viewBox="[^"]*"', drawn)
    body = drawn[drawn.index('<g id="figure_1">') :]
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href", "href")
    body = re.sub(r"\s+", " ", body).replace("> <", "><").replace("<g/>", "")
    # Coordinates in hundredths of a point are fine enough, and take half the space.
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    body = re.sub(r"(fill|stroke): #([0-9a-f]{6})\b", r"\1: var(--x\2)", body)
    # Matplotlib leaves out a black fill, because black is the initial value.
    return f'<svg{view[0] if view else ""} style="fill: var(--x000000)">{body}'


def stylesheet(elements: Iterable[str]) -> str:
    """The CSS rules that give every color of the SVG elements its light and its dark value."""
    used = sorted({f"#{color}" for text in elements for color in re.findall(r"--x(\w{6})", text)})
    light, dark = (
        " ".join(f"--x{color[1:]}: {values.get(color, color)};" for color in used)
        for values in ({}, DARK)
    )
    # Paper is white, also for a reader of dark pages.
    return (
        f":root {{ {light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
        ".plot svg * { stroke-linejoin: round; stroke-linecap: butt; }"
    )
