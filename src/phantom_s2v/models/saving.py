"""Saving of models that LoRA adapters were added to: under the names that a model without them has, so that the folder loads."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from phantom_s2v.errors import InputError


def check_savable(model: Any) -> None:
    """Raise InputError for weights that a model folder cannot hold: quantized ones, and adapters that are on and not fused."""
    if getattr(model, "hf_quantizer", None) or any(type(p) is not nn.Parameter for p in model.parameters()):
        raise InputError("quantized weights cannot be saved; save the model unquantized, and quantize it when loading")
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer) and not m.disable_adapters]
    loose = {name for layer in layers for name in layer.active_adapters if name not in layer.merged_adapters}
    if apart := getattr(model, "lora_differences", None):
        loose |= apart.on - set(apart.fused)
    if loose:
        raise InputError(
            f"LoRA adapters are no part of saved weights (on: {', '.join(sorted(loose))}); call fuse_lora or unload_lora_weights "
            "first, or save them alone by save_lora_weights"
        )


@contextmanager
def plain_names(model: nn.Module) -> Iterator[None]:
    """Within it, the state of a model is as if it had no adapters; what is fused into a layer is in its weights."""
    hook: Any = model.register_state_dict_post_hook(_without_adapters)
    try:
        yield
    finally:
        hook.remove()


def _without_adapters(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in list(state):
        value = state.pop(name)
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = value
