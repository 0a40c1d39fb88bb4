"""Line charts and bars as SVG inside a page: no scripts, colours and fonts from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

_WIDTH, _HEIGHT = 440, 250  # in units of about a pixel; the page scales the whole
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 34
_MARKED = 15  # points of a line that get a marker, about
_LOG_FROM = 50  # ratio of the largest to the smallest value from which a scale is logarithmic

COLOURS = 7  # that the style sheet has, .c0 to .c6
_SHAPES = (
    "M{l} {y}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0z",  # circle
    "M{l} {t}h{d}v{d}h-{d}z",  # square
    "M{x} {t}l{r} {d}h-{d}z",  # triangle
    "M{x} {t}l{r} {r}l-{r} {r}l-{r} -{r}z",  # diamond
    "M{x} {b}l{r} -{d}h-{d}z",  # triangle on its point
)


@dataclass(frozen=True)
class Line:
    """One line of a chart; points without a finite value are left out.

    Attributes:
        name: for the points' tooltips.
        place: of the run among all, from 0: colour and marker.
        dashed: whether it is the second quantity of its chart.
        x, y: of the same length.
    """

    name: str
    place: int
    dashed: bool
    x: Sequence[float]
    y: Sequence[float]

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if math.isfinite(x) and math.isfinite(y)]


def line_chart(lines: Sequence[Line], *, label: str, unit: str, zero: bool) -> Markup:
    """A chart over the epochs; empty without a point.

    Args:
        label: what it shows, for screen readers.
        unit: of the values, for the tooltips.
        zero: whether the scale starts at zero; otherwise it is logarithmic where the values ask for it.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return Markup()
    epochs = [x for x, _ in points]
    x_scale = _scale(epochs, _LEFT, _WIDTH - _RIGHT, whole=all(x == int(x) for x in epochs))
    values = [y for _, y in points]
    log = not zero and min(values) > 0 and max(values) > _LOG_FROM * min(values)
    y_scale = _scale(values, _HEIGHT - _BOTTOM, _TOP, zero=zero, log=log)
    shapes = [*_grid(x_scale, y_scale), *(_drawn(line, x_scale, y_scale, unit) for line in lines)]
    return _svg("chart", (_WIDTH, _HEIGHT), label, shapes)


def swatch(place: int) -> Markup:
    """The colour and marker of a run, for a legend; the name stands beside it."""
    line = Markup('<path class="line" d="M1 7h26"/>')
    return Markup('<svg class="swatch c{}" viewBox="0 0 28 14" aria-hidden="true">{}{}</svg>').format(
        place % COLOURS, line, _marker(place, 14, 7)
    )


def dash_swatch(dashed: bool) -> Markup:
    """A stroke of the first or second quantity, for a legend."""
    kind = "line dashed" if dashed else "line"
    return Markup(
        '<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true"><path class="{}" d="M1 7h26"/></svg>'
    ).format(kind)


def bar(parts: Sequence[tuple[str, str, float]], *, whole: float, label: str) -> Markup:
    """A bar of parts side by side.

    Args:
        parts: class in the style sheet, tooltip, size.
        whole: size of the full width.
    """
    shapes, x = [], 0.0
    for kind, text, size in parts:
        width = 1000 * size / whole
        shapes.append(
            Markup('<rect class="{}" x="{:.1f}" y="0" width="{:.1f}" height="20"><title>{}</title></rect>').format(
                kind, x, width, text
            )
        )
        x += width
    return _svg("bar", (1000, 20), label, shapes, fit="none")


def tick_step(low: float, high: float, *, whole: bool = False) -> float:
    """The distance of round numbers of which [low, high] holds two to seven; `whole`: at least 1."""
    raw = max((high - low) / 6, 1 if whole else 0)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def ticks(low: float, high: float, step: float) -> list[float]:
    """The multiples of `step` in [low, high]."""
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in [low, high], and where there are few of them also 2 and 5 times those."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) < 4 else (1,)
    return [m * 10.0**p for p in powers for m in factors if low <= m * 10.0**p <= high]


# ---- parts


@dataclass(frozen=True)
class _Scale:
    """Where values lie on an axis, and its ticks."""

    place: Callable[[float], float]
    ticks: list[float]


