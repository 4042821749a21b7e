"""Fine-tuning of a model on encoded triplets: the paper's own model or Wan, all weights or LoRA, by one loss.

Legend: B batch, C latent channels, T latent time, h w latent grid, n references, L text tokens, D width.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.hashes import MADE_OF, folder_hash
from phantom_s2v.files.io import read_text, write_text
from phantom_s2v.files.reuse import code_version
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.distributed import everyone, is_main, rank, whole_tensors, world
from phantom_s2v.models.flow_matching import clean, interpolate, sample_t, shift_mean, velocity_loss, velocity_target
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.tensors import FILE, save_tensors
from phantom_s2v.models.wan.lora import native_name
from phantom_s2v.pipeline.conditions import Dropped
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.training.config import HELD, Lora, OwnConfig
from phantom_s2v.training.encoded import EncodedStore
from phantom_s2v.training.guard import encoder_hashes
from phantom_s2v.training.learner import Loss, sequence_parts, spread
from phantom_s2v.training.loop import train
from phantom_s2v.training.transformer import permute_subjects
from phantom_s2v.training.validation import TIMES

TIMESTEPS = 1000  # of Wan

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Batches:
    """Batches by number out of an encoded dataset, in an order that follows from the seed alone.

    A batch has one size, length and number of subjects. `together` batches, from a multiple of it on, are of one bucket and of
    equally many rows, give or take one: they are learned from in one step, by processes that wait for each other. What is left
    of buckets, fewer rows than `together`, is mixed at one row a batch. Every triplet is in one batch of an epoch, but for at
    most `together` - 1 of those left, which come again to fill the last step.
    """

    store: EncodedStore
    ids: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]  # rows of the dataset, by bucket
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
            self.kept[number, together] = self._epoch(np.random.default_rng([self.seed, 11, number]), together)
        return self.kept[number, together]

    def _epoch(self, rng: np.random.Generator, together: int) -> list[list[int]]:
        steps, left = list[list[list[int]]](), list[list[int]]()
        for rows, count in zip(self.rows, self.counts, strict=True):
            order = [rows[i] for i in rng.permutation(len(rows))]
            for start in range(0, len(order), count * together):
                part = order[start : start + count * together]
                if len(part) < together:
                    left += [[row] for row in part]
                else:
                    steps.append([each.tolist() for each in np.array_split(part, min(together, len(part)))])
        steps += [list(islice(cycle(left), start, start + together)) for start in range(0, len(left), together)]
        return [batch for index in rng.permutation(len(steps)) for batch in steps[index]]

    def of(self, number: int, together: int = 1) -> list[int]:
        """Rows of batch `number`, counted over all epochs."""
        epoch, place = divmod(number, self.per_epoch(together))
        return self.epoch(epoch, together)[place]

    def __call__(self, number: int, together: int = 1) -> dict[str, Any]:
        """Batch `number`, with one reference drawn for each subject of a triplet, and the triplets' "ids"."""
        rows = self.of(number, together)
        batch = collate(self.store.take(rows), np.random.default_rng([self.seed, 13, number]))
        return {**batch, "ids": [self.ids[row] for row in rows]}


def collate(rows: list[Batch], rng: np.random.Generator) -> Batch:
    """Rows of one bucket as a batch in float32, with one reference of each subject and texts padded with zeros."""
    chosen = []
    for row in rows:
        subjects = row["subjects"]
        views = [rng.choice(np.flatnonzero(subjects.numpy() == s)) for s in subjects.unique().tolist()]
        chosen.append(torch.tensor(views, dtype=torch.int64))
    of_references = [name for name in rows[0] if name not in ("latents", "text", "subjects")]
    batch = {"latents": torch.stack([row["latents"].float() for row in rows])}
    batch["text"] = nn.utils.rnn.pad_sequence([row["text"].float() for row in rows], batch_first=True)
    for name in of_references:
        batch[name] = torch.stack([row[name][views].float() for row, views in zip(rows, chosen, strict=True)])
    batch["subjects"] = torch.arange(len(chosen[0])).expand(len(rows), -1).clone()
    return batch


