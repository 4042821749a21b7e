"""The linear path of the autoencoder: linear, a good code from the start, and the same inside the whole network."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from einops import rearrange

from phantom_s2v.data.synthetic.compose import compose, random_spec
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.models.autoencoder import to_pixels
from phantom_s2v.training.autoencoder.linear import _neighborhoods, linear_path, principal_start, whole


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    store = held_out()
    rngs = [np.random.default_rng([3, index]) for index in range(12)]
    return torch.stack([to_pixels(compose(random_spec(rng, evaluated(store), 9), store).video) for rng in rngs])


@pytest.fixture(scope="module")
def linear(clips: torch.Tensor) -> AutoencoderKLWan:
    torch.manual_seed(0)
    model = linear_path()
    principal_start(model, clips)
    return model


@torch.no_grad()
def through(model: AutoencoderKLWan, pixels: torch.Tensor) -> torch.Tensor:
    return model.decode(model.encode(pixels).latent_dist.mode(), return_dict=False)[0]


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(4 / (one - other).square().mean()))


@pytest.mark.parametrize("frames", [1, 9])
def test_the_path_is_affine(linear, clips, frames):
    one, other = clips[:2, :, :frames] / 4, clips[2:4, :, :frames] / 4  # diffusers cuts what is beyond -1 and 1
    mixed = through(linear, 0.3 * one + 0.7 * other)
    torch.testing.assert_close(mixed, 0.3 * through(linear, one) + 0.7 * through(linear, other), atol=1e-4, rtol=1e-4)


def test_the_start_keeps_the_image(linear, clips):
    """Untrained: better than each frame's 4x4 means, which are as many numbers, and far from what random weights do."""
    means = torch.nn.functional.avg_pool3d(clips, (1, 4, 4))
    coarse = torch.nn.functional.interpolate(means, scale_factor=(1, 4, 4))
    assert psnr(through(linear, clips), clips) > psnr(coarse, clips) + 0.5
    assert psnr(through(linear_path(), clips), clips) < psnr(coarse, clips) - 5


def test_neighborhoods_are_rows_of_the_unfolded_image():
    x, rows = torch.randn(5, 3, 8, 6), torch.tensor([0, 5, 47, 48, 100, 239])
    everywhere = rearrange(torch.nn.functional.unfold(x, 3, padding=1), "m k s -> (m s) k")
    assert torch.equal(_neighborhoods(x, rows), everywhere[rows])


@pytest.mark.parametrize("frames", [1, 9])
def test_the_whole_network_begins_as_its_linear_path(linear, clips, frames):
    model = whole(linear, clips)
    one, other = through(linear, clips[:4, :, :frames]), through(model, clips[:4, :, :frames])
    assert psnr(one, other) > 40  # the norms before the heads are linear but for a hundredth
    assert {type(module).__name__ for module in model.modules()} >= {"WanResidualBlock", "WanAttentionBlock", "WanRMS_norm"}


def test_latents_of_the_whole_network_have_unit_std(linear, clips):
    latents = whole(linear, clips).encode(clips).latent_dist
    torch.testing.assert_close(latents.mean.mean((0, 2, 3, 4)), torch.zeros(48), atol=0.05, rtol=0)
    torch.testing.assert_close(latents.mean.std((0, 2, 3, 4)), torch.ones(48), atol=0.05, rtol=0)


def test_every_branch_of_the_whole_network_learns(linear, clips):
    model = whole(linear, clips)
    model.decode(model.encode(clips[:1]).latent_dist.mode(), return_dict=False)[0].square().mean().backward()
    silent = [n for n, p in model.named_parameters() if n.endswith(("conv2.weight", "proj.weight"))]
    assert len(silent) == 15
    assert all(p.abs().sum() == 0 and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n in silent)
