"""The file of finished arms, what makes a row valid, and the tables of docs/ablations.md."""

import ast
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.data.synthetic.emoji import sprites_hash
from phantom_s2v.files.hashes import MADE_OF, folder_hash
from phantom_s2v.files.reuse import code_version, origin_hash

from .arms import SIDE
from .judge import CLIPS, COARSE, SCALES, SHIFT, STEPS
from .world import CANDIDATES, World

FILE = Path(__file__).parents[2] / "dev" / "ablations.jsonl"
SAME = 1e-4  # relative difference of a probe's numbers within which two codes count as one
DRAWS = 2_000

Row = dict[str, Any]


def shared_by_all(world: World) -> dict[str, Any]:
    """What makes every arm's figures beside its configuration and code: weights, data, and what judges."""
    return {
        "model": folder_hash(world.folder, MADE_OF),
        "pictures": sprites_hash(world.store),
        "judge": [SIDE, CANDIDATES, COARSE, SCALES, STEPS, SHIFT, CLIPS],
    }


def chosen(config: Any) -> dict[str, Any]:
    """The fields of a configuration that are not its defaults, so that a field which comes later does not count; the defaults'
    own values are left to the probe.
    """
    values = {field.name: (getattr(config, field.name), field.default) for field in fields(config)}
    return {
        name: chosen(value) if is_dataclass(value) else value for name, (value, default) in values.items() if value != default
    }


def config_hash(made_by: dict[str, Any]) -> str:
    """Of all that makes an arm's figures but code."""
    return origin_hash(json.loads(json.dumps(made_by, default=asdict)))[:16]


@cache
def code_hash(*own: str) -> str:
    """Of the code that makes figures, modules here and what they use of the package, and of the versions of its libraries."""
    digest = hashlib.sha256()
    for name in own:
        digest.update(ast.dump(ast.parse((Path(__file__).parent / f"{name}.py").read_text())).encode())
    package = code_version("training.run", "training.own", "evaluation.suites.classifier", "evaluation.metrics.measures")
    return hashlib.sha256(digest.digest() + json.dumps(package, sort_keys=True).encode()).hexdigest()[:16]


def read(file: Path) -> list[Row]:
    """The rows of finished arms."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def valid(row: Row, config: str, code: str, probe: Callable[[], list[float]]) -> bool:
    """Whether a row stands for an arm of this configuration under this code.

    Code that changed since counts as the same where a probe, the first steps of this arm in float32 and its errors on a few
    subjects, gives the numbers that it gave then: most changes of the package do not touch them.
    """
    if row["config"] != config:
        return False
    return row["code"] == code or bool(np.allclose(probe(), row["probe"], rtol=SAME, atol=0))


def rows_of(file: Path, arm: str, seed: int) -> list[Row]:
    """The rows of an arm and a seed."""
    return [row for row in read(file) if (row["arm"], row["seed"]) == (arm, seed)]


def compared(rows: list[Row], controls: list[Row], figure: str) -> tuple[int, float, float, float]:
    """(seeds, mean difference from the control, and its 95% interval) over the seeds that both have; 0 seeds where none."""
    base = {row["seed"]: row["figures"].get(figure) for row in controls}
    pairs = [(row["figures"][figure], base[row["seed"]]) for row in rows if figure in row["figures"] and base.get(row["seed"])]
    if not pairs:
        return 0, np.nan, np.nan, np.nan
    differences = np.array([np.subtract(a, b) for a, b in pairs])
    return len(pairs), float(differences.mean()), *interval(differences)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95% of the mean of values [seeds, subjects]: a bootstrap that draws both. With one seed only subjects vary."""
    rng, (seeds, subjects) = np.random.default_rng(0), values.shape
    means = [
        values[rng.integers(seeds, size=seeds)][:, rng.integers(subjects, size=subjects)].mean() for _ in range(DRAWS)
    ]  # fmt: skip
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def current(rows: Iterable[Row]) -> dict[tuple[str, int], Row]:
    """The last row of each arm and seed."""
    return {(row["arm"], row["seed"]): row for row in rows}
