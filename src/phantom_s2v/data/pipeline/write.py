"""Write: clips, and the pairs that were kept, as rows of the triplet store."""

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from phantom_s2v.data.pipeline.background import NAME
from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.data.pipeline.groups import PairGroups
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference
from phantom_s2v.geometry import MAX_IMAGES, MAX_SUBJECTS

BATCH = 32  # clips that are in memory at once, with their videos and images


def run(
    pairs: Callable[[set[str]], Iterable[Record]],
    groups: PairGroups,
    repeated: Container[str],
    subject_index: SubjectIndex,
    rights: Rights,
    config: Config,
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
            triplet = _triplet(facts, video, partners, views, sources, identities, rights)
            yield _with_background(triplet, facts, repeated, subject_index, rights, config) if config.background else triplet


def _with_background(
    triplet: Triplet, facts: Record, repeated: Container[str], subject_index: SubjectIndex, rights: Rights, config: Config
) -> Triplet:
    """The triplet and, last, the scene of its clip without subjects, if it has fewer subjects than there may be.

    Best of another shot, else of another piece of the shot, else of another moment of the clip.
    """
    scenes = subject_index.scenes_like(facts["clip"], facts["shot"], config.neighbors)
    same = [each for each in scenes[1:] if each["similarity"] >= config.scene and each["id"] not in repeated]
    chosen = sorted(same, key=lambda each: each["same_shot"])[:1] or scenes[:1]
    if not chosen or len(facts["subjects"]) == MAX_SUBJECTS:
        return triplet
    (scene,) = chosen
    own = scene["id"] == facts["clip"]
    theirs = facts if own else subject_index.clip_facts([scene["id"]])[scene["id"]]
    reference = TripletReference(
        image=subject_index.background(scene["id"]),
        subject=NAME,
        pairing="in-pair" if own else "same-shot" if scene["same_shot"] else "cross-pair",
        score=None if own else scene["similarity"],
        rights=_own(theirs, rights),
        scores={"seen": theirs["background"]["seen"]},
    )
    return replace(triplet, references=(*triplet.references[: MAX_IMAGES - 1], reference))


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
            view = _view(views[pair["partner"]], sources[pair["partner_clip"]])
            theirs = _own(sources[pair["partner_clip"]], rights)
            pairing = "same-shot" if pair["kind"] == "same-shot" else "cross-pair"
            references.append(_reference(view, subject["name"], pairing, pair["similarity"], theirs, **same))
        if not pairs:
            references.append(_reference(_view(subject, facts, -1), subject["name"], "in-pair", None, own, **same))
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


def _view(subject: Record, facts: Record, number: int | None = None) -> Record:
    """A view of a subject, the middle one if none is named, with its scores out of the facts of its clip."""
    number = len(subject["views"]) // 2 if number is None else number
    scores = [view.get("scores", {}) for view in facts["views"] if view["subject"] == subject["id"]]
    return {**subject["views"][number], "scores": scores[number] if scores else {}}


def _reference(view: Record, name: str, pairing: str, score: float | None, rights: Rights, identity: str) -> TripletReference:
    left, top, right, bottom = view["inner"]
    return TripletReference(
        view["image"], name, pairing, (left, top, right, bottom), view["mask"], score, rights, identity, view["scores"]
    )


def _own(facts: Record, rights: Rights) -> Rights:
    """Rights of a source video as they were found beside it, else those of the whole run; the source is at least the file's
    name.
    """
    rights_beside = Rights(**facts["rights"]) if facts.get("rights") else rights
    return rights_beside if rights_beside.source else Rights(facts["name"], rights_beside.license, rights_beside.consent)
