"""The base of a LoRA training in few bytes: quantized by diffusers' own configurations, or a GGUF file."""

from pathlib import Path
from typing import Any

import torch

from phantom_s2v.errors import InputError
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.quantization import check_method
from phantom_s2v.models.registry import video_model
from phantom_s2v.models.wan.gguf import check_gguf, load_gguf
from phantom_s2v.pipeline.cost.measure import read_configs
from phantom_s2v.training.config import OwnConfig

METHODS = {"int8": "torchao", "int4": "torchao", "8bit": "bitsandbytes", "4bit": "bitsandbytes"}  # by their package
BITS = {"int8": 8, "8bit": 8, "int4": 4, "4bit": 4}


def check_base(config: OwnConfig, blocks: int) -> None:
    """Raise InputError for a quantization that there is not, a swap of all blocks, or either with split weights."""
    how = config.quantization
    if how.endswith(".gguf") and not Path(how).is_file():
        raise InputError(f"quantization {how} is not a file")
    if how not in ("none", *METHODS) and not how.endswith(".gguf"):
        raise InputError(f"quantization must be none, {', '.join(METHODS)} or a .gguf file (got {how!r})")
    if how != "none" and config.blocks_to_swap:
        raise InputError(f"quantization {how} cannot be combined with blocks_to_swap")
    if config.blocks_to_swap >= blocks:
        raise InputError(f"blocks_to_swap must be below the {blocks} blocks of the model (got {config.blocks_to_swap})")
    if config.blocks_to_swap and not config.gradient_checkpointing:
        raise InputError("blocks_to_swap needs gradient_checkpointing")
    if config.train.parallel != "ddp" and (how != "none" or config.blocks_to_swap):
        raise InputError("quantization and blocks_to_swap need parallel ddp")


def check_frozen(config: OwnConfig, folder: Path) -> None:
    """Raise InputError, before anything loads, for a quantization or swap of blocks that cannot be here or with this model."""
    how, model = config.quantization, video_model(folder)
    if how != "none" and "quantization" not in model.placed:
        raise InputError(f"quantization is for Phantom-Wan only (got {how!r})")
    check_base(config, read_configs(folder)[0][model.depth])
    if how == "none":
        return
    if config.base_weights:
        raise InputError(f"quantization {how} cannot be combined with base_weights")
    if how in METHODS:
        check_method(METHODS[how])
    else:
        check_gguf(Path(how), folder / "transformer")


def load_frozen(config: OwnConfig, folder: Path, placement: Placement) -> dict[str, Any]:
    """The transformer where it is quantized, as a part for loading a pipeline; empty where the folder's own is taken."""
    how, dtype = config.quantization, placement.torch_dtype()
    if how == "none":
        return {}
    if how.endswith(".gguf"):
        return {"transformer": load_gguf(Path(how), folder / "transformer", dtype)}
    kind: Any = video_model(folder).parts()["transformer"]
    settings = quantization_config(how, dtype)
    part = folder / "transformer"
    return {"transformer": kind.from_pretrained(part, local_files_only=True, quantization_config=settings, torch_dtype=dtype)}


def quantization_config(how: str, dtype: torch.dtype) -> Any:
    """diffusers' configuration: weights in so many bits, products in `dtype`."""
    if METHODS[how] == "bitsandbytes":
        from diffusers import BitsAndBytesConfig

        if how == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    from diffusers import TorchAoConfig
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig  # type: ignore[import-not-found]

    return TorchAoConfig(Int8WeightOnlyConfig(version=2) if how == "int8" else Int4WeightOnlyConfig())
