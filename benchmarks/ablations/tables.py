"""The tables of docs/ablations.md."""

from collections.abc import Sequence

import numpy as np

from .arms import ARMS, CONTROLS, SEEDS
from .results import Row, compared, current, interval

COLUMNS = {  # figure -> its column, and how many digits it has
    "error_with": ("error with", 4),
    "error_without": ("error without", 4),
    "log_rank": ("log-rank", 2),
    "similarity": ("similarity", 3),
    "background": ("background", 2),
    "copy_paste": ("copy-paste", 3),
    "direction": ("direction", 2),
    "error_pairs": ("error, pairs", 4),
    "log_rank_pairs": ("log-rank, pairs", 2),
    "sides": ("sides", 2),
}


def tables(rows: list[Row]) -> str:
    """Markdown: a table of each recipe with means, and one with differences from its control."""
    done, parts = current(rows), []
    for recipe, control in CONTROLS.items():
        arms = {
            arm.name: [done[arm.name, s] for s in SEEDS if (arm.name, s) in done] for arm in ARMS if arm.recipe.name == recipe
        }
        figures = [name for name in COLUMNS if any(name in row["figures"] for of in arms.values() for row in of)]
        if not figures:
            continue
        head = [COLUMNS[name][0] for name in figures]
        parts.append(
            table(
                ["arm", "seeds", *head],
                [[name, str(len(of)), *(_mean(of, f) for f in figures)] for name, of in arms.items() if of],
            )
        )
        others = {name: of for name, of in arms.items() if of and name != control}
        rows_of = [[name, *(_difference(of, arms[control], f) for f in figures)] for name, of in others.items()]
        parts.append(table([f"minus {control}", *head], rows_of))
    return "\n\n".join(parts)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Markdown of cells."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def _mean(rows: list[Row], figure: str) -> str:
    values = [row["figures"][figure] for row in rows if figure in row["figures"]]
    if not values:
        return ""
    digits, (low, high) = COLUMNS[figure][1], interval(np.array(values))
    return f"{np.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _difference(rows: list[Row], controls: list[Row], figure: str) -> str:
    seeds, _, mean, low, high = compared(rows, controls, figure)
    digits = COLUMNS[figure][1]
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]{'*' if low > 0 or high < 0 else ''}" if seeds else ""
