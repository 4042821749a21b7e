"""What a fine-tuning takes, before anything loads: memory of the device, seconds a step, and days.

Legend: N tokens, D width, F width of the MLP. Memory is counted: weights, what learning adds to them, and what the backward pass
keeps of a block, whose bytes a token were counted on blocks of Wan (dev/LOG.md); time is FLOP over a rate.
"""

from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

from phantom_s2v.errors import InputError, PhantomError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.base import Clip, VideoModel
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import FAMILIES, load_preset, model_folder, video_model
from phantom_s2v.models.wan.spec import SHAPES
from phantom_s2v.pipeline.cost import estimate as e
from phantom_s2v.pipeline.cost.measure import card_speed, measure, parameters, read_configs
from phantom_s2v.pipeline.request import with_defaults
from phantom_s2v.training.config import OwnConfig, TrainConfig
from phantom_s2v.training.encoded import EncodedStore, JoinedStore
from phantom_s2v.training.frozen import BITS, check_base
from phantom_s2v.training.learner import sequence_parts

LEARNED = 20  # bytes a trained parameter: itself, its average, its gradient and two moments, in float32
CAST = 2  # bytes of its copy in bfloat16, which autocast keeps through a step
GATHERED = 2 * 2  # bytes a parameter of a block of split weights: in bfloat16, of the block in use and the next
REDUCED = 2 + 4  # the same of its gradient, before processes add theirs, and in float32
KEPT_D, KEPT_F = {True: 64, False: 68}, 4  # bytes a token and unit of width that a block keeps; with LoRA, and without
OUTSIDE_D = {True: 4, False: 10}  # the same of the layers before and after the blocks
PASSING_D, PASSING_F = 16, 4  # the same of gradients on their way through it
CONTEXT = 0.8e9  # bytes of CUDA itself and its kernels' workspace
FREE = 0.97  # of a card's memory, that its display and driver leave
HOST_RATE = 20e9  # bytes a second from pinned main memory, PCIe 4 with 16 lanes
QUANTIZED = 1.06  # bytes of a quantized weight over its bits, for scales
WAN = {"attention_head_dim": 128, "in_channels": 16, "text_dim": 4096, "freq_dim": 256, "patch_size": (1, 2, 2)}


@dataclass(frozen=True)
class Work:
    """Samples of a step: their size, how many there are, and which share of the steps it is, relative to other works."""

    size: VideoSize
    references: int
    batch: int
    share: float = 1.0


@dataclass(frozen=True)
class TrainEstimate:
    """What a fine-tuning will take."""

    tokens: int  # of the largest sample
    trained: int  # parameters that learn
    weights: float  # bytes on the device, of everything frozen
    learning: float  # of parameters that learn, with their gradients, moments and average
    activations: float
    peak: float
    host: float  # bytes in main memory for what is swapped and offloaded
    flops: float  # of a step
    seconds: float  # a step
    steps: int
    days: float
    processes: int  # that train together, each on a card of its own; all figures but steps and days are of one of them
    speed: str  # whose
    fits: bool | None  # in the memory of the card; None: no card of the table

    def sentence(self) -> str:
        """One line for people."""
        parts = f"{self.weights / 1e9:.1f} weights, {self.learning / 1e9:.1f} learning, {self.activations / 1e9:.1f} activations"
        host = f", {self.host / 1e9:.0f} GB of main memory" if self.host > 1e9 else ""
        fits = {None: "", True: ", which it fits in", False: ", in whose memory it does not fit"}[self.fits]
        count, each = (f"{self.processes} times ", " each") if self.processes > 1 else ("", "")
        return (
            f"{self.tokens:,} tokens, {self.trained:,} trained parameters: {self.peak / 1e9:.1f} GB{each} ({parts}){host}; "
            f"{e.spell(self.seconds)} a step, {e.spell(self.days * 86_400)} for {self.steps:,} steps on {count}{self.speed}{fits}"
        )


def estimate_training(
    config: OwnConfig, model_name: str, works: list[Work], placement: Placement, card: str | None = None, processes: int = 1
) -> TrainEstimate:
    """Of a training whose steps are of `works`, on cards of the table or this machine, one for each of torchrun's processes.

    What processes tell each other is no part of the seconds. Raises InputError for this machine without the model, by whose
    blocks it is measured, for a base that cannot be held so, and for processes that cannot share the work so.
    """
    model, transformer, folder = _described(model_name, measured=card is None)
    check_base(config, transformer[model.depth])
    shards, parts = _shared(config.train, processes)
    whole, block = _parameters(model, transformer)
    depth, (d, f) = transformer[model.depth], model.widths(transformer)
    largest = max(works, key=lambda work: _tokens(model, transformer, work))
    tokens, lora = _tokens(model, transformer, largest), config.lora is not None
    samples = ceil(tokens * largest.batch / parts)
    trained = _adapters(model, transformer, config) if lora else whole
    resident = (whole - config.blocks_to_swap * block) * _bytes(config) + (2 * block * 2 if config.blocks_to_swap else 0)
    if config.quantization.endswith(".gguf"):
        resident = float(Path(config.quantization).stat().st_size)
    learning = trained * LEARNED / shards
    gathered = (0 if lora else trained * CAST) if shards == 1 else block * (GATHERED + (0 if lora else REDUCED))
    kept, offloaded = kept_bytes(config, samples, (d, f), depth)
    activations = kept + samples * (PASSING_D * d + PASSING_F * f)
    weights = resident / shards if lora else 0.0
    swapped = 2.0 * config.blocks_to_swap * block
    rate, name = _speed(model, transformer, folder, largest, placement, card)
    passes = (2 if lora else 3) + config.recomputes  # forward, backward, which twice computes what learns, and the forward again
    shares = [w.share / sum(each.share for each in works) for w in works]
    each_step = [float(model.flops(transformer, Clip(w.size, w.references))) * w.batch for w in works]
    flops = sum(share * flop for share, flop in zip(shares, each_step, strict=True)) * passes / parts
    flops *= config.train.gradient_accumulation_steps
    seconds = flops / rate + (2 * swapped + 2 * offloaded) / HOST_RATE * config.train.gradient_accumulation_steps
    learning += gathered
    peak = weights + learning + activations + CONTEXT
    days = seconds * config.train.steps / 86_400
    fits = peak < e.card(card).memory * 2**30 * FREE if card else None
    host = swapped + offloaded
    return TrainEstimate(
        tokens,
        trained,
        weights,
        learning,
        activations,
        peak,
        host,
        flops,
        seconds,
        config.train.steps,
        days,
        processes,
        name,
        fits,
    )


