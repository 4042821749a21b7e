"""Run the arms that have no valid row yet, the most important first, or print the tables: see runs/ablations.sh."""

import argparse
import json
import sys
import time
import traceback
from pathlib import Path

from phantom_s2v.files.io import append

from .arms import ARMS, SEEDS, TRUE
from .older import WAYS, Ways
from .results import FILE, code_hash, config_hash, read, rows_of, shared_by_all, valid
from .tables import tables
from .trial import Trials
from .world import load_world

CODE = ("arms", "world", "judge", "trial")  # modules here that make an arm's figures
FIRST = 8  # arms that go before the older ways
ORDER = [*TRUE, *(arm.name for arm in ARMS[:FIRST]), *WAYS, *(arm.name for arm in ARMS[FIRST:])]


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="runs/ablations.sh", description=__doc__)
    parser.add_argument("--results", type=Path, default=FILE, help="JSON Lines file of finished arms")
    parser.add_argument("--scratch", type=Path, default=Path("outputs/ablations"), help="folder of what is trained meanwhile")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and train nothing")
    parser.add_argument("--arms", default="", help="only these, by name, with commas between")
    asked = parser.parse_args()
    if asked.table:
        print(tables(read(asked.results)))
        return
    chosen = [name for name in ORDER if not asked.arms or name in asked.arms.split(",")]
    run(asked.results, asked.scratch, chosen)


def run(results: Path, scratch: Path, names: list[str]) -> None:
    """One seed of every arm, then the second, then the third; what is valid already is passed over."""
    world, codes = load_world(), (code_hash(*CODE), code_hash(*CODE, "older"))
    trials, ways = Trials(world, scratch / codes[0]), Ways(world, scratch / codes[1])  # checkpoints of other code stay aside
    failed: list[str] = []
    shared, precision = shared_by_all(world), str(world.dtype).removeprefix("torch.")
    for seed in SEEDS:
        for name in names if seed == SEEDS[0] else [name for name in names if name not in TRUE]:
            of, code = (ways, codes[1]) if name in WAYS else (trials, codes[0])
            config = config_hash({**shared, **of.made_by(name, seed)})
            if any(valid(row, config, code, lambda name=name, of=of: of.probe(name)) for row in rows_of(results, name, seed)):
                continue
            print(f"{time.strftime('%H:%M')} {name}, seed {seed}", file=sys.stderr, flush=True)
            try:
                made = {"config": config, "code": code, "probe": of.probe(name), "precision": precision, **of.run(name, seed)}
            except Exception:  # the others go on
                traceback.print_exc()
                failed.append(f"{name} ({seed})")
                continue
            append(results, json.dumps({"arm": name, "seed": seed, **made}) + "\n")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
