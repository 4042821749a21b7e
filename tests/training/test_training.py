"""Training: resuming is exact, Muon orthogonalizes, dropping makes the branches of guidance."""

import contextlib
import errno
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from phantom_s2v.cli.train import parse_buckets, parse_references
from phantom_s2v.data.synthetic.compose import compose, plain_spec, scene_tensors
from phantom_s2v.data.synthetic.emoji import write_store
from phantom_s2v.errors import CheckpointError, DataError, InputError, NotFiniteError, OutputError
from phantom_s2v.files.io import locked
from phantom_s2v.models.autoencoder import encode, to_pixels
from phantom_s2v.models.phantom.conditioning import Conditions, null
from phantom_s2v.models.tensors import read_tensors
from phantom_s2v.training.checkpoint import facts_of, load_state, saved
from phantom_s2v.training.config import Bucket, TrainConfig, TransformerConfig
from phantom_s2v.training.latents import VALIDATION, Triplets, validation_families
from phantom_s2v.training.learner import pick_dtype
from phantom_s2v.training.loop import train
from phantom_s2v.training.optim import Muon, orthogonalize, orthogonalize_all, rate_at, rate_left, update_ema
from phantom_s2v.training.run import transformer_run
from phantom_s2v.training.transformer import drop, loss_of, noised, permute_subjects
from phantom_s2v.training.validation import Validation


