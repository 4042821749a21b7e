"""Charts as places in a drawing, which templates/charts.html draws as SVG: axes with units, ticks, and thresholds as lines."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 360, 190  # of the drawing; it is scaled to the page, so that its text stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40  # margins, in the same units
KEY = 15  # between the names of lines
TICKS = 5  # about as many on an axis
LETTER, ABOVE, BELOW = 6.0, 11.0, 3.0  # room of a letter of a label: its width, and above and below its line
SIDES = ((-1, "end"), (1, "start"))  # of a line from top to bottom, where its words stand
Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """What an axis measures, with its unit, and from where to where."""

    title: str
    low: float
    high: float
    scale: Callable[[float], float] = float  # such as math.sqrt

    def place(self, value: float) -> float:
        """A value's share of the axis, held within it; 0..1."""
        low, high, here = (self.scale(v) for v in (self.low, self.high, min(self.high, max(self.low, value))))
        return (here - low) / ((high - low) or 1.0)


@dataclass(frozen=True)
class Bound:
    """A threshold that is drawn through the chart."""

    value: float
    words: str


class Limit(NamedTuple):
    """A line from one place to another, and where its words stand: `anchor` is "start" or "end", as in SVG."""

    x1: float
    y1: float
    x2: float
    y2: float
    words: str
    x: float
    y: float
    anchor: str

    def hides(self, points: Sequence[Point]) -> int:
        """How many points lie beneath its words, and many where these leave the frame."""
        across = LETTER * len(self.words)
        left = self.x - (across if self.anchor == "end" else 0)
        outside = left < LEFT or left + across > WIDTH - RIGHT + 1 or self.y - ABOVE < 0 or self.y > HEIGHT - BOTTOM
        hidden = sum(left <= x <= left + across and self.y - ABOVE <= y <= self.y + BELOW for x, y in points)
        return hidden + (10000 if outside else 0)


