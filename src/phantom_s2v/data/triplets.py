"""Text-image-video triplets: the data class, its checks, and the Lance store.

One row a triplet: the video as it was encoded, its caption, and its references, each with its image, subject, box, mask,
pairing, score, identity and rights. The id is a hash of content, so that writing the same triplet again changes nothing.

What was not measured is None, null in the store and in JSON.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from phantom_s2v.data.stores import LanceStore, first_line
from phantom_s2v.errors import DataError, OutputError
from phantom_s2v.files.io import check_folder, check_name, writing_folder
from phantom_s2v.files.untrusted import is_text, parse_json
from phantom_s2v.geometry import MAX_IMAGES, MAX_SUBJECTS

PAIRINGS = ("in-pair", "cross-pair", "same-shot")
MAX_REPEATS = 10_000
BATCH, BYTES = 64, 256 << 20  # rows held in memory while writing, and bytes beyond which fewer are
FRAGMENT = 4096  # rows of a fragment that is left as it is
COMPACT, TIDY = 32, 8  # small fragments beyond which they are put together, between batches and at the end of writing
REMOVED_AT_ONCE = 1000  # rows that one statement names
INDEX = "id_idx"


@dataclass(frozen=True)
class Rights:
    """Where a clip or image comes from, and what allows its use."""

    source: str = ""  # address, shelf mark or file
    license: str = ""  # SPDX name, or the words of the agreement
    consent: str = ""  # reference of the consent of people shown


@dataclass(frozen=True)
class TripletReference:
    """An image of a subject of the clip."""

    image: bytes  # PNG, JPEG or WebP
    subject: str  # what the caption calls it; images of one name are views of one subject
    pairing: str  # in-pair: from the clip itself; cross-pair: from elsewhere; same-shot: from another piece of its shot
    box: tuple[float, float, float, float] | None = None  # of the subject in the image: left, top, right, bottom, in shares
    mask: bytes = b""  # PNG of one channel, of the image's size; empty: none
    score: float | None = None  # similarity of the pair; None: not measured
    rights: Rights = field(default_factory=Rights)
    identity: str = ""  # the same for references of one subject anywhere in the library; empty: not known
    scores: dict[str, float | None] = field(default_factory=dict)  # quality of the image by name


@dataclass(frozen=True)
class Triplet:
    """A clip, its caption and its references."""

    video: bytes  # mp4
    caption: str
    references: tuple[TripletReference, ...]
    fps: float
    frames: int
    height: int  # pixels
    width: int
    scores: dict[str, float | None] = field(default_factory=dict)  # quality of the clip by name
    rights: Rights = field(default_factory=Rights)
    mask: bytes = b""  # weights of its pixels in a training, gray: a video like the clip, or one PNG; empty: all count alike
    repeats: int = 1  # times that an epoch has it
    regularization: bool = False  # keeps a fine-tuned model what it was, and shows nothing that is to be learned

    @property
    def id(self) -> str:
        """SHA-256 over video, mask, caption, and the references' images and subjects, 32 hex digits."""
        digest = hashlib.sha256()
        parts = [self.video, self.caption.encode()]
        parts += [part for r in self.references for part in (r.image, r.subject.encode(), r.pairing.encode())]
        parts += [b"mask", self.mask] if self.mask else []
        for part in parts:
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()[:32]


def check_triplet(triplet: Triplet, require_license: bool = False) -> None:
    """Raise DataError for a triplet that no training could use, or whose rights are not shown where that is required."""
    _check_text(triplet)
    subjects = {r.subject for r in triplet.references}
    faults = []
    if not triplet.video:
        faults.append("has no video")
    if not 1 <= triplet.repeats <= MAX_REPEATS:
        faults.append(f"must have between 1 and {MAX_REPEATS} repeats (got {triplet.repeats})")
    if len(triplet.references) > MAX_IMAGES or len(subjects) > MAX_SUBJECTS:
        limit = f"at most {MAX_IMAGES} of {MAX_SUBJECTS} are possible"
        faults.append(f"has {len(triplet.references)} references of {len(subjects)} subjects; {limit}")
    for number, reference in enumerate(triplet.references, 1):
        if reference.pairing not in PAIRINGS:
            legal = f"{', '.join(PAIRINGS[:-1])} or {PAIRINGS[-1]}"
            faults.append(f"the pairing of reference {number} must be {legal} (got {reference.pairing!r})")
        if reference.box and not (
            0 <= reference.box[0] < reference.box[2] <= 1 and 0 <= reference.box[1] < reference.box[3] <= 1
        ):
            faults.append(
                f"the box of reference {number} must be fractions with left < right and top < bottom (got {reference.box})"
            )
    named = [("score", triplet.scores), *((f"score of reference {n}", r.scores) for n, r in enumerate(triplet.references, 1))]
    named += [(f"score of reference {n}", {"pair": r.score}) for n, r in enumerate(triplet.references, 1)]
    for what, scores in named:
        if odd := [name for name, value in scores.items() if value is not None and not math.isfinite(value)]:
            faults.append(f"the {what} {odd[0]} must be finite, or null where it was not measured (got {scores[odd[0]]})")
    if require_license:
        lacking = [name for name, rights in _all_rights(triplet) if not rights.license]
        if lacking:
            faults.append(f"has no license for {', '.join(lacking)}")
    if faults:
        raise DataError(f"triplet {triplet.id} {'; '.join(faults)}")


