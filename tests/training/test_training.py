"""Training: resuming is exact, Muon orthogonalises, dropping makes the branches of guidance."""

import json
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from phantom_s2v.cli.train import parse_lengths
from phantom_s2v.conditioning import Conditions, null
from phantom_s2v.data.emoji import Sprites
from phantom_s2v.data.heldout import evaluated, held_out
from phantom_s2v.errors import CheckpointError, DataError, NotFiniteError
from phantom_s2v.model.parallel import world
from phantom_s2v.training import encode
from phantom_s2v.training.checkpoint import load_state
from phantom_s2v.training.config import TrainConfig, TransformerConfig
from phantom_s2v.training.loop import pick_dtype, train
from phantom_s2v.training.optim import Muon, orthogonalise, rate_at, update_ema
from phantom_s2v.training.transformer import Shards, drop, loss_of, permute_subjects


@pytest.mark.threads
@pytest.mark.parametrize("shape", [(20, 20), (16, 40), (64, 24)])
def test_orthogonalise_is_near_the_polar_factor(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert 0.6 < values.min() < values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    polar = u @ vh
    cosine = (orthogonalise(matrix) * polar).sum() / orthogonalise(matrix).norm() / polar.norm()
    assert cosine > 0.97


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


def test_ema_is_the_recursion():
    model, ema = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(ema.weight)
    nn.init.ones_(model.weight)
    update_ema(ema, model, 0.9, 10_000)
    assert ema.weight.item() == pytest.approx(0.1)


def run(out, steps, rows=slice(None), noise=1.0, facts=None, breaks=None, **changes):
    """Train on `rows` of the same four at every step, of which every process takes its share; the last two take a branch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16))
    settings = {"threads": torch.get_num_threads(), "save_minutes": 1e9, **changes}
    config = TrainConfig(steps, workers=0, log_steps=2, warmup=2, precision="float32", **settings)

    def make(step, rank):
        batch = torch.from_numpy(np.random.default_rng(step).normal(size=(4, 16)).astype(np.float32))
        batch[2:, 0] = 3
        return batch[rows].chunk(world())[rank]

    def loss(network):
        def value(batch, step):
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
    with safe_open(tmp_path / "parts" / "state.safetensors", "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert (facts["step"], facts["subjects"]) == (12, "x")


def test_the_state_of_another_run_is_refused_and_names_what_differs(tmp_path, capsys):
    run(tmp_path, 3, facts={"code": {"torch": "2.12"}})
    before = (tmp_path / "state.safetensors").read_bytes()
    for changes, said in (
        ({"clip_norm": 2.0}, r"train.clip_norm was 1.0 and is 2.0; .* --allow-change clip_norm$"),
        ({"seed": 1, "ema_decay": 0.9}, r"train.ema_decay was 0.999 and is 0.9; train.seed was 0 and is 1"),
        ({"facts": {"code": {"torch": "2.13"}}}, r"code.torch was 2.12 and is 2.13"),
        ({"facts": {"subjects": "y"}}, r"subjects was x and is y"),
        ({"seed": 1, "ema_decay": 0.9, "may_change": ("seed",)}, r"run: train.ema_decay was 0.999 and is 0.9;"),
    ):
        with pytest.raises(CheckpointError, match=said):
            run(tmp_path, 4, **changes)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    run(tmp_path, 4, facts={"code": {"torch": "2.12"}})  # its length alone may differ
    assert capsys.readouterr().err == ""
    run(tmp_path, 5, clip_norm=2.0, may_change=("clip_norm",), facts={"code": {"torch": "2.13"}, "new": 1} | {"code": {}})
    told = capsys.readouterr().err
    assert "train.clip_norm was 1.0 and is 2.0" in told
    assert "new was not recorded and is 1" in told


@pytest.mark.parametrize("breaks", [2, 4])
def test_a_step_that_is_not_finite_ends_the_run_and_the_state_before_stays(tmp_path, breaks):
    run(tmp_path, 2)
    before = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(NotFiniteError, match=rf"step {breaks + 1}: loss and grad_norm of the training became NaN"):
        run(tmp_path, 5, breaks=breaks, save_minutes=0.0 if breaks == 2 else 1e9)
    assert (tmp_path / "state.safetensors").read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(run(tmp_path, 4).parameters(), run(tmp_path / "x", 4).parameters(), strict=True))


def test_two_processes_learn_as_one_on_both_their_batches(tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        str(tmp_path / "two"),
    ]
    subprocess.run(command, check=True, timeout=120)
    one, half = run(tmp_path / "one", 6, noise=0.0), run(tmp_path / "half", 6, slice(2), noise=0.0)
    with safe_open(tmp_path / "two" / "state.safetensors", "pt") as file:
        two = [file.get_tensor(f"ema.{name}") for name, _ in one.named_parameters()]
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(one.parameters(), two, strict=True))
    assert not any(torch.allclose(a, b, atol=1e-3) for a, b in zip(half.parameters(), two, strict=True))
    assert len((tmp_path / "two" / "log.jsonl").read_text().splitlines()) == 3  # one process writes


def test_a_foreign_state_is_refused(tmp_path):
    run(tmp_path, 2)
    other = nn.Linear(3, 3)
    with pytest.raises(CheckpointError, match="is no state of this run"):
        load_state(tmp_path / "state.safetensors", other, other, torch.optim.SGD(other.parameters(), 0.1))


@pytest.mark.parametrize(("bfloat16", "float32"), [(1.0, 2.0), (2.0, 1.0)])
def test_dtype_is_measured(monkeypatch, bfloat16, float32):
    """By a clock on which products take as long as given, so that neither this CPU nor what else it does matters."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    clock = iter(np.cumsum([1.0, bfloat16] * 4 + [1.0, float32] * 4).tolist())
    monkeypatch.setattr("phantom_s2v.training.loop.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    assert pick_dtype("auto") is (torch.bfloat16 if bfloat16 < float32 else torch.float32)
    assert pick_dtype("float32") is torch.float32


@pytest.fixture(scope="module")
def shards(tiny_models, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    sprites = Sprites(evaluated(held_out()), held_out().pixels)
    before, encode.ROWS = encode.ROWS, 4
    encode.encode_shards(
        folder, sprites, tiny_models.autoencoder, tiny_models.image_encoder, 0, range(4), torch.float32, lambda name: None
    )
    encode.ROWS = before
    return folder


def config(folder, **changes) -> TransformerConfig:
    return replace(TransformerConfig(TrainConfig(10), clips=2, stills=3, latents=str(folder)), **changes)


def test_shards_give_the_same_batch_at_the_same_step(shards, monkeypatch):
    monkeypatch.setattr("phantom_s2v.training.transformer.ROWS", 4)
    first, second = Shards(shards, config(shards)), Shards(shards, config(shards))
    lengths = set()
    for step in range(12):
        a, b = first(step), second(step)
        assert all(torch.equal(a[key], b[key]) for key in a)
        lengths.add(a["latents"].shape[2])
        assert a["latents"].shape[0] == (3 if a["latents"].shape[2] == 1 else 2)
        assert a["text_mask"].any(1).all()
    assert lengths == {1, 3, 7}


def test_encoding_resumes_and_skips(shards, tiny_models, monkeypatch):
    monkeypatch.setattr(encode, "ROWS", 4)
    before = {p.name: p.stat().st_mtime_ns for p in shards.iterdir()}
    sprites = Sprites(evaluated(held_out()), held_out().pixels)
    encode.encode_shards(shards, sprites, tiny_models.autoencoder, tiny_models.image_encoder, 0, range(4), torch.float32, print)
    assert {p.name: p.stat().st_mtime_ns for p in shards.iterdir()} == before


def test_shards_of_another_making_are_refused(shards, tiny_models, monkeypatch):
    monkeypatch.setattr(encode, "ROWS", 4)
    sprites = Sprites(evaluated(held_out()), held_out().pixels)
    other = deepcopy(tiny_models.autoencoder)
    other.encoder.conv_in.weight.data.mul_(2)
    for autoencoder, seed, share, said in (
        (other, 0, 0.0, r"weights.autoencoder was \w{12} and is \w{12}; choose another folder"),
        (tiny_models.autoencoder, 7, 0.5, "seed was 0 and is 7; plain_share was 0.0 and is 0.5"),
    ):
        with pytest.raises(DataError, match=said):
            encode.encode_shards(
                shards, sprites, autoencoder, tiny_models.image_encoder, seed, range(5), torch.float32, pytest.fail, share
            )


def test_a_share_of_shards_is_plain():
    kinds = [encode.shard_kind(3, n, 0.7) for n in range(200)]
    assert 0.6 < np.mean([plain for _, _, plain in kinds]) < 0.8
    assert {pictures for _, pictures, plain in kinds if plain} == {1, 2}
    before = [encode.shard_kind(3, n) for n in range(200)]
    assert [k[:2] for k, b in zip(kinds, before, strict=True) if not k[2]] == [
        b[:2] for k, b in zip(kinds, before, strict=True) if not k[2]
    ]


def test_missing_shards_are_named(tmp_path):
    with pytest.raises(DataError, match="0 shards of stills and 0 of clips"):
        Shards(tmp_path, config(tmp_path))


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


def test_the_loss_falls_on_one_batch(shards, tiny_models, monkeypatch):
    monkeypatch.setattr("phantom_s2v.training.transformer.ROWS", 4)
    from phantom_s2v.model.transformer import PhantomTransformer

    torch.manual_seed(0)
    network = PhantomTransformer(latent_channels=8, dim=48, depth=2, heads=2, image_dim=32)
    rates = config(shards, drop_text=0.0, drop_all=0.0, drop_vae=0.0, drop_image=0.0)
    batch, loss = Shards(shards, rates)(1), loss_of(rates, EMPTY, network)
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


@pytest.mark.parametrize(("option", "value", "said"), [
    ("--fall", "1.5", "fall is 1.5; it can be 0 to 1"),
    ("--clips", "0", "a batch of 0 clips or 24 stills; it can be 1 to 64, which a shard holds"),
    ("--stills", "65", "a batch of 8 clips or 65 stills; it can be 1 to 64, which a shard holds"),
    ("--lengths", "1:0.4,8:0.6", "lengths is '1:0.4,8:0.6'; it can be pairs such as 1:0.4,3:0.3,7:0.3"),
    ("--lengths", "7", "lengths is '7'; it can be"),
    ("--lengths", "1:0,7:0.0", "lengths is '1:0,7:0.0'; it can be"),
])  # fmt: skip
def test_options_beyond_their_range_are_refused(call_phantom, tmp_path, option, value, said):
    code, out = call_phantom("train", "transformer", "--latents", tmp_path, "--out", tmp_path / "run", option, value)
    assert code == 2
    assert said in " ".join(out.err.split())
    assert not (tmp_path / "run").exists()


def test_lengths_are_read():
    assert parse_lengths("1:0.3,3:.1,7:6") == ((1, 0.3), (3, 0.1), (7, 6.0))


if __name__ == "__main__":  # a process of the test above that needs two
    run(Path(sys.argv[1]), 6, noise=0.0)
