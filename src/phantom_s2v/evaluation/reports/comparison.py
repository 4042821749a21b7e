"""Reports of comparisons: systems by their metrics, and by the votes of raters."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from phantom_s2v.evaluation.compare import Change, Comparison
from phantom_s2v.evaluation.metrics.table import METRICS
from phantom_s2v.media.pages import Headline, preview, write_page

NO_VERDICT = (
    "The intervals hold zero: with these cases it cannot be said which is better. Add cases, or have people rate the videos."
)


def write_comparison(path: Path, comparisons: Sequence[Comparison], notes: Sequence[str], changes: Sequence[Change] = ()) -> None:
    """The comparison: which system is better by what, cases that changed most, every metric with its interval."""
    pairs = [(names, list(some)) for names, some in groupby(comparisons, key=lambda c: (c.first, c.second))]
    write_page(
        path,
        "comparison.html",
        title="Comparison of " + " and ".join(dict.fromkeys(name for names, _ in pairs for name in names)),
        pairs=[(*names, _headline(*names, some), [_row(c) for c in some]) for names, some in pairs],
        changes=[(change, [preview(video) if video else None for video in change.videos]) for change in changes],
        notes=notes,
    )


def write_votes(path: Path, rows: Sequence[dict[str, Any]], questions: dict[str, str]) -> None:
    """The votes as one HTML file: which system is preferred, every question with its interval and how far raters agree."""
    pairs = [(names, list(some)) for names, some in groupby(rows, key=lambda r: (r["first"], r["second"]))]
    write_page(
        path,
        "votes.html",
        title="Votes of raters",
        pairs=[(*names, _preferred(*names, some), [{**row, "words": questions.get(row["question"], row["question"]),
                "agreed": _agreed(row["agreement"], brief=True)} for row in some]) for names, some in pairs],
    )  # fmt: skip


def _headline(first: str, second: str, some: Sequence[Comparison]) -> Headline:
    """Which of two systems is better, by what, and what to do."""
    judged = [c for c in some if METRICS[c.metric].better]
    better, worse = ([c.metric for c in judged if _side(c) == side] for side in (1, -1))
    if better and not worse:
        figure, state = f"{second} is better", "good"
    elif worse and not better:
        figure, state = f"{first} is better", "bad"
    else:
        figure, state = ("Better in some, worse in others" if better else "No clear difference"), "mixed"
    words = f"{second} against {first}: clearly better in {len(better)}, clearly worse in {len(worse)} of {len(judged)} metrics."
    lists = [(f"{second} is better in", better), (f"{first} is better in", worse)]
    points = [(term, ", ".join(metrics)) for term, metrics in lists if metrics]
    advice = NO_VERDICT if not better and not worse else "Look at the cases that changed most, below, before you decide."
    return Headline(state, figure, words, [*points, ("What to do", advice)])


def _side(c: Comparison) -> int:
    """1 where the second system is clearly better, -1 where it is clearly worse, else 0."""
    if not c.clear or not METRICS[c.metric].better:
        return 0
    return 1 if (c.difference > 0) == (METRICS[c.metric].better == "more") else -1


def _row(c: Comparison) -> dict[str, Any]:
    """A metric as the page shows it; places of the interval as shares of its drawing, whose middle is zero."""
    reach = max(abs(c.low), abs(c.high), abs(c.difference)) or 1.0
    places = [round(50 + 45 * value / reach, 1) for value in (c.low, c.difference, c.high)]
    verdict = {1: "better", -1: "worse", 0: "no clear difference" if METRICS[c.metric].better else "neither is better by itself"}
    return {"c": c, "places": places, "side": _side(c), "verdict": verdict[_side(c)], "better": METRICS[c.metric].better}


def _preferred(first: str, second: str, rows: Sequence[dict[str, Any]]) -> Headline:
    """Whom the raters prefer as a whole."""
    row = next((row for row in rows if row["question"] == "better"), rows[0])
    low, high = row["interval"]
    winner = second if low > 0.5 else first if high < 0.5 else ""
    share = row["second_share"] if winner != first else 1 - row["second_share"]
    ends = (low, high) if winner != first else (1 - high, 1 - low)
    words = (
        f"{winner or second} is preferred in {100 * share:.0f}% of the votes (95% interval {100 * ends[0]:.0f} to "
        f"{100 * ends[1]:.0f}%; a tie counts half), in {row['cases']} cases by {row['raters']} raters."
    )
    advice = f"Prefer {winner}." if winner else "The interval holds 50%: ask more raters, or add cases."
    points = [("What to do", advice), ("Raters agree", _agreed(row["agreement"]))]
    return Headline("good" if winner else "mixed", f"{winner} is preferred" if winner else "No clear preference", words, points)


AGREEMENT = (  # least alpha, in short, in words
    (0.8, "well", "well"),
    (0.667, "tentatively", "enough for a tentative conclusion"),
    (float("-inf"), "little", "little: read the result with care"),
)


def _agreed(alpha: float | None, brief: bool = False) -> str:
    """Krippendorff's alpha in words (his bounds: 0.8, and 0.667 for tentative conclusions)."""
    if alpha is None:
        return "not known" if brief else "not known: no case has two raters, or all answers are equal"
    short, words = next(words for least, *words in AGREEMENT if alpha >= least)
    return f"{short} ({alpha:.2f})" if brief else f"{words} (Krippendorff's alpha {alpha:.2f}; 1 is full agreement, 0 is chance)"
