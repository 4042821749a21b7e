"""Pair: for each subject in the index, the same subject in other clips: neither another subject nor a near-duplicate.

Sources: Phantom, section 3.1, and Phantom-Data (arXiv 2506.18851), section 4.

Similarity is the product of the subjects' vectors: below the lower bound it is another subject. Sameness is the correlation of
the crops with what surrounds them: above the upper bound it is the same image, and a model trained on it learns to copy-paste.
Prior of Phantom-Data: only objects with a complete logo are paired across source videos; all others within their own.
"""

import json
from collections.abc import Container, Iterator
from typing import Any

import numpy as np

from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.data.pipeline.index import SubjectIndex

COLUMNS = ["clip", "source_video", "name", "has_logo", "vector", "face", "context"]
SAME_FACE = 0.6  # Euclidean distance of dlib's face features within which it is one person


def run(
    subject_index: SubjectIndex, config: Config, done: Container[str] = (), repeated: Container[str] | None = None
) -> Iterator[Record]:
    """Pair records: subject, partner, similarity, sameness, and "drop" with the reason for those that were rejected.

    Those of one subject follow each other. Subjects in `done` are passed over, and those of `repeated` clips, which are looked
    for where they are not given.
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
            kept += not pair["drop"]
            yield pair
            if kept == config.partners:
                break


def _neighbors(dataset: Any, row: Record, config: Config) -> list[Record]:
    """The nearest subjects of other clips, nearest first; ties by id, so that the order of rows does not matter."""
    where = f"clip != '{row['clip']}'" + ("" if row["has_logo"] else f" AND source_video = '{row['source_video']}'")
    query = {"column": "vector", "q": np.asarray(row["vector"], np.float32), "k": config.neighbors, "metric": "dot"}
    neighbors = dataset.to_table(columns=["id", *COLUMNS, "_distance"], nearest=query, filter=where, prefilter=True).to_pylist()
    return sorted(neighbors, key=lambda other: (-round(_product(row["vector"], other["vector"]), 5), other["id"]))


def _product(a: list[float], b: list[float]) -> float:
    return float(np.asarray(a, np.float32) @ np.asarray(b, np.float32))


def _compared(row: Record, other: Record, config: Config) -> Record:
    similarity = _product(row["vector"], other["vector"])
    sameness = float((np.asarray(row["context"], np.float32) @ np.asarray(other["context"], np.float32).T).max())
    apart = row["face"] and other["face"] and np.linalg.norm(np.subtract(row["face"], other["face"])) > SAME_FACE
    drop = "another face" if apart else "another subject" if similarity < config.lower else ""
    return {
        "subject": row["id"],
        "clip": row["clip"],
        "partner": other["id"],
        "partner_clip": other["clip"],
        "similarity": similarity,
        "sameness": sameness,
        "drop": drop or ("near-duplicate" if sameness > config.upper else ""),
    }


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
