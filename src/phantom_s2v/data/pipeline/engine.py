"""The stages put together: in a pool of processes, or on Ray. Both give the same rows, and a killed run goes on where it was."""

import logging
import math
import os
import pickle
import signal
import time
from collections.abc import Callable, Container, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby, islice
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

from phantom_s2v.data.pipeline import (
    background,
    caption,
    crops,
    embed,
    encode,
    pair,
    probe,
    quality,
    shots,
    stills,
    subjects,
    verify,
    write,
)
from phantom_s2v.data.pipeline.batches import AT_ONCE
from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.data.pipeline.groups import grouped
from phantom_s2v.data.pipeline.index import SubjectIndex, jpeg, mark
from phantom_s2v.data.triplets import Rights, Triplet, TripletStore
from phantom_s2v.errors import DataError
from phantom_s2v.files.io import locked

LOOK = (("probe", probe.run), ("shots", shots.run), ("quality", quality.run))  # without networks, but for TransNetV2
KNOW = (
    ("stills", stills.run),
    ("caption", caption.run),
    ("subjects", subjects.run),
    ("crops", crops.run),
    ("embed", embed.run),
    ("background", background.run),
    ("encode", encode.run),
)
AHEAD = 2  # source videos a process that wait for it
KEPT_AT_ONCE = 64  # subjects whose pairs are written at once
MakeModels = Callable[[], Models]


@dataclass
class Summary:
    """What a run did."""

    source_videos: int = 0
    left_behind: dict[str, str] = field(default_factory=dict)  # file -> reason
    triplets: int = 0
    new: int = 0
    version: int = 0  # of the index's subjects, at which their pairs were computed
    seconds: dict[str, float] = field(default_factory=dict)


def chain(records: Iterable[Record], stages: Iterable[tuple[str, Any]], config: Config, models: Models) -> Iterator[Record]:
    """Records through some stages; a source video's own record takes along the seconds that each stage took by itself since the
    one before.
    """
    clocks: list[tuple[str, _Clock]] = []
    current: Iterable[Record] = records
    for name, run in stages:
        clock = _Clock(run(current, config, models))
        clocks.append((name, clock))
        current = clock
    counted = dict.fromkeys((name for name, _ in clocks), 0.0)
    for record in current:
        if record["kind"] == "source_video":
            before, seconds = 0.0, dict(record.get("seconds", {}))
            for name, clock in clocks:
                seconds[name] = clock.spent - before - counted[name]
                counted[name] += seconds[name]
                before = clock.spent
            record = {**record, "seconds": seconds}
        yield record


class _Clock:
    """An iterator that counts the seconds spent inside it, with what it draws from."""

    def __init__(self, source: Iterator[Record]) -> None:
        self.source, self.spent = source, 0.0

    def __iter__(self) -> "_Clock":
        return self

    def __next__(self) -> Record:
        start = time.process_time()
        try:
            return next(self.source)
        finally:
            self.spent += time.process_time() - start


def process(paths: Iterable[str], config: Config, models: Models) -> Iterator[Record]:
    """The records of files: of each those of its clips as they are done, its own last."""
    for record in chain(({"path": path} for path in paths), (*LOOK, *KNOW), config, models):
        yield _slim(record)


def _slim(record: Record) -> Record:
    """A record without what only the stages look at; a clip that is dropped keeps one small frame to be shown by."""
    frames = record.get("stills", record.get("work"))
    slim = {name: value for name, value in record.items() if name not in ("work", "stills", "around", "covered")}
    if record["kind"] == "clip" and record["drop"] and frames is not None:
        slim["shown"] = _telling(record, len(frames))
        slim["still"] = jpeg(frames[slim["shown"]])
    return slim


def _telling(clip: Record, frames: int) -> int:
    """Number of the frame in which it is seen why a clip was dropped: the middle one, if it is seen there."""
    middle, seen = frames // 2, clip.get("passed_over", [])
    order = sorted(seen, key=lambda each: (not clip["drop"].endswith(each["reason"]), each["instant"] != middle))
    return order[0]["instant"] if order else middle


_state: list[Any] = []  # configuration and models of a process of the pool


def _start(config: Config, make: MakeModels, scratch: str, numbers: "Queue[int]") -> None:
    """Begin a process of the pool; its number among them, LOCAL_RANK as torchrun calls it, chooses its GPU."""
    os.environ["LOCAL_RANK"] = str(numbers.get())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    _state[:] = [config, make(), scratch]


def _work(path: str) -> str:
    """Process a source video into a file of pickles, so that no process holds a whole source video; returns the file."""
    config, models, scratch = _state
    with NamedTemporaryFile(dir=scratch, delete=False) as file:
        for record in process([path], config, models):
            pickle.dump(record, file)
    return file.name


