"""Encoded triplets: latents of videos and references, image tokens and text features, in a Lance dataset. Training reads it.

One row a triplet, by its id. The dataset carries the hash of everything that made it: the model's parts, size, rate and code.
Legend of tensors: C latent channels, T latent time, h w latent grid, r reference images, k image tokens, L text tokens, D width.
"""

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import lance
import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load

from phantom_s2v.data.stores import LanceStore
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.io import check_folder, check_name, writing_folder
from phantom_s2v.files.reuse import as_json, differences, spelled
from phantom_s2v.files.untrusted import parse_json

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("height", pa.int32()),  # pixels, of the encoded video
        ("width", pa.int32()),
        ("frames", pa.int32()),
        ("subjects", pa.int32()),  # number of them
        ("in_pair", pa.bool_()),  # whether each subject has a reference out of the clip itself
        ("cross_pair", pa.bool_()),  # or from elsewhere
        ("repeats", pa.int64()),  # of the triplet, as "regularization"
        ("regularization", pa.bool_()),
        ("caption", pa.string()),
        ("license", pa.string()),  # those of the clip and its references, each once
        ("shown", pa.string()),  # hash of boxes and masks, where they decide what is shown of references
        ("tensors", pa.large_binary()),  # safetensors
    ]
)
ROWS, BYTES = 16, 64 << 20  # written at once, whichever comes first
ORIGIN, ADDED = b"origin", "shown"  # ADDED: datasets of earlier versions lack it


class Row(NamedTuple):
    """What the columns of an encoded triplet say."""

    id: str
    height: int  # pixels
    width: int
    frames: int
    subjects: int
    in_pair: bool  # each subject has such a reference
    cross_pair: bool
    repeats: int
    regularization: bool
    since: int = 0  # step of a training from which it is learned from; no column


COLUMNS = [name for name in Row._fields if name != "since"]


class Use(NamedTuple):
    """What training makes of a triplet, which changes no tensor."""

    repeats: int
    regularization: bool
    license: str


class EncodedStore(LanceStore):
    """Encoded triplets in a Lance dataset. A batch of rows is written whole or not at all."""

    def __init__(self, path: Path, origin: dict[str, Any] | None = None) -> None:
        """Open the dataset at `path`. Raises DataError where it is none, or was made otherwise than `origin` says."""
        if not path.is_dir():
            raise DataError(f"dataset {path} does not exist")
        self.path = path
        try:
            self.dataset = lance.dataset(str(path))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is not a dataset of encoded triplets; phantom encode makes one") from error
        metadata = self.dataset.schema.metadata or {}
        if [
            n for n in SCHEMA.names if n in self.dataset.schema.names or n != ADDED
        ] != self.dataset.schema.names or ORIGIN not in metadata:
            raise DataError(f"{path} is not a dataset of encoded triplets; phantom encode makes one")
        self.origin: dict[str, Any] = parse_json(metadata[ORIGIN])
        if origin is not None and (changed := differences(self.origin, as_json(origin))):
            raise DataError(f"{path} was encoded otherwise: {spelled(changed)}; choose another --out")

    @classmethod
    def create(cls, path: Path, origin: dict[str, Any]) -> "EncodedStore":
        """The dataset at `path`, made empty where there is none."""
        if not path.exists():
            check_name(path)
            check_folder(path.absolute().parent)
            schema = SCHEMA.with_metadata({ORIGIN: json.dumps(as_json(origin)).encode()})
            with writing_folder(path) as scratch:
                lance.write_dataset(schema.empty_table(), str(scratch))
        return cls(path, origin)

    def sizes(self) -> list[Row]:
        """What the columns say of all rows."""
        with self._reading():
            table = self.dataset.to_table(columns=COLUMNS)
        return [Row(*values) for values in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)]

    def uses(self) -> dict[str, Use]:
        """Uses by id."""
        with self._reading():
            table = self.dataset.to_table(columns=["id", *Use._fields])
        return {key: Use(*values) for key, *values in zip(*(column.to_pylist() for column in table.columns), strict=True)}

    def shown(self) -> dict[str, str]:
        """What decided what is shown of references, by id."""
        with self._reading():
            table = self.dataset.to_table(columns=["id", *(name for name in (ADDED,) if name in self.dataset.schema.names)])
        keys = table["id"].to_pylist()
        return dict(zip(keys, table[ADDED].to_pylist() if ADDED in table.column_names else [""] * len(keys), strict=True))

    def rights(self) -> dict[str, int]:
        """How many triplets have each license."""
        with self._reading():
            return dict(Counter(self.dataset.to_table(columns=["license"])["license"].to_pylist()))

    def take(self, rows: list[int]) -> list[dict[str, torch.Tensor]]:
        """Tensors of rows, in the order asked for. Raises DataError for what is torn."""
        with self._reading():
            blobs = self.dataset.take(rows, columns=["tensors"])["tensors"].to_pylist()
        try:
            return [load(blob) for blob in blobs]
        except (SafetensorError, ValueError, KeyError) as error:
            raise DataError(f"tensors of a triplet of {self.path} are damaged ({error})") from error

    def write(self, rows: Iterable[dict[str, Any]]) -> int:
        """Append rows whose ids are not there; returns how many."""
        count, held = 0, list[dict[str, Any]]()
        for row in rows:
            held.append(row)
            if len(held) == ROWS or sum(len(each["tensors"]) for each in held) > BYTES:
                count += self._append(held)
                held = []
        return count + self._append(held)

    def remove(self, ids: Iterable[str]) -> int:
        """Delete rows; returns how many."""
        wanted = sorted(ids)
        with self._writing():
            for condition in _conditions(wanted):
                self.dataset.delete(condition)
        return len(wanted)

    def set_use(self, uses: dict[str, Use]) -> None:
        """Write the uses of rows by id, those that are alike at once."""
        alike: dict[Use, list[str]] = {}
        for key, use in uses.items():
            alike.setdefault(use, []).append(key)
        with self._writing():
            for use, keys in alike.items():
                quoted = use.license.replace("'", "''")
                values = {
                    "repeats": str(use.repeats),
                    "regularization": str(use.regularization).lower(),
                    "license": f"'{quoted}'",
                }
                for condition in _conditions(keys):
                    self.dataset.update(values, condition)

    def _append(self, rows: list[dict[str, Any]]) -> int:
        if rows:
            with self._writing():
                table = pa.Table.from_pylist(rows, schema=self.dataset.schema)
                self.dataset = lance.write_dataset(table, str(self.path), mode="append")
        return len(rows)