@pytest.mark.threads
@pytest.mark.parametrize("shape", [(20, 20), (16, 40), (64, 24)])
def test_orthogonalize_is_near_the_polar_factor(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert 0.6 < values.min() < values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    polar = u @ vh
    cosine = (orthogonalize(matrix) * polar).sum() / orthogonalize(matrix).norm() / polar.norm()
    assert cosine > 0.97


def test_matrices_are_orthogonalized_together_as_one_by_one():
    torch.manual_seed(0)
    matrices = [torch.randn(shape) for shape in ((16, 40), (20, 20), (16, 40), (40, 16))]
    for got, matrix in zip(orthogonalize_all(matrices, torch.float32), matrices, strict=True):
        torch.testing.assert_close(got, orthogonalize(matrix), atol=1e-5, rtol=0)


def test_adam_part_is_that_of_torch():
    torch.manual_seed(0)
    ours, theirs = nn.Linear(4, 3), nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    muon = Muon(list(ours.named_parameters()), 0.1, 0.01)  # too small for Muon: all by AdamW without decay
    adam = torch.optim.Adam(theirs.parameters(), 0.01, betas=(0.9, 0.99))
    for _ in range(5):
        x = torch.randn(8, 4)
        for network, optimizer in ((ours, muon), (theirs, adam)):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_names_choose_who_moves_a_matrix_and_how_fast():
    network = nn.ModuleDict({name: nn.Linear(32, 32) for name in ("head", "path", "branch")})
    muon = Muon(list(network.named_parameters()), 0.1, 0.01, exclude=("head",), slow=("path",))
    rates = {id(p): (group["lr"], group["muon"]) for group in muon.param_groups for p in group["params"]}
    weights = {name: rates[id(network[name].weight)] for name in network}
    assert weights == {"head": (0.01, False), "path": (pytest.approx(0.03), True), "branch": (0.1, True)}
    assert all(rates[id(network[name].bias)] == (0.01, False) for name in network)


def test_rate_warms_up_and_falls():
    values = [rate_at(step, 100, 10, 0.5) for step in range(100)]
    assert values[0] == 0.1
    assert values[20] == 1.0
    assert values[75] == pytest.approx(0.5)
    assert values[99] == pytest.approx(0.02)
    assert [rate_at(step, 100, 10, 0.0) for step in (50, 99)] == [1.0, 1.0]


def test_what_training_goes_on_from_is_saved_before_the_rate_falls(tmp_path):
    """Also by a run that was interrupted while the rate fell."""

    def run_to(steps, saved):
        torch.manual_seed(0)
        model = nn.Linear(4, 4)
        config = TrainConfig(8, workers=0, warmup=2, decay_share=0.5, precision="float32", save_minutes=1e9)
        calls = iter(range(steps, 10**9))
        stop = lambda step, together: torch.ones(2, 4) if step < steps else next(calls) / 0  # noqa: E731 - a killed run
        note = lambda model, average, step, decaying: saved.append((decaying, model.weight.detach().clone()))  # noqa: E731
        with contextlib.suppress(ZeroDivisionError):
            train(config, model, stop, lambda m: lambda b, s: {"loss": m(b).square().mean()}, tmp_path, {}, on_save=note)

    whole: list = []
    run_to(8, whole)
    assert [decaying for decaying, _ in whole] == [False, True]
    assert not torch.equal(whole[0][1], whole[1][1])
    again: list = []
    run_to(8, again)
    assert again == []  # it is at its end


def test_the_rate_falls_over_the_last_minutes():
    assert [rate_left(s, 10, 2.5) for s in (0, 449, 450, 525, 600, 700)] == pytest.approx([1, 1, 1, 0.5, 0, 0])
    assert rate_left(1e9, 10, 0) == 1.0


def test_ema_is_the_recursion():
    model, ema = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(ema.weight)
    nn.init.ones_(model.weight)
    update_ema(ema, model, 0.9, 10_000)
    assert ema.weight.item() == pytest.approx(0.1)


def run(out, steps, rows=slice(None), noise=1.0, facts=None, breaks=None, pause=0.0, at=lambda step: None, **changes):
    """Train on `rows` of the same four at every step, of which every batch of the step is a share; the last two take a branch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16))
    settings = {"threads": torch.get_num_threads(), "save_minutes": 1e9, "workers": 0, "log_steps": 2, **changes}
    config = TrainConfig(steps, warmup=2, precision="float32", **settings)

    def make(number, together):
        step, part = divmod(number, together)
        batch = torch.from_numpy(np.random.default_rng(step).normal(size=(4, 16)).astype(np.float32))
        batch[2:, 0] = 3
        return batch[rows].chunk(together)[part]

    def loss(network):
        def value(batch, step):
            time.sleep(pause)
            at(step)
            batch = batch * float("nan") if step == breaks else batch
            x, branch = batch + noise * torch.randn(batch.shape), batch[:, :1] == 3
            got = network[:2](x)
            return {"loss": ((got + branch * network[2](x) if branch.any() else got) - batch).square().mean()}

        return value

    return train(config, model, make, loss, out, {"subjects": "x", **(facts or {})})


@pytest.mark.threads
def test_a_resumed_run_is_bit_for_bit_the_unbroken_one(tmp_path):
    whole = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 5)
    parts = run(tmp_path / "parts", 12)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    facts = facts_of(tmp_path / "parts" / "checkpoints" / "step-00000012")
    assert (facts["step"], facts["subjects"]) == (12, "x")


def test_the_state_of_another_run_is_refused_and_names_what_differs(tmp_path, capsys):
    run(tmp_path, 3, facts={"code": {"torch": "2.12"}})
    before = [path.read_bytes() for path in sorted(tmp_path.glob("checkpoints/*/*"))]
    for changes, said in (
        ({"clip_norm": 2.0}, r"train.clip_norm was 1.0 and is 2.0; .* --allow-change clip_norm$"),
        ({"seed": 1, "ema_decay": 0.9}, r"train.ema_decay was 0.999 and is 0.9; train.seed was 0 and is 1"),
        ({"facts": {"code": {"torch": "2.13"}}}, r"code.torch was 2.12 and is 2.13"),
        ({"facts": {"subjects": "y"}}, r"subjects was x and is y"),
        ({"seed": 1, "ema_decay": 0.9, "may_change": ("seed",)}, r"run: train.ema_decay was 0.999 and is 0.9;"),
    ):
        with pytest.raises(CheckpointError, match=said):
            run(tmp_path, 4, **changes)
    assert [path.read_bytes() for path in sorted(tmp_path.glob("checkpoints/*/*"))] == before
    run(tmp_path, 4, facts={"code": {"torch": "2.12"}})  # its length alone may differ
    (told,) = capsys.readouterr().err.splitlines()
    assert "resuming after step 3 of 4, from " in told
    run(tmp_path, 5, clip_norm=2.0, may_change=("clip_norm",), facts={"code": {"torch": "2.13"}, "new": 1} | {"code": {}})
    told = capsys.readouterr().err
    assert "train.clip_norm was 1.0 and is 2.0" in told
    assert "new was not recorded and is 1" in told


@pytest.mark.parametrize("breaks", [2, 4])
def test_a_step_that_is_not_finite_ends_the_run_and_the_checkpoint_before_stays(tmp_path, breaks):
    run(tmp_path, 2)
    before = saved(tmp_path / "checkpoints")
    with pytest.raises(
        NotFiniteError, match=rf"step {breaks + 1}: loss and grad_norm became NaN .* checkpoint is .*step-0000000\d"
    ):
        run(tmp_path, 5, breaks=breaks, save_minutes=0.0 if breaks == 2 else 1e9)
    assert saved(tmp_path / "checkpoints") == before
    assert all(torch.equal(a, b) for a, b in zip(run(tmp_path, 4).parameters(), run(tmp_path / "x", 4).parameters(), strict=True))


def test_a_step_that_is_not_finite_is_not_validated(tmp_path):
    """Else the weights that it left would be kept as the best."""
    model, seen = nn.Linear(16, 16), []
    config = TrainConfig(5, workers=0, precision="float32", validate_steps=1, threads=torch.get_num_threads())
    with pytest.raises(NotFiniteError, match="step 3"):
        train(
            config,
            model,
            lambda number, together: torch.full((2, 16), float("nan") if number == 2 else 1.0),
            lambda m: lambda b, s: {"loss": m(b).square().mean()},
            tmp_path,
            {},
            on_validate=lambda raw, average, steps: seen.append(steps) or {},
        )
    assert seen == [1, 2]


def test_a_second_training_in_a_folder_is_refused(tmp_path):
    """It would take the checkpoint that the first one is writing for the rest of a killed run, and remove it."""
    run(tmp_path, 2)
    with locked(tmp_path), pytest.raises(InputError, match="another training is running in"):
        run(tmp_path, 4)
    run(tmp_path, 4)


def test_the_time_that_is_left_is_said_after_two_steps_and_the_first_does_not_count(tmp_path, capsys):
    """The first step of a process compiles and loads; a row of the log may be an hour away."""
    run(tmp_path, 6, log_steps=6, at=lambda step: time.sleep(1.5 if step == 0 else 0.05))
    assert re.search(r"phantom: step 2 of 6, [0-9.]+ s a step, [0-9.]+ s left", capsys.readouterr().err)
    row = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert 0.05 <= row["seconds_per_step"] < 0.3


def test_what_is_not_finite_names_the_samples(tmp_path):
    model = nn.Linear(16, 16)
    config = TrainConfig(3, workers=0, precision="float32", threads=torch.get_num_threads())
    with pytest.raises(
        NotFiniteError, match=r"step 2: loss and grad_norm became NaN or infinite on clip-1, clip-1b; there is no"
    ):
        train(
            config,
            model,
            lambda number, together: {
                "x": torch.full((2, 16), float("nan") if number == 1 else 1.0),
                "ids": [f"clip-{number}", f"clip-{number}b"],
            },
            lambda m: lambda b, s: {"loss": m(b["x"]).square().mean()},
            tmp_path,
            {},
        )


def test_spikes_are_skipped_and_counted_also_after_a_stop(tmp_path):
    """Steps 31 and 40 have gradients a hundred times as long: the weights stay, and a stopped run counts on."""

    def made(out, steps) -> tuple[list, list]:
        torch.manual_seed(0)
        model, weights = nn.Linear(16, 16), []
        config = TrainConfig(steps, workers=0, precision="float32", warmup=1, log_steps=1, spike_factor=5.0, clip_norm=1e9)

        def batch(number, together):
            x = torch.from_numpy(np.random.default_rng(number).normal(size=(8, 16)).astype(np.float32))
            return x * (10 if number in (30, 39) else 1)

        def loss(b, s):
            weights.append(model.weight.detach().clone())
            return {"loss": (model(b) - b.roll(1, 1)).square().mean()}

        train(config, model, batch, lambda m: loss, out, {}, exclude=("",))
        return weights, [json.loads(line)["skipped"] for line in (out / "log.jsonl").read_text().splitlines()]

    weights, skipped = made(tmp_path / "whole", 45)
    assert [n for n in range(44) if torch.equal(weights[n], weights[n + 1])] == [30, 39]
    assert skipped == [0.0] * 30 + [1.0] * 9 + [2.0] * 6
    made(tmp_path / "parts", 33)
    again, skipped_again = made(tmp_path / "parts", 45)
    assert torch.equal(again[-1], weights[-1])
    assert skipped_again == skipped


def test_a_foreign_checkpoint_is_refused(tmp_path):
    run(tmp_path, 2)
    other = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="is not a checkpoint of this run"):
        load_state(saved(tmp_path / "checkpoints")[0], other, other, torch.optim.SGD(other.parameters(), 0.1))


@pytest.mark.parametrize(("bfloat16", "float32"), [(1.0, 2.0), (2.0, 1.0)])
def test_dtype_is_measured(monkeypatch, bfloat16, float32):
    """By a clock on which products take as long as given, so that neither this CPU nor what else it does matters."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    clock = iter(np.cumsum([1.0, bfloat16] * 4 + [1.0, float32] * 4).tolist())
    monkeypatch.setattr("phantom_s2v.training.learner.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert pick_dtype("auto") is (torch.bfloat16 if bfloat16 < float32 else torch.float32)
    assert pick_dtype("float32") is torch.float32


BUCKETS = (Bucket(32, 1, 3, 0.5), Bucket(48, 1, 2, 0.2), Bucket(32, 9, 2, 0.3))


def config(**changes) -> TransformerConfig:
    return replace(TransformerConfig(TrainConfig(10, precision="float32", workers=0), buckets=BUCKETS), **changes)


def test_batches_follow_from_the_seed_and_the_step(sprites, encoder):
    first, second = (Triplets(sprites, config(), encoder.text, pad_text=False) for _ in range(2))
    shapes = set()
    for step in range(16):
        a, b = first(step), second(step)
        assert all(torch.equal(a[key], b[key]) for key in a)
        clips, _, frames = a["sprite"].shape
        shapes.add((int(a["side"]), frames, clips))
        assert a["text_mask"].any(1).all()
    assert shapes == {(bucket.side, bucket.frames, bucket.batch) for bucket in BUCKETS}
    other = Triplets(sprites, replace(config(), train=TrainConfig(10, seed=1)), encoder.text, pad_text=False)
    assert any(not torch.equal(other(step)["tokens"], first(step)["tokens"]) for step in range(3))


def test_processes_have_one_shape_and_different_samples(sprites, encoder):
    triplets = Triplets(sprites, config(), encoder.text, pad_text=True)
    for step in range(6):
        one, two = triplets(2 * step, 2), triplets(2 * step + 1, 2)
        assert one["side"] == two["side"]
        assert one["tokens"].shape == two["tokens"].shape
        assert one["subjects"].shape == two["subjects"].shape
        assert not torch.equal(one["path"], two["path"])


def test_an_encoded_batch_is_what_generation_encodes(sprites, encoder, tiny_models):
    """Latents, image tokens and text of a batch against the clip by clip way of generation."""
    spec = plain_spec(np.random.default_rng(3), sprites.subjects, 9, 64)
    clip = compose(spec, sprites)
    tokens, mask = encoder.text.tokens([clip.caption])
    batch = encoder({**scene_tensors([spec], sprites), "tokens": tokens, "text_mask": mask, "side": torch.tensor(64)})
    image = to_pixels(clip.references[0][None])[None, :, 0]
    latents, image_tokens = encode(tiny_models.vae, image[:, :, None])[:, :, 0], tiny_models.image_encoder(image)
    torch.testing.assert_close(batch["references"][0], latents, atol=2e-5, rtol=0)
    torch.testing.assert_close(batch["image_tokens"][0], image_tokens, atol=2e-5, rtol=0)
    torch.testing.assert_close(batch["latents"], encode(tiny_models.vae, to_pixels(clip.video)[None]), atol=2e-5, rtol=0)
    torch.testing.assert_close(batch["text"], encoder.text([clip.caption])[0])
    share = batch["subject_share"][0]
    assert share.shape == (3, 8, 8)
    assert share[0, 2, 3] == pytest.approx(clip.masks[0, 0, 16:24, 24:32].mean() / 255, abs=1e-6)
    assert share[2, 4, 4] == pytest.approx(clip.masks[0, 5:9, 32:40, 32:40].mean() / 255, abs=1e-6)


def test_batches_without_references_are_encoded(sprites, encoder):
    batch = Triplets(sprites, config(references=((0, 1.0),)), encoder.text, pad_text=False)(0)
    encoded = encoder(batch)
    assert encoded["references"].shape[1] == encoded["image_tokens"].shape[1] == 0
    assert encoded["references"].shape[2:] == encoded["latents"][:, :, 0].shape[1:]


def test_validation_subjects_are_never_learned_from(sprites):
    apart = validation_families(sprites.subjects)
    assert len(apart) == VALIDATION
    assert apart < {s.family for s in sprites.subjects}
    assert apart == validation_families(sprites.subjects[::-1])
    assert apart <= validation_families(tuple(s for s in sprites.subjects if s.family in apart))


def test_validation_is_the_error_of_the_clean_latent(sprites, encoder):
    """A network that knows the clean latent has no error; one that says noise - 0 has the latent's own square."""
    validation = Validation(sprites, sprites.subjects[:3], encoder, 32, torch.device("cpu"))
    batch = validation.batches[0]
    x, weight = batch["latents"], batch["subject_share"][:, None]
    figures = validation(lambda x_t, t, **_: (x_t - x) / t[:, None, None, None, None])
    assert max(figures.values()) < 1e-9
    zero = validation(lambda x_t, t, **_: x_t / t[:, None, None, None, None], "raw_")
    expected = (x.square().mean(1, keepdim=True) * weight).sum() / weight.sum()
    assert zero["raw_with_0.7_32px"] == pytest.approx(float(expected), rel=1e-4)
    clips = Validation(sprites, sprites.subjects[:3], encoder, 32, torch.device("cpu"), 5)
    assert [len(batch["latents"]) for batch in clips.batches] == [3]
    assert clips.batches[0]["latents"].shape[2] == 2
    assert "with_0.9_32px_5f" in clips(lambda x_t, t, **_: x_t)
    seen = []
    validation(lambda x_t, t, **given: seen.append(bool(given["image_seen"].all() and given["references"].any())) or x_t)
    assert seen == [True, False] * 4


def conditions(batch, n=2):
    return Conditions(
        torch.randn(batch, 5, 384), torch.ones(batch, 5, dtype=torch.bool), torch.randn(batch, n, 8, 8, 8),
        torch.randn(batch, n, 16, 32), torch.ones(batch, n, dtype=torch.bool), torch.zeros(batch, n, dtype=torch.int64),
    )  # fmt: skip


EMPTY = (torch.full((1, 2, 384), 3.0), torch.ones(1, 2, dtype=torch.bool))


def test_drop_rates_are_those_of_the_config():
    torch.manual_seed(0)
    rates = TransformerConfig(TrainConfig(1), drop_text=0.2, drop_all=0.1, drop_vae=0.7, drop_image=0.4)
    dropped = drop(conditions(2000), rates, EMPTY)
    no_text = (dropped.text[:, 0] == 3).all(-1)
    no_latents = (dropped.references == 0).all((1, 2, 3, 4))
    assert no_text.float().mean() == pytest.approx(1 - 0.8 * 0.9, abs=0.04)
    assert no_latents.float().mean() == pytest.approx(1 - 0.3 * 0.9, abs=0.04)
    assert (~dropped.image_seen[:, 0]).float().mean() == pytest.approx(1 - 0.6 * 0.9, abs=0.04)


@pytest.mark.threads
def test_everything_dropped_is_the_null_branch_of_sampling():
    rates = TransformerConfig(TrainConfig(1), drop_all=1.0)
    c = conditions(3)
    dropped, none = drop(c, rates, EMPTY), null(c, EMPTY)
    assert all(torch.equal(a, b) for a, b in zip(dropped.arguments().values(), none.arguments().values(), strict=True))


def test_permuted_indices_keep_views_together():
    torch.manual_seed(0)
    subjects = torch.tensor([[0, 0, 1, 2, 2]]).repeat(200, 1)
    out = permute_subjects(subjects)
    assert torch.equal(out[:, 0], out[:, 1])
    assert torch.equal(out[:, 3], out[:, 4])
    assert (out[:, 0] != out[:, 2]).all()
    assert out[:, 0].unique().tolist() == [0, 1, 2, 3]


def test_the_loss_falls_on_one_batch(sprites, encoder):
    from phantom_s2v.models.phantom.transformer import PhantomTransformer

    torch.manual_seed(0)
    network = PhantomTransformer(latent_channels=8, dim=48, depth=2, heads=2, image_dim=32)
    rates = config(drop_text=0.0, drop_all=0.0, drop_vae=0.0, drop_image=0.0)
    batch, loss = encoder(Triplets(sprites, rates, encoder.text, pad_text=False)(1)), loss_of(rates, EMPTY, network)
    optimizer = Muon(list(network.named_parameters()), 0.02, 3e-3, exclude=("patch_in", "head"))
    values = []
    for step in range(25):
        torch.manual_seed(step % 5)
        value = loss(batch, step)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_a_run_trains_validates_and_resumes(tiny, sprites, tmp_path, monkeypatch):
    """The whole of `phantom train transformer` on a small model, from random weights and from its own."""
    write_store(tmp_path / "store", ((s.key, sprites.still(s), sprites.clip(s)[:2]) for s in sprites.subjects[:60]))
    call = lambda *more: transformer_run(  # noqa: E731
        replace(config(), train=replace(config().train, **dict(more))), tiny, tmp_path / "run", None,
        {"depth": 1, "dim": 48, "heads": 2}, "cpu", tmp_path / "store",
    )  # fmt: skip
    call(("steps", 2), ("log_steps", 1))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["average_with_0.9_48px"] > 0
    with safe_open(tmp_path / "run" / "raw" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert "head.weight" in file.keys()  # noqa: SIM118 - not a dict
    call(("steps", 3), ("log_steps", 1))
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 3]


def test_batches_are_accumulated(tmp_path):
    """Two batches of four are one of eight, to the last step, and a stopped run goes on bit for bit."""
    rows = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))

    def made(out, steps, size, each) -> torch.Tensor:
        torch.manual_seed(0)
        model = nn.Linear(16, 16)
        config = TrainConfig(steps, workers=0, precision="float32", warmup=1, gradient_accumulation_steps=each)

        def batch(number: int, together: int) -> torch.Tensor:
            return rows[number * size : (number + 1) * size]

        train(
            config, model, batch, lambda m: lambda b, s: {"loss": (m(b) - b.roll(1, 1)).square().mean()}, out, {}, exclude=("",)
        )
        return model.weight.detach()

    whole = made(tmp_path / "whole", 5, 8, 1)
    torch.testing.assert_close(made(tmp_path / "parts", 5, 4, 2), whole, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(made(tmp_path / "half", 5, 4, 1), whole, atol=1e-4)
    made(tmp_path / "stopped", 2, 4, 2)
    assert torch.equal(made(tmp_path / "stopped", 5, 4, 2), made(tmp_path / "again", 5, 4, 2))


def test_a_run_ends_after_its_minutes(tmp_path):
    model, began = nn.Linear(16, 16), time.monotonic()
    config = TrainConfig(10**9, workers=0, log_steps=1, precision="float32", minutes=1 / 60)
    train(
        config,
        model,
        lambda number, together: torch.ones(2, 16),
        lambda m: lambda b, s: {"loss": m(b).square().mean()},
        tmp_path,
        {},
    )
    assert 1 <= time.monotonic() - began < 60
    assert saved(tmp_path / "checkpoints")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["minutes_left"] <= 1 / 60  # of a thousand million steps
    assert rows[-1]["minutes_left"] == pytest.approx(0, abs=1e-3)


def test_the_log_says_how_long_it_will_take(tmp_path):
    model, config = nn.Linear(16, 16), TrainConfig(5, workers=0, log_steps=1, precision="float32")
    train(
        config,
        model,
        lambda number, together: torch.ones(2, 16),
        lambda m: lambda b, s: {"loss": m(b).square().mean()},
        tmp_path,
        {},
    )
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for row, left in zip(rows, (4, 3, 2, 1, 0), strict=True):
        assert row["minutes_left"] == pytest.approx(left * row["seconds_per_step"] / 60, abs=1e-4)


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--decay-fraction", "1.5", "decay-fraction must be between 0 and 1 (got 1.5)"),
    ("--plain", "-1", "plain must be between 0 and 1 (got -1.0)"),
    ("--clean-first-frame", "2", "clean-first-frame must be between 0 and 1 (got 2.0)"),
    ("--buckets", f"64x1x1:{'9' * 400}", "positive and finite"),
    ("--buckets", "64x1x0:1", "batch sizes must be at least 1"),
    ("--buckets", "64x1:1", "buckets must be SIDExFRAMESxBATCH:WEIGHT,... such as"),
    ("--buckets", "64x2x4:1", "number of frames must be 4n+1"),
    ("--buckets", "64x1x4:0-0", "sum of weights positive"),
    ("--references", "5:1", "references must be NUMBER:WEIGHT,... with 0 to 4 images"),
    ("--references", "1:0", "sum of weights of references must be positive"),
    ("--network", "8x100x3", "network must have depth and heads of at least 1"),
    ("--device", "tpu", "device must be cpu or cuda (got 'tpu')"),
    ("--precision", "fp16", "precision must be auto, float32 or bfloat16 (got 'fp16')"),
    ("--decay-minutes", "5", "decay_minutes are the last of minutes, which must be above 0"),
    ("--distill-guidance", "nowhere", "nowhere/config.json"),
])  # fmt: skip
def test_options_beyond_their_range_are_refused(call_phantom, tmp_path, option, value, said):
    code, out = call_phantom("train", "transformer", "--out", tmp_path / "run", option, value)
    assert code == 2
    assert said in " ".join(out.err.split())
    assert not (tmp_path / "run").exists()


