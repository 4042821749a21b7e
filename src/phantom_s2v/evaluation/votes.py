"""The votes of a blind rating in SQLite, and what they say: wins, ties, intervals and agreement.

A vote is the system, not the side. Agreement between raters is Krippendorff's alpha for nominal data (Krippendorff 2011): 1 is
full, 0 is chance.
"""

import contextlib
import os
import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.metrics.measures import bootstrap
from phantom_s2v.evaluation.pairs import NOT_SHOWN, Pair

TABLES = (
    """create table if not exists votes (rater text not null, case_id text not null, first text not null,
second text not null, question text not null, choice text not null, primary key (rater, case_id, first, second, question))""",
    "create table if not exists raters (rater text primary key, secret text not null unique)",
    """create table if not exists shown (case_id text not null, first text not null, second text not null, content text not null,
primary key (case_id, first, second))""",
)
LONGEST_NAME = 80  # characters of a rater's name
SECRET = 24  # random bytes of a rater's link


def open_votes(file: Path) -> sqlite3.Connection:
    """The votes' file, made where there is none, for its owner alone: it holds names. Raises InputError if it is no such file."""
    if file.is_symlink():
        raise InputError(f"{file} is a symbolic link; give the votes file itself")
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        votes = sqlite3.connect(file, timeout=10)
        there = {name for (name,) in votes.execute("select name from sqlite_master where type = 'table'")}
        if there and "votes" not in there:
            raise sqlite3.DatabaseError(f"its tables are {', '.join(sorted(there))}")
        for table in TABLES:
            votes.execute(table)
        votes.commit()
        file.chmod(0o600)
    except (sqlite3.Error, OSError) as error:
        raise InputError(f"{file} is not a votes file ({error}); it must be an SQLite file of phantom evaluate rate") from error
    return votes


def links(file: Path, raters: Sequence[str]) -> dict[str, str]:
    """Rater -> the secret in their link, of those named and of all that the file knows already. Raises InputError for a name."""
    for rater in raters:
        if not rater.strip() or len(rater) > LONGEST_NAME:
            raise InputError(f"a rater's name must have 1 to {LONGEST_NAME} characters and not be blank (got {len(rater)})")
    with closing(open_votes(file)) as votes, votes:
        rows = [(rater, secrets.token_urlsafe(SECRET)) for rater in raters]
        votes.executemany("insert or ignore into raters values (?, ?)", rows)
        return dict(votes.execute("select rater, secret from raters order by rowid"))


def bind(file: Path, pairs: Sequence[Pair]) -> None:
    """Note what is shown of every pair. Raises InputError where there are votes on other videos, references or prompts under the
    same names: they would be counted for these.
    """
    with closing(open_votes(file)) as votes, votes:
        for pair in pairs:
            key, now = (pair.case, pair.first, pair.second), pair.content
            row = votes.execute("select content from shown where case_id = ? and first = ? and second = ?", key).fetchone()
            voted = votes.execute("select 1 from votes where case_id = ? and first = ? and second = ? limit 1", key).fetchone()
            if voted and (row is None or row[0] != now):
                before = row[0][:12] if row else "not recorded"
                raise InputError(
                    f"{file} contains votes on other videos of case {pair.case}, {pair.first} and {pair.second} "
                    f"(hash {before}, now "
                    f"{now[:12]}); choose another file with --votes"
                )
            votes.execute("insert or replace into shown values (?, ?, ?, ?)", (*key, now))


def keep(votes: sqlite3.Connection, pair: Pair, rater: str, answers: dict[str, str]) -> None:
    """Keep a rater's answers to the questions, as systems and not as sides; an answer given again replaces the former one."""
    names = (pair.first, pair.second)
    left, right = pair.sides(rater)
    systems = {"left": names[left], "right": names[right]}
    rows = [(rater, pair.case, *names, question, systems.get(choice, choice)) for question, choice in answers.items()]
    votes.executemany("insert or replace into votes values (?, ?, ?, ?, ?, ?)", rows)


def results(file: Path) -> list[dict[str, Any]]:
    """For every pair of systems and question: wins, ties, the second's share (a tie is half) with its 95% interval over cases,
    and agreement. Raises InputError where there are no votes.
    """
    if not file.is_file():
        raise InputError(f"{file} is not a file; it must be a votes file of phantom evaluate rate")
    columns = ", ".join(f"cast({name} as text)" for name in ("first", "second", "question", "rater", "case_id", "choice"))
    asked = f"select {columns} from votes where choice != ?"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as votes:
            rows = list(votes.execute(asked, (NOT_SHOWN,)))
    except sqlite3.Error as error:
        raise InputError(f"{file} is not a valid votes file of phantom evaluate rate ({error})") from error
    if not rows:
        raise InputError(f"{file} contains no votes yet")
    kinds = sorted({row[:3] for row in rows})
    return [_counted(kind, [row[3:] for row in rows if row[:3] == kind]) for kind in kinds]


def _counted(kind: tuple[str, str, str], answers: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Votes (rater, case, choice) on one question about two systems."""
    first, second, question = kind
    by_case: dict[str, list[str]] = {}
    for _, case, choice in answers:
        by_case.setdefault(case, []).append(choice)
    counts = Counter(choice for _, _, choice in answers)
    mean, low, high = bootstrap([_share(choices, second) for choices in by_case.values()])
    return {
        "first": first,
        "second": second,
        "question": question,
        "cases": len(by_case),
        "raters": len({rater for rater, _, _ in answers}),
        "first_wins": counts[first],
        "second_wins": counts[second],
        "equal": counts["equal"],
        "second_share": round(mean, 4),
        "interval": [round(low, 4), round(high, 4)],
        "agreement": agreement(by_case.values()),
    }


def _share(choices: list[str], system: str) -> float:
    """Share of a case's votes for a system, a tie counting half to each."""
    return float(np.mean([1.0 if c == system else 0.5 if c == "equal" else 0.0 for c in choices]))


def agreement(units: Iterable[list[str]]) -> float | None:
    """Krippendorff's alpha of nominal answers, a list of them a case; None where no case has two answers or all are the same."""
    kept = [Counter(unit) for unit in units if len(unit) > 1]
    answers = sorted({answer for unit in kept for answer in unit})
    if len(answers) < 2:
        return None
    counts = np.array([[unit[answer] for answer in answers] for unit in kept])
    return round(float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")), 4)