def split(store: EncodedStore, config: OwnConfig) -> tuple[Batches, list[int]]:
    """Batches of what is trained on, and the rows that are held out, which follow from ids alone.

    Raises DataError where nothing can be trained on.
    """
    sizes = store.sizes()
    usable = sorted((each for each in enumerate(sizes) if each[1][4]), key=lambda each: each[1][0])
    if not usable:
        raise DataError(f"{store.path} has no triplets with references ({len(sizes)} without)")
    held = min(HELD, int(len(usable) * config.validation))
    apart = {row for row, _ in usable[:held]}  # ids are hashes: their order is random
    buckets: dict[tuple[int, ...], list[int]] = {}
    for row, (_, *size) in usable:
        if row not in apart:
            buckets.setdefault(tuple(size), []).append(row)
    positions = {size: _positions(size) for size in buckets}
    most = max(positions.values()) * config.batch_size
    ordered = sorted(buckets)
    counts = tuple(most // positions[size] for size in ordered)
    ids, rows = tuple(each[0] for each in sizes), tuple(tuple(buckets[size]) for size in ordered)
    return Batches(store, ids, rows, counts, config.train.seed), sorted(apart)


def _positions(size: tuple[int, ...]) -> int:
    """Latent positions of a row: video and references."""
    height, width, frames, subjects = size
    time, h, w = VideoSize(frames, height, width).latent
    return (time + subjects) * h * w


def _check_lengths(store: EncodedStore, transformer: Any, parts: int) -> None:
    """Raise InputError where as many processes cannot share a sequence of the dataset."""
    for height, width, frames, subjects in sorted({tuple(size) for _, *size in store.sizes()} if parts > 1 else ()):
        tokens = _positions((height, width, frames, subjects)) // math.prod(transformer.config.patch_size)
        if tokens % parts:
            raise InputError(
                f"ring_degree x ulysses_degree must divide the {tokens} tokens of {frames} frames at {width}x{height} with "
                f"{subjects} references (got {parts})"
            )


def draw_dropped(batch: Batch, config: OwnConfig, empty: torch.Tensor) -> Dropped:
    """Which rows lose what, at random."""
    draw = torch.rand(4, len(batch["latents"]), device=batch["latents"].device)
    rates = (config.drop_text, config.drop_references, config.drop_latents, config.drop_tokens)
    text, references, latents, tokens = (row < rate for row, rate in zip(draw, rates, strict=True))
    return Dropped(text, references, latents, tokens, empty)


def loss_of(pipe: Any, config: OwnConfig, empty: torch.Tensor) -> Loss:
    """Rectified flow: squared error of the velocity. References are clean, and no part of the loss (Phantom 3.3)."""

    def loss(batch: Batch, step: int) -> Batch:
        x = batch["latents"]
        if config.permute_subjects:
            batch = {**batch, "subjects": permute_subjects(batch["subjects"])}
        mean = shift_mean(config.t_mean, x[0, 0].numel(), config.t_tokens)
        t = whole(sample_t(len(x), mean, config.t_scale, device=x.device), pipe)
        noise = torch.randn(x.shape, device=x.device)
        velocity = pipe.training_velocity(
            interpolate(x, noise, t[:, None, None, None, None]), t, batch, draw_dropped(batch, config, empty)
        )
        counted = torch.ones(len(x), x.shape[2], dtype=torch.bool, device=x.device)
        return {"loss": velocity_loss(velocity, velocity_target(x, noise), counted)}

    return loss


def whole(t: torch.Tensor, pipe: Any) -> torch.Tensor:
    """t as the model takes it: whole timesteps of 1 to 1000, or any."""
    return ((t * TIMESTEPS).floor().clamp(min=1) / TIMESTEPS) if pipe.whole_timesteps else t


class Errors:
    """Error of the predicted clean latent on held-out triplets, at fixed t and noise, with and without the references.

    Their difference is what the references are worth. Processes share the triplets: each makes as many forwards as the others,
    since weights may be split, and counts those of its own triplets.
    """

    def __init__(self, store: EncodedStore, rows: list[int], pipe: Any, empty: torch.Tensor, parts: int = 1) -> None:
        """`parts` processes share a sequence, and so a triplet."""
        self.store, self.rows, self.pipe, self.empty = store, rows, pipe, empty
        self.rank, self.ranks = rank() // parts, world() // parts

    @torch.no_grad()
    def __call__(self, device: torch.device) -> dict[str, float]:
        """`with_0.3` and so on, `without_...`; means over the triplets. One is held in memory at a time."""
        errors: dict[int, dict[str, float]] = {}
        for number in range(self.rank, len(self.rows) + -len(self.rows) % self.ranks, self.ranks):
            row = self.rows[min(number, len(self.rows) - 1)]
            sums = errors[number] = dict[str, float]()
            batch = collate(self.store.take([row]), np.random.default_rng([17, number]))
            batch = {name: value.to(device) for name, value in batch.items()}
            x = batch["latents"]
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(number)).to(x)
            for t in TIMES:
                time = whole(torch.full((1,), t, device=device), self.pipe)
                x_t = interpolate(x, noise, time[:, None, None, None, None])
                for name, gone in (("with", False), ("without", True)):
                    no = torch.zeros(1, dtype=torch.bool, device=device)
                    velocity = self.pipe.training_velocity(x_t, time, batch, Dropped(no, no | gone, no, no, self.empty))
                    error = (clean(x_t, velocity.float(), t) - x).square().mean()
                    sums[f"{name}_{t}"] = float(error)
        each = {number: sums for part in everyone(errors) for number, sums in part.items() if number < len(self.rows)}
        return {key: sum(each[number][key] for number in sorted(each)) / len(each) for key in each[0]}


