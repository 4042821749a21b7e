"""Values that are not finite are seen where they first arise, and named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file, save_file
from torch import nn

from phantom_s2v.errors import CheckpointError, NotFiniteError
from phantom_s2v.models.autoencoder import decode, encode, load_autoencoder
from phantom_s2v.models.finite import all_finite, check_finite, first_not_finite
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.generate import generate

TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize("dtype", TYPES)
def test_all_finite_is_isfinite(dtype):
    sound = torch.linspace(-400, 400, 1001).to(dtype)
    assert all_finite(sound)
    for bad in (float("nan"), float("inf"), -float("inf")):
        for place in (0, 500, 1000):
            value = torch.linspace(-400, 400, 1001)
            value[place] = bad
            if not value.to(dtype).float().isfinite().all():  # float8_e4m3fn has no infinity
                assert not all_finite(value.to(dtype))


def test_a_sum_that_overflows_and_infinities_that_cancel():
    assert all_finite(torch.full((1000,), 3e38))
    assert all_finite(torch.full((1000,), 6e4).half())
    assert not all_finite(torch.tensor([float("inf"), -float("inf")]))
    assert all_finite(torch.arange(3)) and all_finite(torch.empty(0))  # noqa: PT018


def test_the_sentence_counts():
    with pytest.raises(NotFiniteError, match="the score is not finite: of 4 values 2 are NaN and 1 infinite"):
        check_finite(np.array([1.0, np.nan, np.nan, np.inf]), "the score")


def test_the_innermost_module_that_breaks_first_is_named():
    class Logarithm(nn.Module):
        def forward(self, x):
            return x.log()

    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Logarithm()), nn.Linear(2, 2))
    nn.init.constant_(network[0].bias, -9.0)
    assert first_not_finite(network, lambda: network(torch.zeros(1, 2))) == "1.1"
    nn.init.constant_(network[0].bias, 9.0)
    assert first_not_finite(network, lambda: network(torch.zeros(1, 2))) == ""
    assert not any(module._forward_hooks for module in network.modules())


def poisoned(tiny, tmp_path, part, name, value=float("nan")):
    """A copy of a model with one value of one weight that is not finite."""
    folder = tmp_path / "poisoned"
    shutil.copytree(tiny, folder)
    file = folder / part / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state[name].view(-1)[1] = value
    save_file(state, file)
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_is_named(tiny, tmp_path, value):
    folder = poisoned(tiny, tmp_path, "vae", "decoder.conv_out.bias", value)
    with pytest.raises(CheckpointError, match=r"the weight decoder.conv_out.bias of .* is not finite"):
        load_autoencoder(folder / "vae")


def test_no_video_is_made_of_a_broken_weight(call_phantom, tiny, tmp_path):
    folder = poisoned(tiny, tmp_path, "transformer", "blocks.1.vision.q.weight")
    code, said = call_phantom("generate", "--model", folder, "--prompt", "a", "--out", tmp_path / "v.mp4")
    assert code == 2
    (line,) = [line for line in said.err.splitlines() if "not finite" in line]
    assert f"the weight blocks.1.vision.q.weight of {folder / 'transformer'}" in line
    assert not list(tmp_path.glob("*v.*"))


@pytest.fixture
def hook():
    """Registers a forward hook until the end of the test."""
    hooks = []
    yield lambda module, run: hooks.append(module.register_forward_hook(run))
    for each in hooks:
        each.remove()


def asked(models, **options):
    return build_request({"prompt": "A cat moves.", **options}, models.preset)


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_the_step_and_the_block_are_named(tiny_models, hook, solver):
    calls = []

    def break_late(module, given, out):
        calls.append(1)
        return out * float("nan") if len(calls) >= 2 else out

    hook(tiny_models.transformer.blocks[1].vision.mlp, break_late)
    with pytest.raises(NotFiniteError, match=r"step 2 of 3: the velocity is not finite, first in blocks\.1\.vision\.mlp of"):
        generate(asked(tiny_models, solver=solver), tiny_models)


def test_latents_that_only_the_solver_breaks_are_named(tiny_models, monkeypatch):
    whole = FlowMatchEulerDiscreteScheduler.step

    def overshoot(self, *given, **options):
        return tuple(part * float("inf") for part in whole(self, *given, **options))

    monkeypatch.setattr(FlowMatchEulerDiscreteScheduler, "step", overshoot)
    with pytest.raises(NotFiniteError, match="the latents before step 2 of 3 is not finite"):
        generate(asked(tiny_models), tiny_models)


def test_embeddings_are_named(tiny_models, hook, image):

    hook(tiny_models.image_encoder.norm, lambda module, given, out: out * float("nan"))
    with pytest.raises(NotFiniteError, match="the image tokens of reference 1"):
        generate(asked(tiny_models, reference=[str(image)]), tiny_models)
    hook(tiny_models.reader.model, lambda module, given, out: replace(out, last_hidden_state=out[0] * float("nan")))
    with pytest.raises(NotFiniteError, match="the embedding of the prompt"):
        generate(asked(tiny_models), tiny_models)


def test_what_the_autoencoder_gives_is_looked_at(tiny_models, hook):
    for part, run, given in (("decoder.conv_out", decode, (1, 8, 1, 4, 4)), ("quant_conv", encode, (1, 3, 1, 32, 32))):
        hook(tiny_models.vae.get_submodule(part), lambda module, given, out: out * float("nan"))
        with pytest.raises(NotFiniteError, match=f"what the autoencoder {run.__name__}s"), torch.no_grad():
            run(tiny_models.vae, torch.zeros(given))


def test_a_preview_does_not_stay_where_a_later_step_breaks(tiny, tmp_path, call_phantom, monkeypatch):

    def half(request, models, on_step):
        on_step(1, 3, torch.zeros(1, 8, 3, 4, 4))
        raise NotFiniteError("step 2 of 3: the velocity is not finite")

    from phantom_s2v.pipeline import batch

    monkeypatch.setattr(batch, "generate", half)
    code, _ = call_phantom("generate", "--model", tiny, "--prompt", "a", "--preview", "--out", tmp_path / "v.mp4")
    assert (code, list(tmp_path.iterdir())) == (2, [])


def test_requests_cannot_hold_nan(call_phantom, tiny, tmp_path):
    (tmp_path / "all.jsonl").write_text(json.dumps({"prompt": "a", "guidance_scale": float("nan")}))
    assert call_phantom("generate", "--model", tiny, "--requests", tmp_path / "all.jsonl", "--out", tmp_path)[0] == 2


def test_checkpoint_error_is_what_weights_raise():
    with pytest.raises(CheckpointError, match="the weight w of x"):
        check_finite(torch.tensor([float("nan")]), "the weight w of x", CheckpointError)