@dataclass(frozen=True)
class Chart:
    """A drawing of WIDTH x HEIGHT: places in its units, with the words that stand there."""

    title: str  # for those who cannot see it
    x: Axis
    y: Axis
    lines: list[str] = field(default_factory=list)  # points of unbroken lines
    dots: list[tuple[float, float, str]] = field(default_factory=list)
    crosses: list[tuple[float, float, str]] = field(default_factory=list)  # moments without a value
    bars: list[tuple[float, float, float, float, str]] = field(default_factory=list)  # x, y, width, height, words
    bounds: list[Limit] = field(default_factory=list)
    keys: list[tuple[float, float, str]] = field(default_factory=list)  # of lines that have names: where each key stands
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def ticks_x(self) -> list[tuple[float, str]]:
        """Places and labels below the chart."""
        return [(_x(self.x, value), _label(value)) for value in ticks(self.x)]

    @property
    def ticks_y(self) -> list[tuple[float, str]]:
        """Places and labels at the left."""
        return [(_y(self.y, value), _label(value)) for value in ticks(self.y)]

    @property
    def frame(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of what is drawn in."""
        return LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM

    @property
    def title_x(self) -> int:
        """Where the title of the axis below stands."""
        return HEIGHT - 4


def curve(title: str, x: Axis, y: Axis, points: Sequence[tuple[float, float | None, str]], bounds: Sequence[Bound] = ()) -> Chart:
    """A line through (x, y, words); where y is None there is no value: the line is broken, and a cross stands at the bottom."""
    lines, run = list[str](), list[str]()
    dots, crosses = list[tuple[float, float, str]](), list[tuple[float, float, str]]()
    for at, value, words in points:
        if value is None:
            crosses.append((_x(x, at), _y(y, y.low) - 6, words))
            lines, run = [*lines, " ".join(run)], []
            continue
        dots.append((_x(x, at), _y(y, value), words))
        run.append(f"{_x(x, at)},{_y(y, value)}")
    lines = [line for line in [*lines, " ".join(run)] if " " in line]
    path = [point for line in lines for point in _along(line)] + [(at, height) for at, height, _ in crosses]
    return Chart(title, x, y, lines, dots, crosses, bounds=_across(y, bounds, path))


def _along(line: str) -> list[Point]:
    """Points of an unbroken line, close to each other."""
    ends = [tuple(map(float, point.split(","))) for point in line.split()]
    steps = [i / 16 for i in range(17)]
    return [(a[0] + s * (b[0] - a[0]), a[1] + s * (b[1] - a[1])) for a, b in pairwise(ends) for s in steps]


def _across(y: Axis, bounds: Sequence[Bound], path: list[Point]) -> list[Limit]:
    """Thresholds from left to right, each with its words where they hide least of the path and of other words."""
    drawn, taken = list[Limit](), list(path)
    right = float(WIDTH - RIGHT)
    ends = (right, "end"), (LEFT + 4.0, "start")
    for bound in bounds:
        at = _y(y, bound.value)
        rows = [at + below for below in (-4, 13, -18, 27)]  # next to the line, else a row further
        places = [(x, row, anchor) for pair in (rows[:2], rows[2:]) for x, anchor in ends for row in pair]
        drawn.append(
            min((Limit(LEFT, at, right, at, bound.words, *place) for place in places), key=lambda each: each.hides(taken))
        )
        step = -LETTER if drawn[-1].anchor == "end" else LETTER
        taken += [
            (drawn[-1].x + step * i, drawn[-1].y + rise) for i in range(len(bound.words)) for rise in (-ABOVE, -5, BELOW)
        ] * 9
    return drawn


def curves(title: str, x: Axis, y: Axis, series: Sequence[tuple[str, Sequence[tuple[float, float]]]]) -> Chart:
    """Lines through (x, y), each with its name in a key below the axes; they differ in their dashes as well as in color."""
    lines = [" ".join(f"{_x(x, at)},{_y(y, value)}" for at, value in points) for _, points in series]
    keys = [(float(LEFT), HEIGHT + 8.0 + KEY * i, words) for i, (words, _) in enumerate(series)]
    return Chart(title, x, y, lines, keys=keys, height=HEIGHT + 4 + KEY * len(series))


def histogram(title: str, x: Axis, unit: str, counts: Sequence[int], bound: Bound) -> Chart:
    """Bars of equal width over x; heights go with the square root of their counts, so that a few pairs can be seen."""
    tallest = max(1, *counts)
    y = Axis(f"{unit} (square-root scale)", 0, tallest, math.sqrt)
    step = (WIDTH - LEFT - RIGHT) / len(counts)
    bars = []
    for i, count in enumerate(counts):
        low = x.low + i * (x.high - x.low) / len(counts)
        top = _y(y, count)
        words = f"{low:.2f} to {low + (x.high - x.low) / len(counts):.2f}: {count}"
        bars.append((round(LEFT + i * step, 1), top, round(step - 0.6, 1), round(HEIGHT - BOTTOM - top, 1), words))
    at, tops = _x(x, bound.value), [(left + share * step, top) for left, top, *_ in bars for share in (0, 0.5, 1)]
    tops = [(left, min(top, TOP + 9.0)) if top < TOP + 9 + BELOW else (left, top) for left, top in tops]
    drawn = [Limit(at, TOP, at, HEIGHT - BOTTOM, bound.words, at + 4 * side, TOP + 9, anchor) for side, anchor in SIDES]
    return Chart(title, x, y, bars=bars, bounds=[min(drawn, key=lambda each: each.hides(tops))])


def ticks(axis: Axis) -> list[float]:
    """Round values on an axis, 1, 2 or 5 times a power of ten apart; on another scale than the linear one those themselves."""
    if axis.scale is not float:
        rounds = [m * 10**e for e in range(12) for m in (1, 2, 5) if m * 10**e <= axis.high]
        places = [axis.place(value) for value in rounds]
        kept = [v for v, at in zip(rounds, places, strict=True) if at <= 0.88 and at >= 0.12]
        return [axis.low, *_apart(axis, kept), axis.high]
    span = (axis.high - axis.low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(m * power for m in (1, 2, 5, 10) if span / (m * power) <= TICKS + 1)
    first = math.ceil(axis.low / step - 1e-9)
    return [round(n * step, 10) for n in range(first, math.floor(axis.high / step + 1e-9) + 1)]


def _apart(axis: Axis, values: Sequence[float]) -> list[float]:
    """Those of rising values that leave room for their labels."""
    kept: list[float] = []
    for value in values:
        if not kept or axis.place(value) - axis.place(kept[-1]) > 0.12:
            kept.append(value)
    return kept


def _label(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _x(axis: Axis, value: float) -> float:
    return round(LEFT + axis.place(value) * (WIDTH - LEFT - RIGHT), 1)


def _y(axis: Axis, value: float) -> float:
    return round(TOP + (1 - axis.place(value)) * (HEIGHT - TOP - BOTTOM), 1)
