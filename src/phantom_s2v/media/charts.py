"""Charts as places in a drawing, which templates/charts.html draws as SVG: axes with units, ticks, and thresholds as lines."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 360, 190  # of the drawing; it is scaled to the page, so that its text stays readable on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40  # margins, in the same units
KEY = 15  # between the names of lines
TICKS = 5  # about as many on an axis


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
    bounds: list[tuple[float, float, float, float, str]] = field(default_factory=list)  # from x, y to x, y, words
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
    drawn = [(float(LEFT), _y(y, b.value), float(WIDTH - RIGHT), _y(y, b.value), b.words) for b in bounds]
    return Chart(title, x, y, lines, dots, crosses, bounds=drawn)


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
    at = _x(x, bound.value)
    return Chart(title, x, y, bars=bars, bounds=[(at, float(TOP), at, float(HEIGHT - BOTTOM), bound.words)])


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