def test_buckets_are_read():
    assert parse_buckets("128x1x12:0.8,96x25x2:.2") == (Bucket(128, 1, 12, 0.8), Bucket(96, 25, 2, 0.2))
    assert parse_buckets("128x1x12:0.8-.3") == (Bucket(128, 1, 12, 0.8, 0.3),)
    assert parse_references("1:0.7,2:.3") == ((1, 0.7), (2, 0.3))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_first_frame_of_a_share_of_clips_is_clean(share):
    torch.manual_seed(0)
    clips, stills = torch.randn(200, 3, 4, 2, 2), torch.randn(200, 3, 1, 2, 2)
    x_t, t, _ = noised(clips, config(first_frame=share))
    clean = t[:, 0] == 0
    assert float(clean.float().mean()) == pytest.approx(share, abs=0.1)
    torch.testing.assert_close(x_t[clean, :, 0], clips[clean, :, 0], rtol=0, atol=0)
    assert (x_t[:, :, 1:] != clips[:, :, 1:]).all()
    assert (t[:, 1:] == t[:, 1:2]).all()
    assert (noised(stills, config(first_frame=share))[1] > 0).all()


def test_shares_of_buckets_change_over_the_ramp(sprites, encoder):
    """Stills first, clips at the end, and stills again never."""
    buckets = (Bucket(32, 1, 1, 1.0, 0.0), Bucket(32, 5, 1, 0.0, 1.0))
    batches = Triplets(sprites, config(buckets=buckets, ramp_steps=40), encoder.text, pad_text=False)
    frames = [batches(step)["sprite"].shape[2] for step in range(60)]
    assert frames[0] == 1
    assert frames[40:] == [5] * 20
    assert 10 < frames[:40].count(1) < 30
    assert [buckets[0].share_at(x) for x in (0, 0.25, 1, 9)] == [1, 0.75, 0, 0]


