"""The bank: what the stages before pairing found, on disk, as Lance datasets that are merged into by id.

films     one row for every file that is done: its record and the seconds that each stage took
clips     one row for every clip, kept or dropped; the video of those kept
subjects  one row for every subject: its vectors and pictures
written   ids of the triplets that were written
pairs     one row for every subject: what was judged of its pairs, and at which version of the subjects

A film's own row is written last, so a killed run does at most the films of its buffer again, and merging them changes nothing.
"""

import hashlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import cv2
import lance
import numpy as np
import pyarrow as pa

from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.errors import DataError
from phantom_s2v.files import writing_folder
from phantom_s2v.reuse import code_version

BUFFER = 8  # films that are written at once
BATCH = 256  # rows that are read at once
PAIRING = ("pair", "verify")  # stages that judge pairs
COMPACT = 32  # fragments from which on a dataset is put together again


def _vector(width: int) -> pa.DataType:
    return pa.list_(pa.float32(), width)


FILMS = pa.schema([("id", pa.string()), ("facts", pa.string())])
CLIPS = pa.schema(
    [
        ("id", pa.string()),
        ("film", pa.string()),
        ("drop", pa.string()),
        ("facts", pa.string()),
        ("signature", _vector(64)),
        ("video", pa.large_binary()),
    ]
)
PAIRS = pa.schema([("id", pa.string()), ("version", pa.int64()), ("config", pa.string()), ("facts", pa.string())])
TEXTS = ("id", "clip", "film", "name")
VIEW = pa.struct([("picture", pa.large_binary()), ("mask", pa.large_binary()), ("inner", pa.list_(pa.float64()))])


def subjects_schema(width: int) -> pa.Schema:
    """Schema of subjects whose vectors have `width` numbers."""
    texts: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in TEXTS]
    return pa.schema(
        [
            *texts,
            ("marked", pa.bool_()),
            ("vector", _vector(width)),
            ("face", pa.list_(pa.float32())),
            ("context", pa.list_(_vector(768))),
            ("views", pa.list_(VIEW)),
        ]
    )


class Bank:
    """The datasets below a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.held: list[list[Record]] = []

    def _path(self, name: str) -> str:
        return str(self.folder / f"{name}.lance")

    def open(self, name: str) -> Any:
        """The dataset `name`, None where nothing was written yet."""
        return lance.dataset(self._path(name)) if (self.folder / f"{name}.lance").exists() else None

    def done(self) -> dict[str, tuple[str, str]]:
        """Files that are done -> the hash of their content (see probe.py), and the mark of what looked at them."""
        return {film["path"]: (film.get("source", ""), film["config"]) for film in self.films()}

    def films(self) -> Iterator[Record]:
        """Records of the files that are done."""
        for row in self.rows("films", ["facts"]):
            yield json.loads(row["facts"])

    def judged(self, version: int, config: Config) -> dict[str, list[Record]]:
        """Pairs that were judged at this version of the subjects, with these thresholds, by subject."""
        where = f"version = {version} AND config = '{mark(config, PAIRING)}'"
        return {row["id"]: json.loads(row["facts"]) for row in self.rows("pairs", ["facts"], where)}

    def all_pairs(self) -> list[Record]:
        """Every pair that was judged last."""
        return [pair for row in self.rows("pairs", ["facts"]) for pair in json.loads(row["facts"])]

    def keep_pairs(self, pairs: dict[str, list[Record]], version: int, config: Config) -> None:
        """Write the judged pairs of some subjects."""
        same = {"version": version, "config": mark(config, PAIRING)}
        rows = [{"id": subject, "facts": json.dumps(found), **same} for subject, found in pairs.items()]
        if rows:
            self._merge("pairs", rows, PAIRS)

    def written(self) -> set[str]:
        """Ids of the triplets that the last run wrote."""
        return {row["id"] for row in self.rows("written", [])}

    def note_written(self, ids: set[str]) -> None:
        """Remember which triplets were written."""
        table = pa.Table.from_pylist([{"id": each} for each in sorted(ids)], schema=pa.schema([("id", pa.string())]))
        lance.write_dataset(table, self._path("written"), mode="overwrite")

    def add(self, film: list[Record]) -> None:
        """Take the records of one film, its own last; they are on disk after `BUFFER` films, or `flush`."""
        self.held.append(film)
        if len(self.held) >= BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what is held: subjects, then clips, then films."""
        clips = [record for film in self.held for record in film if record["kind"] == "clip"]
        films = [record for film in self.held for record in film if record["kind"] == "film"]
        subjects = [_subject_row(clip, s) for clip in clips if not clip["drop"] for s in clip["subjects"]]
        if subjects:
            self._merge("subjects", subjects, subjects_schema(len(subjects[0]["vector"])))
        if clips:
            self._merge("clips", [_clip_row(clip) for clip in clips], CLIPS)
        if films:
            self._merge("films", [_film_row(film) for film in films], FILMS)
        self.held = []

    def _merge(self, name: str, rows: list[Record], schema: pa.Schema) -> None:
        table = pa.Table.from_pylist(list({row["id"]: row for row in rows}.values()), schema=schema)
        dataset = self.open(name)
        if dataset is None:
            with writing_folder(Path(self._path(name))) as scratch:  # one whose first write was killed cannot be opened
                lance.write_dataset(table, str(scratch))
            return
        if not dataset.schema.equals(schema):
            raise DataError(f"{self.folder} was filled with another model's vectors; choose another folder, or remove this one")
        dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)
        dataset = lance.dataset(self._path(name))
        if len(dataset.get_fragments()) > COMPACT:
            dataset.optimize.compact_files()

    def subjects(self, ids: Collection[str]) -> dict[str, Record]:
        """Clip, name and views of subjects by id."""
        return self._by_id("subjects", ["clip", "name", "views"], ids)

    def clip_facts(self, ids: Collection[str]) -> dict[str, Record]:
        """Facts of clips by id."""
        return {name: json.loads(row["facts"]) for name, row in self._by_id("clips", ["facts"], ids).items()}

    def _by_id(self, name: str, columns: list[str], ids: Collection[str]) -> dict[str, Record]:
        if not ids:
            return {}
        listed = ", ".join(f"'{each}'" for each in sorted(ids))
        return {row["id"]: row for row in self.rows(name, columns, f"id IN ({listed})")}

    def rows(self, name: str, columns: list[str], where: str | None = None) -> Iterator[Record]:
        """Rows of a dataset, in the order of their ids, a batch in memory at a time."""
        dataset = self.open(name)
        if dataset is None:
            return
        found = dataset.to_table(columns=["id"], filter=where, with_row_id=True)
        order = sorted(zip(found["id"].to_pylist(), found["_rowid"].to_pylist(), strict=True))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            taken = dataset._take_rows([row for _, row in part], columns=["id", *columns])
            yield from sorted(taken.to_pylist(), key=lambda row: row["id"])


