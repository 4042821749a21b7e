"""Triplets into latents and features, one encoder in memory at a time: alone, over the processes of torchrun, or on Ray.

Legend: C latent channels, T latent time, h w latent grid, r reference images, L text tokens, D width.
"""

import hashlib
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import distributed

from phantom_s2v.data.buckets import Bucket, Plan, Target, bucket_of, fitted, mask_of, shown, title
from phantom_s2v.data.formats.items import counted
from phantom_s2v.data.loader import Sample, decode
from phantom_s2v.data.triplets import Triplet, TripletStore
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.autoencoder import encode, to_pixels
from phantom_s2v.models.distributed import leave, rank, world
from phantom_s2v.models.memory import Placement, split_dtypes
from phantom_s2v.models.registry import video_model
from phantom_s2v.models.wan.text import PromptFeatures
from phantom_s2v.pipeline.cost.estimate import spell, spell_bytes
from phantom_s2v.pipeline.generate import text_notices
from phantom_s2v.pipeline.loading import load_models, no_bars
from phantom_s2v.pipeline.phantom_pipeline import PhantomPipeline
from phantom_s2v.training.encoded import EncodedStore, Use
from phantom_s2v.training.latents import subject_share

AT_ONCE = 4096  # triplets whose captions are read before the text encoder makes room for the autoencoder
TEXT_PLACES = 512
PATIENCE = timedelta(days=7)  # of a process that has encoded its share
LOOKED_AT = 8  # captions by whose features the gigabytes are estimated
MEASURED = (9, 128, 128)  # frames and pixels of the clip by which the speed is measured
Texts = Callable[[str], torch.Tensor]  # caption -> features [L, D]


@torch.no_grad()
def encode_sample(
    pipe: Any, triplet: Triplet, sample: Sample, text: torch.Tensor, bucket: Bucket, target: Target
) -> dict[str, torch.Tensor]:
    """Tensors of a triplet, whose video is fitted, in float16: latents [C, T, h, w], text [L, D], mask [T, h, w], and for r
    references their own, the subject that each shows and whether it is of another clip, int64 [r].
    """
    pixels = to_pixels(sample.video)[None].to(pipe.vae.device, pipe.vae.dtype)
    tensors = {"latents": encode(pipe.vae, pixels)[0], "text": text}
    if sample.references:
        pairs = zip(triplet.references, sample.references, strict=True)
        images = [shown(reference, image, target.references) for reference, image in pairs]
        tensors |= pipe.reference_tensors(images, bucket.height, bucket.width)
    if (mask := mask_of(triplet, bucket, target)) is not None:
        tensors["mask"] = subject_share(torch.from_numpy(np.ascontiguousarray(mask))[None, None])[0]
    halves = {name: value.half().cpu().contiguous() for name, value in tensors.items()}
    if not all(bool(value.isfinite().all()) for value in halves.values()):
        raise DataError("its features are not finite")
    cross = [int(reference.pairing == "cross-pair") for reference in triplet.references]
    return {**halves, "subjects": torch.tensor(sample.subjects, dtype=torch.int64), "cross": torch.tensor(cross)}