def _conditions(ids: list[str]) -> Iterator[str]:
    """SQL conditions that choose rows by their ids, a thousand at a time."""
    for start in range(0, len(ids), 1000):
        yield f"id IN ({', '.join(repr(key) for key in ids[start : start + 1000])})"


class JoinedStore:
    """Datasets that one training learns from, as one: the rows of the first, then those of the next, each from a step on."""

    def __init__(self, stores: Sequence[EncodedStore], since: Sequence[int]) -> None:
        """Raises InputError where none is there from the start or one is given twice."""
        if 0 not in since:
            raise InputError("one dataset of latents must be learned from at step 0; give one without a step")
        paths = [store.path.resolve() for store in stores]
        if twice := [path for path in paths if paths.count(path) > 1]:
            raise InputError(f"{twice[0]} was given twice; a dataset of latents joins once")
        self.stores, self.since = tuple(stores), tuple(since)
        self.places = [0, *accumulate(map(len, stores))]
        self.path = Path(" + ".join(str(store.path) for store in stores))  # for sentences

    @classmethod
    def open(cls, latents: Mapping[Path, int]) -> "JoinedStore":
        """Datasets at paths, each with the step from which it is learned from."""
        return cls([EncodedStore(path) for path in latents], list(latents.values()))

    def __len__(self) -> int:
        return self.places[-1]

    def sizes(self) -> list[Row]:
        """What the columns say of all rows, and the steps from which they are learned from."""
        each = zip(self.stores, self.since, strict=True)
        return [row._replace(since=since) for store, since in each for row in store.sizes()]

    def rights(self) -> dict[str, int]:
        """How many triplets have each license."""
        return dict(sum((Counter(store.rights()) for store in self.stores), Counter()))

    def take(self, rows: list[int]) -> list[dict[str, torch.Tensor]]:
        """Tensors of rows, in the order asked for. Raises DataError for what is torn."""
        found: dict[int, dict[str, torch.Tensor]] = {}
        for number, store in enumerate(self.stores):
            first, mine = self.places[number], [row for row in rows if bisect_right(self.places, row) - 1 == number]
            found |= dict(zip(mine, store.take([row - first for row in mine]), strict=True)) if mine else {}
        return [found[row] for row in rows]
