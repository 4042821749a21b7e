"""Write: clips, and the pairs that were kept, as rows of the triplet store."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator

from phantom_s2v.data.pipeline.bank import Bank
from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.data.pipeline.pair import repeats
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference
from phantom_s2v.geometry import MAX_PICTURES


def run(pairs: Iterable[Record], config: Config, bank: Bank, rights: Rights) -> Iterator[Triplet]:
    """Triplets of every clip that stays: each subject by its partners (cross-pair), else by another moment of the clip (in-pair).

    `rights` hold where a film came without its own.
    """
    partners: dict[str, list[Record]] = defaultdict(list)
    for pair in pairs:
        if not pair["drop"]:
            partners[pair["subject"]].append(pair)
    repeated = repeats(bank, config)
    for clip in bank.rows("clips", ["video", "facts"], "`drop` = ''"):
        if clip["id"] not in repeated:
            yield _triplet(clip, partners, bank, rights)


def _triplet(clip: Record, partners: dict[str, list[Record]], bank: Bank, rights: Rights) -> Triplet:
    facts = json.loads(clip["facts"])
    own = _rows(bank, facts["subjects"])
    references: list[TripletReference] = []
    for number in facts["subjects"]:
        subject, others = own[number], partners.get(number, [])
        found = _rows(bank, [pair["partner"] for pair in others])
        for pair in others:
            other = found[pair["partner"]]
            theirs = _rights(bank, other["clip"], rights)
            view = other["views"][len(other["views"]) // 2]
            references.append(_reference(view, subject["name"], "cross-pair", pair["similarity"], theirs))
        if not others:
            references.append(_reference(subject["views"][-1], subject["name"], "in-pair", 1.0, _own(facts, rights)))
    return Triplet(
        video=clip["video"],
        caption=facts["caption"],
        references=tuple(references[:MAX_PICTURES]),
        fps=facts["fps"],
        frames=facts["stop"] - facts["start"],
        height=facts["height"],
        width=facts["width"],
        scores=facts["scores"],
        rights=_own(facts, rights),
    )


def _reference(view: Record, name: str, pairing: str, score: float, rights: Rights) -> TripletReference:
    left, top, right, bottom = view["inner"]
    return TripletReference(view["picture"], name, pairing, (left, top, right, bottom), view["mask"], score, rights)


def _rows(bank: Bank, ids: list[str]) -> dict[str, Record]:
    """Subjects by id."""
    if not ids:
        return {}
    listed = ", ".join(f"'{i}'" for i in ids)
    return {row["id"]: row for row in bank.rows("subjects", ["clip", "name", "views"], f"id IN ({listed})")}


def _rights(bank: Bank, clip: str, rights: Rights) -> Rights:
    row = next(bank.rows("clips", ["facts"], f"id = '{clip}'"))
    return _own(json.loads(row["facts"]), rights)


def _own(facts: Record, rights: Rights) -> Rights:
    """Rights of a film as they were found beside it, else those given for all; the source is at least the file's name."""
    given = Rights(**facts["rights"]) if facts.get("rights") else rights
    return given if given.source else Rights(facts["name"], given.licence, given.consent)
