"""A project's KPIs as rows of a form: the thresholds that people set most, beside the KPI file that holds all of them."""

import json
from dataclasses import dataclass, replace

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.kpi import Kpi, parse_kpis
from phantom_s2v.evaluation.metrics.table import METRICS
from phantom_s2v.studio.gate import WORDS
from phantom_s2v.studio.i18n import fitting
from phantom_s2v.studio.problems import N_, Problem, collecting, raise_all
from phantom_s2v.studio.texts import decimal, line

ROWS = {  # metric -> what it answers (docs/governance.md)
    "similarity": N_("Does it look like the reference, on average? 1 is the same."),
    "similarity_min": N_("The same, in its worst frame."),
    "seen": N_("In what share of the frames is it seen? 0.9 is nine of ten."),
    "face_min": N_("Is it this person, in the worst frame? Videos without a face pass."),
    "doubled": N_("In what share of the frames is it there twice?"),
    "copy_paste": N_("Is it pasted in rather than drawn anew? 0 is not at all."),
    "frozen": N_("In what share of the frames does nothing move?"),
    "flicker": N_("Does the brightness jump from frame to frame?"),
}
RANGES = {"similarity": (-1, 1), "similarity_min": (-1, 1), "face_min": (-1, 1), "copy_paste": (-1, 1)}
SHARE = (0, 1)  # of the other rows
OPTIONAL = ("face_min",)  # which a video passes that shows no face
WRONG = (  # sentences of evaluation.kpi
    N_("The KPI file is not a valid TOML file (%(reason)s)"),
    N_("unknown metric %(name)s in the KPI file; metrics are %(names)s"),
    N_("reason of [%(name)s] in the KPI file must not be empty"),
    N_("[%(name)s] in the KPI file is missing %(part)s"),
    N_("[%(name)s] in the KPI file must have a number as min, max or both"),
)


@dataclass(frozen=True)
class Row:
    """A threshold in a form."""

    metric: str
    words: str
    question: str
    least: bool  # whether the bound is the least, or the most, that passes
    bound: str
    reason: str

    @property
    def field(self) -> str:
        """Name of the field of the bound; that of the reason goes on with -reason."""
        return f"kpi-{self.metric}"


def rows(text: str) -> list[Row]:
    """The rows of a KPI file, "" for none; metrics of the file that have no row stay in it alone."""
    kpis = {kpi.metric: kpi for kpi in _parsed(text)}
    found = []
    for metric, question in ROWS.items():
        least, kpi = METRICS[metric].better == "more", kpis.get(metric)
        bound = (kpi.min if least else kpi.max) if kpi else None
        typed = "" if bound is None else f"{bound:g}"
        found.append(Row(metric, WORDS[metric], question, least, typed, kpi.reason if kpi else ""))
    return found


def _parsed(text: str) -> list[Kpi]:
    return parse_kpis(text, "The KPI file", "the KPI file") if text.strip() else []


def check(file: str) -> None:
    """Raise Problem for what is no KPI file."""
    try:
        _parsed(file)
    except InputError as error:
        found = fitting(WRONG, str(error))
        template, values = found or (N_("The KPI file cannot be used: %(reason)s"), {"reason": str(error)})
        raise Problem(template, "kpis", **values) from error


def with_rows(text: str, typed: dict[str, tuple[str, str]]) -> str:
    """The KPI file with other rows: metric -> bound and reason as they were typed. Raises Problem beside the field."""
    if typed == {row.metric: (row.bound, row.reason) for row in rows(text)}:
        return text
    kpis, problems = {kpi.metric: kpi for kpi in _parsed(text)}, list[Problem]()
    for row in rows(text):
        bound, reason = typed[row.metric]
        if not bound and not reason:
            kpis.pop(row.metric, None)
            continue
        with collecting(problems):
            value, why = decimal(bound, row.field, *RANGES.get(row.metric, SHARE)), line(reason, f"{row.field}-reason", 1000)
            kpi = kpis.get(row.metric) or Kpi(row.metric, why, optional=row.metric in OPTIONAL)
            kpis[row.metric] = replace(kpi, reason=why, **{"min" if row.least else "max": value})
    raise_all(problems)
    return "\n".join(_table(kpi) for kpi in kpis.values())


def _table(kpi: Kpi) -> str:
    """A KPI as the file has it."""
    lines = [f"[{kpi.metric}]"]
    lines += [f"{name} = {value:g}" for name, value in (("min", kpi.min), ("max", kpi.max)) if value is not None]
    lines.append(f"reason = {json.dumps(kpi.reason, ensure_ascii=False)}")
    lines += [f"{name} = {json.dumps(value)}" for name, value in (("network", kpi.network), ("weights", kpi.weights)) if value]
    return "\n".join([*lines, "optional = true\n" if kpi.optional else ""])
