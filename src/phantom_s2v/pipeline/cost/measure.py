"""The estimate of a request on this machine, measured by two seconds of one real block, or on a card of the table."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.base import Preset, VideoModel
from phantom_s2v.models.bounds import read_config
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import video_model
from phantom_s2v.models.wan.step_cache import ONE_BATCH
from phantom_s2v.pipeline.cost import estimate as e
from phantom_s2v.pipeline.cost import profile as profiles
from phantom_s2v.pipeline.cost.profile import SIDE, branch_count, clip_of, coder_flops
from phantom_s2v.pipeline.request import Request

PATIENCE = 1.0  # seconds for each of the two measurements
MINI_ENCODERS = 22_700_000 + 3_500_000  # parameters of phantom-mini's text encoder and image encoder
MEASURED_SIDE = 128  # and at most of that on which it is measured


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configurations of the transformer and of the autoencoder in a model folder."""
    parts = (folder / "transformer", folder / "vae")
    first, second = (read_config(part / "config.json") for part in parts)
    return tuple({k: v for k, v in each.items() if not k.startswith("_")} for each in (first, second))  # type: ignore[return-value]


def estimate(
    request: Request, preset: Preset, folder: Path, placement: Placement, card: str | None = None, speed: e.Speed | None = None
) -> e.Estimate:
    """What a request takes with the model in `folder`, on this machine, on a card of the table or at a known speed."""
    return profiles.estimate(profile(request, folder, placement, card, speed), request, preset)


def profile(
    request: Request, folder: Path, placement: Placement, card: str | None = None, speed: e.Speed | None = None
) -> profiles.Profile:
    """What this machine, or a card, knows of the model in `folder`; its speed is measured at the request's size."""
    transformer, autoencoder = read_configs(folder)
    model = video_model(folder)
    if speed is None:
        speed = card_speed(card) if card else measure(model, transformer, autoencoder, request, placement)
    width = 2 if card else placement.torch_dtype().itemsize
    return profiles.Profile(
        read_config(folder / "transformer" / "config.json")["_class_name"],
        transformer,
        _coder_counts(json.dumps(autoencoder, sort_keys=True)),
        autoencoder.get("decoder_base_dim") or autoencoder["base_dim"],
        weight_bytes(folder, model, transformer, autoencoder, placement, width),
        width,
        placement.cache,
        placement.cache in ONE_BATCH,
        placement.offload,
        speed,
    )


def within(
    limit: tuple[str, float],
    estimated: e.Estimate,
    request: Request,
    videos: int,
    preset: Preset,
    folder: Path,
    placement: Placement,
) -> None:
    """Raise InputError where `videos` of an estimate exceed a budget; the sentence names what would fit."""
    kind, budget = limit

    def cost(each: e.Estimate) -> float:
        return each.seconds * videos if kind == "seconds" else each.peak

    if cost(estimated) <= budget:
        return

    def as_text(amount: float) -> str:
        return e.spell(amount) if kind == "seconds" else f"{amount / 1e9:.3g} GB"

    def fits(other: Request, place: Placement = placement) -> bool:
        return cost(estimate(other, preset, folder, place, speed=estimated.speed)) <= budget

    gpu = placement.device != "auto" or placement.torch_device().type == "cuda"
    options: list[dict[str, str]] = []
    if kind == "bytes" and gpu and "quantization" in video_model(folder).placed:
        options = [{"offload": "model"}, {"offload": "model", "quantization": "fp8"}, {"offload": "group"}]
    placed = next((each for each in options if fits(request, replace(placement, **each))), None)
    if placed:
        advice = " ".join(f"--{name} {value}" for name, value in placed.items()) + " would fit"
    else:
        advice = e.smaller(request, preset, fits)
    raise InputError(f"estimated at {as_text(cost(estimated))}, which exceeds the budget of {as_text(budget)}; {advice}")


def card_speed(name: str) -> e.Speed:
    """Speed of a card of the table, computed and not measured."""
    gpu = e.card(name)
    rate = gpu.tflops * 1e12 * e.UTILIZATION
    return e.Speed(rate, rate / 4, f"{gpu.name} (computed)")  # convolutions run in float32, at about a quarter