def fine_tune(
    config: OwnConfig,
    pipe: Any,
    store: EncodedStore,
    out: Path,
    on_save: Callable[[nn.Module], None],
    origin: dict[str, Any],
    device: torch.device,
) -> nn.Module:
    """Train `pipe.transformer` on an encoded dataset, to the end of the config; returns the averaged weights.

    It is on the device, or is split over the devices of torchrun's processes. All of them call `on_save(average)` with each
    checkpoint. With LoRA the modules trained, saved and averaged are the adapters alone. Raises DataError where the dataset was
    encoded by another model, InputError for worker processes.
    """
    for part in ("vae", "text_encoder", "image_encoder"):
        if part in origin and store.origin.get(part) != origin[part]:
            raise DataError(f"{store.path} was encoded with another {part} than the model's; encode it again with this model")
    if config.train.workers:  # Lance does not survive a fork, and reading takes little
        raise InputError(f"workers must be 0 for training on latents (got {config.train.workers})")
    batches, apart = split(store, config)
    _check_lengths(store, pipe.transformer, sequence_parts(config.train))
    empty = pipe.encode_texts([""], 512).to(device)
    torch.manual_seed(config.train.seed)  # of adapters
    trained = trainable(pipe.transformer, config, device)
    validation = Errors(store, apart, pipe, empty, sequence_parts(config.train))
    say = {
        "triplets": sum(map(len, batches.rows)),
        "held_out": len(apart),
        "buckets": len(batches.rows),
        "batches_per_epoch": batches.per_epoch(),
    }
    if is_main():
        print(json.dumps(say), flush=True)
    pipe.transformer.train()
    if config.gradient_checkpointing:
        pipe.transformer.enable_gradient_checkpointing()
    return train(
        config.train,
        trained,
        batches,
        lambda m: loss_of(pipe, config, empty),
        out,
        {**origin, "config": asdict(config), "code": code_version("training.own")},
        on_validate=(lambda raw, average: validation(device)) if apart else None,
        on_save=lambda raw, average, decaying: on_save(average),
        exclude=("",),
        within=pipe.transformer,
    )


