"""Pair: for each subject in the index, the same subject in other clips: neither another subject nor a near-duplicate.

Sources: Phantom, section 3.1, and Phantom-Data (arXiv 2506.18851), section 4.

Similarity is the product of the subjects' vectors: below the lower bound it is another subject. Sameness is the correlation of
the crops with what surrounds them: above the upper bound it is the same image, and a model trained on it learns to copy-paste.
Priors of Phantom-Data: across source videos people are paired by their faces and things by a complete logo; all others within
their own. Pieces of one shot show one scene and are paired only where that is asked for.
"""

import json
from collections.abc import Container, Iterator
from typing import Any

import numpy as np

from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.data.pipeline.index import SubjectIndex

COLUMNS = ["clip", "shot", "source_video", "name", "is_person", "has_logo", "has_face", "vector", "face", "context"]
SAME_SHOT = "same-shot"  # kind of pairs
PROBES = 32  # parts of the index that are looked through
DUPLICATE, MORE, PIECE, FACE = "near-duplicate", "enough partners", "another piece of the shot", "another face"
UNUSED = (MORE, PIECE)  # of one subject and no references, which tell identities alone
ONE_SUBJECT = ("", DUPLICATE, *UNUSED)  # what becomes of pairs that show one subject


def run(
    subject_index: SubjectIndex, config: Config, done: Container[str] = (), repeated: Container[str] | None = None
) -> Iterator[Record]:
    """Pair records: subject, partner, kind (cross-shot, cross-source or same-shot), similarity, sameness, "face": the distance of
    the two faces, None where one has none, and "drop": why, if so.

    Those of one subject follow each other. Beyond the partners that are kept, and of pieces of one shot, pairs of one subject are
    given once for both of its sides: they tell which subjects are one identity (groups.py). Subjects in `done` are passed over,
    and those of `repeated` clips, which are looked for where they are not given.
    """
    repeated = repeats(subject_index, config) if repeated is None else repeated
    dataset = subject_index.open("subjects")
    if dataset is None:
        return
    for row in subject_index.rows("subjects", COLUMNS):
        if row["clip"] in repeated or row["id"] in done:
            continue
        kept = 0
        for candidate in _neighbors(dataset, row, config):
            if candidate["clip"] in repeated:
                continue
            pair = _compared(row, candidate, config)
            if pair["kind"] == SAME_SHOT and not config.same_shot:
                if pair["drop"] in ONE_SUBJECT and row["id"] < candidate["id"]:
                    yield {**pair, "drop": PIECE}
            elif kept < config.partners:
                kept += not pair["drop"]
                yield pair
            elif pair["drop"] in ONE_SUBJECT and row["id"] < candidate["id"]:
                yield {**pair, "drop": pair["drop"] or MORE}


def _neighbors(dataset: Any, row: Record, config: Config) -> list[Record]:
    """The nearest subjects of other shots and other pieces of its own, nearest first; ties by id, whatever the order of rows.

    Of the same source video by their vectors; of all others by their faces, and by their vectors where both have a logo.
    """
    apart = f"clip != '{row['clip']}'" + ("" if config.same_shot else f" AND shot != '{row['shot']}'")
    here = f"source_video = '{row['source_video']}'"
    found = _nearest(dataset, "vector", row["vector"], f"{apart} AND {here}", config, exact=True)
    if not config.same_shot:  # by themselves, since a long shot has more pieces than are looked at
        pieces = f"clip != '{row['clip']}' AND shot = '{row['shot']}'"
        found += _nearest(dataset, "vector", row["vector"], pieces, config, exact=True)
    if row["has_logo"]:
        found += _nearest(dataset, "vector", row["vector"], f"has_logo AND NOT {here}", config)
    if row["has_face"]:
        found += _nearest(dataset, "face", row["face"], f"has_face AND NOT {here}", config)
    unique = {other["id"]: other for other in found}
    return sorted(unique.values(), key=lambda other: (-round(_product(row["vector"], other["vector"]), 5), other["id"]))


def _nearest(dataset: Any, column: str, vector: list[float], where: str, config: Config, exact: bool = False) -> list[Record]:
    """Rows whose `column` is nearest to a vector, through Lance's index where there is one (index.py), or `exact`."""
    metric = "dot" if column == "vector" else "l2"
    query = {"column": column, "q": np.asarray(vector, np.float32), "k": config.neighbors, "metric": metric}
    query |= {"use_index": not exact, "nprobes": PROBES}
    return dataset.to_table(columns=["id", *COLUMNS, "_distance"], nearest=query, filter=where, prefilter=True).to_pylist()


def _product(a: list[float], b: list[float]) -> float:
    return float(np.asarray(a, np.float32) @ np.asarray(b, np.float32))


def _compared(row: Record, other: Record, config: Config) -> Record:
    similarity = _product(row["vector"], other["vector"])
    sameness = float((np.asarray(row["context"], np.float32) @ np.asarray(other["context"], np.float32).T).max())
    kind = SAME_SHOT if row["shot"] == other["shot"] else "cross-shot"
    kind = kind if row["source_video"] == other["source_video"] else "cross-source"
    both = row["has_face"] and other["has_face"]
    face = float(np.linalg.norm(np.subtract(row["face"], other["face"]))) if both else None
    drop = _other_subject(row, other, kind, similarity, face, config)
    return {
        "subject": row["id"],
        "clip": row["clip"],
        "partner": other["id"],
        "partner_clip": other["clip"],
        "kind": kind,
        "similarity": similarity,
        "sameness": sameness,
        "face": face,
        "drop": drop or (DUPLICATE if sameness > config.upper else ""),
    }


def max_face_distance(kind: str, config: Config) -> float:
    """The distance of faces above which a pair of a kind shows two people."""
    return config.same_face_across if kind == "cross-source" else config.same_face


def _other_subject(row: Record, other: Record, kind: str, similarity: float, face: float | None, config: Config) -> str:
    """Why a pair is not of one subject; empty where it is. Where both have a face it decides, else the similarity.

    Across source videos a face has to match, or a complete logo.
    """
    if row["is_person"] != other["is_person"]:
        return "another subject"
    if face is not None:
        return FACE if face > max_face_distance(kind, config) else ""
    if kind == "cross-source" and not (row["has_logo"] and other["has_logo"]):
        return "neither face nor logo"
    return "another subject" if similarity < config.lower else ""


def repeats(subject_index: SubjectIndex, config: Config) -> dict[str, str]:
    """Clips that repeat another clip -> that clip: of those alike the one with the smallest id is kept."""
    dataset, repeated = subject_index.open("clips"), dict[str, str]()
    if dataset is None:
        return repeated
    for row in subject_index.rows("clips", ["signature", "facts"], "`drop` = ''"):
        if row["id"] in repeated:
            continue
        query = {"column": "signature", "q": np.asarray(row["signature"], np.float32), "k": config.neighbors, "metric": "dot"}
        near = dataset.to_table(
            columns=["id", "signature", "facts", "_distance"],
            nearest=query,
            filter=f"`drop` = '' AND id > '{row['id']}'",
            prefilter=True,
        )
        for other in near.to_pylist():
            if other["id"] not in repeated and _repeats(row, other, config):
                repeated[other["id"]] = row["id"]
    return repeated


def _repeats(row: Record, other: Record, config: Config) -> bool:
    """The same images, and about as long."""
    lengths = [facts["stop"] - facts["start"] for facts in (json.loads(row["facts"]), json.loads(other["facts"]))]
    return _product(row["signature"], other["signature"]) > config.same_clip and max(lengths) < 1.5 * min(lengths)
