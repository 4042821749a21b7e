"""Composed clips drawn in batches by torch, on the CPU or a GPU: sprites in their appearance, placed, lit, on backgrounds.

Legend: M images of a batch, S side of a sprite, H side of an image, K subjects of a clip, F frames, n references of a clip.
Sprites are premultiplied RGBA in 0..1. A batch travels as a flat dictionary of tensors, so that worker processes can make it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.nn.functional import affine_grid, grid_sample

from phantom_s2v.data.synthetic.appearance import COLORS, PATTERNS, TEXTURES, Appearance, Background

BACKGROUNDS = ("plain", "graded", *TEXTURES)
STANDARD = 64  # pixels a side at which the period of a texture is stated: larger images show the same world, finer
CHUNK = {"cpu": 256, "cuda": 2048}  # images resampled at once
LUMINANCE = (0.299, 0.587, 0.114)
CROP_MARGIN = 1.1  # side of an in-pair reference over that of the subject's box

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Rendered:
    """Images of a batch of clips, all uint8."""

    video: torch.Tensor  # [B, F, H, H, 3]
    references: torch.Tensor  # [B, n, H, H, 3]
    masks: torch.Tensor  # [B, K, F, H, H], alpha of each subject before occlusion; zero where a clip has fewer


def appearance_tensors(appearances: Sequence[Appearance]) -> Tensors:
    """What `apply_appearances` needs of M appearances."""
    kinds = ("", *PATTERNS)
    return {
        "hue": torch.from_numpy(np.stack([_hue_matrix(appearance.hue) for appearance in appearances])),
        "tint": torch.tensor([COLORS.get(appearance.tint, (0, 0, 0)) for appearance in appearances]) / 255,
        "tinted": torch.tensor([bool(appearance.tint) for appearance in appearances]),
        "pattern": torch.tensor([kinds.index(appearance.pattern) for appearance in appearances]),
        "pattern_color": torch.tensor([COLORS[appearance.pattern_color] for appearance in appearances]) / 255,
        "mirrored": torch.tensor([appearance.mirrored for appearance in appearances]),
    }


def background_tensors(backgrounds: Sequence[Background]) -> Tensors:
    """What `paint` needs of M backgrounds; the seed of each draws its phase, direction and noise."""
    rows = [_background_row(background) for background in backgrounds]
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def _background_row(background: Background) -> dict[str, Any]:
    rng = np.random.default_rng(background.seed)
    period, phase, direction, coarse = 1.0, np.zeros(2), 0, np.zeros((9, 9))
    if background.kind == "graded":
        direction = int(rng.random() >= 0.5)
    elif background.kind in TEXTURES:
        period, phase = rng.uniform(10, 18), rng.uniform(0, 16, 2)
        if background.kind == "stripes":
            direction = 0 if rng.random() < 0.5 else 1 if rng.random() < 0.5 else 2
        elif background.kind == "noise":
            coarse = rng.random((9, 9))
    first = np.clip(np.array(COLORS[background.color]) / 255 + np.array(background.jitter) / 255, 0, 1)
    return {
        "kind": np.int64(BACKGROUNDS.index(background.kind)),
        "first": first.astype(np.float32),
        "second": (np.array(COLORS[background.second]) / 255).astype(np.float32),
        "period": np.float32(period),
        "phase": phase.astype(np.float32),
        "direction": np.int64(direction),
        "coarse": coarse.astype(np.float32),
    }


def _hue_matrix(angle: float) -> np.ndarray:
    """Rotation of RGB around the gray axis (Rodrigues), which keeps the sum of the channels."""
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3)
    third = (1 - cosine) / 3
    return (np.eye(3) * cosine + third + sine * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])).astype(np.float32)


def apply_appearances(sprites: torch.Tensor, appearances: Tensors) -> torch.Tensor:
    """Mirror, recolor and pattern sprites [M, S, S, 4] in 0..1."""
    of = {name: value[(...,) + (None,) * (4 - value.ndim)] for name, value in appearances.items() if name != "hue"}
    x = torch.where(of["mirrored"], sprites.flip(2), sprites)
    alpha = x[..., 3:]
    rgb = (x[..., None, :3] * appearances["hue"][:, None, None]).sum(-1)
    shades = (0.35 + 0.9 * (rgb * _luminance(rgb.device)).sum(-1, keepdim=True)) * _color(appearances["tint"]) * alpha
    rgb = torch.where(of["tinted"], shades, rgb)
    weight = 0.75 * _patterns(sprites.shape[1], sprites.device)[appearances["pattern"]][..., None]
    rgb = rgb * (1 - weight) + weight * alpha * _color(appearances["pattern_color"])
    return torch.cat([rgb.clamp(min=0).minimum(alpha), alpha], -1)


def apply_appearance(sprite: np.ndarray, appearance: Appearance) -> np.ndarray:
    """One sprite float32 [S, S, 4] in its appearance."""
    return apply_appearances(torch.from_numpy(np.ascontiguousarray(sprite))[None], appearance_tensors([appearance]))[0].numpy()


@lru_cache(maxsize=8)  # a copy to a GPU waits for it
def _luminance(device: torch.device) -> torch.Tensor:
    return torch.tensor(LUMINANCE, device=device)


def _color(rgb: torch.Tensor) -> torch.Tensor:
    return rgb[:, None, None]


@lru_cache(maxsize=8)
def _patterns(side: int, device: torch.device) -> torch.Tensor:
    """How much of the pattern's color each pixel has, [4, S, S]: none, then PATTERNS."""
    y, x = torch.meshgrid(*[torch.arange(side, device=device) * (2 * math.pi / (side / 4.5))] * 2, indexing="ij")
    waves = (1.5 * torch.sin(x + y), 2 * (torch.cos(x) + torch.cos(y) - 0.8), 3 * torch.sin(x / 1.3) * torch.sin(y / 1.3))
    return torch.stack([torch.zeros_like(x), *(_step(wave, 1.0) for wave in waves)])


