"""The index: what the stages before pairing found, on disk, as Lance datasets that are merged into by id.

source_videos  one row for every file that is done: its record and the seconds that each stage took
clips     one row for every clip, kept or dropped; the video of those kept
subjects  one row for every subject: its vectors and images
backgrounds  one row for every clip whose scene without subjects is a reference: its image and vector
written   ids of the triplets that were written
pairs     one row for every subject: the results for its pairs, and at which version of the subjects

A source video's own row is written after those of its clips, so a killed run does at most the source videos of its buffer
again, and merging them changes nothing.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import lance
import numpy as np
import pyarrow as pa

from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.errors import DataError
from phantom_s2v.files.io import writing_folder
from phantom_s2v.files.reuse import code_version

BUFFER, BUFFER_BYTES = 64, 64 << 20  # records, and bytes of their videos and images, that are held before they are written
BATCH = 64  # rows that are read at once, with their videos
PAIRING = ("pair", "verify")  # stages that decide pairs
PASSED_OVER = 12  # of what was seen in a clip and is no subject
BACKGROUND_QUALITY = 95  # of JPEG: a whole frame as PNG takes some megabytes
STILL = 256  # pixels, the longer side of the frame of a dropped clip
INDEXED = 20_000  # subjects from which on their vectors have an approximate index
COMPACT = 32  # fragments from which on a dataset is put together again


def _vector(width: int) -> pa.DataType:
    return pa.list_(pa.float32(), width)


SOURCE_VIDEOS = pa.schema([("id", pa.string()), ("facts", pa.string())])
CLIPS = pa.schema(
    [
        ("id", pa.string()),
        ("source_video", pa.string()),
        ("drop", pa.string()),
        ("facts", pa.string()),
        ("signature", _vector(64)),
        ("video", pa.large_binary()),
        ("still", pa.large_binary()),
    ]
)
PAIRS = pa.schema([("id", pa.string()), ("version", pa.int64()), ("config", pa.string()), ("facts", pa.string())])
TEXTS = ("id", "clip", "shot", "source_video", "name")
VIEW = pa.struct([("image", pa.large_binary()), ("mask", pa.large_binary()), ("inner", pa.list_(pa.float64()))])


def subjects_schema(width: int, face_width: int) -> pa.Schema:
    """Schema of subjects whose vectors have `width` numbers, and those of their faces `face_width`."""
    texts: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in TEXTS]
    return pa.schema(
        [
            *texts,
            ("is_person", pa.bool_()),
            ("has_logo", pa.bool_()),
            ("has_face", pa.bool_()),
            ("vector", _vector(width)),
            ("face", _vector(face_width)),
            ("context", pa.list_(_vector(768))),
            ("views", pa.list_(VIEW)),
        ]
    )


def backgrounds_schema(width: int) -> pa.Schema:
    """Schema of backgrounds whose vectors have `width` numbers."""
    texts: list[tuple[str, pa.DataType]] = [(name, pa.string()) for name in ("id", "shot", "source_video")]
    return pa.schema([*texts, ("image", pa.large_binary()), ("vector", _vector(width))])


class SubjectIndex:
    """The datasets below a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.held: dict[str, list[Record]] = {"subjects": [], "backgrounds": [], "clips": [], "source_videos": []}  # rows

    def _path(self, name: str) -> str:
        return str(self.folder / f"{name}.lance")

    def open(self, name: str) -> Any:
        """The dataset `name`, None where nothing was written yet."""
        return lance.dataset(self._path(name)) if (self.folder / f"{name}.lance").exists() else None

    def done(self) -> dict[str, tuple[str, str]]:
        """Files that are done -> the hash of their content (see probe.py), and the mark of what looked at them."""
        return {
            source_video["path"]: (source_video.get("source", ""), source_video["config"])
            for source_video in self.source_videos()
        }

    def source_videos(self) -> Iterator[Record]:
        """Records of the files that are done."""
        for row in self.rows("source_videos", ["facts"]):
            yield json.loads(row["facts"])

    def paired(self, version: int, config: Config) -> set[str]:
        """Subjects whose pairs were computed at this version of the subjects, with these thresholds."""
        return {row["id"] for row in self.rows("pairs", [], _of(version, config))}

    def pairs(self, version: int, config: Config, subjects: Collection[str] | None = None) -> Iterator[Record]:
        """Pairs that were computed so, of some `subjects` or of all, a batch in memory at a time; those of a subject together."""
        where = _of(version, config)
        if subjects is not None:
            where += f" AND id IN ({', '.join(repr(each) for each in sorted(subjects)) or repr('')})"
        for row in self.rows("pairs", ["facts"], where):
            yield from json.loads(row["facts"])

    def keep_pairs(self, pairs: dict[str, list[Record]], version: int, config: Config) -> None:
        """Write the pairs of some subjects."""
        same = {"version": version, "config": mark(config, PAIRING)}
        rows = [{"id": subject, "facts": json.dumps(subject_pairs), **same} for subject, subject_pairs in pairs.items()]
        if rows:
            self._merge("pairs", rows, PAIRS)

    def written(self) -> set[str]:
        """Ids of the triplets that the last run wrote."""
        return {row["id"] for row in self.rows("written", [])}

    def note_written(self, ids: set[str]) -> None:
        """Remember which triplets were written."""
        table = pa.Table.from_pylist([{"id": each} for each in sorted(ids)], schema=pa.schema([("id", pa.string())]))
        place = self._path("written")
        lance.write_dataset(table, place, mode="overwrite" if Path(place).exists() else "create")

    def add(self, record: Record) -> None:
        """Take in a clip's record or, after all of its clips, a source video's; they are on disk after some of them, or `flush`.

        Clips of a source video that turned out to be broken are taken back.
        """
        if record["kind"] == "source_video":
            self.held["source_videos"].append(_source_video_row(record))
            if record["drop"] and record["clips"]:
                self._forget([record["source_video"]])
        else:
            self.held["clips"].append(_clip_row(record))
            if not record["drop"]:
                self.held["subjects"] += [_subject_row(record, subject) for subject in record["subjects"]]
                if "image" in record.get("background", {}):
                    self.held["backgrounds"].append(_background_row(record))
        images = sum(len(view["image"]) for row in self.held["subjects"] for view in row["views"])
        images += sum(len(row["image"]) for row in self.held["backgrounds"])
        size = images + sum(len(row["video"]) for row in self.held["clips"])
        if size >= BUFFER_BYTES or len(self.held["clips"]) + len(self.held["source_videos"]) >= BUFFER:
            self.flush()

    def forget(self, paths: Iterable[str]) -> None:
        """Remove what was found in files that are looked at again: another caption or bound gives other subjects."""
        wanted = set(paths)
        known = (row["source_video"] for row in self.source_videos() if row["path"] in wanted and row["source_video"])
        while part := list(islice(known, BATCH)):
            self._forget(part)

    def _forget(self, source_videos: Collection[str]) -> None:
        """Remove the clips and subjects of source videos."""
        listed = ", ".join(f"'{each}'" for each in source_videos)
        for name in ("subjects", "backgrounds", "clips"):
            self.held[name] = [row for row in self.held[name] if row["source_video"] not in source_videos]
            if dataset := self.open(name):
                dataset.delete(f"source_video IN ({listed})")

    def flush(self) -> None:
        """Write what is held: subjects and backgrounds, then clips, then source videos."""
        held, self.held = self.held, {name: [] for name in self.held}
        if held["subjects"]:
            first = held["subjects"][0]
            self._merge("subjects", held["subjects"], subjects_schema(len(first["vector"]), len(first["face"])))
        if held["backgrounds"]:
            self._merge("backgrounds", held["backgrounds"], backgrounds_schema(len(held["backgrounds"][0]["vector"])))
        if held["clips"]:
            self._merge("clips", held["clips"], CLIPS)
        if held["source_videos"]:
            self._merge("source_videos", held["source_videos"], SOURCE_VIDEOS)

    def _merge(self, name: str, rows: list[Record], schema: pa.Schema) -> None:
        table = pa.Table.from_pylist(list({row["id"]: row for row in rows}.values()), schema=schema)
        dataset = self.open(name)
        if dataset is None:
            with writing_folder(Path(self._path(name))) as scratch:  # one whose first write was killed cannot be opened
                lance.write_dataset(table, str(scratch))
            return
        if not dataset.schema.equals(schema):
            raise DataError(
                f"{self.folder} was built with another embedder or an earlier version; choose another folder, or remove it"
            )
        dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)
        dataset = lance.dataset(self._path(name))
        if len(dataset.get_fragments()) > COMPACT:
            dataset.optimize.compact_files()

    def index_vectors(self) -> None:
        """Give vectors and faces of very many subjects an approximate index (IVF), or take in those that came since.

        Search within one source video looks at all of its subjects; across source videos it goes through the index.
        """
        dataset = self.open("subjects")
        if dataset is None or dataset.count_rows() < INDEXED:
            return
        rows = dataset.count_rows()
        indexed = {column: index.num_rows_indexed for index in dataset.describe_indices() for column in index.field_names}
        for column, metric in (("vector", "dot"), ("face", "l2")):
            if column not in indexed:
                dataset = dataset.create_index(column, index_type="IVF_FLAT", metric=metric, num_partitions=round(rows**0.5))
        if any(count < rows for count in indexed.values()):
            dataset.optimize.optimize_indices()

    def subjects(self, ids: Collection[str]) -> dict[str, Record]:
        """Clip, name and views of subjects by id."""
        return self._by_id("subjects", ["clip", "name", "views"], ids)

    def scenes_like(self, clip: str, shot: str, k: int) -> list[Record]:
        """Backgrounds of the `k` clips of the same source video whose scenes are most like that of `clip`, its own first: id,
        similarity and whether they are of its `shot`. Empty where it has none.
        """
        dataset = self.open("backgrounds")
        own = next(iter(self.rows("backgrounds", ["source_video", "vector"], f"id = '{clip}'")), None)
        if dataset is None or own is None:
            return []
        query = {"column": "vector", "q": np.asarray(own["vector"], np.float32), "k": k, "metric": "dot", "use_index": False}
        where = f"source_video = '{own['source_video']}' AND id != '{clip}'"
        found = dataset.to_table(columns=["id", "shot", "vector", "_distance"], nearest=query, filter=where, prefilter=True)
        others = [
            {"id": row["id"], "similarity": float(np.dot(own["vector"], row["vector"])), "same_shot": row["shot"] == shot}
            for row in found.to_pylist()
        ]
        return [{"id": clip, "similarity": 1.0, "same_shot": True}, *sorted(others, key=lambda o: (-o["similarity"], o["id"]))]

    def background(self, clip: str) -> bytes:
        """The image of a clip's background, empty where it has none."""
        return next((row["image"] for row in self.rows("backgrounds", ["image"], f"id = '{clip}'")), b"")

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
        table = dataset.to_table(columns=["id"], filter=where, with_row_id=True)
        order = sorted(zip(table["id"].to_pylist(), table["_rowid"].to_pylist(), strict=True))
        for start in range(0, len(order), BATCH):
            part = order[start : start + BATCH]
            taken = dataset._take_rows([row for _, row in part], columns=["id", *columns])
            yield from sorted(taken.to_pylist(), key=lambda row: row["id"])