def _scale(
    values: Sequence[float], start: float, end: float, *, zero: bool = False, log: bool = False, whole: bool = False
) -> _Scale:
    low, high = min(values), max(values)
    if zero:
        low = min(low, 0.0)
    size = max(abs(low), abs(high))
    if high - low <= 1e-9 * size:
        low, high = low - (size or 1) * 0.5, high + (size or 1) * 0.5
    if log:
        low, high = low / 1.1, high * 1.1
        marks = log_ticks(low, high)
    else:
        step = tick_step(low, high, whole=whole)
        if not whole:  # the scale ends where its numbers do
            low, high = step * math.floor(low / step + 1e-9), step * math.ceil(high / step - 1e-9)
        marks = ticks(low, high, step)

    def place(value: float) -> float:
        a, b, v = (math.log10(low), math.log10(high), math.log10(value)) if log else (low, high, value)
        return start + (v - a) / (b - a) * (end - start)

    return _Scale(place, marks)


def _grid(x: _Scale, y: _Scale) -> list[Markup]:
    """Lines and numbers of both axes."""
    right, foot = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    shapes = []
    for value in y.ticks:
        at = y.place(value)
        shapes.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, at, right))
        shapes.append(Markup('<text class="y" x="{}" y="{:.1f}">{}</text>').format(_LEFT - 7, at + 4, _tick(value)))
    for value in x.ticks:
        at = x.place(value)
        shapes.append(Markup('<path class="tick" d="M{:.1f} {}v4"/>').format(at, foot))
        shapes.append(Markup('<text class="x" x="{:.1f}" y="{}">{}</text>').format(at, foot + 17, _tick(value)))
    shapes.append(Markup('<path class="axis" d="M{} {}H{}"/>').format(_LEFT, foot, right))
    shapes.append(Markup('<text class="name" x="{}" y="{}">epoch</text>').format(right, _HEIGHT - 3))
    return shapes


def _drawn(line: Line, x: _Scale, y: _Scale, unit: str) -> Markup:
    points = line.points
    path = "M" + "L".join(f"{x.place(a):.1f} {y.place(b):.1f}" for a, b in points)
    shapes = [Markup('<path class="{}" d="{}"/>').format("line dashed" if line.dashed else "line", path)]
    every = max(1, len(points) // _MARKED)
    for number, (a, b) in enumerate(points):
        if number % every == 0 or number == len(points) - 1:
            tooltip = f"{line.name}, epoch {a:.4g}: {b:.4g} {unit}".rstrip()
            shapes.append(_marker(line.place, x.place(a), y.place(b), hollow=line.dashed, tooltip=tooltip))
    kind = f"c{line.place % COLOURS}"
    return Markup('<g class="{}">{}</g>').format(kind, Markup("").join(shapes)) if points else Markup()


def _marker(place: int, x: float, y: float, *, hollow: bool = False, tooltip: str = "") -> Markup:
    r = 3.2
    numbers = {"x": x, "y": y, "r": r, "d": 2 * r, "l": x - r, "t": y - r, "b": y + r}
    path = _SHAPES[place % len(_SHAPES)].format(**{name: f"{value:.1f}" for name, value in numbers.items()})
    title = Markup("<title>{}</title>").format(tooltip) if tooltip else ""
    return Markup('<path class="{}" d="{}">{}</path>').format("mark hollow" if hollow else "mark", path, title)


def _svg(kind: str, size: tuple[int, int], label: str, shapes: Sequence[Markup], *, fit: str = "xMidYMid") -> Markup:
    return Markup(
        '<svg class="{kind}" viewBox="0 0 {w} {h}" width="{w}" height="{h}" preserveAspectRatio="{fit}" role="img" '
        'aria-label="{label}">{shapes}</svg>'
    ).format(kind=kind, w=size[0], h=size[1], fit=fit, label=" ".join(label.split()), shapes=Markup("").join(shapes))


def _tick(value: float) -> str:
    """A number at an axis, short: 0.05, 12, 12k, 3M, 1e-5."""
    for size, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= size and abs(value) < 1e9:
            divisor = 1e6 if letter == "M" else 1e3
            return f"{value / divisor:.6g}{letter}"
    return f"{value:.6g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.0e}".replace("e-0", "e-")