def _step(wave: torch.Tensor, slope: float) -> torch.Tensor:
    """A soft step from 0 to 1 around zero, about one pixel wide, so that textures are not aliased."""
    return (wave * (1.6 * slope) + 0.5).clamp(0, 1)


def paint(backgrounds: Tensors, side: int) -> torch.Tensor:
    """Backgrounds in 0..1, [M, H, H, 3]."""
    share = _shares(backgrounds, side)
    first, second = _color(backgrounds["first"]), _color(backgrounds["second"])
    return first + share[..., None] * (second - first)


def _shares(backgrounds: Tensors, side: int) -> torch.Tensor:
    """How much of its second color each pixel of a background has, [M, H, H]."""
    device, direction = backgrounds["first"].device, backgrounds["direction"][:, None, None]
    ramp = (torch.arange(side, device=device) / max(1, side - 1)).expand(len(direction), side, side)
    graded = torch.where(direction == 0, ramp.transpose(1, 2), ramp)
    places = torch.arange(side, device=device) * (STANDARD / side)
    turns = (places + backgrounds["phase"][..., None]) * (2 * math.pi / backgrounds["period"][:, None, None])  # [M, 2, H]
    y, x = turns[:, 0, :, None].expand(-1, -1, side), turns[:, 1, None].expand(-1, side, -1)
    waves = (
        torch.sin(torch.where(direction == 0, x + y, torch.where(direction == 1, x, y))),
        2 * (torch.cos(x) + torch.cos(y) - 0.9),
        3 * torch.sin(x) * torch.sin(y),
    )
    textures = [0.5 * _step(wave, side / STANDARD) for wave in waves]
    noise = 0.5 * _stretch(backgrounds["coarse"], side)
    kinds = torch.stack([torch.zeros_like(graded), graded, *textures, noise], 1)
    return kinds[torch.arange(len(kinds), device=device), backgrounds["kind"]]


def _stretch(coarse: torch.Tensor, side: int) -> torch.Tensor:
    """[M, 9, 9] interpolated linearly to [M, H, H]."""
    place = torch.linspace(0, 7.99, side, device=coarse.device)
    weight = (1 - (place[:, None] - torch.arange(9, device=coarse.device)).abs()).clamp(min=0)
    return weight @ coarse @ weight.T


