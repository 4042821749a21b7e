"""Fine-tuning of a model on encoded triplets: the paper's own model or Wan, all weights or LoRA, by one loss."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phantom_s2v.data.formats.items import counted
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.hashes import MADE_OF, content_hash, folder_hash
from phantom_s2v.files.reuse import code_version
from phantom_s2v.models.distributed import everyone, is_main, join, whole_tensors, world
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import load_preset, video_model
from phantom_s2v.pipeline.batch import Job, parse_loras
from phantom_s2v.pipeline.generate import load_for, read_texts
from phantom_s2v.pipeline.request import with_defaults
from phantom_s2v.training.adapters import add_adapters, merge_base
from phantom_s2v.training.batches import Mixed, check_lengths, split
from phantom_s2v.training.checked import NOTED, unusable
from phantom_s2v.training.checkpoint import saved, steps_of
from phantom_s2v.training.config import OwnConfig
from phantom_s2v.training.encoded import EncodedStore, JoinedStore
from phantom_s2v.training.frozen import check_frozen, load_frozen
from phantom_s2v.training.guard import encoder_hashes
from phantom_s2v.training.learner import check_compiler, compile_blocks, sequence_parts, spread
from phantom_s2v.training.loop import CHECKPOINTS, check_free, train
from phantom_s2v.training.objective import Errors, loss_of
from phantom_s2v.training.result import OUTPUTS, Result
from phantom_s2v.training.samples import Samples, Score, read_samples
from phantom_s2v.training.swap import swap_blocks

State = dict[str, torch.Tensor]


def fine_tune(
    config: OwnConfig,
    pipe: Any,
    store: EncodedStore | JoinedStore,
    out: Path,
    origin: dict[str, Any],
    device: torch.device,
    results: Callable[[dict[str, Any]], Result | None] = lambda stated: None,
    samples: Samples | None = None,
    bad: frozenset[str] = frozenset(),
) -> nn.Module:
    """Train `pipe.transformer` on an encoded dataset, to the end of the config; returns the averaged weights.

    It is on the device, or is split over the devices of torchrun's processes. `results(what is known of the batches)` is what
    writes states, if anything. With LoRA the modules trained, saved and averaged are the adapters alone. Triplets whose ids are
    in `bad` are left out. Raises DataError where triplets were encoded by another model, InputError for worker processes.
    """
    check_encoded(store, origin)
    if config.train.workers:  # Lance does not survive a fork, and reading takes little
        raise InputError(f"workers must be 0 for training on latents (got {config.train.workers})")
    batches, apart = split(store, config, bad)
    parts = sequence_parts(config.train)
    check_lengths(store, pipe.transformer, parts)
    empty = (pipe.features[""] if getattr(pipe, "features", None) else pipe.encode_texts([""], 512)).to(device)
    torch.manual_seed(config.train.seed)  # of adapters
    trained = trainable(pipe.transformer, config, device)
    stated = batches.stated()
    result = results(stated)
    if is_main():
        print(json.dumps({**stated, "held_out": len(apart)}), flush=True)
        for line in _notices(config, batches, len(apart)):
            print(f"phantom: {line}", file=sys.stderr, flush=True)
    prepare(pipe.transformer, config)
    work = _Work(pipe, config, empty, result, Errors(store, apart, pipe, empty, parts) if apart else None, samples, device)
    return train(
        config.train,
        trained,
        batches,
        work.loss_of,
        out,
        {**origin, "config": asdict(config), "code": code_version("training.own")},
        on_validate=work.validate if apart or samples else None,
        on_save=lambda raw, average, steps, decaying: work.save(average, steps),
        exclude=("",),
        within=pipe.transformer,
    )


def check_encoded(store: EncodedStore | JoinedStore, origin: dict[str, Any]) -> None:
    """Raise DataError where triplets were encoded by other networks than those whose hashes `origin` has."""
    for each in store.stores if isinstance(store, JoinedStore) else (store,):
        for part in ("vae", "text_encoder", "image_encoder"):
            if part in origin and each.origin.get(part) != origin[part]:
                raise DataError(f"{each.path} was encoded with another {part} than the model's; encode it again with this model")


def _notices(config: OwnConfig, batches: Mixed, apart: int) -> list[str]:
    """What a run will learn from, for people."""
    together = config.train.gradient_accumulation_steps * max(1, world() // sequence_parts(config.train))
    starts, lines = [0, *(start for start, _ in batches.later)], list[str]()
    until = dict(zip(starts, [*starts[1:], config.train.steps], strict=True))
    for name, start, stream, share in batches.parts():
        per_epoch, steps = stream.per_epoch(together), max(0, min(until[start], config.train.steps) - start) * share
        seen = f"{counted(len(set().union(*stream.rows)), 'triplet')}, {counted(per_epoch, 'batch', 'es')} an epoch"
        lines.append(f"{name}: {seen}; {counted(round(steps), 'step')} = {steps * together / per_epoch:.3g} epochs")
    if not apart and config.validation:
        there = sum(row.subjects > 0 for row in batches.streams[0].store.sizes())
        few = f"{config.validation:g} of {counted(there, 'triplet')} with references is none that is held out"
        lines.append(f"{few}; no validation, and no best weights")
    return lines


class _Work:
    """What the loop calls: the loss, and what is written and measured on the way."""

    def __init__(
        self,
        pipe: Any,
        config: OwnConfig,
        empty: torch.Tensor,
        result: Result | None,
        errors: Errors | None,
        samples: Samples | None,
        device: torch.device,
    ) -> None:
        self.pipe, self.config, self.empty, self.result = pipe, config, empty, result
        self.errors, self.samples, self.device = errors, samples, device

    def loss_of(self, trained: nn.Module) -> Any:
        return loss_of(self.pipe, self.config, self.empty)

    def save(self, average: nn.Module, steps: int) -> None:
        if self.result:
            self.result.save(_whole(average), steps)

    def validate(self, raw: nn.Module, average: nn.Module, steps: int) -> dict[str, float]:
        """Errors on held-out triplets and samples; the best state is kept."""
        self.pipe.transformer.eval()
        figures = self.errors(self.device) if self.errors else {}
        if self.result:
            state = _whole(average)
            if self.samples and is_main():
                self.result.save_last(state)
                figures |= self.samples(average, self.result.made, steps)
            self.result.compare(state, steps, figures)
        self.pipe.transformer.train()
        return figures


def _whole(average: nn.Module) -> State:
    """Weights by name, gathered from all processes."""
    return whole_tensors({name.replace("/", "."): value for name, value in average.state_dict().items()})


def trainable(transformer: Any, config: OwnConfig, device: torch.device) -> nn.Module:
    """The parameters that learn, in float32: the transformer itself, or adapters that are added to it.

    The transformer is split first, as the config says, so that no process holds all of its float32 weights.
    """
    if config.lora is None:
        merge_base(transformer, config.base_weights)
        spread(config.train, transformer, device)
        return transformer.float().requires_grad_(True)
    merge_base(transformer, config.base_weights)
    add_adapters(transformer, config.lora, config.init_from)
    spread(config.train, transformer, device)
    if config.blocks_to_swap:
        swap_blocks(transformer, config.blocks_to_swap, device)
    return nn.ParameterDict({name.replace(".", "/"): p for name, p in transformer.named_parameters() if p.requires_grad})


def prepare(transformer: Any, config: OwnConfig) -> None:
    """Make the blocks of a transformer whose parameters are set compute as the config says."""
    transformer.train()
    if config.recomputes:
        transformer.enable_gradient_checkpointing()
    if config.compile:
        compile_blocks(transformer)


def run(
    config: OwnConfig,
    folder: Path,
    latents: Mapping[Path, int],
    out: Path,
    placement: Placement,
    score: Score | None = None,
) -> dict[str, Any]:
    """Fine-tune the model in `folder` on encoded datasets, each from a step on; returns what was made.

    Writes `out`/model, which loads like any model, or with LoRA `out`/lora.safetensors, and checkpoints, log.jsonl, TensorBoard
    events, samples and a model card beside it. `score` measures the samples. Run again, it resumes.
    """
    device = placement.torch_device()
    join(device)
    store = JoinedStore.open(latents)
    _check(config, folder, out, device)
    jobs = read_samples(config, folder, out)
    origin = {**encoder_hashes(folder), **_starts(config, folder), "dataset": dataset_hash(store)}
    check_encoded(store, origin)
    out.mkdir(parents=True, exist_ok=True)
    pipe = _loaded(config, folder, placement, jobs)
    dtype, name = pipe.transformer.dtype, pipe.preset.name
    samples = Samples(jobs, pipe, config, placement, score) if jobs else None

    def results(stated: dict[str, Any]) -> Result:
        return Result(config, folder, store, name, dtype, out, stated)

    looked = [unusable(each, dataset_hash(each), config, pipe.latent_channels, out) for each in store.stores]
    bad = frozenset().union(*looked)
    fine_tune(config, pipe, store, out, origin, device, results, samples, bad)
    made = out / ("model" if config.lora is None else "lora.safetensors")
    return {"written": str(made), "steps": steps_of(saved(out / CHECKPOINTS)[0]), "triplets": len(store)}


def _check(config: OwnConfig, folder: Path, out: Path, device: torch.device) -> None:
    """Raise InputError or DataError, before anything loads, for what the model or device cannot do, and for files of others in
    `out`.
    """
    check_frozen(config, folder)
    if config.compile:
        check_compiler(device)
    if (config.drop_latents or config.drop_tokens) and not video_model(folder).image_tokens:
        raise InputError(f"{load_preset(folder).name} sees no image tokens; drop_latents and drop_tokens must be 0")
    check_free(out, (*OUTPUTS, NOTED))


def _loaded(config: OwnConfig, folder: Path, placement: Placement, jobs: list[Job]) -> Any:
    """The pipeline, whose text encoder has read the prompts of samples and left; the autoencoder waits in main memory."""
    held = placement
    if config.train.parallel != "ddp" or config.blocks_to_swap:  # a device gets its part alone
        held = replace(placement, device="cpu", dtype=placement.resolved()["dtype"])
    empty = replace(with_defaults(load_preset(folder), prompt="", references=()), negative_prompt="")
    requests = [*(request for request, _ in jobs), empty]
    texts = None
    if world() > 1 and video_model(folder).own_text_encoder:  # of gigabytes: one process reads for all
        texts = read_texts(requests, folder, placement) if is_main() else None
        (features,) = everyone({"": texts[0][""]} if texts else None)[:1]
        texts = texts or (features, None)
    pipe = load_for(requests, folder, held, texts=texts, **load_frozen(config, folder, placement))
    pipe.vae.to("cpu")
    return pipe


def _starts(config: OwnConfig, folder: Path) -> dict[str, Any]:
    """Hashes of the weights that training begins with."""
    files = [("init_from_lora", config.init_from)] if config.init_from else []
    files += [("quantization", config.quantization)] if config.quantization.endswith(".gguf") else []
    files += [(f"base {file}", file) for file, _ in parse_loras(list(config.base_weights))]
    for _, file in files:
        if not Path(file).is_file():
            raise InputError(f"{file} is not a file; init_from and base_weights must be LoRA files (.safetensors)")
    hashes = {name: content_hash(Path(file)) for name, file in files}
    return {"init_from": folder_hash(folder / "transformer", MADE_OF), **hashes}


def dataset_hash(store: EncodedStore | JoinedStore) -> str:
    """Of an encoded dataset: what made it, and the ids of its triplets, which are hashes of their content, with their use.

    Of several: their hashes, and from which step each is learned from.
    """
    if isinstance(store, JoinedStore):
        hashes = [dataset_hash(each) for each in store.stores]
        parts = [f"{each} {since}" for each, since in zip(hashes, store.since, strict=True)]
        return hashes[0] if len(parts) == 1 else hashlib.sha256(" ".join(parts).encode()).hexdigest()
    digest = hashlib.sha256(json.dumps(store.origin, sort_keys=True).encode())
    for row in sorted(store.sizes()):
        digest.update(f"{row.id} {row.repeats} {row.regularization}".encode())
    return digest.hexdigest()
