"""Write: clips, and the pairs that were kept, as rows of the triplet store."""

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from phantom_s2v.data.pipeline.config import Record
from phantom_s2v.data.pipeline.groups import PairGroups
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference
from phantom_s2v.geometry import MAX_IMAGES

BATCH = 32  # clips that are in memory at once, with their videos and images


def run(
    pairs: Callable[[set[str]], Iterable[Record]],
    groups: PairGroups,
    repeated: Container[str],
    subject_index: SubjectIndex,
    rights: Rights,
) -> Iterator[Triplet]:
    """Triplets of every clip that stays: each subject by its partners (cross-pair), else by another moment of the clip (in-pair).

    `pairs` gives those of some subjects, which count where `groups` says that both are one identity; clips that are `repeated`
    are left out. `rights` hold where a source video came without its own.
    """
    kept = (clip for clip in subject_index.rows("clips", ["video", "facts"], "`drop` = ''") if clip["id"] not in repeated)
    while batch := list(islice(kept, BATCH)):
        clips = [(json.loads(clip["facts"]), clip["video"]) for clip in batch]
        wanted = {subject for facts, _ in clips for subject in facts["subjects"]}
        partners: dict[str, list[Record]] = defaultdict(list)
        found = [pair for pair in pairs(wanted) if not pair["drop"]]
        identities = groups.identities(wanted | {pair["partner"] for pair in found})
        for pair in found:
            if identities[pair["subject"]] == identities[pair["partner"]]:
                partners[pair["subject"]].append(pair)
        others = [pair for group in partners.values() for pair in group]
        views = subject_index.subjects(wanted | {pair["partner"] for pair in others})
        sources = subject_index.clip_facts({pair["partner_clip"] for pair in others})
        for facts, video in clips:
            yield _triplet(facts, video, partners, views, sources, identities, rights)


def _triplet(
    facts: Record,
    video: bytes,
    partners: dict[str, list[Record]],
    views: dict[str, Record],
    sources: dict[str, Record],
    identities: dict[str, str],
    rights: Rights,
) -> Triplet:
    """A clip's triplet; `views` are subjects and `identities` their identities by id, `sources` the facts of partners' clips."""
    own = _own(facts, rights)
    references: list[TripletReference] = []
    for number in facts["subjects"]:
        subject, pairs, same = views[number], partners.get(number, []), {"identity": identities[number]}
        for pair in pairs:
            shown = views[pair["partner"]]["views"]
            theirs = _own(sources[pair["partner_clip"]], rights)
            pairing = "same-shot" if pair["kind"] == "same-shot" else "cross-pair"
            references.append(_reference(shown[len(shown) // 2], subject["name"], pairing, pair["similarity"], theirs, **same))
        if not pairs:
            references.append(_reference(subject["views"][-1], subject["name"], "in-pair", None, own, **same))
    return Triplet(
        video=video,
        caption=facts["caption"],
        references=tuple(references[:MAX_IMAGES]),
        fps=facts["fps"],
        frames=facts["frames"],
        height=facts["height"],
        width=facts["width"],
        scores=facts["scores"],
        rights=own,
    )


def _reference(view: Record, name: str, pairing: str, score: float | None, rights: Rights, identity: str) -> TripletReference:
    left, top, right, bottom = view["inner"]
    return TripletReference(view["image"], name, pairing, (left, top, right, bottom), view["mask"], score, rights, identity)


def _own(facts: Record, rights: Rights) -> Rights:
    """Rights of a source video as they were found beside it, else those of the whole run; the source is at least the file's
    name.
    """
    rights_beside = Rights(**facts["rights"]) if facts.get("rights") else rights
    return rights_beside if rights_beside.source else Rights(facts["name"], rights_beside.license, rights_beside.consent)
