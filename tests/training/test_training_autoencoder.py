"""Training of the autoencoder: what a step sees, what the loss is, and what stays frozen."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.models import registry
from phantom_s2v.training import recipes
from phantom_s2v.training.autoencoder.joint import SPREAD, batch, channel_weight, composed, loss_of, train_autoencoder
from phantom_s2v.training.autoencoder.linear import linear_path
from phantom_s2v.training.checkpoint import saved
from phantom_s2v.training.config import AutoencoderConfig, TrainConfig

CONFIG = AutoencoderConfig(
    TrainConfig(3, workers=0, precision="float32"), TrainConfig(2, workers=0, precision="float32"), ((1, 3), (5, 2), (1, 3))
)


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    store = held_out()
    return replace(store, subjects=evaluated(store)[:4])


def test_stills_and_clips_come_in_turn_and_a_step_is_the_same_again(sprites):
    shapes = [batch(CONFIG, sprites, step)["pixels"].shape for step in range(5)]
    assert shapes == [(3, 3, 1, 64, 64), (2, 3, 5, 64, 64), (3, 3, 1, 64, 64), (3, 3, 1, 64, 64), (2, 3, 5, 64, 64)]
    one, other = batch(CONFIG, sprites, 1), batch(CONFIG, sprites, 1)
    assert torch.equal(one["pixels"], other["pixels"])
    assert not torch.equal(one["pixels"], batch(CONFIG, sprites, 4)["pixels"])
    assert 0 < one["mask"].mean() < one["mask"].max() == 1


def test_a_step_of_larger_clips_has_fewer_of_them(sprites):
    config = replace(CONFIG, side=128, batches=((1, 8), (5, 4), (17, 1)))
    shapes = [batch(config, sprites, step)["pixels"].shape for step in range(3)]
    assert shapes == [(2, 3, 1, 128, 128), (1, 3, 5, 128, 128), (1, 3, 17, 128, 128)]
    assert composed(sprites, 0, 1, config.side).shape == (1, 3, 17, 128, 128)


@pytest.mark.parametrize("textured", [0.0, 1.0])
def test_the_share_of_textured_backgrounds(sprites, textured):
    """A plain or graded row of pixels has no steps; most rows of a texture have, but those along a stripe or between dots."""
    config = replace(CONFIG, textured=textured, references=0.0, batches=((1, 24),))
    seen = batch(config, sprites, 0)
    ring = seen["pixels"][:, :, 0, 0]
    steps = (ring[:, :, 1:] - ring[:, :, :-1]).abs().amax(1).gt(0.05).float().mean(1)
    assert (steps.gt(0.02).float().mean() > 0.5) == bool(textured)


def test_references_have_a_mask_that_is_the_same_everywhere(sprites):
    seen = batch(replace(CONFIG, references=1.0), sprites, 0)
    assert seen["mask"].unique().tolist() == [pytest.approx(128 / 255)]


class Off(nn.Module):
    """Latents of mean 2 and variance 1, pixels off by 0.1, and by 0.3 where a subject is."""

    def __init__(self, seen: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.seen = seen

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(
            latent_dist=DiagonalGaussianDistribution(torch.tensor([2.0, 0.0]).expand(len(pixels), 2)[..., None])
        )

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.seen["pixels"] + 0.1 + 0.2 * self.seen["mask"])


@pytest.mark.parametrize("sampled", [False, True])
def test_loss_is_the_mean_logarithm_of_both_errors_and_the_divergence(sampled):
    mask = torch.zeros(1, 1, 1, 4, 4)
    mask[..., :2] = 1
    seen = {"pixels": torch.zeros(1, 3, 1, 4, 4), "mask": mask}
    parts = loss_of(replace(CONFIG, kl=0.01), Off(seen), sampled)(seen, 0)
    expected = (math.log(0.05 + 1e-4) + math.log(0.09 + 1e-4)) / 2
    assert parts["loss"].item() == pytest.approx(expected + sampled * 0.01 * 2.0, abs=1e-5)
    assert parts["psnr_still"].item() == pytest.approx(10 * math.log10(4 / 0.05), abs=1e-4)
    assert parts["kl"].item() == pytest.approx(2.0)


@pytest.mark.parametrize("decoder_only", [False, True])
def test_decoder_alone_leaves_the_latents_as_they_were(tmp_path, tiny, sprites, decoder_only):
    before = AutoencoderKLWan.from_pretrained(tiny / "vae")
    train_autoencoder(replace(CONFIG, decoder_only=decoder_only), sprites, tmp_path, tiny / "vae")
    after = AutoencoderKLWan.from_pretrained(tmp_path / "autoencoder")
    old, new = before.state_dict(), after.state_dict()
    same = {name: torch.equal(old[name], new[name]) for name in old}
    assert all(same[name] for name in same if name.startswith(("encoder.", "quant_conv."))) == decoder_only
    assert not any(same[name] for name in same if name.startswith("decoder.conv_in.weight"))
    assert (after.config["latents_std"] == before.config["latents_std"]) == decoder_only


def test_the_packaged_decoder_trains_on_clips_of_128_pixels(tmp_path, sprites):
    """In bfloat16 a CPU with AMX gives NaN for the gradient of a convolution over time of 64 x 64 places (torch 2.13)."""
    config = replace(recipes.mini_decoder(1), side=128, batches=((5, 1),))
    config = replace(config, train=replace(config.train, workers=0))
    train_autoencoder(config, sprites, tmp_path, registry.model_folder("phantom-mini") / "vae")
    assert (tmp_path / "autoencoder").is_dir()


@pytest.mark.long
def test_without_weights_to_start_from_the_linear_path_comes_first(tmp_path, sprites, monkeypatch):
    module = "phantom_s2v.training.autoencoder.joint"
    short = lambda *given, **named: composed(*given, **named)[:, :, :5]  # noqa: E731 - a clip's beginning is a clip
    monkeypatch.setattr(f"{module}.composed", short)
    model = train_autoencoder(CONFIG, sprites, tmp_path, None)
    assert saved(tmp_path / "linear" / "checkpoints")
    monkeypatch.delattr(f"{module}.principal_start")  # what has its state already needs no start
    monkeypatch.setattr(f"{module}.export_autoencoder", lambda *_: None)
    again = train_autoencoder(CONFIG, sprites, tmp_path, None).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    pixels = batch(CONFIG, sprites, 7)["pixels"]
    with torch.no_grad():
        latents = model.encode(pixels).latent_dist.mode()
        error = (model.decode(latents, return_dict=False)[0] - pixels).square().mean()
    assert 10 * torch.log10(4 / error) > 18  # random weights: about 10
    stds = torch.tensor(AutoencoderKLWan.from_pretrained(tmp_path / "autoencoder").config["latents_std"])
    size = channel_weight(model, latents, torch.ones(48)).pow(SPREAD / 2)
    assert float((stds * size / size.square().mean().sqrt() - 1).abs().max()) < 0.5


@pytest.mark.parametrize(("options", "seed"), [((), 0), (("--decoder-only",), 1), (("--decoder-only", "--seed", "7"), 7)])
def test_the_seed_is_the_configurations_unless_one_is_given(call_phantom, tmp_path, sprites, monkeypatch, options, seed):
    seen = []
    monkeypatch.setattr("phantom_s2v.data.synthetic.emoji.load_store", lambda root: sprites)
    monkeypatch.setattr("phantom_s2v.training.autoencoder.joint.train_autoencoder", lambda config, *_: seen.append(config))
    assert call_phantom("train", "autoencoder", "--out", tmp_path, *options)[0] == 0
    assert [config.train.seed for config in seen] == [seed]


def test_clips_are_of_64_pixels_unless_a_size_is_given(call_phantom, tmp_path, sprites, monkeypatch):
    seen = []
    monkeypatch.setattr("phantom_s2v.data.synthetic.emoji.load_store", lambda root: sprites)
    monkeypatch.setattr("phantom_s2v.training.autoencoder.joint.train_autoencoder", lambda config, *_: seen.append(config))
    for options in ((), ("--size", "128")):
        assert call_phantom("train", "autoencoder", "--out", tmp_path, *options)[0] == 0
    assert [config.side for config in seen] == [64, 128]
    code, printed = call_phantom("train", "autoencoder", "--out", tmp_path, "--size", "100")
    assert (code, len(seen)) == (2, 2)
    assert "100" in printed.err


@torch.no_grad()
def test_a_channel_weighs_what_its_column_of_a_linear_decoder_does():
    torch.manual_seed(0)
    model = linear_path()
    model.decoder.conv_out.weight.mul_(0.1)  # diffusers cuts what is beyond -1 and 1
    std = torch.linspace(0.1, 1, 48)
    latents = torch.zeros(2, 48, 3, 8, 8)
    columns = torch.zeros(48, 48, 3, 8, 8)
    columns[range(48), range(48), 1, 4, 4] = 0.1 * std
    exact = (model.decode(columns).sample - model.decode(columns * 0).sample).square().sum((1, 2, 3, 4))
    got = channel_weight(model, latents, std)
    assert float(got.sum()) == pytest.approx(1)
    assert torch.corrcoef(torch.stack([got, exact / exact.sum()]))[0, 1] > 0.98
    torch.testing.assert_close(got, exact / exact.sum(), rtol=0.4, atol=2e-3)