STOPPED = (
    "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
    "import test_training as t\n"
    "t.run(Path(sys.argv[1]), 100_000, pause=0.02, workers=1)\n"
)


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM])
def test_a_signal_saves_first_and_the_run_goes_on_bit_for_bit(tmp_path, number):
    """The signal reaches the whole group, as Ctrl-C and systemd send it: the processes that compose batches too."""
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "parts"), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout
    process.stdout.readline()  # two steps are done
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    found = re.search(r"phantom: stopped after step (\d+), which is saved", err)
    assert found, err
    assert "DataLoader" not in err
    stopped = int(found[1])
    whole, parts = run(tmp_path / "whole", stopped + 3), run(tmp_path / "parts", stopped + 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    assert not list((tmp_path / "parts").rglob(".*"))


def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path):
    """Three times, by SIGKILL, as soon as a checkpoint is there and a little later; `benchmarks/train_kills.py` does more."""
    fork = multiprocessing.get_context("fork")
    newest = 0
    for pause in (0.0, 0.003, 0.03):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Lance, if it is imported
            child = fork.Process(target=run, args=(tmp_path / "killed", 10**6), kwargs={"save_steps": 2, "threads": 1})
            child.start()
        while not any(int(path.name[5:]) > newest for path in saved(tmp_path / "killed" / "checkpoints")) and child.is_alive():
            time.sleep(0.001)
        time.sleep(pause)
        assert child.is_alive()
        child.kill()
        child.join()
        newest, before = int(saved(tmp_path / "killed" / "checkpoints")[0].name[5:]), newest
        assert newest > before
    whole, killed = (run(tmp_path / name, newest + 9, save_steps=2, threads=1) for name in ("whole", "killed"))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), killed.parameters(), strict=True))
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(2, newest + 10, 2))


