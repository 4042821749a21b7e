"""Entry points x kinds of hostile input, in a process with limits of memory and time: every input is one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("child.py")
SECONDS = 20  # for one input: a machine under load takes ten times what an idle one does
GROWTH = 1200  # MB of resident memory that all inputs together may add: networks that score and cut out are among it


def rows_of(folder, start, count, patience):
    done = subprocess.run(
        [sys.executable, str(CHILD), str(folder), str(start), str(count)], capture_output=True, text=True, timeout=patience
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == count, f"the process ended after {len(rows)} inputs: {done.stderr[-2000:]}"
    return rows


def check(row):
    where = (row["entry"], row["kind"], row["code"], row["err"][-500:])
    assert row["code"] in (2, 3), where
    lines = [line for line in row["err"].splitlines() if line.startswith("phantom: ")]
    assert lines, where
    assert "Traceback" not in row["err"], where
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for line in lines for letter in line), where
    assert "phantom: all is well" not in lines, where
    assert not row["ran"], where
    assert row["seconds"] < SECONDS, where


def test_a_sample_of_the_table(tmp_path):
    rows = rows_of(tmp_path, 0, 25, 250)
    for row in rows:
        check(row)
    assert rows[-1]["mb"] - rows[0]["mb"] < GROWTH


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_thousand_inputs_are_a_thousand_sentences(tmp_path):
    """The whole table, some of it twice with other bytes."""
    rows = rows_of(tmp_path, 0, 1000, 1700)
    for row in rows:
        check(row)
    assert rows[-1]["mb"] - rows[100]["mb"] < GROWTH
