"""LoRA files of one spelling into another, and into the weights of a model, at the strength that they had."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY

from phantom_s2v.files.io import writing_folder
from phantom_s2v.models.tensors import save_tensors
from phantom_s2v.models.wan.lora import add_lora, factors, native_name

SPELLINGS = ("native", "comfyui", "diffusers")


def lora_metadata(model: str, rank: int, alpha: float, title: str) -> dict[str, str]:
    """Metadata of a LoRA file as kohya's trainers (ss_*) and Stability's modelspec have them."""
    wan = "wan" in model
    return {
        "format": "pt",
        "ss_network_module": "networks.lora_wan" if wan else "phantom_s2v.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "ss_base_model_version": "wan2.1" if wan else model,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{'wan2.1' if wan else model}/lora",
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.1" if wan else "phantom_s2v",
        "modelspec.title": title,
    }


def convert_lora(source: Path, transformer: Any, model: str, spelling: str, out: Path) -> int:
    """Write a LoRA under other names; returns how many layers it has.

    native: the released names with lora_A, lora_B and alpha, for all readers; comfyui: the same with lora_down and lora_up;
    diffusers: its own names with its metadata, and the strength within B, so that readers without metadata have it too.
    Raises CheckpointError for a file that is no LoRA of this transformer or holds more than factors.
    """
    found = factors(source, transformer)
    write = _diffusers if spelling == "diffusers" else _native
    tensors = {}
    for layer, (down, up, strength) in found.items():
        tensors |= write(layer, down, up, strength, spelling)
    ranks = [len(down) for down, _, _ in found.values()]
    rank = max(set(ranks), key=ranks.count)
    strength = next(scale for down, _, scale in found.values() if len(down) == rank)
    metadata = lora_metadata(model, rank, strength * rank, out.stem)
    if spelling == "diffusers":
        config = {"r": rank, "lora_alpha": rank, "target_modules": sorted(found), "rank_pattern": _patterns(found, rank)}
        config["alpha_pattern"] = config["rank_pattern"]
        adapter = {f"transformer.{name}": value for name, value in config.items()}
        metadata |= {"ss_network_alpha": str(rank), LORA_ADAPTER_METADATA_KEY: json.dumps(adapter, sort_keys=True)}
    save_tensors(tensors, out, metadata)
    return len(found)


def _native(layer: str, down: torch.Tensor, up: torch.Tensor, strength: float, spelling: str) -> dict[str, torch.Tensor]:
    place = "diffusion_model." + native_name(f"{layer}.weight").removesuffix(".weight")
    names = ("lora_down", "lora_up") if spelling == "comfyui" else ("lora_A", "lora_B")
    alpha = torch.tensor(strength * len(down))
    return {f"{place}.{names[0]}.weight": down, f"{place}.{names[1]}.weight": up, f"{place}.alpha": alpha}


def _diffusers(layer: str, down: torch.Tensor, up: torch.Tensor, strength: float, spelling: str) -> dict[str, torch.Tensor]:
    whole = (up.float() * strength).to(up.dtype)
    return {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": whole}


def _patterns(found: dict[str, Any], rank: int) -> dict[str, int]:
    """Ranks of the layers that differ from the rest, by layer."""
    return {layer: len(down) for layer, (down, _, _) in found.items() if len(down) != rank}


def merge_loras(pipe: Any, loras: tuple[tuple[str, float], ...], out: Path) -> None:
    """Write the model of a pipeline with LoRA files, each at its scale, merged into the weights of its transformer."""
    transformer = pipe.transformer
    named = {f"merged{number}": lora for number, lora in enumerate(loras)}
    for name, (file, scale) in named.items():
        add_lora(transformer, Path(file), name, scale)
    transformer.set_adapters(list(named), [scale for _, scale in named.values()])
    transformer.fuse_lora()
    transformer.unload_lora()
    with writing_folder(out) as scratch:
        pipe.save_pretrained(scratch)
