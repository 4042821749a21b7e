"""Tokens, floating point operations, memory and seconds of a request, before anything loads. Integers and floats, no torch.

Counts are of multiplications and additions (two for each product), matrix products alone. Legend: N tokens, D width, F width
of the MLP, L text places, n images.
"""

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.models.registry import Preset
from phantom_s2v.pipeline.request import Request

CONV_COPIES = 5.0  # feature maps of the largest size alive at once while the autoencoder decodes; measured (dev/LOG.md)
# Hidden states that a step cache keeps of a branch: on the whole, and of every block; counted by a test.
KEPT = {
    "first-block": (3, 0), "magcache": (2, 0), "seacache": (2, 0),
    "taylorseer": (0, 6), "pab": (0, 2), "fastercache": (0, 2),
}  # fmt: skip
UTILIZATION = 0.45  # share of a card's peak that such models reach; assumed for every card below


@dataclass(frozen=True)
class Card:
    """A GPU. Rates are of the makers' data sheets: dense bfloat16 with float32 sums."""

    name: str
    memory: float  # GB
    tflops: float
    source: str


CARDS = (
    Card("h100", 80, 989.4, "NVIDIA H100 SXM data sheet, half of the sparse figure"),
    Card("h200", 141, 989.4, "NVIDIA H200 SXM data sheet, half of the sparse figure"),
    Card("a100-80gb", 80, 312, "NVIDIA A100 data sheet"),
    Card("l40s", 48, 362, "NVIDIA L40S data sheet, half of the sparse figure"),
    Card("rtx-4090", 24, 165.2, "NVIDIA Ada GPU architecture paper, float32 sums"),
    Card("rtx-3090", 24, 71, "NVIDIA GA102 architecture paper, float32 sums"),
    Card("l4", 24, 121, "NVIDIA L4 data sheet, half of the sparse figure"),
)


@dataclass(frozen=True)
class Speed:
    """What a machine does in a second, in FLOP/s: the transformer's blocks and the autoencoder's convolutions."""

    blocks: float
    convolutions: float
    name: str


@dataclass(frozen=True)
class Estimate:
    """What a request will take."""

    tokens: int  # of video and images, in one forward
    forwards: int
    flops: float  # of all forwards
    autoencoder_flops: float
    weights: float  # bytes, of transformer and autoencoder as they are held
    peak: float  # bytes on the device beside what the program itself needs
    seconds: float
    speed: Speed  # of the machine or card

    def sentence(self) -> str:
        """One line for people."""
        return (
            f"{self.tokens:,} tokens, {self.forwards} forwards, {(self.flops + self.autoencoder_flops) / 1e12:.3g} TFLOP, "
            f"about {self.peak / 1e9:.2g} GB and {spell(self.seconds)} on {self.speed.name}"
        )


def spell_bytes(size: float) -> str:
    """A number of bytes for people."""
    unit, name = next(((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB"))
    return f"{size / unit:,.3g} {name}"


def spell(seconds: float) -> str:
    """A time for people."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def activation_bytes(widths: tuple[int, int], tokens: int, width: int) -> float:
    """Memory of one forward beside its weights: hidden state, norms in float32, queries, keys, values, and the MLP."""
    d, f = widths
    return tokens * (d * (7 * width + 8) + 2 * f * width)


def cache_bytes(config: dict[str, Any], tokens: int, width: int, cache: str) -> float:
    """What a step cache keeps of one branch of Wan: states as large as the hidden state, some of every block."""
    whole, every_block = KEPT[cache]
    states = whole + every_block * config["num_layers"]
    return float(states * tokens * config["num_attention_heads"] * config["attention_head_dim"] * width)


def autoencoder_bytes(base: int, request: Request) -> float:
    """Memory of decoding: the largest feature maps of four frames, and the video in float32 twice."""
    plane = request.height * request.width * 4
    return CONV_COPIES * base * 4 * plane + 2 * 3 * request.num_frames * plane


def card(name: str) -> Card:
    """A card of the table by name. Raises InputError for one that is not in it."""
    for each in CARDS:
        if each.name == name.lower():
            return each
    raise InputError(f"card must be one of {', '.join(c.name for c in CARDS)} (got {name!r})")


def parse_budget(text: str) -> tuple[str, float]:
    """("seconds", s) or ("bytes", b) of "20min", "90s", "2h" or "24GB". Raises InputError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|GB|MB)\s*", text)
    if not match:
        raise InputError(f"budget must be a time such as 90s, 20min or 2h, or a memory size such as 24GB (got {text!r})")
    scale = {"s": 1, "min": 60, "h": 3600, "GB": 1e9, "MB": 1e6}[match[2]]
    return ("bytes" if match[2].endswith("B") else "seconds"), float(match[1]) * scale


MIN_STEPS, MIN_FRAMES = 4, 5  # fewer give no video worth having


def smaller(request: Request, preset: Preset, fits: Callable[[Request], bool]) -> str:
    """The mildest change of a request that `fits`, as options: fewer steps, the lowest size, fewer frames, or all of them.

    A sentence fragment, which says so where not even MIN_STEPS steps of MIN_FRAMES frames do.
    """
    low = preset.sizes[0] if preset.sizes else (preset.height, preset.width)
    at_low = request if request.height * request.width <= low[0] * low[1] else replace(request, height=low[0], width=low[1])
    size = "" if at_low is request else f"--size {low[1]}x{low[0]} "
    few = min(MIN_STEPS, request.num_inference_steps)
    fewest = replace(at_low, num_inference_steps=few)
    steps = [
        (f"--num-inference-steps {n}", replace(request, num_inference_steps=n)) for n in range(few, request.num_inference_steps)
    ]
    lengths = range(MIN_FRAMES, request.num_frames, 4)
    shorter = [(f"--num-frames {n}", replace(request, num_frames=n)) for n in lengths]
    all_less = [(f"{size}--num-inference-steps {few} --num-frames {n}", replace(fewest, num_frames=n)) for n in lengths]
    for ways in (steps, [(size.strip(), at_low)] if size else [], shorter, all_less):
        count = bisect_left(ways, True, key=lambda way: not fits(way[1]))  # what is asked for grows along each list
        if count:
            return f"{ways[count - 1][0]} would fit"
    return f"not even {size}--num-inference-steps {few} --num-frames {min(MIN_FRAMES, request.num_frames)} would fit"