@pytest.mark.long
def test_the_benchmark_of_kills_finds_nothing_lost(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "train_kills.py"
    done = subprocess.run([sys.executable, script, "--kills", "3", "--after", "5"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"kills": 3, "lost": 0, "different": 0}


def test_a_full_disk_keeps_the_last_checkpoint_and_is_one_sentence(tmp_path, monkeypatch):
    run(tmp_path, 2)
    before = sorted(tmp_path.glob("checkpoints/*"))

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("phantom_s2v.training.loop.check_folder", lambda *_, **__: None)
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match=r"step-00000004 cannot be written: the disk is full; partial files were removed"):
        run(tmp_path, 4)
    assert sorted(tmp_path.glob("checkpoints/*")) == before
    assert not list(tmp_path.glob("checkpoints/.*"))
    monkeypatch.undo()
    monkeypatch.setattr("phantom_s2v.training.loop.SAVED_BYTES", 10**12)
    with pytest.raises(InputError, match="free space"):
        run(tmp_path, 4)


@pytest.mark.parametrize("how", ["torn", "changed", "missing", "facts"])
def test_a_damaged_checkpoint_is_seen_and_the_one_before_is_used(tmp_path, capsys, how):
    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "parts", 7, save_steps=5)
    newest, before = saved(tmp_path / "parts" / "checkpoints")
    assert (newest.name, before.name) == ("step-00000007", "step-00000005")
    file = newest / "checkpoint.json" if how == "facts" else next(newest.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-9] ^= 1
    file.write_bytes(data[:-1] if how == "torn" else data)
    if how == "missing":
        file.unlink()
    capsys.readouterr()
    parts = run(tmp_path / "parts", 9)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert re.search(r"resuming after step 5 of 9, from .*step-00000005$", said[1])
    assert re.search(r"step-00000007 is damaged \(.*\); training goes on from step-00000005", said[0])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]  # rows of the lost steps were cut off
    for path in saved(tmp_path / "parts" / "checkpoints"):
        (path / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match=r"is damaged .* and there is none before it"):
        run(tmp_path / "parts", 10)