def trainable(transformer: Any, config: OwnConfig, device: torch.device) -> nn.Module:
    """The parameters that learn, in float32: the transformer itself, or adapters that are added to it.

    The transformer is split first, as the config says, so that no process holds all of its float32 weights.
    """
    if config.lora is None:
        spread(config.train, transformer, device)
        return transformer.float().requires_grad_(True)
    add_adapters(transformer, config.lora)
    spread(config.train, transformer, device)
    return nn.ParameterDict({name.replace(".", "/"): p for name, p in transformer.named_parameters() if p.requires_grad})


def add_adapters(transformer: Any, lora: Lora) -> None:
    """Add adapters in float32, which alone learn."""
    from peft import LoraConfig

    settings: Any = {"use_rslora": lora.rank_stabilized, "target_modules": list(lora.targets)}
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, **settings))  # type: ignore[arg-type]
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def write_model(folder: Path, weights: dict[str, torch.Tensor], dtype: torch.dtype, out: Path) -> None:
    """A model folder: that in `folder` with other weights of the transformer, in `dtype`. Other parts are linked if possible."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.rglob("*")):
        target = out / (place := file.relative_to(folder))
        if place.parts[0] != "transformer" and file.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.resolve(), target)
            except OSError:  # another file system
                shutil.copy2(file, target)
    state = {name: value.to(dtype) for name, value in weights.items()}
    (out / "transformer").mkdir(exist_ok=True)
    save_tensors(state, out / "transformer" / FILE, {"format": "pt"})
    write_text(out / "transformer" / "config.json", read_text(folder / "transformer" / "config.json"))


def write_lora(adapters: dict[str, torch.Tensor], lora: Lora, model: str, file: Path) -> None:
    """Adapters of a `model` in the native names with alpha: diffusers, ComfyUI and --lora apply them at one strength."""
    alpha = lora.alpha * (lora.rank**0.5 if lora.rank_stabilized else 1.0)
    tensors = {}
    for name, value in adapters.items():
        layer, _, factor = name.partition(".lora_")
        place = "diffusion_model." + native_name(f"{layer}.weight").removesuffix(".weight")
        tensors[f"{place}.lora_{factor[0]}.weight"] = value.half()
        tensors[f"{place}.alpha"] = torch.tensor(alpha)
    metadata = {"format": "pt", "ss_network_dim": str(lora.rank), "ss_network_alpha": str(alpha), "ss_network_module": "lora"}
    save_tensors(tensors, file, {**metadata, "modelspec.architecture": f"{model}/lora", "modelspec.title": file.stem})


def run(config: OwnConfig, folder: Path, latents: Path, out: Path, placement: Placement) -> dict[str, Any]:
    """Fine-tune the model in `folder` on an encoded dataset; returns what was made.

    Writes `out`/model, which loads like any model, or with LoRA `out`/lora.safetensors, and checkpoints, log.jsonl and
    TensorBoard events beside it. Run again, it resumes.
    """
    store = EncodedStore(latents)
    origin = {**encoder_hashes(folder), "dataset": dataset_hash(store), "init_from": folder_hash(folder / "transformer", MADE_OF)}
    out.mkdir(parents=True, exist_ok=True)
    device, held = placement.torch_device(), placement
    if config.train.parallel != "ddp":  # a device gets its part alone
        held = replace(placement, device="cpu", dtype=placement.resolved()["dtype"])
    pipe = load_models(folder, held)
    dtype = pipe.transformer.dtype
    made = out / ("model" if config.lora is None else "lora.safetensors")

    def save(average: nn.Module) -> None:
        state = whole_tensors({name.replace("/", "."): value for name, value in average.state_dict().items()})
        if not is_main():
            return
        if config.lora is None:
            write_model(folder, state, dtype, made)
        else:
            write_lora(state, config.lora, pipe.preset.name, made)

    fine_tune(config, pipe, store, out, save, origin, device)
    return {"written": str(made), "steps": config.train.steps, "triplets": len(store)}


def dataset_hash(store: EncodedStore) -> str:
    """Of an encoded dataset: what made it, and the ids of its triplets, which are hashes of their content."""
    digest = hashlib.sha256(json.dumps(store.origin, sort_keys=True).encode())
    for key in sorted(store.ids()):
        digest.update(key.encode())
    return digest.hexdigest()
