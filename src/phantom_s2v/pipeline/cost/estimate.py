"""Tokens, floating point operations, memory and seconds of a request, before anything loads. Integers and floats, no torch.

Counts are of multiplications and additions (two for each product), matrix products alone. Legend: N tokens, D width, F width
of the MLP, L text places, n pictures.
"""

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import VideoSize, windows
from phantom_s2v.models.registry import Preset
from phantom_s2v.pipeline.request import Request

TEXT_PLACES = 512  # of Wan
MINI_WORDS = 24  # text tokens of a usual prompt to phantom-mini
CONV_COPIES = 5.0  # feature maps of the largest size alive at once while the autoencoder decodes; measured (dev/LOG.md)
# Hidden states that a step cache keeps of a branch: on the whole, and of every block; counted by a test.
KEPT = {
    "first-block": (3, 0), "magcache": (2, 0), "seacache": (2, 0),
    "taylorseer": (0, 6), "pab": (0, 2), "fastercache": (0, 2),
}  # fmt: skip
UTILISATION = 0.45  # share of a card's peak that such models reach; assumed for every card below


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

    tokens: int  # of video and pictures, in one forward
    forwards: int
    flops: float  # of all forwards
    autoencoder_flops: float
    weights: float  # bytes, of transformer and autoencoder as they are held
    peak: float  # bytes on the device beside what the program itself needs
    seconds: float
    name: str  # of the machine or card

    def sentence(self) -> str:
        """One line for people."""
        return (
            f"{self.tokens:,} tokens, {self.forwards} forwards, {(self.flops + self.autoencoder_flops) / 1e12:.3g} TFLOP, "
            f"about {self.peak / 1e9:.2g} GB and {spell(self.seconds)} on {self.name}"
        )


def spell(seconds: float) -> str:
    """A time for people."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def token_count(request: Request, preset: Preset) -> int:
    """Tokens of one forward: every latent frame and every picture, in patches of 2x2 for Wan."""
    frames, h, w = VideoSize(request.frames, request.height, request.width).latent
    patch = 4 if preset.family == "wan" else 1
    return (frames + len(request.pictures())) * h * w // patch


def wan_flops(config: dict[str, Any], tokens: int) -> int:
    """One forward of WanTransformer3DModel on N tokens."""
    d, f = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    n, text = tokens, TEXT_PLACES
    own = 4 * n * d * d + 2 * n * n * d  # projections, scores and sums, in products
    cross = 2 * n * d * d + 2 * text * d * d + 2 * n * text * d
    block = own + cross + 2 * n * d * f
    ends = 2 * n * d * config["in_channels"] * math.prod(config["patch_size"])
    embedded = text * d * (config["text_dim"] + d) + d * config["freq_dim"] + d * d + 6 * d * d
    return 2 * (config["num_layers"] * block + ends + embedded)


def mini_flops(config: dict[str, Any], request: Request, words: int = MINI_WORDS) -> int:
    """One forward of PhantomTransformer, with its windows."""
    frames, h, w = VideoSize(request.frames, request.height, request.width).latent
    d, s, n = config["dim"], h * w // config["patch"] ** 2, len(request.pictures())
    pictures = n if config["use_vae_references"] else 0
    image = n * config["image_tokens"] if config["use_image_tokens"] else 0
    vision, text = (frames + pictures) * s, words + image
    total = 0
    for index in range(config["depth"]):
        total += 4 * d * d * (vision + text)
        total += 2 * d * int(d * config["mlp_ratio"]) * vision + 2 * d * int(d * config["text_mlp_ratio"]) * text
        for start, stop in windows(frames, config["window_size"], pictures, config["shift_windows"] and index % 2 == 1):
            total += 2 * d * ((stop - start + pictures) * s + text) ** 2
    channels = config["latent_channels"] * config["patch"] ** 2
    total += d * channels * (vision + frames * s) + words * config["text_dim"] * d + image * config["image_dim"] * d
    return 2 * total


def activation_bytes(config: dict[str, Any], tokens: int, width: int) -> float:
    """Memory of one forward of Wan beside its weights: hidden state, norms in float32, queries, keys, values, and the MLP."""
    d, f = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    return tokens * (d * (7 * width + 8) + 2 * f * width)


def cache_bytes(config: dict[str, Any], tokens: int, width: int, cache: str) -> float:
    """What a step cache keeps of one branch of Wan: states as large as the hidden state, some of every block."""
    whole, every_block = KEPT[cache]
    states = whole + every_block * config["num_layers"]
    return float(states * tokens * config["num_attention_heads"] * config["attention_head_dim"] * width)


def autoencoder_bytes(base: int, request: Request) -> float:
    """Memory of decoding: the largest feature maps of four frames, and the video in float32 twice."""
    plane = request.height * request.width * 4
    return CONV_COPIES * base * 4 * plane + 2 * 3 * request.frames * plane


def card(name: str) -> Card:
    """A card of the table by name. Raises InputError for one that is not in it."""
    for each in CARDS:
        if each.name == name.lower():
            return each
    raise InputError(f"card is {name!r}; known are {', '.join(c.name for c in CARDS)}")


def parse_budget(text: str) -> tuple[str, float]:
    """("seconds", s) or ("bytes", b) of "20min", "90s", "2h" or "24GB". Raises InputError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|GB|MB)\s*", text)
    if not found:
        raise InputError(f"budget is {text!r}; legal are a time such as 90s, 20min or 2h, and a memory such as 24GB")
    scale = {"s": 1, "min": 60, "h": 3600, "GB": 1e9, "MB": 1e6}[found[2]]
    return ("bytes" if found[2].endswith("B") else "seconds"), float(found[1]) * scale


def smaller(request: Request, preset: Preset) -> list[tuple[str, Request]]:
    """What a request could give up, mildest first: steps, then length, then both."""
    few = max(4, request.steps // 2)
    short = max(5, (request.frames // 2 - 1) // 4 * 4 + 1)
    ways = [
        (f"--steps {few}", replace(request, steps=few)),
        (f"--frames {short}", replace(request, frames=short)),
        (f"--steps {few} --frames {short}", replace(request, steps=few, frames=short)),
    ]
    if preset.family == "wan":
        low = (preset.sizes[0] if preset.sizes else (480, 832)) if request.height > 480 else None
        if low:
            ways.insert(2, (f"--size {low[1]}x{low[0]}", replace(request, height=low[0], width=low[1])))
    return ways