def place(sprites: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
    """Sprites [M, S, S, 4] drawn at boxes [M, 3] (y and x of the center, size, in pixels) on empty images [M, H, H, 4].

    Box-filtered, so antialiased and exact to fractions of a pixel; pixels outside the image are cropped.
    """
    length = sprites.shape[1]
    y, x, size = boxes.unbind(1)
    rows, columns = (_coverage(length, center - size / 2, length / size, side) for center in (y, x))
    half = torch.bmm(rows, sprites.flatten(2)).unflatten(2, (length, 4)).transpose(1, 2)
    return torch.bmm(columns, half.flatten(2)).unflatten(2, (side, 4)).transpose(1, 2)


def _coverage(length: int, start: torch.Tensor, scale: torch.Tensor, side: int) -> torch.Tensor:
    """Weights [M, H, S]: the share of source cell j in output pixel i, which spans [(i - start) s, + s) in source cells."""
    low = (torch.arange(side, device=start.device) - start[:, None])[..., None] * scale[:, None, None]
    cells = torch.arange(length, device=start.device)
    overlap = torch.minimum(low + scale[:, None, None], cells + 1) - torch.maximum(low, cells)
    return overlap.clamp(min=0) / scale[:, None, None]


def turn(sprites: torch.Tensor, degrees: torch.Tensor) -> torch.Tensor:
    """Sprites [M, S, S, 4] turned counter-clockwise around their middle, bilinear."""
    angle = -degrees * (math.pi / 180)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([torch.stack([cosine, sine, zero], 1), torch.stack([-sine, cosine, zero], 1)], 1)
    turned = _sample(sprites, theta, "zeros")
    return torch.where((degrees == 0)[:, None, None, None], sprites, turned)


def crop(images: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The square around each box [M, 3] of images [M, H, H, C], bilinear at the image's size; its border goes on beyond it."""
    side = images.shape[1]
    y, x, size = boxes.unbind(1)
    scale, zero = size * CROP_MARGIN / side, torch.zeros_like(size)
    across = torch.stack([scale, zero, x * 2 / side - 1], 1)
    return _sample(images, torch.stack([across, torch.stack([zero, scale, y * 2 / side - 1], 1)], 1), "border")


def _sample(images: torch.Tensor, theta: torch.Tensor, beyond: str) -> torch.Tensor:
    channels_first = images.permute(0, 3, 1, 2)
    grid = affine_grid(theta, list(channels_first.shape), align_corners=False)
    return grid_sample(channels_first, grid, "bilinear", beyond, align_corners=False).permute(0, 2, 3, 1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """0..1 -> 0..255, rounded."""
    return (images * 255 + 0.5).clamp(0, 255).to(torch.uint8)


def _pick(pixels: np.ndarray | torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Sprites of flat indices [M] as float32 in 0..1; `pixels` may be a memory map or a tensor on the index's device."""
    chosen = torch.from_numpy(pixels[index.numpy()]) if isinstance(pixels, np.ndarray) else pixels[index]
    return chosen.float() / 255


def _part(batch: Tensors, prefix: str) -> Tensors:
    return {name.removeprefix(prefix): value for name, value in batch.items() if name.startswith(prefix)}


@torch.no_grad()
def render(batch: Tensors, pixels: np.ndarray | torch.Tensor, side: int) -> Rendered:
    """Draw the clips and references of `compose.scene_tensors`; `pixels` are the store's sprites, uint8 [N, S, S, 4]."""
    appearances, (clips, subjects, frames) = _part(batch, "appearance."), batch["sprite"].shape
    flat = {name: value.repeat_interleave(frames, 0) for name, value in appearances.items()}
    layers = _layers(pixels, batch["sprite"].flatten(), flat, batch["path"].flatten(0, 2), side)
    layers = layers.unflatten(0, (clips, subjects, frames))
    canvas = paint(_part(batch, "background."), side)[:, None].expand(-1, frames, -1, -1, -1)
    for layer in layers.unbind(1):
        canvas = canvas * (1 - layer[..., 3:]) + layer[..., :3]
    video = to_uint8(canvas)
    return Rendered(video, _references(batch, pixels, video[:, 0], appearances, side), to_uint8(layers[..., 3]))


def _layers(
    pixels: np.ndarray | torch.Tensor, index: torch.Tensor, appearances: Tensors, boxes: torch.Tensor, side: int
) -> torch.Tensor:
    """Sprites in their appearance at their boxes, [M, H, H, 4], some at a time."""
    parts = []
    at_once = CHUNK[index.device.type]
    for start in range(0, len(index), at_once):
        chosen = slice(start, start + at_once)
        sprites = apply_appearances(_pick(pixels, index[chosen]), {name: value[chosen] for name, value in appearances.items()})
        parts.append(place(sprites, boxes[chosen], side))
    return torch.cat(parts)


def _references(
    batch: Tensors, pixels: np.ndarray | torch.Tensor, first: torch.Tensor, appearances: Tensors, side: int
) -> torch.Tensor:
    """Reference images uint8 [B, n, H, H, 3]: photographed anew, or cut from the first frame [B, H, H, 3]."""
    clips, n = batch["shot.sprite"].shape
    if not n:
        return first.new_zeros(clips, 0, side, side, 3)
    shot = {name: value.flatten(0, 1) for name, value in _part(batch, "shot.").items()}
    clip = torch.arange(clips, device=first.device).repeat_interleave(n)
    member = clip * batch["sprite"].shape[1] + shot["subject"]
    sprites = apply_appearances(_pick(pixels, shot["sprite"]), {name: value[member] for name, value in appearances.items()})
    layer = place(turn(sprites, shot["turn"]), shot["box"], side)
    lit = (layer[..., :3] * shot["gain"][:, None, None, None]).clamp(0, 1)
    cross = to_uint8(paint(_part(batch, "shot_background."), side) * (1 - layer[..., 3:]) + lit)
    box = batch["path"][:, :, 0].flatten(0, 1)[member]
    inside = to_uint8(crop(first[clip].float() / 255, box))
    return torch.where(shot["in_pair"][:, None, None, None], inside, cross).unflatten(0, (clips, n))
