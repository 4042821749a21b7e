"""Systems on the same cases: differences with paired bootstrap intervals, wins and losses, by every metric that both have."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.metrics.measures import bootstrap
from phantom_s2v.evaluation.metrics.table import METRICS, network_of

SAME = 1e-9
CHANGED = 3  # cases that are shown, of those that got better and of those that got worse


@dataclass(frozen=True)
class Comparison:
    """One metric of two systems over the cases of both: means, and the mean difference (second - first) with its 95% interval."""

    metric: str
    network: str
    first: str
    second: str
    cases: int
    mean_first: float
    mean_second: float
    difference: float
    low: float
    high: float
    wins_second: int | None  # cases in which the second is better; None if the metric has no direction
    wins_first: int | None

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Change:
    """A case in which two systems differ: for each of the two its name, similarity, video and faults."""

    case: str
    systems: tuple[str, str]
    similarity: tuple[float, float]
    videos: tuple[Path | None, Path | None]
    faults: tuple[str, str]


def compare(systems: dict[str, list[dict[str, Any]]]) -> tuple[list[Comparison], list[str]]:
    """All pairs of two or more systems (name -> rows of scores), and what could not be compared and why.

    Values that different networks measured are never compared. Raises InputError for fewer than two systems, or no common case.
    """
    if len(systems) < 2:
        raise InputError(f"a comparison needs at least two systems (got {len(systems)})")
    comparisons, notes = [], []
    for (first, one), (second, other) in combinations(systems.items(), 2):
        pairs = _common(first, one, second, other, notes)
        for metric in METRICS:
            networks = {network_of(metric, row["networks"]) for pair in pairs for row in pair}
            weights = {network_of(metric, row.get("weights") or {}) for pair in pairs for row in pair} - {""}
            if len(networks) == 1 and len(weights) > 1:
                hashes = " and ".join(each[:12] for each in sorted(weights))
                notes.append(
                    f"{metric} of {first} and {second} is not compared: the weights of {networks.pop()} differ ({hashes})"
                )
            elif len(networks) > 1:
                notes.append(
                    f"{metric} of {first} and {second} is not compared: it was measured by {' and by '.join(sorted(networks))}"
                )
            elif row := _compared(metric, networks.pop(), first, second, pairs):
                comparisons.append(row)
    return comparisons, list(dict.fromkeys(notes))


def _key(row: dict[str, Any]) -> str:
    return row.get("id") or Path(row["video"]).stem


def _common(
    first: str, one: list[dict[str, Any]], second: str, other: list[dict[str, Any]], notes: list[str]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The readable rows of both, by case."""
    rows = [{_key(row): row for row in each if "unreadable" not in row} for each in (one, other)]
    shared = [key for key in rows[0] if key in rows[1]]
    other_asked = [key for key in shared if len({row[key].get("asked") for row in rows} - {None}) > 1]
    if other_asked:
        notes.append(
            f"{len(other_asked)} cases of {first} and {second} were skipped: the same id has another prompt, reference or "
            f"crop ({other_asked[0]})"
        )
        shared = [key for key in shared if key not in other_asked]
    if not shared:
        raise InputError(f"{first} and {second} have no cases in common (same id, prompt and references)")
    left = len(rows[0]) + len(rows[1]) - 2 * (len(shared) + len(other_asked)) + sum("unreadable" in row for row in (*one, *other))
    if left:
        notes.append(f"{left} videos of {first} and {second} were skipped: missing or unreadable in the other system")
    return [(rows[0][key], rows[1][key]) for key in shared]


def _value(row: dict[str, Any], metric: str) -> float:
    """A metric of a row, of its subjects the mean; nan where it was not measured."""
    values = [subject.get(metric) for subject in row["subjects"]] if METRICS[metric].of_subjects else [row[metric]]
    return float(np.mean([np.nan if v is None else v for v in values])) if values else float("nan")


def _compared(
    metric: str, network: str, first: str, second: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> Comparison | None:
    values = np.array([[_value(row, metric) for row in pair] for pair in pairs])
    values = values[~np.isnan(values).any(1)]
    if not len(values):
        return None
    change = values[:, 1] - values[:, 0]
    mean, low, high = bootstrap(change.tolist())
    better = -change if METRICS[metric].better == "less" else change
    has_direction = bool(METRICS[metric].better)
    wins = [int((better > SAME).sum()), int((better < -SAME).sum())] if has_direction else [None, None]
    one, other = values.mean(0)
    return Comparison(metric, network, first, second, len(values), float(one), float(other), mean, low, high, wins[0], wins[1])


def lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The comparison as text, a line a metric."""
    rows = []
    for c in comparisons:
        name = f"{c.metric} ({c.network})" if c.network else c.metric
        wins = f"; better in {c.wins_second}, worse in {c.wins_first} of {c.cases}" if c.wins_second is not None else ""
        verdict = "" if c.clear else "; no clear difference"
        rows.append(
            f"{name:40} {c.first} {c.mean_first:.4f}   {c.second} {c.mean_second:.4f}   "
            f"difference {c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}]{wins}{verdict}"
        )
    return rows


def largest_changes(places: dict[str, Path], systems: dict[str, list[dict[str, Any]]]) -> list[Change]:
    """Of every pair of systems the cases whose subject similarity changed most, CHANGED up and CHANGED down; `places` are what
    the rows were read from, beside which their videos are looked for.
    """
    found = []
    for (first, one), (second, other) in combinations(systems.items(), 2):
        pairs = [
            pair
            for pair in _common(first, one, second, other, [])
            if len({network_of("similarity", row["networks"]) for row in pair}) == 1
        ]
        values = [(_value(pair[0], "similarity"), _value(pair[1], "similarity"), pair) for pair in pairs]
        ordered = sorted(
            (each for each in values if each[0] == each[0] and each[1] == each[1]), key=lambda each: each[1] - each[0]
        )
        down = [each for each in ordered[:CHANGED] if each[1] < each[0] - SAME]
        up = [each for each in ordered[::-1][:CHANGED] if each[1] > each[0] + SAME]
        for before, after, rows in [*down, *up]:
            videos = [_video(places[name], row) for name, row in zip((first, second), rows, strict=True)]
            faults = [", ".join(row.get("faults") or {}) or "no fault" for row in rows]
            found.append(Change(_key(rows[0]), (first, second), (before, after), (videos[0], videos[1]), (faults[0], faults[1])))
    return found


def _video(place: Path, row: dict[str, Any]) -> Path | None:
    """The video of a row, in the folder of a run or beside its rows; None where it is not there."""
    name = Path(row["video"]).name
    folders = (place / "videos", place) if place.is_dir() else (place.parent, place.parent / "videos")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def as_rows(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparison as JSON."""
    return [asdict(c) for c in comparisons]
