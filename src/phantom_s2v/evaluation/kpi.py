"""KPIs: thresholds of a team, each with a written reason, in a small TOML file, and the verdict on a score.

[similarity]
network = "efficientnet-lite0"
min = 0.6
reason = "below it our brand team no longer knew the bottle"

`network`, which may be left out, is what the threshold was set for: values by another one are not held against it. What could not
be measured is missed, such as the similarity of a subject that is in no frame; with `optional = true` it is passed over.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.instruments import Instruments
from phantom_s2v.evaluation.metrics.table import METRICS, network_of
from phantom_s2v.files.io import read_text
from phantom_s2v.files.untrusted import parse_toml, typed

if TYPE_CHECKING:  # the studio's pages read KPIs without torch
    from phantom_s2v.evaluation.score import VideoScore


@dataclass(frozen=True)
class Kpi:
    """One threshold: the value has to be at least `min` and at most `max`, where they are given."""

    metric: str
    reason: str
    min: float | None = None
    max: float | None = None
    network: str = ""  # by which the metric has to be measured
    weights: str = ""  # hash of that network's weights, or how it begins
    optional: bool = False  # whether a video passes in which it cannot be measured


@dataclass(frozen=True)
class Verdict:
    """What became of a KPI; `met` is None where its value could not be measured and need not be."""

    kpi: Kpi
    value: float | None
    met: bool | None


def read_kpis(file: Path) -> list[Kpi]:
    """KPIs of a TOML file. Raises InputError for invalid contents."""
    return parse_kpis(read_text(file), str(file), file.name)


def parse_kpis(text: str, place: str, name: str) -> list[Kpi]:
    """KPIs of a TOML text, which errors call `name`, and `place` where it is none. Raises InputError for invalid contents."""
    try:
        tables: dict[str, Any] = parse_toml(text)
    except ValueError as error:
        raise InputError(f"{place} is not a valid TOML file ({error})") from error
    kpis = [_kpi(name, metric, entry) for metric, entry in tables.items()]
    if not kpis:
        raise InputError(f"{name} contains no KPIs; metrics are {', '.join(METRICS)}")
    return kpis


def _kpi(file: str, name: str, entry: Any) -> Kpi:
    """One table of a KPI file."""
    if name not in METRICS:
        raise InputError(f"unknown metric {name} in {file}; metrics are {', '.join(METRICS)}")
    try:
        kpi = typed(Kpi, entry, f"[{name}] in {file}", metric=name)
    except ValueError as error:
        raise InputError(f"{error} ([{name}] in {file})" if f"[{name}]" not in str(error) else str(error)) from error
    if not kpi.reason.strip():
        raise InputError(f"reason of [{name}] in {file} must not be empty")
    if kpi.min is None and kpi.max is None:
        raise InputError(f"[{name}] in {file} must have a number as min, max or both")
    return kpi


def value_of(score: "VideoScore", metric: str) -> float | None:
    """A metric of a video: of its worst subject, where it is one of subjects. None where it was not measured."""
    if METRICS[metric].of_subjects:
        values = [getattr(subject, metric) for subject in score.subjects]
        value = METRICS[metric].worst(values) if values and all(v == v for v in values) else float("nan")
    else:
        value = getattr(score, metric)
    return None if value != value else float(value)


def evaluate_kpis(score: "VideoScore", kpis: list[Kpi]) -> list[Verdict]:
    """The verdict on every KPI; one that could not be measured is missed, unless it is optional."""
    verdicts = []
    for kpi in kpis:
        value = value_of(score, kpi.metric)
        low = kpi.min is None or (value is not None and value >= kpi.min)
        high = kpi.max is None or (value is not None and value <= kpi.max)
        absent = None if kpi.optional else False
        verdicts.append(Verdict(kpi, value, absent if value is None else low and high))
    return verdicts


def verdict_of(verdict: Verdict) -> str:
    """A verdict in words."""
    if verdict.value is None:
        return "not measured" if verdict.met is None else "missed, since it was not measured"
    return "met" if verdict.met else "missed"


def check_networks(kpis: list[Kpi], tools: Instruments) -> None:
    """Raise InputError where a threshold was set for another network than the one that measures now."""
    for kpi in kpis:
        now = network_of(kpi.metric, tools.all_names())
        if kpi.network and kpi.network != now:
            raise InputError(f"KPI {kpi.metric} was set for {kpi.network}, but is measured with {now or 'nothing'}")
        weights = network_of(kpi.metric, tools.hashes)
        if kpi.weights and not weights.startswith(kpi.weights):
            raise InputError(
                f"KPI {kpi.metric} was set for other weights of {now} ({kpi.weights}, not {weights[:16] or 'unknown'}); run "
                "phantom evaluate calibrate again"
            )