def _of(version: int, config: Config) -> str:
    """The filter of pairs computed at a version of the subjects with these thresholds."""
    return f"version = {version} AND config = '{mark(config, PAIRING)}'"


def mark(config: Config, stages: tuple[str, ...]) -> str:
    """A short hash of a configuration, which names the networks by content, and of the code of the stages that it is for."""
    names = (f"data.pipeline.{stage}" for stage in stages)
    code = code_version(*names, "data.pipeline.networks")
    return hashlib.sha256(repr((config, code)).encode()).hexdigest()[:16]


def _source_video_row(source_video: Record) -> Record:
    return {"id": source_video["path"], "facts": json.dumps(source_video, ensure_ascii=False)}


def _clip_row(clip: Record) -> Record:
    left_out = ("video", "still", "signature", "subjects", "path", "notices", "phrases", "origin", "passed_over", "background")
    facts = {k: v for k, v in clip.items() if k not in left_out}
    facts["subjects"] = [s["subject"] for s in clip.get("subjects", [])]
    facts["views"] = [
        {"subject": s["subject"], "instant": v["instant"], "box": list(v["box"]), "scores": v.get("scores", {})}
        for s in clip.get("subjects", [])
        for v in s["views"]
    ]
    if background := clip.get("background"):
        facts["background"] = {"seen": background["seen"], "reason": background["reason"]}
    passed_over = clip.get("passed_over", [])
    facts["passed_over"] = sorted(passed_over, key=lambda each: each["instant"] != clip.get("shown"))[:PASSED_OVER]
    empty = np.zeros(64, np.float32)
    return {
        "id": clip["clip"],
        "source_video": clip["source_video"],
        "drop": clip["drop"],
        "facts": json.dumps(facts, ensure_ascii=False),
        "signature": clip.get("signature", empty).tolist(),
        "video": b"" if clip["drop"] else clip["video"],
        "still": clip.get("still", b""),
    }


