"""How Phantom-Wan is held in memory: devices, offloading, casting, tiling, caches, LoRA. All of it diffusers' and torch's own."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import typed
from phantom_s2v.models.distributed import own_device, parallelize
from phantom_s2v.models.quantization import check_method
from phantom_s2v.models.wan.lora import add_lora, lora_files
from phantom_s2v.models.wan.step_cache import CACHES, StepCache

CHOICES = {
    "offload": ("none", "model", "group"),
    "quantization": ("none", "fp8", "int8"),
    "cache": CACHES,
    "parallel": ("none", "ulysses", "ring", "fsdp"),
    "dtype": ("auto", "float32", "bfloat16", "float16"),
}


@dataclass(frozen=True)
class Placement:
    """Where and how the parts of a model are held."""

    device: str = "auto"  # cuda where there is one
    dtype: str = "auto"  # bfloat16 on a GPU, float32 on a CPU
    offload: str = "none"  # model: one part at a time on the device; group: one block of the transformer at a time
    quantization: str = "none"  # weights of the blocks in fp8 (cast layer by layer) or int8 (torchao); products in dtype
    text_on_cpu: bool = False  # the text encoder computes on the CPU, in float32
    tiling: bool = False  # the autoencoder works in tiles
    cache: str = "none"  # of steps: an approximation
    cache_threshold: float | None = None  # change below which the last result is used again; None: the default of the cache
    cache_text: bool = False  # keep the keys and values of the text: exact
    loras: tuple[tuple[str, float], ...] = ()  # file and scale
    transformer: str | None = None  # a GGUF file whose weights stand for those of the model folder
    parallel: str = "none"  # over the processes of torchrun: the sequence (ulysses, ring) or the weights (fsdp)

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]} (got {getattr(self, name)!r})")
        try:
            device = self.torch_device()
        except RuntimeError as error:
            raise InputError(f"device must be auto, cpu, cuda or cuda:N (got {self.device!r})") from error
        if self.offload != "none" and self.device == "auto" and device.type == "cpu":
            raise InputError(f"offload must be none without a GPU (got {self.offload!r})")
        if self.cache_threshold is not None and not 0 <= self.cache_threshold < float("inf"):
            raise InputError(f"cache_threshold must be at least 0 (got {self.cache_threshold})")
        if odd := [f"{file}={scale}" for file, scale in self.loras if not math.isfinite(scale)]:
            raise InputError(f"the scale of a LoRA must be finite (got {odd[0]})")
        if self.parallel != "none" and self.offload != "none":
            raise InputError(f"--parallel {self.parallel} cannot be combined with --offload {self.offload}")

    def files(self) -> list[Path]:
        """The files that it reads."""
        own = [Path(self.transformer)] if self.transformer else []
        return own + [each for file, _ in self.loras for each in lora_files(Path(file))]

    def check_installed(self) -> None:
        """Raise InputError where what quantizes is not installed here: before anything loads."""
        if self.transformer and self.quantization != "none":
            raise InputError(
                f"a GGUF transformer is already quantized and cannot be combined with quantization {self.quantization}"
            )
        if self.quantization == "int8":
            check_method("torchao")

    def torch_device(self) -> torch.device:
        """The device that computes."""
        name = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return own_device(torch.device(name))

    def resolved(self) -> dict[str, Any]:
        """Its fields, with the type of products that "auto" stands for here: as metadata have them."""
        return {**asdict(self), "dtype": str(self.torch_dtype()).removeprefix("torch.")}

    def torch_dtype(self) -> torch.dtype:
        """The type of products."""
        if self.dtype != "auto":
            return getattr(torch, self.dtype)
        return torch.float32 if self.torch_device().type == "cpu" else torch.bfloat16


def placement_from(metadata: dict[str, Any]) -> Placement:
    """The placement in the metadata of a video; older metadata has none. Raises InputError where it is damaged."""
    try:
        return typed(Placement, metadata.get("placement", {}), "its placement")
    except (TypeError, ValueError) as error:
        raise InputError(f"invalid metadata: {error}") from error


def split_dtypes(placement: Placement) -> dict[str, torch.dtype]:
    """The type of each part: the autoencoder in float32, the text encoder too where it computes on the CPU."""
    dtype = placement.torch_dtype()
    text = torch.float32 if placement.text_on_cpu else dtype
    return {"default": dtype, "vae": torch.float32, "text_encoder": text}


def place(pipe: Any, placement: Placement, ratios: list[float] | None = None) -> StepCache | None:
    """Apply everything of `placement` to a pipeline whose parts wait on the CPU; returns its step cache.

    `ratios` are MagCache's.
    """
    transformer, device = pipe.transformer, placement.torch_device()
    adapters = {f"lora{number}": lora for number, lora in enumerate(placement.loras)}
    for name, (file, scale) in adapters.items():
        add_lora(transformer, Path(file), name, scale)
    if adapters:
        transformer.set_adapters(list(adapters), [scale for _, scale in adapters.values()])
    if placement.quantization == "fp8":
        transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=placement.torch_dtype())
    if placement.quantization == "int8":
        _quantize_int8(transformer)
    if placement.cache_text:
        remember_text(transformer)
    cache = None
    if placement.cache != "none":
        cache = StepCache(transformer, placement.cache, placement.cache_threshold, placement.torch_dtype(), ratios)
    if placement.tiling:
        pipe.vae.enable_tiling()
    if placement.parallel != "none":
        parallelize(transformer, placement.parallel, device)
    _offload(pipe, placement, device)
    return cache


def _offload(pipe: Any, placement: Placement, device: torch.device) -> None:
    """All parts on the device, or in main memory; a text encoder for the CPU stays there."""
    text = pipe.text_encoder if placement.text_on_cpu else None
    if text is not None:
        pipe.text_encoder = None
    if placement.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif placement.offload == "group":
        streams = device.type == "cuda"
        pipe.enable_group_offload(
            device, torch.device("cpu"), "block_level", num_blocks_per_group=1, use_stream=streams, non_blocking=streams
        )
    else:
        parallel = placement.parallel != "none"  # its own hooks have placed the transformer
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and not (parallel and name == "transformer"):
                part.to(device)
    if text is not None:
        pipe.text_encoder = text


def _quantize_int8(transformer: WanTransformer3DModel) -> None:
    """Weights of the blocks' linear layers in int8, one scale a row."""
    check_method("torchao")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found]

    quantize_(transformer.blocks, Int8WeightOnlyConfig(version=2))


class Remembered(nn.Module):
    """A module whose outputs are kept by input, as long as that input lives here: for inputs that return at every step."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.register_state_dict_post_hook(_unwrapped)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The output for this very tensor; the newest three are kept, as many as there are branches."""
        for seen, out in self.kept:
            if seen is x:
                return out
        self.kept = [*self.kept[-2:], (x, self.module(x))]
        return self.kept[-1][1]


def _unwrapped(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """The state under the names of the module alone, so that it can be saved and loaded."""
    for name in [name for name in state if name.startswith(f"{prefix}module.")]:
        state[prefix + name.removeprefix(f"{prefix}module.")] = state.pop(name)


def remember_text(transformer: Any) -> None:
    """Compute the embedding, keys and values of a text once instead of at every step; the result is the same bits."""
    transformer.condition_embedder.text_embedder = Remembered(transformer.condition_embedder.text_embedder)
    for block in transformer.blocks:
        block.attn2.to_k, block.attn2.to_v = Remembered(block.attn2.to_k), Remembered(block.attn2.to_v)
