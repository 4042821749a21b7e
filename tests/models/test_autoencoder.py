from copy import deepcopy

import pytest
import torch

from phantom_s2v.models.autoencoder import build_autoencoder, encode, for_encoding, skip_empty_history

pytestmark = pytest.mark.threads


@pytest.mark.parametrize("frames", [1, 5, 9])
def test_skipping_the_empty_history_changes_neither_numbers_nor_gradients(frames):
    torch.manual_seed(0)
    plain = build_autoencoder()
    quick = deepcopy(plain)
    skip_empty_history(quick)
    assert {type(m).__name__ for m in quick.modules()} - {type(m).__name__ for m in plain.modules()} == {"_CausalConv"}
    assert quick.state_dict().keys() == plain.state_dict().keys()
    pixels = torch.rand(2, 3, frames, 32, 32) * 2 - 1
    results = []
    for model in (plain, quick):
        latents = model.encode(pixels).latent_dist.mode()
        video = model.decode(latents).sample
        video.square().mean().backward()
        results.append((latents, video, {n: p.grad for n, p in model.named_parameters()}))
    for one, other in zip(results[0][:2], results[1][:2], strict=True):
        assert one.abs().max() > 0.01
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)
    for name, gradient in results[0][2].items():
        other = results[1][2][name]
        assert (gradient is None) == (other is None)
        if gradient is not None:
            torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)])
def test_the_copy_for_encoding_gives_the_same_latents(dtype, bound):
    torch.manual_seed(0)
    plain = build_autoencoder().eval()
    quick = for_encoding(plain, dtype)
    assert next(plain.parameters()).dtype == torch.float32
    pixels = torch.rand(2, 3, 5, 32, 32) * 2 - 1
    with torch.no_grad():
        expected, got = encode(plain, pixels), encode(quick, pixels.to(dtype)).float()
    assert (got - expected).abs().max() < bound * expected.std()