def mark(config: Config, stages: tuple[str, ...]) -> str:
    """A short hash of a configuration, which names the networks by content, and of the code of the stages that it is for."""
    names = (f"data.pipeline.{stage}" for stage in stages)
    code = code_version(*names, "backends", without=("evaluation",))  # of which backends takes nothing for these stages
    return hashlib.sha256(repr((config, code)).encode()).hexdigest()[:16]


def _film_row(film: Record) -> Record:
    return {"id": film["path"], "facts": json.dumps(film, ensure_ascii=False)}


def _clip_row(clip: Record) -> Record:
    left_out = ("work", "stills", "video", "signature", "subjects", "path", "notices", "phrases")
    facts = {k: v for k, v in clip.items() if k not in left_out}
    facts["subjects"] = [s["subject"] for s in clip.get("subjects", [])]
    facts["views"] = [
        {"subject": s["subject"], "instant": v["instant"], "box": list(v["box"])}
        for s in clip.get("subjects", [])
        for v in s["views"]
    ]
    empty = np.zeros(64, np.float32)
    return {
        "id": clip["clip"],
        "film": clip["film"],
        "drop": clip["drop"],
        "facts": json.dumps(facts, ensure_ascii=False),
        "signature": clip.get("signature", empty).tolist(),
        "video": b"" if clip["drop"] else clip["video"],
    }


def _subject_row(clip: Record, subject: Record) -> Record:
    return {
        "id": subject["subject"],
        "clip": clip["clip"],
        "film": clip["film"],
        "name": subject["name"],
        "marked": subject["marked"],
        "vector": subject["vector"].tolist(),
        "face": [] if subject["face"] is None else subject["face"].tolist(),
        "context": subject["context"].tolist(),
        "views": [
            {"picture": png(v["picture"]), "mask": png(v["mask"].astype(np.uint8) * 255), "inner": list(v["inner"])}
            for v in subject["views"]
        ],
    }


def png(picture: np.ndarray) -> bytes:
    """A picture as PNG."""
    return cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)[1].tobytes()


def unpng(content: bytes) -> np.ndarray:
    """A PNG as uint8 [H, W, 3], or [H, W] where it has one channel."""
    picture = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))
    return picture[..., ::-1] if picture.ndim == 3 else picture
