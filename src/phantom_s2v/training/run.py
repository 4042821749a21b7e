"""A run of the transformer's training put together: the store, the frozen networks, the validation, the device."""

import json
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from phantom_s2v.data.synthetic.emoji import Sprites, default_root, load_store
from phantom_s2v.errors import InputError
from phantom_s2v.files.hashes import MADE_OF, folder_hash
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.autoencoder import for_encoding, load_autoencoder
from phantom_s2v.models.phantom.encoders import ImageEncoder, TextEncoder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.weights import load_part
from phantom_s2v.training.config import Bucket, TransformerConfig
from phantom_s2v.training.distillation import distillation_loss, student_of
from phantom_s2v.training.guard import encoder_hashes, facts_of
from phantom_s2v.training.latents import TEXT_PLACES, TripletEncoder, Triplets, validation_families
from phantom_s2v.training.learner import compile_blocks, pick_dtype
from phantom_s2v.training.log import Work
from phantom_s2v.training.transformer import TransformerLoss, loss_of, train_transformer
from phantom_s2v.training.validation import Validation


def transformer_run(
    config: TransformerConfig,
    folder: Path,
    out: Path,
    init_from: Path | None,
    sizes: dict[str, Any],
    device_name: str,
    root: Path | None,
    parts: Path | None = None,
    teacher_folder: Path | None = None,
) -> PhantomTransformer:
    """Train a transformer for the autoencoder and image encoder of the model in `folder`; returns the average.

    It starts from the weights in `init_from`, else from random ones of `sizes` (arguments of PhantomTransformer). With a
    `teacher_folder` it is a student of that transformer's guidance, and starts from it without `init_from`. The text encoder is
    `folder`/text_encoder where there is one, else the packaged one. Raises InputError where there is no such device.
    """
    device = _device(device_name)
    teacher = _on(_teacher(teacher_folder), device) if teacher_folder else None
    store = load_store(root or default_root())
    text = TextEncoder(_text_folder(folder))
    encoder = load_encoder(folder, store, device, text, pick_dtype(config.train.precision))
    apart = validation_families(store.subjects)
    learned = replace(store, subjects=tuple(s for s in store.subjects if s.family not in apart))
    shown = tuple(s for s in store.subjects if s.family in apart and s.animated)
    torch.manual_seed(config.train.seed)
    network = _network(init_from or teacher_folder, sizes, encoder)
    if config.guidance_range:
        network = student_of(network, config.guidance_range)
    network = _on(network, device).train()
    facts = {**facts_of("training.run", learned, init_from), **_hashes(folder, teacher_folder)}
    passes = 2 if teacher else 1  # three forwards of a teacher cost what a student's forward and backward do
    flop = {(bucket.side, bucket.frames): passes * sample_flop(network, bucket) for bucket in config.buckets}
    work = Work(flop, peak(device))
    print(json.dumps(work.stated()), flush=True)
    if device.type == "cuda":
        for_cuda(network, *([teacher] if teacher else []))
    loss: TransformerLoss = partial(distillation_loss, teacher=teacher) if teacher else loss_of
    largest = max(config.buckets, key=lambda bucket: (bucket.side, bucket.frames))
    lengths = sorted({1, largest.frames})
    return train_transformer(
        config,
        network,
        # the text encoder of the CPU: worker processes hold nothing on the GPU
        Triplets(learned, config, text, pad_text=device.type == "cuda"),
        encoder,
        out,
        facts,
        tuple(Validation(store, shown, encoder, largest.side, device, frames) for frames in lengths),
        parts,
        work,
        loss,
    )


def _device(name: str) -> torch.device:
    if name not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu or cuda (got {name!r})")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device must be cpu: no GPU is available (got cuda)")
    return torch.device(name)


def _text_folder(folder: Path) -> Path | None:
    """A model folder's own text encoder, where it has one."""
    return folder / "text_encoder" if (folder / "text_encoder").is_dir() else None


