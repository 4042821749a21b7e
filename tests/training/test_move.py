"""A transformer moved to other latents: exact where they are affine maps of one another."""

from copy import deepcopy

import pytest
import torch

from phantom_s2v.models.autoencoder import encode
from phantom_s2v.training.adapt_latents import affine_fit, move_transformer


@pytest.fixture(scope="module")
def mixed(tiny_models):
    """The tiny autoencoder with 8 latent channels mixed by a matrix, shifted, and normalized by other statistics."""
    autoencoder = deepcopy(tiny_models.vae)
    generator = torch.Generator().manual_seed(1)
    mix = torch.linalg.qr(torch.randn(8, 8, generator=generator))[0] * torch.linspace(0.5, 2, 8)[:, None]
    layer = autoencoder.quant_conv
    with torch.no_grad():
        layer.weight[:8] = torch.einsum("dc,cithw->dithw", mix, layer.weight[:8].clone())
        layer.bias[:8] = mix @ layer.bias[:8] + 0.3
    autoencoder.register_to_config(latents_mean=[0.2] * 8, latents_std=[0.7] * 8)
    return autoencoder


@torch.no_grad()
def test_the_moved_transformer_gives_the_same_velocity_in_other_latents(tiny_models, mixed):
    torch.manual_seed(0)
    old = tiny_models.vae
    pixels = torch.rand(12, 3, 9, 32, 32) * 2 - 1
    moved, shares = move_transformer(tiny_models.transformer, old, mixed, pixels)
    assert min(shares.values()) > 0.9999
    weight, shift, _ = affine_fit(*(rows(encode(model, pixels)) for model in (old, mixed)))

    def carried(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        """Channels last, mapped, and back; latents [B, C, T, h, w], shifted or not."""
        return (x.movedim(1, -1) @ weight.T + shift).movedim(-1, 1)

    x, references, t = torch.randn(3, 8, 3, 4, 4), torch.randn(3, 2, 8, 4, 4), torch.tensor([0.3, 0.6, 0.9])
    others = {
        "text": torch.randn(3, 5, 384),
        "text_mask": torch.ones(3, 5, dtype=torch.bool),
        "image_tokens": torch.randn(3, 2, 16, 32),
        "image_seen": torch.ones(3, 2, dtype=torch.bool),
        "subjects": torch.tensor([[0, 1]] * 3),
    }
    velocity = tiny_models.transformer(x, t, references=references, **others)
    got = moved(carried(x, shift), t, references=carried(references.transpose(1, 2), shift).transpose(1, 2), **others)
    torch.testing.assert_close(got, carried(velocity, torch.zeros(8)), atol=5e-3, rtol=5e-3)


def rows(latents: torch.Tensor) -> torch.Tensor:
    return latents.movedim(1, -1).flatten(0, -2)


def test_a_fit_is_least_squares_and_its_share_is_what_it_explains():
    torch.manual_seed(0)
    inputs, noise = torch.randn(4000, 6), torch.randn(4000, 3)
    weight, shift = torch.randn(3, 6), torch.randn(3)
    fitted, offset, share = affine_fit(inputs, inputs @ weight.T + shift + noise)
    design = torch.cat([inputs, torch.ones(4000, 1)], 1)
    exact = torch.linalg.lstsq(design, inputs @ weight.T + shift + noise).solution
    torch.testing.assert_close(torch.cat([fitted, offset[:, None]], 1), exact.T, atol=1e-4, rtol=1e-4)
    signal = float(weight.square().sum())
    assert share == pytest.approx(signal / (signal + 3), abs=0.03)
