"""The tables of docs/ablations.md."""

from collections.abc import Sequence

import numpy as np

from .arms import ARMS, CONTROLS, SEEDS
from .older import WAYS
from .results import Row, compared, current, interval

FIGURES = {  # figure -> its column, and its digits
    "error_with": ("error with", 4),
    "error_without": ("error without", 4),
    "log_rank": ("log-rank", 2),
    "similarity": ("similarity", 3),
    "background": ("background", 2),
    "direction": ("direction", 2),
    "copy_paste": ("copy-paste", 3),
    "error_pairs": ("error, pairs", 4),
    "log_rank_pairs": ("log-rank, pairs", 2),
    "sides": ("sides", 2),
}
GROUPS = {  # table -> its control, and what it holds
    "stills": (CONTROLS["stills"], ("true-stills", *(arm.name for arm in ARMS if arm.recipe.name == "stills"))),
    "clips": (CONTROLS["clips"], ("true-clips", *(arm.name for arm in ARMS if arm.recipe.name == "clips"))),
    "ways": ("reference", WAYS),
}


def tables(rows: list[Row]) -> str:
    """Markdown: for each group means, differences from the control, and for the older ways what a subject costs."""
    done = current(rows)
    parts = []
    for name, (control, names) in GROUPS.items():
        arms = {arm: of for arm in names if (of := [done[arm, seed] for seed in SEEDS if (arm, seed) in done])}
        figures = [figure for figure in FIGURES if any(figure in row["figures"] for of in arms.values() for row in of)]
        head = [FIGURES[figure][0] for figure in figures]
        parts += [
            _table([name, "seeds", *head], [[arm, str(len(of)), *(_mean(of, f) for f in figures)] for arm, of in arms.items()])
        ]
        others = {arm: of for arm, of in arms.items() if arm != control and not arm.startswith("true")}
        compare = [[arm, *(_difference(of, arms.get(control, []), f) for f in figures)] for arm, of in others.items()]
        parts += [_table([f"minus {control}", *head], compare)] if compare else []
    costs = [[way, *_costs(of)] for way in WAYS if (of := [done[way, seed] for seed in SEEDS if (way, seed) in done])]
    parts += [_table(["way", "CPU s, once for all subjects", "CPU s a subject", "bytes a subject"], costs)] if costs else []
    return "\n\n".join(parts)


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _mean(rows: list[Row], figure: str) -> str:
    values = [row["figures"][figure] for row in rows if figure in row["figures"]]
    if not values:
        return ""
    digits, (low, high) = FIGURES[figure][1], interval(np.array(values))
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _difference(rows: list[Row], controls: list[Row], figure: str) -> str:
    """With a star where the interval leaves zero out."""
    seeds, mean, low, high = compared(rows, controls, figure)
    digits = FIGURES[figure][1]
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{'*' if low > 0 or high < 0 else ''}" if seeds else ""


def _costs(rows: list[Row]) -> list[str]:
    names = ("seconds_of_all", "seconds_of_a_subject", "bytes_of_a_subject")
    return [f"{np.mean([row['cost'][name] for row in rows]):,.0f}" for name in names]