def _subject_row(clip: Record, subject: Record) -> Record:
    return {
        "id": subject["subject"],
        "clip": clip["clip"],
        "shot": clip["shot"],
        "source_video": clip["source_video"],
        "name": subject["name"],
        "is_person": subject["is_person"],
        "has_logo": subject["has_logo"],
        "has_face": subject["has_face"],
        "vector": subject["vector"].tolist(),
        "face": subject["face"].tolist(),
        "context": subject["context"].tolist(),
        "views": [
            {"image": png(v["image"]), "mask": png(v["mask"].astype(np.uint8) * 255), "inner": list(v["inner"])}
            for v in subject["views"]
        ],
    }


def _background_row(clip: Record) -> Record:
    names = ("shot", "source_video")
    found = clip["background"]
    image = encoded_jpeg(found["image"], BACKGROUND_QUALITY)
    return {"id": clip["clip"], **{name: clip[name] for name in names}, "image": image, "vector": found["vector"].tolist()}


def png(image: np.ndarray) -> bytes:
    """An image as PNG."""
    return cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


def jpeg(image: np.ndarray) -> bytes:
    """A small copy of an image as JPEG."""
    scale = STILL / max(image.shape[:2])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else image
    return encoded_jpeg(small, 80)


def encoded_jpeg(image: np.ndarray, quality: int) -> bytes:
    """An image as JPEG."""
    return cv2.imencode(".jpg", np.ascontiguousarray(image[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def unpng(content: bytes) -> np.ndarray:
    """A PNG as uint8 [H, W, 3], or [H, W] where it has one channel."""
    image = np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))
    return image[..., ::-1] if image.ndim == 3 else image