def load_encoder(
    folder: Path, store: Sprites, device: torch.device, text: TextEncoder, dtype: torch.dtype = torch.float32
) -> TripletEncoder:
    """The frozen networks of the model in `folder` on a device, with the store's sprites beside them. `text` stays.

    `dtype` is the autoencoder's.
    """
    if device.type != "cpu":
        text = deepcopy(text)
        text.model.to(device)
    return TripletEncoder(
        store.pixels if device.type == "cpu" else torch.from_numpy(store.pixels[:]).to(device),
        _on(for_encoding(load_autoencoder(folder / "vae"), dtype), device),
        _on(load_part(ImageEncoder, folder / "image_encoder"), device),
        text,
    )


def _on(model: Any, device: torch.device) -> Any:
    """A model on a device (diffusers decorates `to` in a way that type checkers do not see through)."""
    return model.to(device)


def _network(init_from: Path | None, sizes: dict[str, Any], encoder: TripletEncoder) -> PhantomTransformer:
    """The transformer to train, with trainable float32 weights."""
    if init_from is not None:
        return load_part(PhantomTransformer, init_from).requires_grad_(True)
    channels = int(encoder.autoencoder.config["z_dim"])
    return PhantomTransformer(latent_channels=channels, image_dim=int(encoder.image_encoder.config["width"]), **sizes)


def _hashes(folder: Path, teacher: Path | None) -> dict[str, str]:
    """Of the frozen networks that a run is made with: the encoders of the model in `folder`, and the teacher."""
    return {**encoder_hashes(folder), **({"teacher": folder_hash(teacher, MADE_OF)} if teacher else {})}


def _teacher(folder: Path) -> PhantomTransformer:
    """The transformer whose guidance is distilled. Raises InputError for one that is distilled already."""
    teacher = load_part(PhantomTransformer, folder)
    if teacher.config.guidance_range is not None:
        raise InputError(f"the transformer in {folder} is already distilled; a teacher must not have a guidance_range")
    return teacher


def for_cuda(*networks: PhantomTransformer) -> None:
    """Matrix products in TF32 where they are not in bfloat16, the fastest kernels, and blocks compiled."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    heads = networks[0].config.heads
    times = attention_seconds(heads, networks[0].config.dim // heads)
    torch.backends.cuda.enable_mem_efficient_sdp(times["efficient"] <= times["cudnn"])
    torch.backends.cuda.enable_cudnn_sdp(times["cudnn"] < times["efficient"])
    for network in networks:
        compile_blocks(network)


def attention_seconds(heads: int, width: int, tokens: int = 2112, batch: int = 16) -> dict[str, float]:
    """Seconds of masked attention, forward and backward, by fused kernel; infinite for one that refuses."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    draw = partial(torch.randn, batch, heads, tokens, width, device="cuda", dtype=torch.bfloat16)
    q, k, v = (draw(requires_grad=True) for _ in range(3))
    mask, grad = torch.rand(batch, 1, 1, tokens, device="cuda") > 0.1, draw()
    times = {}
    for name, backend in (("efficient", SDPBackend.EFFICIENT_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            with sdpa_kernel(backend):
                times[name] = _seconds(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, mask).backward(grad))
        except RuntimeError:
            times[name] = float("inf")
    return times


def _seconds(work: Callable[[], object], repeats: int = 5) -> float:
    """Mean of some runs on the GPU, the first not counted."""
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def sample_flop(network: PhantomTransformer, bucket: Bucket) -> float:
    """Operations of one sample with one reference in the transformer, forward and backward, counted without computing them."""
    from torch.utils.flop_counter import FlopCounterMode

    ghost = _on(deepcopy(network), torch.device("meta"))
    config, (frames, h, w) = ghost.config, VideoSize(bucket.frames, bucket.side, bucket.side).latent
    draw = partial(torch.empty, device="meta")
    with FlopCounterMode(display=False) as counter:
        ghost(
            draw(1, config.latent_channels, frames, h, w), draw(1), draw(1, TEXT_PLACES, config.text_dim),
            draw(1, TEXT_PLACES, dtype=torch.bool), draw(1, 1, config.latent_channels, h, w),
            draw(1, 1, config.image_tokens, config.image_dim), draw(1, 1, dtype=torch.bool), draw(1, 1, dtype=torch.int64),
        )  # fmt: skip
    return 3.0 * counter.get_total_flops()  # a backward pass is two forwards


def peak(device: torch.device) -> float:
    """Operations a second of large bfloat16 matrix products, as measured here; float32 on a CPU without bfloat16."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, pick_dtype("auto"))
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
