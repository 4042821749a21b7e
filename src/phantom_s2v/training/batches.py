"""Batches out of an encoded dataset, by number: the same for a seed, wherever a run stopped and on however many processes.

Legend of tensors: B batch, C latent channels, T latent time, h w latent grid, n references, L text tokens, D width.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch
from torch import nn

from phantom_s2v.errors import DataError, InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.training.config import HELD, OwnConfig
from phantom_s2v.training.encoded import EncodedStore, JoinedStore, Row

PERIOD = 1000  # steps over which shares of streams are kept exactly
ALL, TEXT, REGULARIZATION = "all", "text-to-video", "regularization"  # beside "in-pair" and "cross-pair"
PER_CLIP = ("latents", "text", "mask")  # tensors of a row that are not of its references
Batch = dict[str, torch.Tensor]
Rng = np.random.Generator


@dataclass(frozen=True)
class Batches:
    """Batches of one kind of triplets, in an order that follows from the seed alone.

    A batch has one size, length and number of subjects. `together` batches, from a multiple of it on, are of one bucket and of
    equally many rows, give or take one: they are learned from in one step, by processes that wait for each other. What is left
    of buckets, fewer rows than `together`, is mixed at one row a batch. Every triplet is in one batch of an epoch, as often as
    its repeats say, but for at most `together` - 1 of those left, which come again to fill the last step. The first batch of all
    is of the largest bucket, so that a device which is too small for it shows that at once.
    """

    store: EncodedStore | JoinedStore
    ids: tuple[str, ...]
    kind: str  # which references are drawn
    rows: tuple[tuple[int, ...], ...]  # rows of the dataset, by bucket
    positions: tuple[int, ...]  # latent positions of a row, by bucket
    counts: tuple[int, ...]  # rows of a batch, by bucket
    seed: int
    kept: dict[tuple[int, int], list[list[int]]] = field(default_factory=dict, compare=False)  # the epoch in use

    def per_epoch(self, together: int = 1) -> int:
        """Number of batches of an epoch."""
        steps = left = 0
        for rows, count in zip(self.rows, self.counts, strict=True):
            whole, rest = divmod(len(rows), count * together)
            steps += whole + (rest >= together)
            left += rest if rest < together else 0
        return (steps + math.ceil(left / together)) * together

    def epoch(self, number: int, together: int = 1) -> list[list[int]]:
        """Rows of all batches of an epoch, in their order."""
        if (number, together) not in self.kept:
            self.kept.clear()
            self.kept[number, together] = self._epoch(number, together)
        return self.kept[number, together]

    def _epoch(self, number: int, together: int) -> list[list[int]]:
        rng = np.random.default_rng([self.seed, 11, number])
        steps, left, sizes = list[list[list[int]]](), list[list[int]](), list[int]()
        for rows, count, positions in zip(self.rows, self.counts, self.positions, strict=True):
            order = [rows[i] for i in rng.permutation(len(rows))]
            for start in range(0, len(order), count * together):
                part = order[start : start + count * together]
                if len(part) < together:
                    left += [[row] for row in part]
                else:
                    steps.append([each.tolist() for each in np.array_split(part, min(together, len(part)))])
                    sizes.append(positions * len(part))
        steps += [list(islice(cycle(left), start, start + together)) for start in range(0, len(left), together)]
        places = rng.permutation(len(steps)).tolist()
        if number == 0 and sizes:
            first = places.index(int(np.argmax(sizes)))
            places[0], places[first] = places[first], places[0]
        return [batch for index in places for batch in steps[index]]

    def of(self, number: int, together: int = 1) -> list[int]:
        """Rows of batch `number`, counted over all epochs."""
        epoch, place = divmod(number, self.per_epoch(together))
        return self.epoch(epoch, together)[place]

    def __call__(self, number: int, together: int = 1) -> dict[str, Any]:
        """Batch `number`, with one reference drawn for each subject of a triplet, and the triplets' "ids"."""
        rows = self.of(number, together)
        batch = collate(self.store.take(rows), np.random.default_rng([self.seed, 13, number]), self.kind)
        return {**batch, "ids": [self.ids[row] for row in rows]}