def _check_text(triplet: Triplet) -> None:
    """Raise DataError for texts that are not Unicode, of which no id can be made."""
    rights = [text for _, each in _all_rights(triplet) for text in (each.source, each.license, each.consent)]
    for text in (triplet.caption, *(r.subject for r in triplet.references), *rights):
        if not is_text(text):
            raise DataError(f"{text[:60]!r} of a triplet is not valid Unicode")


def _all_rights(triplet: Triplet) -> Iterator[tuple[str, Rights]]:
    yield "the clip", triplet.rights
    for number, reference in enumerate(triplet.references, 1):
        yield f"reference {number}", reference.rights


RIGHTS = pa.struct([(name, pa.string()) for name in ("source", "license", "consent")])
REFERENCE = pa.struct(
    [
        ("image", pa.large_binary()),
        ("subject", pa.string()),
        ("pairing", pa.string()),
        ("box", pa.list_(pa.float64())),
        ("mask", pa.large_binary()),
        ("score", pa.float64()),
        ("rights", RIGHTS),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("video", pa.large_binary()),
        ("caption", pa.string()),
        ("references", pa.list_(REFERENCE)),
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("scores", pa.string()),
        ("rights", RIGHTS),
        ("identities", pa.list_(pa.string())),  # of the references
        ("reference_scores", pa.string()),
        ("mask", pa.large_binary()),
        ("repeats", pa.int64()),
        ("regularization", pa.bool_()),
    ]
)
OF_CLIP = ("mask", "repeats", "regularization")
ADDED = ("identities", "reference_scores", *OF_CLIP)  # columns that datasets of earlier versions lack; writing adds them
APART = ("identity", "scores")  # fields of a reference that are in those columns


def _to_row(triplet: Triplet) -> dict[str, Any]:
    described = [asdict(r) | {"box": list(r.box) if r.box else []} for r in triplet.references]
    return asdict(replace(triplet, references=())) | {
        "id": triplet.id,
        "references": [{k: v for k, v in each.items() if k not in APART} for each in described],
        "scores": json.dumps(triplet.scores, sort_keys=True),
        "identities": [r.identity for r in triplet.references],
        "reference_scores": json.dumps([r.scores for r in triplet.references], sort_keys=True),
    }


def _from_row(row: dict[str, Any]) -> Triplet:
    """A row of a store. Raises DataError for one that others wrote otherwise."""
    try:
        known = row.get("identities") is not None  # else of an earlier version, in which 0 was not measured
        more = zip(row["identities"], parse_json(row["reference_scores"]), strict=True) if known else ()
        own: list[dict[str, Any]] = [{"identity": identity, "scores": scores} for identity, scores in more]
        own = own if known else [{"score": r["score"] or None} for r in row["references"]]
        references = tuple(
            TripletReference(**{**r, "box": tuple(r["box"] or ()) or None, "rights": Rights(**r["rights"]), **each})
            for r, each in zip(row["references"], own, strict=True)
        )
        values = {k: v for k, v in row.items() if k in SCHEMA.names and k not in ("id", *ADDED)}
        values |= {k: row[k] for k in OF_CLIP if row.get(k) is not None}
        scores = parse_json(row["scores"])
        return Triplet(**{**values, "references": references, "scores": scores, "rights": Rights(**row["rights"])})
    except (TypeError, ValueError) as error:
        raise DataError(f"row {row.get('id')!r} of the dataset is not a triplet ({error})") from error


