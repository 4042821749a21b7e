"""What holds for fine-tuning of every base model: the forward of generation, gradients, and resuming to the bit."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Held, held
from safetensors.torch import load_file

from phantom_s2v.models.memory import Placement
from phantom_s2v.models.tensors import FILE
from phantom_s2v.pipeline.conditions import Conditions, Dropped
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.pipeline.mmdit_pipeline import References
from phantom_s2v.training import encoded, own, recipes
from phantom_s2v.training.batches import collate
from phantom_s2v.training.config import Lora, OwnConfig
from phantom_s2v.training.guard import encoder_hashes

NO, YES = torch.tensor([False]), torch.tensor([True])


@dataclass(frozen=True)
class Family:
    """A tiny model of a family, encoded triplets for it, and its presets."""

    folder: Path
    store: Held
    preset: Callable[[], OwnConfig]
    targets: tuple[str, ...]


@pytest.fixture(scope="module", params=["mini", "wan"])
def family(request, tiny, converted) -> Family:
    if request.param == "mini":
        sizes = [(32, 32, 9)] * 4 + [(32, 48, 5)] * 4
        return Family(tiny, held(8, (6, 384), (16, 32), sizes), recipes.own_mini, recipes.MINI_TARGETS)
    return Family(converted, held(16, (7, 24), None, [(32, 48, 5)] * 6), recipes.own_wan, ("to_q", "ffn.net.2"))


def conditions(pipe: Any, batch: dict[str, torch.Tensor], empty: torch.Tensor) -> Conditions:
    """Those of generation for a training batch of one triplet."""
    if "image_tokens" in batch:
        references: Any = References(batch["references"], batch["image_tokens"], batch["subjects"])
    else:
        references = batch["references"].transpose(1, 2)
    return Conditions(pipe.pad_features(batch["text"]), pipe.pad_features(empty), references, 1, None, False)


@pytest.mark.parametrize("t", [0.5, 0.502, 0.251])
def test_training_uses_the_forward_of_generation(family, t):
    """The training's velocity is that of the pipeline's branches, dropped or not; 502 / 1000 times 1000 is not below 502."""
    pipe = load_models(family.folder)
    batch = collate(family.store.take([0]), np.random.default_rng(0))
    x, empty = torch.randn(batch["latents"].shape), pipe.encode_texts([""], 512)
    seen = {}
    for name, dropped in (("both", (NO, NO)), ("image", (YES, NO)), ("null", (YES, YES))):
        seen[name] = pipe.training_velocity(x, torch.tensor([t]), batch, Dropped(*dropped, NO, NO, empty))
    pipe.scheduler.set_timesteps(2)
    pipe.scheduler.sigmas[0], pipe._num_timesteps = t, 2
    velocities = pipe.branches(conditions(pipe, batch, empty), x, None)(x, torch.tensor(round(1000 * t)), 0, list(seen))
    for name, velocity in velocities.items():
        torch.testing.assert_close(seen[name], velocity, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(seen["both"], seen["null"], atol=1e-2)


def test_checkpointed_blocks_have_the_same_gradients(family):
    """What is kept between the passes is computed again."""
    batch = collate(family.store.take([0]), np.random.default_rng(0))
    x, t = torch.randn(batch["latents"].shape), torch.tensor([0.5])
    grads = []
    for again in (False, True):
        pipe = load_models(family.folder)
        pipe.transformer.requires_grad_(True).train()
        calls: list[int] = []
        for block in pipe.transformer.blocks:
            block.register_forward_pre_hook(lambda *given, calls=calls: calls.append(1))
        if again:
            pipe.transformer.enable_gradient_checkpointing()
        pipe.training_velocity(x, t, batch, Dropped(NO, NO, NO, NO, pipe.encode_texts([""], 512))).square().mean().backward()
        assert len(calls) == (4 if again else 2)
        grads.append([p.grad for p in pipe.transformer.parameters() if p.grad is not None])
    assert len(grads[0]) > 20
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


LONG = pytest.mark.long


@pytest.mark.parametrize(("rank", "changes"), [
    (0, {}),
    pytest.param(0, {"activation_offload": True}, marks=LONG),
    pytest.param(2, {"gradient_checkpointing": True}, marks=LONG),
    pytest.param(2, {"gradient_checkpointing": True, "blocks_to_swap": 1}, marks=LONG),
])  # fmt: skip
def test_compiled_blocks_have_the_same_gradients(family, rank, changes, monkeypatch):
    """Over two shapes of batches; torch's code generator is left out, which takes a minute more and has tests of its own."""
    generated = torch.compile
    monkeypatch.setattr(torch, "compile", lambda work, **given: generated(work, backend="aot_eager", **given))
    lora = Lora(rank, 2.0, targets=family.targets) if rank else None
    config = replace(family.preset(), lora=lora, drop_text=0.0, drop_references=0.0, drop_latents=0.0, drop_tokens=0.0)
    config = replace(config, **{"gradient_checkpointing": False, **changes})
    shapes = sorted(set(family.store.shapes))
    batches = [collate(family.store.take([family.store.shapes.index(shape)]), np.random.default_rng(0)) for shape in shapes]
    grads = []
    for compiled in (False, True):
        pipe = load_models(family.folder)
        torch.manual_seed(0)
        trained = own.trainable(pipe.transformer, config, torch.device("cpu"))
        own.prepare(pipe.transformer, replace(config, compile=compiled))
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter.add_(0.02)  # gradients of adapters are zero where factors are
        for batch in batches:
            torch.manual_seed(0)
            own.loss_of(pipe, config, pipe.encode_texts([""], 512))(batch, 0)["loss"].backward()
        grads.append([torch.zeros_like(p) if p.grad is None else p.grad for p in trained.parameters()])
    assert sum(bool(grad.any()) for grad in grads[0]) > len(grads[0]) / 2
    scale = max(float(grad.abs().max()) for grad in grads[0])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5 * scale, rtol=1e-4)


@pytest.mark.parametrize(
    ("rank", "compiled"), [(0, False), (2, False), pytest.param(0, True, marks=LONG), pytest.param(2, True, marks=LONG)]
)
def test_a_stopped_run_goes_on_bit_for_bit(family, tmp_path, monkeypatch, rank, compiled):
    """All weights, which are a model folder afterwards, and LoRA."""
    family.store.origin = encoder_hashes(family.folder)
    monkeypatch.setattr(encoded, "EncodedStore", lambda path: family.store)
    config = family.preset()
    lora = Lora(rank, 2.0, targets=family.targets) if rank else None
    train = replace(config.train, adam_lr=5e-3, warmup=1, precision="float32", log_steps=1, decay_share=0.0, ema_decay=0.5)
    config = replace(config, lora=lora, t_tokens=16, validation=0.2 * compiled, compile=compiled)

    def run(name: str, steps: int) -> dict[str, torch.Tensor]:
        given = replace(config, train=replace(train, steps=steps))
        torch.compiler.reset()  # as another process
        own.run(given, family.folder, {tmp_path: 0}, tmp_path / name, Placement(device="cpu"))
        return load_file(tmp_path / name / ("lora.safetensors" if rank else f"model/transformer/{FILE}"))

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    if rank:
        assert any(value.any() for name, value in whole.items() if "lora_B" in name)
        return
    before, after = (load_models(folder).transformer.state_dict() for folder in (family.folder, tmp_path / "whole" / "model"))
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) > 0.8 * len(before)