@dataclass(frozen=True)
class Mixed:
    """Batches of several kinds of triplets, each in its share of steps, exactly over PERIOD of them."""

    streams: tuple[Batches, ...]
    shares: tuple[int, ...]  # of PERIOD steps
    seed: int
    later: "tuple[tuple[int, Mixed], ...]" = ()  # steps, in order, and what is learned from instead from then on

    def of(self, number: int, together: int = 1) -> tuple[Batches, int]:
        """The stream of batch `number`, and the batch's number there."""
        step, place = divmod(number, together)
        for start, mixed in reversed(self.later):
            if step >= start:
                return mixed.of(number - start * together, together)
        period, at = divmod(step, PERIOD)
        order = np.random.default_rng([self.seed, 19, period]).permutation(np.repeat(range(len(self.shares)), self.shares))
        which = int(order[at])
        before = period * self.shares[which] + int((order[:at] == which).sum())
        return self.streams[which], before * together + place

    def __call__(self, number: int, together: int = 1) -> dict[str, Any]:
        """Batch `number`."""
        stream, mine = self.of(number, together)
        return stream(mine, together)

    def parts(self) -> Iterator[tuple[str, int, Batches, float]]:
        """(name, first step, stream, share of steps) of each kind, those of later steps too."""
        for start, mixed in ((0, self), *self.later):
            for stream, share in zip(mixed.streams, mixed.shares, strict=True):
                yield f"{stream.kind} from step {start}" if start else stream.kind, start, stream, share / PERIOD

    def stated(self) -> dict[str, Any]:
        """What there is of each kind, and from which step."""
        found = {}
        for name, start, stream, share in self.parts():
            rows, count = sum(map(len, stream.rows)), stream.per_epoch()
            found[name] = {"share": share, "rows": rows, "batches_per_epoch": count, "since": start}
        return found


def collate(rows: list[Batch], rng: Rng, kind: str = ALL) -> Batch:
    """Rows of one bucket as a batch in float32, with one reference of each subject and texts padded with zeros."""
    chosen = [torch.tensor(_views(row, rng, kind), dtype=torch.int64) for row in rows]
    batch = {"latents": torch.stack([row["latents"].float() for row in rows])}
    batch["text"] = nn.utils.rnn.pad_sequence([row["text"].float() for row in rows], batch_first=True)
    x = batch["latents"]
    batch["references"] = x.new_zeros(len(x), 0, x.shape[1], *x.shape[3:])
    of_references = [name for name in rows[0] if name not in (*PER_CLIP, "subjects", "cross")]
    for name in of_references if len(chosen[0]) else ():
        batch[name] = torch.stack([row[name][views].float() for row, views in zip(rows, chosen, strict=True)])
    batch["subjects"] = torch.arange(len(chosen[0])).expand(len(rows), -1).clone()
    if any("mask" in row for row in rows):
        batch["mask"] = torch.stack([row.get("mask", torch.ones(x.shape[2:])).float() for row in rows])
    return batch


def _views(row: Batch, rng: Rng, kind: str) -> list[int]:
    """A reference of each subject of a row, of the kind that is asked for."""
    if kind == TEXT:
        return []
    subjects, cross = row["subjects"].numpy(), row["cross"].numpy()
    fits = np.ones(len(cross), bool) if kind in (ALL, REGULARIZATION) else cross == (kind == "cross-pair")
    return [int(rng.choice(np.flatnonzero((subjects == subject) & fits))) for subject in np.unique(subjects).tolist()]


def split(store: EncodedStore | JoinedStore, config: OwnConfig, bad: frozenset[str] = frozenset()) -> tuple[Mixed, list[int]]:
    """Batches of what is trained on, and the rows that are held out, which follow from ids alone. Those of `bad` are in neither.

    Triplets that are held out are so at all their sizes; errors are measured on those that are there from the start. A batch
    has as many latent positions from the first step to the last. Raises DataError where nothing can be trained on, or where there
    are no triplets of a kind that the mix asks for.
    """
    rows = sorted(((number, row) for number, row in enumerate(store.sizes()) if row.id not in bad), key=lambda each: each[1].id)
    first = [(number, row) for number, row in rows if not row.regularization and not row.since]
    if not first:
        raise DataError(f"{store.path} has no triplets to learn from ({len(rows)} regularization clips)")
    rated = [(number, row.id) for number, row in first if row.subjects]
    ids = list(dict.fromkeys(key for _, key in rated))
    apart = set(ids[: min(HELD, int(len(ids) * config.validation))])  # ids are hashes: their order is random
    learned = [(number, row) for number, row in rows if row.id not in apart or row.regularization]
    starts = sorted({row.since for _, row in learned})
    kinds = [_kinds(config, [each for each in learned if each[1].since <= start]) for start in starts]
    if lacking := [kind for each in kinds for kind, _, found in each if not found]:
        raise DataError(f"{store.path} has no triplets with {lacking[0]} references, which the mix asks for")
    sized = [[(kind, share, _buckets(found, kind)) for kind, share, found in each] for each in kinds]
    most = max(_positions(size) for each in sized for _, _, buckets in each for size in buckets) * config.batch_size
    mixed, *others = (_mixed(store, each, most, config.train.seed) for each in sized)
    later = tuple(zip(starts[1:], others, strict=True))
    return replace(mixed, later=later), sorted(number for number, key in rated if key in apart)