def weight_bytes(
    folder: Path,
    model: VideoModel,
    transformer: dict[str, Any],
    autoencoder: dict[str, Any],
    placement: Placement,
    width: int,
) -> dict[str, float]:
    """Bytes of each part's weights as the device holds them; of a transformer that comes by groups, two blocks."""
    kind = model.parts()["transformer"]
    whole = parameters(kind, transformer)
    if placement.offload == "group":
        whole = 2 * (whole - parameters(kind, transformer | {model.depth: transformer[model.depth] - 1}))
    stored = {"none": width, "fp8": 1, "int8": 1}[placement.quantization]
    if placement.transformer:  # GGUF stays as it is in the file
        stored = Path(placement.transformer).stat().st_size / parameters(kind, transformer)
    sizes: dict[str, float] = {"transformer": whole * stored, "autoencoder": parameters(AutoencoderKLWan, autoencoder) * 4}
    config = folder / "text_encoder" / "config.json"
    if config.is_file():
        with torch.device("meta"):
            encoder = UMT5EncoderModel(UMT5Config(**read_config(config)))
        return sizes | {"text_encoder": 0 if placement.text_on_cpu else sum(p.numel() for p in encoder.parameters()) * width}
    return sizes | {"text_encoder": MINI_ENCODERS * 4}


def parameters(kind: Any, config: dict[str, Any]) -> int:
    """How many a model of this configuration has."""
    with torch.device("meta"):
        return sum(p.numel() for p in kind(**config).parameters())


def autoencoder_flops(config: dict[str, Any], request: Request) -> float:
    """Decoding the video and encoding every image: counted on a small clip without data, in proportion to pixels and frames."""
    return coder_flops(_coder_counts(json.dumps(config, sort_keys=True)), request)


@lru_cache
def _coder_counts(configuration: str) -> tuple[int, int, int]:
    """Operations of the first latent frame, of each later one, and of encoding a still, at 64 x 64 pixels."""
    config = json.loads(configuration)
    channels = config["z_dim"]
    with torch.device("meta"):
        model: Any = AutoencoderKLWan(**config)

        def count(work: Callable[[], Any]) -> int:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                work()
            return counter.get_total_flops()

        grid = SIDE // 8
        first = count(lambda: model.decode(torch.zeros(1, channels, 1, grid, grid)))
        later = count(lambda: model.decode(torch.zeros(1, channels, 2, grid, grid))) - first
        return first, later, count(lambda: model.encode(torch.zeros(1, 3, 1, SIDE, SIDE)))


@torch.no_grad()
def measure(
    model: VideoModel, transformer: dict[str, Any], autoencoder: dict[str, Any], request: Request, placement: Placement
) -> e.Speed:
    """FLOP/s of this machine: of the fewest blocks, with random weights, that stand for all, and of the autoencoder."""
    device, dtype = placement.torch_device(), placement.torch_dtype()
    one = transformer | {model.depth: model.measured_depth}
    block: Any = model.parts()["transformer"](**one)
    block = nn.Module.to(block, device, dtype).eval()  # diffusers' own `to` would warn

    def forward(size: Request) -> tuple[float, float]:
        """FLOP of a forward of these blocks, and its seconds."""
        branches = branch_count(size, one)
        inputs = model.inputs(one, clip_of(size), branches, device, dtype)
        return float(model.batched(branches) * model.flops(one, clip_of(size))), _least(lambda: block(*inputs), device)

    flops, seconds = forward(replace(request, num_frames=1))
    if seconds * VideoSize(request.num_frames, 8, 8).latent[0] ** 2 < PATIENCE:  # else the rate of a single frame stands for all
        flops, seconds = forward(request)
    coder: Any = AutoencoderKLWan(**autoencoder)
    coder = coder.to(device).eval()
    height, width = min(request.height, MEASURED_SIDE), min(request.width, MEASURED_SIDE)  # small maps stay in the cache
    pixels = replace(request, num_frames=9, height=height, width=width, references=(), background=None)
    latents = torch.zeros(1, autoencoder["z_dim"], 3, height // 8, width // 8, device=device)
    convolutions = autoencoder_flops(autoencoder, pixels) / _least(lambda: coder.decode(latents), device)
    return e.Speed(flops / seconds, convolutions, "this machine")


def _least(work: Callable[[], Any], device: torch.device) -> float:
    """Least seconds of up to five runs within the patience, after a first that warms up."""

    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    first, begun, times = once(), time.perf_counter(), []
    while len(times) < 5 and time.perf_counter() - begun + first < PATIENCE:
        times.append(once())
    return min(times, default=first)