def _shared(train: TrainConfig, processes: int) -> tuple[int, int]:
    """How many processes share a copy of the weights, and how many a sequence."""
    parts = sequence_parts(train)
    if processes < 2 and (train.parallel != "ddp" or parts > 1):
        raise InputError(
            f"parallel {train.parallel} with {parts} parts of a sequence needs several processes; set --num-processes"
        )
    if train.parallel == "hsdp" and not train.shard_size:
        raise InputError("the estimate of hsdp needs shard_size, the number of GPUs of a machine")
    shards = {"ddp": 1, "fsdp": processes, "hsdp": train.shard_size}[train.parallel]
    if processes % parts or processes % shards:
        raise InputError(f"{processes} processes cannot be shared out: {shards} of them share weights, and {parts} a sequence")
    return shards, parts


def usual_size(name: str) -> VideoSize:
    """The size that `phantom encode` brings videos to for a model, where nothing else is said."""
    model, transformer, folder = _described(name, measured=False)
    preset = load_preset(folder) if folder else model.preset({**transformer, "_class_name": model.transformers[0]})
    return VideoSize(preset.num_frames, preset.height, preset.width)


def kept_bytes(config: OwnConfig, tokens: int, widths: tuple[int, int], depth: int) -> tuple[float, float]:
    """Bytes that a forward keeps for its backward pass, on the device and in main memory; widths of a token and of the MLP."""
    (d, f), lora = widths, config.lora is not None
    block = tokens * (KEPT_D[lora] * d + KEPT_F * f)
    outside = tokens * d * (2.0 * depth * config.recomputes + OUTSIDE_D[lora])  # of blocks, with what comes into them
    held = 0.0 if config.activation_offload else outside
    return held + block * (1 if config.recomputes else depth), outside - held


def works_of(config: OwnConfig, store: EncodedStore | JoinedStore) -> list[Work]:
    """The steps of a dataset once all of it is learned from: of each stream, in its share, those of its buckets."""
    from phantom_s2v.training.batches import TEXT, split

    mixed, _ = split(store, config)
    mixed = mixed.later[-1][1] if mixed.later else mixed
    works, sizes = [], store.sizes()
    for stream, share in zip(mixed.streams, mixed.shares, strict=True):
        for rows, count in zip(stream.rows, stream.counts, strict=True):
            row, steps = sizes[rows[0]], ceil(len(rows) / count)
            seen, batch = 0 if stream.kind == TEXT else row.subjects, min(count, len(rows))
            part = share * steps / stream.per_epoch()
            works.append(Work(VideoSize(row.frames, row.height, row.width), seen, batch, part))
    return works


def _described(name: str, measured: bool) -> tuple[VideoModel, dict[str, Any], Path | None]:
    """A model's family and configuration, by its folder or, of a released one that is not here, by its shape."""
    try:
        folder = model_folder(name)
    except PhantomError:
        if measured or name not in SHAPES:
            raise
        shape = {key: value for key, value in SHAPES[name].items() if key != "width"}
        family = next(each for each in FAMILIES if "WanTransformer3DModel" in each.transformers)
        return family, {**WAN, **shape}, None
    return video_model(folder), read_configs(folder)[0], folder


def _parameters(model: VideoModel, transformer: dict[str, Any]) -> tuple[int, int]:
    """Parameters of a transformer, and of one of its blocks."""
    kind = model.parts()["transformer"]
    whole = parameters(kind, transformer)
    return whole, whole - parameters(kind, transformer | {model.depth: transformer[model.depth] - 1})


def _adapters(model: VideoModel, transformer: dict[str, Any], config: OwnConfig) -> int:
    """Parameters of the adapters that a config adds."""
    import torch

    from phantom_s2v.training.adapters import target_layers

    assert config.lora
    with torch.device("meta"):
        network = model.parts()["transformer"](**transformer)
    return sum(config.lora.rank * (m.in_features + m.out_features) for m in target_layers(network, config.lora))


def _bytes(config: OwnConfig) -> float:
    """Of a frozen weight."""
    return BITS[config.quantization] / 8 * QUANTIZED if config.quantization in BITS else 2.0


def _tokens(model: VideoModel, transformer: dict[str, Any], work: Work) -> int:
    frames, h, w = work.size.latent
    return (frames + work.references) * h * w // prod(transformer.get("patch_size", (1, 1, 1)))


def _speed(
    model: VideoModel, transformer: dict[str, Any], folder: Path | None, work: Work, placement: Placement, card: str | None
) -> tuple[float, str]:
    """FLOP a second, and whose."""
    if card or folder is None:
        speed = card_speed(card or "")
        return speed.blocks, speed.name
    size = {"height": work.size.height, "width": work.size.width, "num_frames": work.size.frames}
    request = with_defaults(load_preset(folder), prompt="", references=(), **size)
    speed = measure(model, transformer, read_configs(folder)[1], request, placement)
    return speed.blocks, speed.name