class TripletStore(LanceStore):
    """Triplets in a Lance dataset. Writes are merges on the id; every write is a version that can be read back.

    Processes that write to one store take turns. Where others wrote without that, ids stand twice: what is opened for the newest
    version is checked, and of equal ids all rows but the first are removed; `repaired` says how many.
    """

    def __init__(self, path: Path, version: int | None = None) -> None:
        if not path.is_dir():
            raise DataError(f"dataset {path} does not exist")
        self.path = path
        try:
            self.dataset = lance.dataset(str(path))
            known = [number for number, _ in self.versions()] if version is not None else []
            if known and version not in known:
                raise DataError(f"{path} has no version {version}; its versions are {min(known)} to {max(known)}")
            if version is not None:
                self.dataset = self.dataset.checkout_version(version)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a Lance dataset ({first_line(error)})") from error
        if missing := set(SCHEMA.names) - set(ADDED) - set(self.dataset.schema.names):
            raise DataError(f"{path} is not a triplet dataset; missing columns: {', '.join(sorted(missing))}")
        there = [name for name in SCHEMA.names if name in self.dataset.schema.names]
        if odd := [name for name in there if self.dataset.schema.field(name).type != SCHEMA.field(name).type]:
            raise DataError(f"{path} is not a triplet dataset; columns of another type: {', '.join(odd)}")
        with self._reading():
            self.repaired = self._repair() if version is None else 0

    @classmethod
    def create(cls, path: Path) -> "TripletStore":
        """The store at `path`, made empty where there is none."""
        if not path.exists():
            check_name(path)
            check_folder(path.absolute().parent)
            try:
                with writing_folder(path) as scratch:
                    lance.write_dataset(SCHEMA.empty_table(), str(scratch))
            except OutputError:
                if not path.is_dir():  # else another process was quicker
                    raise
        return cls(path)

    def write(self, triplets: Iterable[Triplet], require_license: bool = False) -> int:
        """Merge triplets in; returns how many were new. A batch is written whole or not at all."""
        new, batch, size = 0, [], 0
        for triplet in triplets:
            check_triplet(triplet, require_license)
            batch.append(_to_row(triplet))
            size += len(triplet.video) + sum(len(reference.image) for reference in triplet.references)
            if len(batch) == BATCH or size > BYTES:
                new += self._merge(batch)
                batch, size = [], 0
        if batch:
            new += self._merge(batch)
        with self._writing():
            self._tidy(TIDY)
        return new

    def remove(self, ids: Iterable[str]) -> None:
        """Delete triplets; older versions keep them."""
        wanted = list(ids)
        if odd := [each for each in wanted if not re.fullmatch("[0-9a-f]{32}", each)]:
            raise DataError(f"a triplet id must have 32 hexadecimal digits (got {odd[0][:60]!r})")
        if listed := ", ".join(f"'{each}'" for each in wanted):
            with self._writing():
                self.dataset.delete(f"id IN ({listed})")

    def _merge(self, rows: list[dict[str, Any]]) -> int:
        unique = list({row["id"]: row for row in rows}.values())
        table = pa.Table.from_pylist(unique, schema=SCHEMA)
        with self._writing():
            if lacking := [SCHEMA.field(name) for name in ADDED if name not in self.dataset.schema.names]:
                self.dataset.add_columns(lacking)
            done = self.dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(table)
            self._tidy(COMPACT)
        return done["num_inserted_rows"]

    def _tidy(self, max_fragments: int) -> None:
        """Put fragments together where there are more than `max_fragments` small ones, and keep the index of ids up to date:
        reading and merging get slower with every fragment.
        """
        dataset = lance.dataset(str(self.path))
        if sum(fragment.count_rows() < FRAGMENT for fragment in dataset.get_fragments()) <= max_fragments:
            return
        dataset.optimize.compact_files(target_rows_per_fragment=FRAGMENT)
        dataset = lance.dataset(str(self.path))
        if any(index.name == INDEX for index in dataset.describe_indices()):
            dataset.optimize.optimize_indices()
        else:
            dataset.create_scalar_index("id", "BTREE", name=INDEX)

    def _repair(self) -> int:
        """Remove rows whose id is in an earlier row; returns how many. Raises DataError where they cannot be removed."""
        if not _repeat(self.dataset):
            return 0
        try:
            with self._writing():
                found = self.dataset.to_table(columns=["id"], with_row_id=True)
                first: dict[str, int] = {}
                pairs = zip(found["id"].to_pylist(), found["_rowid"].to_pylist(), strict=True)
                extra = [row for each, row in pairs if first.setdefault(each, row) != row]
                for start in range(0, len(extra), REMOVED_AT_ONCE):
                    listed = ", ".join(map(str, extra[start : start + REMOVED_AT_ONCE]))
                    self.dataset.delete(f"_rowid IN ({listed})")
        except OutputError as error:
            raise DataError(f"{self.path} contains duplicate triplets and cannot be repaired: {error}") from error
        return len(extra)

    def take(self, rows: list[int]) -> list[Triplet]:
        """Triplets by row number, in the order that was asked for. Raises DataError where the store is damaged."""
        with self._reading():
            return [_from_row(row) for row in self.dataset.take(rows).to_pylist()]

    def without_videos(self) -> Iterator[tuple[str, Triplet]]:
        """(id, triplet without its video and mask) of all rows."""
        with self._reading():
            names = [name for name in self.dataset.schema.names if name not in ("video", "mask")]
            for batch in self.dataset.to_batches(columns=names, batch_size=BATCH):
                for row in batch.to_pylist():
                    yield row["id"], _from_row({**row, "video": b""})

    def versions(self) -> list[tuple[int, str]]:
        """(number, time) of every version."""
        return [(v["version"], str(v["timestamp"])) for v in self.dataset.versions()]

    def __iter__(self) -> Iterator[Triplet]:
        batches = self.dataset.to_batches(batch_size=BATCH)
        while True:
            with self._reading():
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            for row in rows:
                yield _from_row(row)


def _repeat(dataset: Any) -> bool:
    """Whether an id is duplicated, with 8 bytes a row in memory: hashes that are equal by chance cost a closer look."""
    batches = dataset.to_batches(columns=["id"])
    hashes = [np.fromiter(map(hash, batch["id"].to_pylist()), np.int64) for batch in batches]
    ordered = np.sort(np.concatenate(hashes)) if hashes else np.empty(0)
    return bool((ordered[1:] == ordered[:-1]).any())
