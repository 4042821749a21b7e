"""docs/architecture.md says how to add a base model: one of a module of its own generates, trains and is evaluated."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from phantom_s2v import PhantomPipeline
from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.evaluation.run import Asked, score_all
from phantom_s2v.models import registry
from phantom_s2v.models.flow_matching import interpolate, velocity_loss, velocity_target
from phantom_s2v.pipeline.batch import build_request, make
from phantom_s2v.pipeline.cost.measure import estimate
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.training.config import TrainConfig
from phantom_s2v.training.loop import train


@pytest.fixture
def toy(tiny_models, tmp_path, monkeypatch):
    """The folder of a toy model that was written by its own pipeline."""
    families = list(registry.FAMILIES)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    sys.modules.pop("toy_model", None)
    import toy_model

    torch.manual_seed(0)
    toy_model.ToyPipeline(tiny_models.vae, toy_model.ToyTransformer()).save_pretrained(tmp_path / "toy")
    yield tmp_path / "toy"
    registry.FAMILIES[:] = families


def test_a_base_model_of_ones_own_generates_is_estimated_and_evaluated(toy, image, tmp_path):
    pipe = load_models(toy)
    assert type(pipe).__name__ == "ToyPipeline"
    request = build_request({"prompt": "A cat.", "reference": [f"cat={image}"]}, pipe.preset)
    assert estimate(request, pipe.preset, toy, pipe.placement).flops > 0
    make(request, pipe, tmp_path / "cat.mp4", False, lambda _: None, {"a": "test"})
    tools = instruments(Wanted(features="phantom-mini"))
    found = score_all([(tmp_path / "cat.mp4", Asked([("cat", image)], "A cat.", tools))], None, lambda *_: None)
    assert any(name.startswith("similarity") and np.isfinite(value) for name, value in found.means(tools).items()), found.lines
    other = PhantomPipeline.from_pretrained(toy)
    first, second = (p("A cat.", image, generator=torch.Generator().manual_seed(0)).frames for p in (pipe, other))
    assert np.array_equal(first, second)


def test_a_base_model_of_ones_own_trains(toy, tmp_path):
    network = load_models(toy).transformer.train().requires_grad_(True)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def batch(step, rank):
        return torch.randn(4, 8, 2, 4, 4, generator=torch.Generator().manual_seed(step))

    def loss_of(model):
        def loss(x, step):
            noise, t = torch.randn_like(x), torch.rand(len(x))
            x_t = interpolate(x, noise, t[:, None, None, None, None])
            velocity = model(x_t, t, torch.zeros(len(x)), x[:, :, :0])
            return {"loss": velocity_loss(velocity, velocity_target(x, noise), torch.ones(len(x), 2, dtype=torch.bool))}

        return loss

    config = TrainConfig(2, precision="float32", workers=0, warmup=1, log_steps=1)
    train(config, network, batch, loss_of, tmp_path / "out", {"config": {}})
    assert any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
