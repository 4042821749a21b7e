"""KPIs out of a team's own footage: for every metric that tells good videos from bad ones, the bound and how often it errs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.kpi import value_of
from phantom_s2v.evaluation.metrics.table import METRICS, network_of
from phantom_s2v.evaluation.score import VideoScore

MIN_VIDEOS = 5  # videos of each kind
TELLS = 0.75  # min balanced accuracy, each video left out in turn, of a metric that is kept


@dataclass(frozen=True)
class Bound:
    """A bound on a metric, and the videos it gets wrong when each is left out of setting it."""

    metric: str
    network: str
    weights: str  # how the hash of the network's weights begins
    low: bool  # values below it are bad; else those above
    bound: float
    good_refused: int
    bad_passed: int
    good: int
    bad: int

    @property
    def accuracy(self) -> float:
        """Mean of the shares of good videos passed and bad ones refused."""
        return 1 - (self.good_refused / self.good + self.bad_passed / self.bad) / 2


def calibrate_thresholds(good: Sequence[VideoScore], bad: Sequence[VideoScore], tools: Instruments) -> list[Bound]:
    """Bounds of the metrics that tell, the best first. Raises InputError for too few videos, or where none tells."""
    if min(len(good), len(bad)) < MIN_VIDEOS:
        raise InputError(f"at least {MIN_VIDEOS} good and {MIN_VIDEOS} bad videos are needed (got {len(good)} and {len(bad)})")
    bounds = []
    for metric in METRICS:
        values = [[value_of(video, metric) for video in some] for some in (good, bad)]
        measured = [np.array([v for v in each if v is not None]) for each in values]
        if all(len(m) == len(v) for m, v in zip(measured, values, strict=True)):
            bounds.append(_bound(metric, tools, *measured))
    kept = sorted((b for b in bounds if b.accuracy >= TELLS), key=lambda b: -b.accuracy)
    if not kept:
        raise InputError("no metric separates the good videos from the bad ones")
    return kept


def _bound(metric: str, tools: Instruments, good: np.ndarray, bad: np.ndarray) -> Bound:
    network, weights = network_of(metric, tools.all_names()), network_of(metric, tools.hashes)[:16]
    low, bound = best_bound(good, bad)
    refused = sum(_bad(v, *best_bound(np.delete(good, i), bad)) for i, v in enumerate(good))
    passed = sum(not _bad(v, *best_bound(good, np.delete(bad, i))) for i, v in enumerate(bad))
    return Bound(metric, network, weights, low, bound, int(refused), int(passed), len(good), len(bad))


def _bad(value: float, low: bool, bound: float) -> bool:
    return value < bound if low else value > bound


def best_bound(good: np.ndarray, bad: np.ndarray) -> tuple[bool, float]:
    """(values below are bad, bound) with the fewest errors, each kind weighing the same; in the middle between two values."""
    values = np.unique(np.concatenate([good, bad]))
    middles = (values[1:] + values[:-1]) / 2 if len(values) > 1 else values
    below = [(good < m).mean() + (bad >= m).mean() for m in middles]
    above = [(good > m).mean() + (bad <= m).mean() for m in middles]
    low = min(below) <= min(above)
    errors = np.array(below if low else above)
    best = np.flatnonzero(errors <= errors.min() + 1e-12)
    return bool(low), float(middles[best[len(best) // 2]])


def as_toml(bounds: Sequence[Bound]) -> str:
    """A KPI file, which `phantom evaluate score --kpi` reads."""
    parts = []
    for b in bounds:
        reason = (
            f"set on {b.good} good and {b.bad} bad videos; of videos that it was not set on it refuses {b.good_refused} of "
            f"{b.good} good ones and passes {b.bad_passed} of {b.bad} bad ones"
        )
        network = f"network = {json.dumps(b.network, ensure_ascii=False)}\n" if b.network else ""
        network += f'weights = "{b.weights}"\n' if b.weights else ""
        parts.append(f"[{b.metric}]\n{network}{'min' if b.low else 'max'} = {b.bound:.6g}\nreason = {json.dumps(reason)}\n")
    return "\n".join(parts)


def as_rows(bounds: Sequence[Bound]) -> list[dict[str, Any]]:
    """Bounds with their error rates, as JSON."""
    return [
        {
            "metric": b.metric,
            "network": b.network,
            "min" if b.low else "max": round(b.bound, 6),
            "good_refused": round(b.good_refused / b.good, 4),
            "bad_passed": round(b.bad_passed / b.bad, 4),
        }
        for b in bounds
    ]