@pytest.mark.parametrize("name", ["save", "save_quit"])
def test_files_in_the_run_folder_are_obeyed(tmp_path, name, capsys):
    def order(step):
        if step == 3:
            (tmp_path / name).touch()

    if name == "save":
        run(tmp_path, 9, at=order)
        assert [path.name for path in saved(tmp_path / "checkpoints")] == ["step-00000009", "step-00000004"]
    else:  # an end like any other: torchrun, which starts what fails again, does not start it again
        run(tmp_path, 9, at=order)
        assert [path.name for path in saved(tmp_path / "checkpoints")] == ["step-00000004"]
        assert "save_quit: the run ends after step 4, which is saved" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_checkpoint_holds_what_the_step_had_though_training_goes_on_meanwhile(tmp_path, monkeypatch):
    """It is written in the background, more slowly than steps are made here."""
    from phantom_s2v.training import checkpoint

    hash_of = checkpoint._hash
    monkeypatch.setattr(checkpoint, "_hash", lambda file: (time.sleep(0.3), hash_of(file))[1])
    run(tmp_path / "slow", 8, save_steps=4)
    run(tmp_path / "half", 4)
    tensors = [read_tensors(next(path.glob("*.safetensors")))[0] for path in (
        tmp_path / "slow" / "checkpoints" / "step-00000004", tmp_path / "half" / "checkpoints" / "step-00000004")]  # fmt: skip
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


def test_a_training_replaces_nothing_of_others(tmp_path, capsys):
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "log.jsonl").write_text("mine")
    (tmp_path / "part" / "transformer").mkdir(parents=True)
    for place in ("log", "part"):
        with pytest.raises(DataError, match="exists"):
            run(tmp_path / place, 2)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "log.jsonl").symlink_to(tmp_path / "planted")
    with pytest.raises(DataError, match=r"log\.jsonl is a symbolic link"):
        run(tmp_path / "linked", 2)
    assert not (tmp_path / "planted").exists()
    run(tmp_path / "own", 2)
    run(tmp_path / "own", 2)
    assert "own has all 2 steps already; nothing was trained" in capsys.readouterr().err
