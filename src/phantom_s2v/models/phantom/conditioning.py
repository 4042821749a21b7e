"""Subjects and text -> Conditions, and the null branches of guidance. Training and sampling both call it.

Legend: B batch, L text tokens, n images, k image tokens an image, C latent channels, h w latent grid.
"""

from dataclasses import dataclass, fields, replace

import torch


@dataclass(frozen=True)
class Conditions:
    """What the transformer sees beside the video."""

    text: torch.Tensor  # [B, L, D]
    text_mask: torch.Tensor  # bool [B, L]
    references: torch.Tensor  # [B, n, C, h, w]
    image_tokens: torch.Tensor  # [B, n, k, D]
    image_seen: torch.Tensor  # bool [B, n]; False: the learned null
    subjects: torch.Tensor  # int [B, n]

    def __len__(self) -> int:
        return len(self.text)

    def arguments(self) -> dict[str, torch.Tensor]:
        """Keyword arguments of PhantomTransformer.forward."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def without_text(c: Conditions, empty: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor | None = None) -> Conditions:
    """The image branch: the text of `rows` (bool [B], default all) becomes `empty`, features and mask of one prompt."""
    length = max(c.text.shape[1], empty[0].shape[1])
    text, mask = _pad(c.text, c.text_mask, length)
    null, null_mask = _pad(empty[0].to(text), empty[1], length)
    chosen = torch.ones(len(c), dtype=torch.bool) if rows is None else rows
    chosen = chosen.to(text.device)
    return replace(
        c,
        text=torch.where(chosen[:, None, None], null, text),
        text_mask=torch.where(chosen[:, None], null_mask, mask),
    )


def without_latents(c: Conditions, rows: torch.Tensor | None = None) -> Conditions:
    """Zero latents (in normalized space, as in Phantom-Wan's released code) at the reference places of `rows`."""
    kept = torch.zeros(len(c), dtype=torch.bool) if rows is None else ~rows
    return replace(c, references=c.references * kept.to(c.references)[:, None, None, None, None])


def without_image_tokens(c: Conditions, rows: torch.Tensor | None = None) -> Conditions:
    """The learned null instead of the image tokens of `rows`."""
    kept = torch.zeros(len(c), dtype=torch.bool) if rows is None else ~rows
    return replace(c, image_seen=c.image_seen & kept.to(c.image_seen.device)[:, None])


def null(c: Conditions, empty: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor | None = None) -> Conditions:
    """The null branch: no text, zero latents and null image tokens; the reference places stay."""
    return without_image_tokens(without_latents(without_text(c, empty, rows), rows), rows)


def stack(parts: list[Conditions]) -> Conditions:
    """Several conditions of one number of images as one batch; texts are padded to the longest."""
    length = max(p.text.shape[1] for p in parts)
    padded = [replace(p, **dict(zip(("text", "text_mask"), _pad(p.text, p.text_mask, length), strict=True))) for p in parts]
    return Conditions(**{f.name: torch.cat([getattr(p, f.name) for p in padded]) for f in fields(Conditions)})


def _pad(text: torch.Tensor, mask: torch.Tensor, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    missing = length - text.shape[1]
    pad = torch.nn.functional.pad
    return pad(text, (0, 0, 0, missing)), pad(mask, (0, missing))
