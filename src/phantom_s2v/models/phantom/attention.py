"""Window self-attention over latent time with references injected into every window (Phantom 3.2, figure 5).

Legend: B batch, H heads, T latent time, S = h w positions of a frame, n reference places, L tokens of the text branch,
E width of a head, M window size with references.
"""

from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch.nn.functional import scaled_dot_product_attention

from phantom_s2v.models.phantom.layers import rotate

WRITTEN_OUT = 900  # tokens; of 548 the written-out one takes 0.65 of the fused one's time, of 1,060 1.18, of 2,080 1.45


@dataclass(frozen=True)
class Tokens:
    """Queries, keys or values of the three kinds of tokens."""

    video: torch.Tensor  # [B, H, T, S, E]
    references: torch.Tensor  # [B, H, n, S, E]
    text: torch.Tensor  # [B, H, L, E], text and image tokens


@dataclass(frozen=True)
class Seen:
    """Which keys are attended to; None: all."""

    references: torch.Tensor | None  # bool [B, n]
    text: torch.Tensor | None  # bool [B, L]


def window_attention(
    q: Tokens, k: Tokens, v: Tokens, ranges: list[tuple[int, int]], angles: torch.Tensor, seen: Seen, everywhere: bool = True
) -> Tokens:
    """Attention inside each window over {video, references, text, image}.

    `ranges` are the windows' half-open ranges of latent time, `angles` RoPE's table [M, S, E/2]: inside a window video
    takes places 0.. and the references its last n, so all windows are equivalent. What references,
    text and image tokens get is averaged over the windows. `everywhere` False injects references once, at the tail: into the last
    window only.
    """
    video, references, text = [], [], []
    for index, (start, stop) in enumerate(ranges):
        inject = everywhere or index == len(ranges) - 1
        cut_q, cut_k, cut_v = (_cut(x, start, stop, inject) for x in (q, k, v))
        out = _attend(cut_q, cut_k, cut_v, angles, seen if inject else Seen(None, seen.text))
        video.append(out.video)
        text.append(out.text)
        if inject:
            references.append(out.references)
    return Tokens(torch.cat(video, 2), torch.stack(references).mean(0), torch.stack(text).mean(0))


def _cut(x: Tokens, start: int, stop: int, inject: bool) -> Tokens:
    return Tokens(x.video[:, :, start:stop], x.references if inject else x.references[:, :, :0], x.text)


def _attend(q: Tokens, k: Tokens, v: Tokens, angles: torch.Tensor, seen: Seen) -> Tokens:
    """Full attention inside one window."""
    time, n = q.video.shape[2], q.references.shape[2]
    places = torch.cat([angles[:time], angles[angles.shape[0] - n :]])  # [T + n, S, E/2]
    queries, keys, values = (
        _join(torch.cat([x.video, x.references], 2), x.text, places if turned else None)
        for x, turned in ((q, True), (k, True), (v, False))
    )
    out = _attention(queries, keys, values, _mask(q, seen))
    vision, text = out.split([(time + n) * q.video.shape[3], q.text.shape[2]], 2)
    video, references = rearrange(vision, "b h (t s) e -> b h t s e", t=time + n).split([time, n], 2)
    return Tokens(video, references, text)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Softmax attention; written out where gradients are taken in bfloat16 on a CPU, of few tokens: there the fused kernel, which
    alone is three to five times as fast, has a backward pass with which training takes 1.2 times as long.
    """
    long = q.shape[-2] > WRITTEN_OUT
    if long or q.device.type != "cpu" or q.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(-1) @ v


def _join(vision: torch.Tensor, text: torch.Tensor, angles: torch.Tensor | None) -> torch.Tensor:
    turned = vision if angles is None else rotate(vision, angles)
    return torch.cat([rearrange(turned, "b h t s e -> b h (t s) e"), text], 2)


def _mask(q: Tokens, seen: Seen) -> torch.Tensor | None:
    """bool [B, 1, 1, N] over keys, None where every key is seen."""
    if seen.references is None and seen.text is None:
        return None
    batch, _, time, positions, _ = q.video.shape
    parts = [torch.ones(batch, time * positions, dtype=torch.bool, device=q.video.device)]
    for seen_mask, count, each in ((seen.references, q.references.shape[2], positions), (seen.text, q.text.shape[2], 1)):
        full = torch.ones(batch, count, dtype=torch.bool, device=q.video.device) if seen_mask is None else seen_mask
        parts.append(repeat(full, "b n -> b (n s)", s=each))
    return torch.cat(parts, 1)[:, None, None]
