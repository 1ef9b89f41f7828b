"""Figures follow the colors of the page, and are visible on a light and on a dark one."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from example_run import large
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from occinv.report import figures
from occinv.report.html import render
from occinv.report.svg import (
    COLORS,
    DARK,
    DARK_COLORS,
    FAINT,
    INK,
    RAMP,
    RAMP_START,
    as_svg,
    stylesheet,
)

LIGHT_CARD, DARK_CARD = "#ffffff", "#1e2125"


def linear(color: str) -> np.ndarray:
    """Linear RGB from sRGB."""
    rgb = np.array(to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(color: str, ground: str) -> float:
    """The contrast ratio of WCAG 2."""
    low, high = sorted(linear(c) @ [0.2126, 0.7152, 0.0722] for c in (color, ground))
    return (high + 0.05) / (low + 0.05)


def lab(color: str) -> np.ndarray:
    """CIE L*a*b* for daylight (D65)."""
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(matrix) @ linear(color) / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def smallest_distance(colors: list[str]) -> float:
    return min(np.linalg.norm(lab(a) - lab(b)) for a, b in itertools.combinations(colors, 2))


def ramp(number: int) -> list[str]:
    return [to_hex(color) for color in colormaps[RAMP](np.linspace(RAMP_START, 1.0, number))]


def test_a_figure_is_a_transparent_element_without_colors_of_its_own(results):
    drawn = as_svg(figures.cka_by_ratio(results), "by_ratio")
    assert drawn.startswith("<svg viewBox=") and drawn.rstrip().endswith("</svg>")
    assert drawn.count("<svg") == 1
    assert not re.search(r"(fill|stroke): *#", drawn)
    assert not re.search(r"ffffff|<!--|xlink|http|<style", drawn)
    assert set(re.findall(r"url\((.)", drawn)) == {"#"}, "identifiers of the page only"
    assert drawn == as_svg(figures.cka_by_ratio(results), "by_ratio"), "equal for equal results"


def test_identifiers_of_two_figures_differ(results):
    first, second = (
        set(re.findall(r'<clipPath id="(\w+)"', as_svg(figures.cka_by_ratio(results), name)))
        for name in ("a", "b")
    )
    assert first and not first & second


@pytest.mark.parametrize("rows", [5, 16])
def test_every_color_of_the_page_has_a_value_for_dark_pages(results, rows):
    page = render(results if rows == 5 else large(), ".")
    used = {f"#{color}" for color in re.findall(r"var\(--x(\w{6})\)", page)}
    assert used <= DARK.keys() and {INK, FAINT, *COLORS[:2]} <= used
    rules = stylesheet([page])
    light, dark = rules.split("@media screen and (prefers-color-scheme: dark)")
    for color in used:
        assert f"--x{color[1:]}: {color};" in light
        assert f"--x{color[1:]}: {DARK[color]};" in dark
    assert rules in page


def test_lines_are_visible_and_distinct_on_a_dark_page():
    assert min(contrast(color, DARK_CARD) for color in DARK_COLORS) > 4
    assert contrast(DARK[INK], DARK_CARD) > 10 and contrast(DARK[FAINT], DARK_CARD) > 4.5
    dark = [*DARK_COLORS, DARK["#000000"]]
    assert smallest_distance(dark) > smallest_distance([*COLORS, "#000000"])


@pytest.mark.parametrize("number", [1, 4, 9, 20])
def test_the_ramp_leaves_the_background_in_order_on_both_pages(number):
    light = [contrast(color, LIGHT_CARD) for color in ramp(number)]
    dark = [contrast(DARK[color], DARK_CARD) for color in ramp(number)]
    assert light == sorted(light) and dark == sorted(dark)
    assert dark[0] > 2.3 and (number == 1 or dark[-1] > 12)


def test_a_dollar_in_a_name_is_no_mathematics():
    figure = Figure()
    figure.subplots().set_title("run $\\frac{$ of mine")
    assert "<svg" in as_svg(figure, "dollar")