def encode_row(pipe: Any, triplet: Triplet, texts: Texts, bucket: Bucket, target: Target) -> dict[str, Any]:
    """A triplet as a row of an EncodedStore. Raises DataError for one that cannot be encoded."""
    there, ended = 0, False

    def watched(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal there, ended
        for frame in frames:
            there += 1
            yield frame
        ended = True

    sample = decode(triplet, lambda frames: fitted(watched(frames), triplet.fps, bucket, target))
    if ended and there < triplet.frames:  # a file says more than it holds
        held = bucket_of(triplet.height, triplet.width, there, triplet.fps, target).frames
        bucket = replace(bucket, frames=min(bucket.frames, held))
        sample = replace(sample, video=sample.video[: bucket.frames])
    VideoSize(bucket.frames, bucket.height, bucket.width)
    tensors = encode_sample(pipe, triplet, sample, texts(triplet.caption), bucket, target)
    kinds = [
        all(any(tensors["cross"][tensors["subjects"] == subject] == kind) for subject in set(sample.subjects)) for kind in (0, 1)
    ]
    seen = bool(sample.subjects)
    return {
        "id": triplet.id,
        **asdict(bucket),
        "subjects": len(set(sample.subjects)),
        "in_pair": seen and kinds[0],
        "cross_pair": seen and kinds[1],
        "repeats": triplet.repeats,
        "regularization": triplet.regularization,
        "caption": triplet.caption,
        "license": _license(triplet),
        "shown": _shown(triplet, target),
        "tensors": save(tensors),
    }


def _license(triplet: Triplet) -> str:
    """Those of a clip and its references, each once."""
    rights = [triplet.rights, *(reference.rights for reference in triplet.references)]
    return "; ".join(sorted({each.license or "not stated" for each in rights}))


def _shown(triplet: Triplet, target: Target) -> str:
    """Hash of what decides, beside the content that the id is of, what is shown of references: boxes and masks."""
    if target.references == "whole":
        return ""
    digest = hashlib.sha256()
    for reference in triplet.references:
        digest.update(repr((reference.box, hashlib.sha256(reference.mask).hexdigest())).encode())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Encoders:
    """The networks of a model folder that encode, loaded in turn where the text encoder is one of gigabytes."""

    folder: Path
    placement: Placement

    @property
    def apart(self) -> bool:
        """Whether the text encoder is loaded by itself, before the others."""
        return video_model(self.folder).own_text_encoder

    def read(self, captions: list[str]) -> Texts:
        """Features of captions, by a text encoder that is gone afterwards."""
        features = PromptFeatures()
        reader: Any = self._part("vae")
        reader.text_encoder.to("cpu" if self.placement.text_on_cpu else self.placement.torch_device())
        with torch.no_grad():
            for caption in dict.fromkeys(captions):
                features.keep(caption, reader.encode_text(caption, TEXT_PLACES))
        return lambda caption: features[caption][0]

    def load(self) -> Any:
        """A pipeline with what encodes videos and images, and texts where it is not loaded by itself."""
        if not self.apart:
            return load_models(self.folder, self.placement)
        pipe = self._part("text_encoder")
        pipe.vae.to(self.placement.torch_device())
        return pipe

    def _part(self, without: str) -> Any:
        with no_bars():
            return PhantomPipeline.from_pretrained(
                self.folder, dtype=split_dtypes(self.placement), transformer=None, **{without: None}
            )


def texts_of(pipe: Any) -> Texts:
    """Features of a caption by a pipeline that has its text encoder."""
    return lambda caption: pipe.encode_texts([caption], TEXT_PLACES)[0]


def rows_of(
    store: TripletStore,
    keys: list[str],
    encoders: Encoders,
    target: Target,
    planned: Plan,
    done: Callable[[int], None],
    refuse: Callable[[str, str], None],
    loaded: Any = None,
    begun: Callable[[str], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of triplets by id. `done(1)` is called after each, `refuse(id, reason)` for each that cannot be encoded; `begun` gets
    a sentence on bytes and time before the first, and one on each caption that the text encoder cannot read as it is.
    """
    places = {key: row for row, key in enumerate(store.ids())}
    pipe, reading, said = loaded, 0.0, False
    for some in (keys[start : start + AT_ONCE] for start in range(0, len(keys), AT_ONCE)):
        texts: Texts | None = None
        if encoders.apart and loaded is None:
            pipe, started = None, time.perf_counter()  # one encoder at a time
            texts = encoders.read([caption for _, caption in _captions(store, [places[key] for key in some])])
            reading = (time.perf_counter() - started) / len(some)
        pipe = pipe or encoders.load()
        if begun:
            for key, caption in _captions(store, [places[key] for key in some]):
                for notice in text_notices(caption, pipe, "caption"):
                    begun(f"{title(key, caption)}: {notice}")
            if not said:
                known = [caption for _, caption in _captions(store, [places[key] for key in some[:: len(some) // LOOKED_AT + 1]])]
                begun(sentence(pipe, planned, keys, [(texts or texts_of(pipe))(caption) for caption in known], reading))
            said = True
        for key in some:
            try:
                yield encode_row(pipe, store.take([places[key]])[0], texts or texts_of(pipe), planned.buckets[key], target)
            except (DataError, InputError) as error:
                refuse(key, str(error))
            done(1)


def _captions(store: TripletStore, rows: list[int]) -> Iterator[tuple[str, str]]:
    table = store.dataset.take(rows, columns=["id", "caption"])
    yield from zip(table["id"].to_pylist(), table["caption"].to_pylist(), strict=True)


def bring_up_to_date(store: TripletStore, out: EncodedStore, planned: Plan, target: Target) -> list[str]:
    """Remove from `out` what the store no longer has or shows otherwise, and take over repeats and licenses; ids of the triplets
    that it then lacks, in order.
    """
    there, made = out.uses(), out.shown()
    gone, changed = there.keys() - planned.buckets.keys(), dict[str, Use]()
    for key, triplet in store.without_videos() if there else ():
        use = Use(triplet.repeats, triplet.regularization, _license(triplet))
        if key in there and key not in gone and made[key] != _shown(triplet, target):
            gone.add(key)
        elif key in there and key not in gone and there[key] != use:
            changed[key] = use
    if gone:
        out.remove(gone)
    if changed:
        out.set_use(changed)
    return sorted(key for key in planned.buckets if key not in there or key in gone)


def sentence(pipe: Any, planned: Plan, keys: list[str], texts: list[torch.Tensor], reading: float = 0.0) -> str:
    """What encoding will take, in words, by features of some captions; the others take `reading` seconds each."""
    text = 2 * sum(features.numel() for features in texts) / len(texts)
    gray = np.full((*MEASURED[1:], 3), 128, np.uint8)
    image = 2 * sum(
        value.numel() for name, value in pipe.reference_tensors([gray], *MEASURED[1:]).items() if name != "references"
    )
    size = planned.bytes(int(pipe.vae.config["z_dim"]), keys, text, image)
    seconds = seconds_of(pipe, planned, keys) + reading * max(0, len(keys) - AT_ONCE)
    each = f" in each of {world()} processes" if world() > 1 else ""
    kinds = counted(len({planned.buckets[key] for key in keys}), "size")
    return f"{counted(len(keys), 'triplet')} of {kinds}: about {spell_bytes(size)} and {spell(seconds)}{each} to encode"


class Together:
    """The processes of torchrun that encode shares of one dataset; one that is alone asks nobody."""

    def share(self, keys: list[str]) -> list[str]:
        """Of the first process's ids those of this process."""
        said: list[Any] = [keys]
        if world() > 1:
            distributed.broadcast_object_list(said)
        return said[0][rank() :: world()]

    def sums(self, *counts: int) -> tuple[int, ...]:
        """Sums over all processes, which wait here for each other."""
        numbers = torch.tensor(counts)
        if world() > 1:
            distributed.all_reduce(numbers)
        return tuple(numbers.tolist())


@contextmanager
def together() -> Iterator[Together]:
    """Enter and leave the group of torchrun's processes, which meet on the CPU however far apart they are."""
    if world() > 1:
        distributed.init_process_group("gloo", timeout=PATIENCE)
        distributed.barrier()
    try:
        yield Together()
    finally:
        leave()


@torch.no_grad()
def seconds_of(pipe: Any, planned: Plan, keys: list[str]) -> float:
    """Seconds that the autoencoder will take for triplets, by a small clip that it encodes twice."""
    frames, height, width = MEASURED
    pixels = torch.zeros(1, 3, *MEASURED, device=pipe.vae.device, dtype=pipe.vae.dtype)
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        encode(pipe.vae, pixels).float().cpu()  # waits for the device
        taken.append(time.perf_counter() - start)
    sizes = ((planned.buckets[key], planned.references[key]) for key in keys)
    work = sum((bucket.frames + images) * bucket.height * bucket.width for bucket, images in sizes)
    return min(taken) * work / (frames * height * width)


class _Actor:
    """Encodes ids on Ray: it opens the dataset and loads the networks once."""

    def __init__(self, path: str, encoders: Encoders, target: Target, planned: Plan) -> None:
        self.given = (TripletStore(Path(path)), encoders, target, planned)
        self.loaded = None if encoders.apart else encoders.load()

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        store, encoders, target, planned = self.given
        refused: list[tuple[str, str]] = []
        keys = [str(key) for key in batch["id"]]
        for row in rows_of(store, keys, encoders, target, planned, lambda _: None, lambda *why: refused.append(why), self.loaded):
            yield {"row": [pickle.dumps(row)]}
        for why in refused:
            yield {"row": [pickle.dumps(why)]}


def on_ray(
    store: TripletStore,
    keys: list[str],
    encoders: Encoders,
    target: Target,
    planned: Plan,
    workers: int,
    address: str,
    done: Callable[[int], None],
    refuse: Callable[[str, str], None],
) -> Iterator[dict[str, Any]]:
    """Rows as they are done by `workers` actors of Ray Data, which read the dataset and the model from a path that all machines
    see. Few rows wait; this process writes them.
    """
    import ray
    import ray.data

    where = None if address == "local" else address
    ray.init(address=where, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0) / workers)
    size = max(1, min(AT_ONCE if encoders.apart else 16, -(-len(keys) // workers)))
    ids = ray.data.from_items([{"id": key} for key in keys])
    rows = ids.map_batches(
        _Actor,
        batch_size=size,
        fn_constructor_args=(str(store.path.absolute()), encoders, target, planned),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
        num_gpus=gpus or None,
    )
    shown_rows = iter(rows.iter_rows())
    try:
        for each in shown_rows:
            row = pickle.loads(each["row"])
            if isinstance(row, tuple):
                refuse(*row)
            else:
                yield row
            done(1)
    finally:
        del shown_rows  # Ray Data ends its threads with it, which would start Ray anew after the shutdown
        if address == "local":
            ray.shutdown()
