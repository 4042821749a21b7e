"""KPIs: thresholds of a team, each with a written reason, in a small TOML file, and the verdict on a score.

[likeness]
network = "efficientnet-lite0"
least = 0.6
reason = "below it our brand team no longer knew the bottle"

`network`, which may be left out, is what the threshold was set for: values by another one are not held against it.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.instruments import Instruments, network_of
from phantom_s2v.evaluation.score import VideoScore

BY_HUB = [f"{network}_i{part}{low}" for network in ("clip", "dino") for part in ("", "_seg") for low in ("", "_lowest")]
OF_SUBJECTS = {
    **dict.fromkeys(("likeness", "lowest", "whole", "whole_lowest", "seen", "face", "face_lowest", "face_seen", *BY_HUB), min),
    **dict.fromkeys(("doubled", "copy_paste", "flash"), max),
}
OF_VIDEOS = ("swapped", "motion_fb", "frozen", "flicker", "smoothness", "sharpness", "text", "aesthetic")


@dataclass(frozen=True)
class Kpi:
    """One threshold: the value has to be at least `least` and at most `most`, where they are given."""

    metric: str
    least: float | None
    most: float | None
    reason: str
    network: str = ""  # by which the metric has to be measured


@dataclass(frozen=True)
class Verdict:
    """What became of a KPI; `met` is None where its value could not be measured."""

    kpi: Kpi
    value: float | None
    met: bool | None


def read_kpis(file: Path) -> list[Kpi]:
    """KPIs of a TOML file. Raises InputError for what is not legal in it."""
    legal = (*OF_SUBJECTS, *OF_VIDEOS)
    try:
        given: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no TOML file that can be read ({error})") from error
    kpis = []
    for name, entry in given.items():
        if name not in legal:
            raise InputError(f"{file.name} names {name}; legal are {', '.join(legal)}")
        if not isinstance(entry, dict) or not str(entry.get("reason", "")).strip():
            raise InputError(f"{file.name} gives no reason for {name}; every KPI is [{name}] with least or most, and a reason")
        least, most = entry.get("least"), entry.get("most")
        if least is most is None or any(not isinstance(b, int | float) for b in (least, most) if b is not None):
            raise InputError(f"{file.name} gives {name} least {least} and most {most}; legal are numbers, one or both")
        kpis.append(Kpi(name, least, most, str(entry["reason"]), str(entry.get("network", ""))))
    if not kpis:
        raise InputError(f"{file.name} holds no KPI; legal are {', '.join(legal)}")
    return kpis


def value_of(found: VideoScore, metric: str) -> float | None:
    """A metric of a video: of its worst subject, where it is one of subjects. None where it was not measured."""
    if metric in OF_VIDEOS:
        value = getattr(found, metric)
    else:
        values = [getattr(subject, metric) for subject in found.subjects]
        value = OF_SUBJECTS[metric](values) if values and all(v == v for v in values) else float("nan")
    return None if value != value else float(value)


def judge(found: VideoScore, kpis: list[Kpi]) -> list[Verdict]:
    """The verdict on every KPI."""
    verdicts = []
    for kpi in kpis:
        value = value_of(found, kpi.metric)
        low = kpi.least is None or (value is not None and value >= kpi.least)
        high = kpi.most is None or (value is not None and value <= kpi.most)
        verdicts.append(Verdict(kpi, value, None if value is None else low and high))
    return verdicts


def check_networks(kpis: list[Kpi], tools: Instruments) -> None:
    """Raise InputError where a threshold was set for another network than the one that measures now."""
    for kpi in kpis:
        now = network_of(kpi.metric, tools.all_names())
        if kpi.network and kpi.network != now:
            raise InputError(f"the KPI {kpi.metric} was set for {kpi.network}, and it is measured by {now or 'nothing'}")