def _pickled(file: str) -> Iterator[Record]:
    """Records of a file of pickles, which is removed then."""
    with Path(file).open("rb") as source:
        record: Record = {"kind": ""}
        while record["kind"] != "source_video":
            record = pickle.load(source)
            yield record
    Path(file).unlink()


def in_pool(paths: Iterable[str], config: Config, make: MakeModels, workers: int) -> Iterator[Record]:
    """Records of source videos as these are done, by `workers` processes. Few source videos wait, on disk, so memory stays
    flat.
    """
    source, context = iter(paths), get_context("spawn")
    numbers: Queue[int] = context.Queue()
    for number in range(workers):
        numbers.put(number)
    with (
        TemporaryDirectory() as scratch,
        ProcessPoolExecutor(workers, context, _start, (config, make, scratch, numbers)) as pool,
    ):
        running: set[Future[str]] = {pool.submit(_work, path) for path in islice(source, workers * AHEAD)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for each in done:
                yield from _pickled(each.result())
                running |= {pool.submit(_work, path) for path in islice(source, 1)}


class _Stages:
    """Some stages over rows of Ray: an actor where they have networks, which it loads once."""

    def __init__(self, stages: Any, config: Config, make: MakeModels) -> None:
        self.stages, self.config, self.models = stages, config, make()

    def __call__(self, rows: Record) -> Iterator[Record]:
        records = chain((pickle.loads(row) for row in rows["record"]), self.stages, self.config, self.models)
        last = self.stages == KNOW  # what only the stages look at stays behind
        yield from ({"record": [pickle.dumps(_slim(record) if last else record)]} for record in records)


def on_ray(paths: Iterable[str], config: Config, make: MakeModels, workers: int, address: str) -> Iterator[Record]:
    """Records as they are done, by Ray Data: the first stages as tasks, those with networks as `workers` actors, streaming.

    A source video's own record comes after those of all of its clips.
    """
    import ray
    import ray.data

    def look(rows: Any) -> Any:
        return _Stages(LOOK, config, _no_models)(rows)

    where = None if address == "local" else address
    ray.init(address=where, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = ray.data.from_items([{"record": pickle.dumps({"path": path})} for path in paths])
    finds_cuts = config.shot_detector != "scenedetect"  # by TransNetV2
    gpus = _gpus(ray.cluster_resources().get("GPU", 0.0), workers * (1 + finds_cuts))
    rows = _by_actors(rows, LOOK, config, make, workers, gpus) if finds_cuts else rows.map_batches(look, batch_size=1)
    rows = _by_actors(rows, KNOW, config, make, workers, gpus)
    shown = iter(rows.iter_rows())
    try:
        yield from _in_order(pickle.loads(row["record"]) for row in shown)
    finally:
        del shown  # Ray Data ends its threads with it, which would start Ray anew after the shutdown
        if address == "local":
            ray.shutdown()


def _in_order(records: Iterable[Record]) -> Iterator[Record]:
    """Records with each source video's own after those of all of its clips."""
    source_videos: dict[str, Record] = {}  # those whose clips are still on the way
    left: dict[str, int] = {}  # how many of them: below zero while the source video's own record is on the way as well
    for record in records:
        path, is_source_video = record["path"], record["kind"] == "source_video"
        left[path] = left.get(path, 0) + (record["clips"] if is_source_video else -1)
        if is_source_video:
            source_videos[path] = record
        else:
            yield record
        if path in source_videos and not left[path]:
            del left[path]
            yield source_videos.pop(path)


def _gpus(available: float, actors: int) -> float:
    """GPUs that each of some actors asks for: a whole one, or the share that lets all of them run; none where there is none."""
    return min(1.0, math.floor(1000 * available / actors) / 1000)


def _by_actors(rows: Any, stages: Any, config: Config, make: MakeModels, workers: int, gpus: float) -> Any:
    """Rows through stages in one to `workers` actors, each with its networks and its share of a GPU."""
    from ray.data import ActorPoolStrategy

    pool = ActorPoolStrategy(min_size=1, max_size=workers)
    given = (stages, config, make)
    return rows.map_batches(_Stages, batch_size=AT_ONCE, fn_constructor_args=given, compute=pool, num_gpus=gpus or None)


def _no_models() -> Models:
    """For stages that ask none."""
    return Models(lambda stills, *_: [[] for _ in stills], lambda _: NotImplemented, lambda _: NotImplemented)


def build(
    paths: list[Path],
    out: Path,
    config: Config,
    make: MakeModels,
    rights: Rights,
    workers: int = 1,
    ray: str = "",
    require_license: bool = False,
    report: Callable[[str, int, int], None] = lambda *_: None,
) -> Summary:
    """From video files to triplets in `out`; the index is beside it. `report` gets stage, done and total.

    What was done before with the same content, networks, thresholds and code is not done again. Raises DataError where nothing
    could be read at all.
    """
    subject_index, own = SubjectIndex(index_path(out)), cache(make)  # the models of this process
    with locked(subject_index.folder, lambda: report("waiting for another process", 0, 1)):
        _look(subject_index, paths, config, make if ray or workers > 1 else own, workers, ray, report)
        summary = _counted(subject_index, paths)
        start = time.process_time()
        repeated = pair.repeats(subject_index, config)
        summary.version = find_pairs(subject_index, config, own, repeated, report)
        summary.seconds["pair, verify"] = time.process_time() - start
        start = time.process_time()
        pairs = partial(subject_index.pairs, summary.version, config)
        triplets = write.run(pairs, grouped(pairs()), repeated, subject_index, rights, config)
        summary.new, summary.triplets = _replace(TripletStore.create(out), subject_index, triplets, require_license)
        summary.seconds["write"] = time.process_time() - start
        return summary


def _look(
    subject_index: SubjectIndex,
    paths: list[Path],
    config: Config,
    make: MakeModels,
    workers: int,
    ray: str,
    report: Callable[[str, int, int], None],
) -> None:
    """Fill the index with what it lacks of these files."""
    done, looked = subject_index.done(), mark(before_pairing(config), tuple(name for name, _ in (*LOOK, *KNOW)))
    todo = [str(path) for path in paths if str(path) not in done or done[str(path)] != (_source(path), looked)]
    if ray:
        records = on_ray(todo, config, make, workers, ray)
    elif workers > 1:
        records = in_pool(todo, config, make, workers)
    else:
        records = process(todo, config, make()) if todo else iter(())
    subject_index.forget(path for path in todo if path in done)
    number = len(paths) - len(todo)
    report("source videos", number, len(paths))
    for record in records:
        if record["kind"] == "source_video":
            record["config"], number = looked, number + 1
            report("source videos", number, len(paths))
        subject_index.add(record)
    subject_index.flush()


def _counted(subject_index: SubjectIndex, paths: list[Path]) -> Summary:
    """What the index knows of these source videos. Raises DataError where none of them could be read."""
    summary, wanted = Summary(), {str(path) for path in paths}
    for row in (source_video for source_video in subject_index.source_videos() if source_video["path"] in wanted):
        summary.source_videos += 1
        if row["drop"]:
            summary.left_behind[row["path"]] = row["drop"]
        for name, seconds in row.get("seconds", {}).items():
            summary.seconds[name] = summary.seconds.get(name, 0.0) + seconds
    if paths and len(summary.left_behind) >= len(wanted):
        path, reason = next(iter(summary.left_behind.items()))
        raise DataError(f"none of {len(paths)} files could be read; {Path(path).name}: {reason}")
    return summary


def _replace(
    store: TripletStore, subject_index: SubjectIndex, triplets: Iterable[Triplet], require_license: bool
) -> tuple[int, int]:
    """Write triplets, and remove those of earlier runs that are not among them; how many are new, and how many there are."""
    before, now = subject_index.written(), set[str]()
    new = store.write(_noted(triplets, now), require_license)
    store.remove(sorted(before - now))
    subject_index.note_written(now)
    return new, len(store)


def _noted(triplets: Iterable[Triplet], ids: set[str]) -> Iterator[Triplet]:
    """Triplets as they come, their ids added to `ids`."""
    for triplet in triplets:
        ids.add(triplet.id)
        yield triplet


def index_path(out: Path) -> Path:
    """The folder of the index of a triplet store."""
    return out.with_suffix(".index")


def before_pairing(config: Config) -> Config:
    """The configuration without what concerns pairs, which are recomputed if it changes."""
    return replace(
        config,
        lower=0,
        upper=0,
        scene=0,
        colors=0,
        texture=0,
        neighbors=0,
        partners=0,
        same_face=0,
        same_face_across=0,
        same_shot=False,
    )


def _source(path: Path) -> str:
    try:
        return probe.source_hash(path)
    except OSError:
        return ""


def find_pairs(
    subject_index: SubjectIndex,
    config: Config,
    make: MakeModels,
    repeated: Container[str],
    report: Callable[[str, int, int], None],
) -> int:
    """Look at the pairs that the index does not know yet, and keep them there; returns the version of the subjects they are
    of.
    """
    subject_index.index_vectors()
    dataset = subject_index.open("subjects")
    if dataset is None:
        return 0
    version, total = dataset.version, dataset.count_rows()
    known = subject_index.paired(version, config)
    held: dict[str, list[Record]] = {}
    fresh = verify.run(pair.run(subject_index, config, known, repeated), config, make(), subject_index)
    for number, (subject, subject_pairs) in enumerate(groupby(fresh, key=lambda p: p["subject"]), len(known) + 1):
        held[subject] = list(subject_pairs)
        report("pairs", number, total)
        if len(held) == KEPT_AT_ONCE:
            subject_index.keep_pairs(held, version, config)
            held = {}
    subject_index.keep_pairs(held, version, config)
    return version
