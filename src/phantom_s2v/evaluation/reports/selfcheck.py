"""The page of a self-check: how many planted faults are found, how many alarms are false, and the clips that were mistaken."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from phantom_s2v.evaluation.reports.words import fault_words
from phantom_s2v.evaluation.selfcheck import Mistake
from phantom_s2v.media.pages import Headline, percent, write_page

GOOD, ALARMS = 0.9, 0.05  # found, and falsely found, from which on a check is relied on
Rows = Mapping[str, Mapping[str, Sequence[float]]]  # of selfcheck.table


def write_self_check(path: Path, rows: Rows, mistakes: Sequence[Mistake], features: str, clips: str) -> None:
    """Write the page; `clips` says what faults were planted in."""
    write_page(
        path,
        "selfcheck.html",
        title="Self-check of the evaluation",
        headline=_headline(rows, clips),
        rows=[(fault, fault_words(fault).means, row) for fault, row in rows.items()],
        mistakes=mistakes,
        features=features,
    )


def _headline(rows: Rows, clips: str) -> Headline:
    """On which checks one can rely, and on which not."""
    missed = [fault for fault, row in rows.items() if row["detection"][0] < GOOD]
    alarmed = [fault for fault, row in rows.items() if row["false_alarm"][0] > ALARMS]
    good = [fault for fault in rows if fault not in missed + alarmed]
    state = "good" if len(good) == len(rows) else "mixed" if good else "bad"
    words = (
        f"Faults were planted in {clips}: {len(good)} of {len(rows)} kinds are found in at least {percent(GOOD)} of the clips, "
        f"with false alarms in at most {percent(ALARMS)} of those without a fault."
    )
    lists = (("Often missed", missed, "detection"), ("Often a false alarm", alarmed, "false_alarm"))
    points = [(term, ", ".join(f"{f} ({percent(rows[f][rate][0])})" for f in some)) for term, some, rate in lists if some]
    advice = (
        "Rely on these checks for videos like these."
        if not points
        else "Look at such clips yourself, and set the thresholds on your own videos: phantom evaluate calibrate."
    )
    return Headline(state, f"{len(good)} of {len(rows)} checks hold", words, [*points, ("What to do", advice)])
