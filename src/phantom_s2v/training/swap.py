"""Blocks of a frozen transformer that wait in main memory and come to the device when they compute, one way only.

A block's weights are copied for its forward, and again where gradient checkpointing computes it again for the backward pass;
each copy is freed with what needed it. Nothing is copied back, since what is frozen does not change (musubi-tuner#972).
"""

from typing import Any

import torch
from torch.func import functional_call


def swap_blocks(transformer: Any, count: int, device: torch.device) -> None:
    """Move a transformer from main memory to the device, but for the frozen weights of its last `count` blocks."""
    blocks = list(transformer.blocks)
    kept = blocks[len(blocks) - count :]
    held = {id(p) for block in kept for p in block.parameters() if not p.requires_grad}
    for parameter in transformer.parameters():
        if id(parameter) not in held:
            parameter.data = parameter.data.to(device)
        elif device.type == "cuda":
            parameter.data = parameter.data.pin_memory()  # unpinned copies take several times as long
    for module in transformer.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    for block in kept:
        block.forward = Visiting(block, device)


class Visiting:
    """The forward of a block with its frozen weights, and others that lie elsewhere, on the device while something needs them."""

    def __init__(self, block: Any, device: torch.device) -> None:
        self.block, self.device, self.forward, self.inside = block, device, block.forward, False

    def compile(self, **options: Any) -> None:
        """Compile the forward, but for the copying."""
        self.forward = torch.compile(self.forward, **options)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the block's own forward."""
        if self.inside:
            return self.forward(*args, **kwargs)
        here_type = self.device.type  # adapters that samples are made with lie beside their base
        moved = {name: p for name, p in self.block.named_parameters() if not p.requires_grad or p.device.type != here_type}
        here = {name: p.detach().to(self.device, non_blocking=True, copy=True) for name, p in moved.items()}
        self.inside = True
        try:
            return functional_call(self.block, here, args, kwargs)
        finally:
            self.inside = False
