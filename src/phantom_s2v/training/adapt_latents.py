"""A trained transformer adapted to the latents of another autoencoder.

Patches of either autoencoder's latents are fitted as affine maps of the other's, and the maps go into the first and the last
layer; the layers between are unchanged. Where the fit is exact, so is the move (a test holds it).
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from einops import rearrange

from phantom_s2v.models.autoencoder import encode
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.training.autoencoder.linear import ridge

RIDGE = 1e-6  # of the variance of the inputs


@torch.no_grad()
def move_transformer(
    transformer: PhantomTransformer, old: AutoencoderKLWan, new: AutoencoderKLWan, pixels: torch.Tensor
) -> tuple[PhantomTransformer, dict[str, float]]:
    """The transformer for `new`'s latents, fitted on clips [N, 3, F, H, W] in -1..1 whose latents divide into its patches.

    Also the shares of variance that the fits explain: `old_from_new`, which its input sees, and `new_from_old`, its output.
    """
    patch = int(transformer.config["patch"])
    before, after = (_patches(encode(autoencoder, pixels), patch) for autoencoder in (old, new))
    read, read_shift, read_share = affine_fit(after, before)
    write, write_shift, write_share = affine_fit(before, after)
    adapted: Any = PhantomTransformer.from_config({**transformer.config, "latent_channels": after.shape[1] // patch**2})
    same = {k: v for k, v in transformer.state_dict().items() if not k.startswith(("patch_in.", "head."))}
    first, last = transformer.patch_in, transformer.head
    adapted.load_state_dict({
        **same,
        "patch_in.weight": first.weight @ read,
        "patch_in.bias": first.bias + first.weight @ read_shift,
        "head.weight": write @ last.weight,
        "head.bias": write @ last.bias + write_shift,
    })  # fmt: skip
    return adapted, {"old_from_new": read_share, "new_from_old": write_share}


def affine_fit(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Weight [D, C] and shift [D] that give targets [N, D] from inputs [N, C] with least squared error (ridge).

    Also the share of the targets' variance that they explain.
    """
    x, y = inputs.double(), targets.double()
    centered, aim = x - x.mean(0), y - y.mean(0)
    weight = ridge(centered, aim, RIDGE).double()
    share = 1 - (aim - centered @ weight.T).square().sum() / aim.square().sum()
    return weight.float(), (y.mean(0) - weight @ x.mean(0)).float(), float(share)


def _patches(latents: torch.Tensor, patch: int) -> torch.Tensor:
    return rearrange(latents, "b c t (h p) (w q) -> (b t h w) (c p q)", p=patch, q=patch)
