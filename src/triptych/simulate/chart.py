"""Draws line charts as SVG text, with linear or logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 200, 40, 50
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


class Series(NamedTuple):
    name: str
    points: Sequence[tuple[float, float]]


class Axis(NamedTuple):
    label: str
    logarithmic: bool = False


class _Scale:
    """Maps values to positions between two ends, in pixels."""

    def __init__(self, values: Sequence[float], axis: Axis, start: float, end: float) -> None:
        self._of = math.log10 if axis.logarithmic else float
        self._start, self._end = start, end
        low, high = min(values), max(values)
        if axis.logarithmic:
            low, high = 10 ** math.floor(math.log10(low)), 10 ** math.ceil(math.log10(high) + 1e-9)
            self.ticks = [10.0**power for power in range(round(math.log10(low)), round(math.log10(high)) + 1)]
        else:
            step = _round_step((high - min(0.0, low)) / 5 or 1.0)
            low, high = min(0.0, low), math.ceil(high / step) * step or step
            self.ticks = [low + step * index for index in range(round((high - low) / step) + 1)]
        self._low, self._high = self._of(low), self._of(high)

    def at(self, value: float) -> float:
        share = (self._of(value) - self._low) / ((self._high - self._low) or 1.0)
        return self._start + share * (self._end - self._start)


def _round_step(step: float) -> float:
    power = 10 ** math.floor(math.log10(step))
    return float(next(factor for factor in (1, 2, 5, 10) if factor * power >= step) * power)


def line_chart(title: str, across: Axis, up: Axis, series: Sequence[Series]) -> str:
    """Returns a chart as SVG text, with a legend on the right.

    There must be one point or more, and values of a logarithmic axis must be above 0.
    """
    points = [point for line in series for point in line.points]
    x = _Scale([point[0] for point in points], across, _LEFT, _WIDTH - _RIGHT)
    y = _Scale([point[1] for point in points], up, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_LEFT, 22, title, size=15),
        *_grid(x, y),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, across.label, anchor="middle"),
        f'<g transform="translate(16 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)">'
        f"{_text(0, 0, up.label, anchor='middle')}</g>",
    ]
    for index, line in enumerate(series):
        parts += _line(line, x, y, _COLOURS[index % len(_COLOURS)], _TOP + 10 + 18 * index)
    return "\n".join([*parts, "</svg>\n"])


def _grid(x: _Scale, y: _Scale) -> list[str]:
    parts = []
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    for tick in x.ticks:
        at = x.at(tick)
        parts.append(f'<line x1="{at:.1f}" y1="{_TOP}" x2="{at:.1f}" y2="{bottom}" stroke="#ddd"/>')
        parts.append(_text(at, bottom + 16, f"{tick:g}", anchor="middle"))
    for tick in y.ticks:
        at = y.at(tick)
        parts.append(f'<line x1="{_LEFT}" y1="{at:.1f}" x2="{right}" y2="{at:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, at + 4, f"{tick:g}", anchor="end"))
    return parts


def _line(series: Series, x: _Scale, y: _Scale, colour: str, legend_y: float) -> list[str]:
    places = " ".join(f"{x.at(across):.1f},{y.at(up):.1f}" for across, up in series.points)
    start = _WIDTH - _RIGHT + 14
    return [
        f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="2"/>',
        f'<line x1="{start}" y1="{legend_y}" x2="{start + 22}" y2="{legend_y}" stroke="{colour}" stroke-width="2"/>',
        _text(start + 28, legend_y + 4, series.name),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