def _mixed(store: EncodedStore | JoinedStore, sized: "list[tuple[str, float, Buckets]]", most: int, seed: int) -> Mixed:
    """Batches of (kind, share, rows by size), of at most as many latent positions."""
    ids = tuple(row.id for row in store.sizes())
    streams = (_stream(store, ids, kind, buckets, most, seed + number) for number, (kind, _, buckets) in enumerate(sized))
    return Mixed(tuple(streams), _whole_shares([share for _, share, _ in sized]), seed)


Buckets = dict[tuple[int, ...], list[int]]  # rows of the dataset by size
Numbered = list[tuple[int, Row]]


def _kinds(config: OwnConfig, rows: Numbered) -> list[tuple[str, float, Numbered]]:
    """(kind, share, rows) of the streams that the config asks for."""
    own, regularization = ([each for each in rows if each[1].regularization == kind] for kind in (False, True))
    kept = config.regularization if regularization else 0.0
    kinds = [(ALL, 1 - kept, own)]
    if mix := config.mix:
        total = (mix.in_pair + mix.cross_pair + mix.text_to_video) / (1 - kept)
        kinds = [
            ("in-pair", mix.in_pair / total, [each for each in own if each[1].in_pair]),
            ("cross-pair", mix.cross_pair / total, [each for each in own if each[1].cross_pair]),
            (TEXT, mix.text_to_video / total, own),
        ]
    return [each for each in (*kinds, (REGULARIZATION, kept, regularization)) if each[1] > 0]


def _whole_shares(shares: list[float]) -> tuple[int, ...]:
    """Shares as counts of PERIOD: rounded down, and what is missing to those that lost most."""
    exact = np.array(shares) / sum(shares) * PERIOD
    counts = np.floor(exact).astype(int)
    for place in np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]:
        counts[place] += 1
    return tuple(int(count) for count in counts)


def _buckets(rows: Numbered, kind: str) -> Buckets:
    """Rows by height, width, frames and subjects seen, each as often as its repeats say."""
    buckets: Buckets = {}
    for number, row in rows:
        size = (row.height, row.width, row.frames, 0 if kind == TEXT else row.subjects)
        buckets.setdefault(size, []).extend([number] * row.repeats)
    return buckets


def _stream(
    store: EncodedStore | JoinedStore, ids: tuple[str, ...], kind: str, buckets: Buckets, most: int, seed: int
) -> Batches:
    ordered = sorted(buckets)
    positions = tuple(_positions(size) for size in ordered)
    rows = tuple(tuple(buckets[size]) for size in ordered)
    return Batches(store, ids, kind, rows, positions, tuple(most // each for each in positions), seed)


def _positions(size: tuple[int, ...]) -> int:
    """Latent positions of a row: video and references."""
    height, width, frames, subjects = size
    time, h, w = VideoSize(frames, height, width).latent
    return (time + subjects) * h * w


def check_lengths(store: EncodedStore | JoinedStore, transformer: Any, parts: int) -> None:
    """Raise InputError where as many processes cannot share a sequence of the dataset."""
    for height, width, frames, subjects in sorted({tuple(row[1:5]) for row in store.sizes()} if parts > 1 else ()):
        tokens = _positions((height, width, frames, subjects)) // math.prod(transformer.config.patch_size)
        if tokens % parts:
            raise InputError(
                f"ring_degree x ulysses_degree must divide the {tokens} tokens of {frames} frames at {width}x{height} with "
                f"{subjects} references (got {parts})"
            )
