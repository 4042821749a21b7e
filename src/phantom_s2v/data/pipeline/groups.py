"""Kept pairs put together by subject: what is paired with one another, directly or through others, is one subject.

In a temporary file of SQLite's, so that memory does not grow with the pairs.
"""

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from phantom_s2v.data.pipeline.config import Record
from phantom_s2v.media.images import evenly_spaced


@dataclass(frozen=True)
class Group:
    """One subject: how many of its appearances (one in each clip) are paired, and its pairs, the least similar first."""

    appearances: int
    pairs: int
    least: float  # similarity
    most: float
    shown: list[Record]  # of the pairs some, the least similar first
    members: list[str]  # ids of subjects, each once: those of these pairs first


class PairGroups:
    """Takes in kept pairs one by one."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("")  # a file without a name, gone with the connection
        self._rows.executescript(
            "create table pairs (one text, other text, similarity real, sameness real, kind text);"
            "create index of_one on pairs (one); create index of_other on pairs (other);"
            "create table members (id text primary key, place integer) without rowid; create index of_place on members (place);"
            "create table places (place integer primary key, appearances int, pairs int, least real, most real);"
        )

    def add(self, pair: Record) -> None:
        """Take in a pair; the same two subjects count once, whichever is the reference."""
        one, other = sorted((pair["subject"], pair["partner"]))
        known = self._rows.execute("select 1 from pairs where one = ? and other = ?", (one, other)).fetchone()
        if not known:
            row = (one, other, pair["similarity"], pair["sameness"], pair.get("kind", ""))
            self._rows.execute("insert into pairs values (?, ?, ?, ?, ?)", row)

    def gather(self) -> int:
        """Find which pairs belong to one subject; how many subjects there are."""
        count = 0
        for (start,) in self._rows.execute("select distinct one from pairs order by one"):
            if self._place(start) is None:
                self._spread(start, count)
                count += 1
        self._rows.execute(
            "insert into places select place, (select count(*) from members m where m.place = members.place), count(*), "
            "min(similarity), max(similarity) from members join pairs on one = id group by place"
        )
        return count

    def _place(self, subject: str) -> int | None:
        row = self._rows.execute("select place from members where id = ?", (subject,)).fetchone()
        return row[0] if row else None

    def _spread(self, start: str, place: int) -> None:
        """Give a subject and all that are paired with it their place."""
        queue = [start]
        self._rows.execute("insert into members values (?, ?)", (start, place))
        while queue:
            here = queue.pop()
            near = "select other from pairs where one = ? union select one from pairs where other = ?"
            for (found,) in self._rows.execute(near, (here, here)).fetchall():
                if self._rows.execute("insert or ignore into members values (?, ?)", (found, place)).rowcount:
                    queue.append(found)

    def chosen(self, most: int, pairs: int, members: int) -> Iterator[Group]:
        """Up to `most` groups, the least similar first: the first half of them, and of the others evenly spaced ones."""
        total = self._rows.execute("select count(*) from places").fetchone()[0]
        first = min(total, most if total <= most else most // 2)
        places = [*range(first), *(first + i for i in evenly_spaced(total - first, min(most - first, total - first)))]
        for number in places:
            row = "select place, appearances, pairs, least, most from places order by least, place limit 1 offset ?"
            place, appearances, count, least, best = self._rows.execute(row, (number,)).fetchone()
            found = self._rows.execute(
                "select one, other, similarity, sameness, kind from members join pairs on one = id where place = ? "
                "order by similarity, one, other limit ?",
                (place, pairs),
            )
            keys = ("one", "other", "similarity", "sameness", "kind")
            shown: list[Record] = [dict(zip(keys, each, strict=True)) for each in found]
            ids = self._rows.execute("select id from members where place = ? order by id limit ?", (place, members)).fetchall()
            seen = dict.fromkeys([pair[side] for pair in shown for side in ("one", "other")] + [each for (each,) in ids])
            yield Group(appearances, count, least, best, shown, list(seen)[:members])
