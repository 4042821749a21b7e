"""Which subjects of a library are one identity: those that pairs connect, directly or through others.

Pairs connect from the most similar one on, and never two subjects of one clip: they are two by being seen together, so where
pairs say otherwise the least similar of them is wrong. In a temporary file of SQLite's, so that memory does not grow with pairs.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from phantom_s2v.data.pipeline.config import Record
from phantom_s2v.data.pipeline.pair import ONE_SUBJECT
from phantom_s2v.media.images import evenly_spaced

AT_ONCE = 500  # subjects that one statement names
ENDS = "pairs join members a on a.id = one join members b on b.id = other"  # of pairs, with both subjects' identities
TABLES = """
create table pairs (one text, other text, similarity real, sameness real, kind text, kept int);
create unique index of_pair on pairs (one, other);
create table members (id text primary key, clip text, place integer) without rowid;
create index of_place on members (place, clip);
create table places (place integer primary key, size int, identity text, appearances int, pairs int, least real, most real);
"""


@dataclass(frozen=True)
class Group:
    """One identity: how many of its appearances (one in each clip) are paired, and its pairs, the least similar first."""

    identity: str
    appearances: int
    pairs: int
    least: float  # similarity
    most: float
    shown: list[Record]  # of the pairs some, the least similar first
    members: list[str]  # ids of subjects, each once: those of these pairs first


class PairGroups:
    """Takes in pairs one by one; `gather` puts them together, once all are there."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("")  # a file without a name, gone with the connection
        self._rows.executescript(TABLES)

    def add(self, pair: Record) -> None:
        """Take in a pair, where it is of one subject; the same two subjects count once, whichever is the reference."""
        if pair["drop"] not in ONE_SUBJECT:
            return
        ends = sorted(((pair["subject"], pair["clip"]), (pair["partner"], pair["partner_clip"])))
        row = (ends[0][0], ends[1][0], pair["similarity"], pair["sameness"], pair["kind"], not pair["drop"])
        self._rows.execute(
            "insert into pairs values (?, ?, ?, ?, ?, ?) on conflict do update set kept = max(kept, excluded.kept)", row
        )
        self._rows.executemany("insert or ignore into members values (?, ?, null)", ends)

    def gather(self) -> int:
        """Find which subjects are one identity; how many identities have a pair that is kept."""
        rows = self._rows
        rows.execute(
            "update members set place = n from (select id as i, row_number() over (order by id) as n from members) where id = i"
        )
        rows.execute("insert into places (place, size) select place, 1 from members")
        for one, other in rows.execute("select one, other from pairs order by similarity desc, one, other"):
            self._join(one, other)
        rows.execute("delete from places where size = 0")
        rows.execute("update places set identity = (select min(id) from members where members.place = places.place)")
        rows.execute(
            "update places set pairs = n, least = low, most = high from (select a.place as p, count(*) as n, "
            f"min(similarity) as low, max(similarity) as high from {ENDS} where kept and a.place = b.place group by a.place) "
            "where place = p"
        )
        rows.execute("update places set appearances = (select count(*) from members where members.place = places.place)")
        return rows.execute("select count(*) from places where pairs").fetchone()[0]

    def _join(self, one: str, other: str) -> None:
        """Make the identities of two subjects one, where they were never seen together; the smaller one moves."""
        find = "select places.place, size from members join places using (place) where id = ?"
        (a, size), (b, other_size) = (self._rows.execute(find, (each,)).fetchone() for each in (one, other))
        together = "select 1 from members x join members y on x.clip = y.clip where x.place = ? and y.place = ? limit 1"
        small, large = (a, b) if size <= other_size else (b, a)
        if a == b or self._rows.execute(together, (small, large)).fetchone():
            return
        self._rows.execute("update members set place = ? where place = ?", (large, small))
        self._rows.execute("update places set size = ? where place = ?", (size + other_size, large))
        self._rows.execute("update places set size = 0 where place = ?", (small,))

    @property
    def across(self) -> int:
        """How many identities are in several source videos."""
        ask = f"select count(distinct a.place) from {ENDS} where kind = 'cross-source' and a.place = b.place"
        return self._rows.execute(ask).fetchone()[0]

    @property
    def contradicting(self) -> int:
        """How many kept pairs connect two identities, since their subjects were seen together; they are not used."""
        ask = f"select count(*) from {ENDS} where kept and a.place <> b.place"
        return self._rows.execute(ask).fetchone()[0]

    def identities(self, subjects: Collection[str]) -> dict[str, str]:
        """Identity of each of some subjects: the smallest id of a subject that is the same; of one without a pair its own."""
        found, asked = {each: each for each in subjects}, sorted(subjects)
        for start in range(0, len(asked), AT_ONCE):
            part = asked[start : start + AT_ONCE]
            ask = f"select id, identity from members join places using (place) where id in ({', '.join('?' * len(part))})"
            found |= dict(self._rows.execute(ask, part).fetchall())
        return found

    def chosen(self, most: int, pairs: int, members: int) -> Iterator[Group]:
        """Up to `most` groups, the least similar first: the first half of them, and of the others evenly spaced ones."""
        total = self._rows.execute("select count(*) from places where pairs").fetchone()[0]
        first = min(total, most if total <= most else most // 2)
        places = [*range(first), *(first + i for i in evenly_spaced(total - first, min(most - first, total - first)))]
        for number in places:
            row = (
                "select place, identity, appearances, pairs, least, most from places where pairs "
                "order by least, identity limit 1 offset ?"
            )
            place, identity, appearances, count, least, best = self._rows.execute(row, (number,)).fetchone()
            found = self._rows.execute(
                f"select one, other, similarity, sameness, kind from {ENDS} where kept and a.place = ? and b.place = ? "
                "order by similarity, one, other limit ?",
                (place, place, pairs),
            )
            keys = ("one", "other", "similarity", "sameness", "kind")
            shown: list[Record] = [dict(zip(keys, each, strict=True)) for each in found]
            ids = self._rows.execute("select id from members where place = ? order by id limit ?", (place, members)).fetchall()
            seen = dict.fromkeys([pair[side] for pair in shown for side in ("one", "other")] + [each for (each,) in ids])
            yield Group(identity, appearances, count, least, best, shown, list(seen)[:members])


def grouped(pairs: Iterable[Record]) -> PairGroups:
    """Pairs put together."""
    groups = PairGroups()
    for pair in pairs:
        groups.add(pair)
    groups.gather()
    return groups
