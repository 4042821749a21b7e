"""LoRA adapters of a fine-tuning: added, started from a file, or merged into the base before it begins."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from phantom_s2v.errors import InputError
from phantom_s2v.models.wan.lora import add_lora, factors
from phantom_s2v.pipeline.batch import parse_loras
from phantom_s2v.training.config import Lora


def merge_base(transformer: Any, files: tuple[str, ...]) -> None:
    """Merge LoRA files, FILE or FILE=SCALE, into the weights for good."""
    loras = {f"base{number}": lora for number, lora in enumerate(parse_loras(list(files)))}
    for name, (file, scale) in loras.items():
        add_lora(transformer, Path(file), name, scale)
    if loras:
        transformer.set_adapters(list(loras), [scale for _, scale in loras.values()])
        transformer.fuse_lora()
        transformer.unload_lora()


def add_adapters(transformer: Any, lora: Lora, init_from: str = "") -> None:
    """Add adapters in float32, which alone learn; with `init_from` they begin as the factors of a LoRA file, at its strength."""
    from peft import LoraConfig

    start = factors(Path(init_from), transformer) if init_from else {}
    target_layers(transformer, lora)
    settings: Any = {"use_rslora": lora.rank_stabilized, "target_modules": list(lora.targets)}
    transformer.requires_grad_(False)
    transformer.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, **settings))  # type: ignore[arg-type]
    for parameter in transformer.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    scale = lora.alpha / (lora.rank**0.5 if lora.rank_stabilized else lora.rank)
    for layer, (down, up, strength) in start.items():
        module = transformer.get_submodule(layer)
        if not hasattr(module, "lora_A"):
            raise InputError(f"{init_from} has factors for {layer}, which is not among the targets {', '.join(lora.targets)}")
        if len(down) != lora.rank:
            raise InputError(f"{init_from} has rank {len(down)} at {layer}, and the configuration {lora.rank}; set [lora] rank")
        with torch.no_grad():
            module.lora_A["default"].weight.copy_(down)
            module.lora_B["default"].weight.copy_(up.float() * (strength / scale))


def target_layers(transformer: nn.Module, lora: Lora) -> list[nn.Linear]:
    """The linear layers whose names end as the targets say. Raises InputError for a target that no layer has."""
    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    found = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in lora.targets}
    if missing := [target for target, names in found.items() if not names]:
        raise InputError(
            f"lora targets must be ends of names of linear layers; {type(transformer).__name__} has no {missing[0]!r}"
        )
    return [layers[name] for name in sorted({name for names in found.values() for name in names})]
