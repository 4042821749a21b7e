"""Each arm differs from its control in what it should, and finished arms count for as long as what made them is the same."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.models.phantom.conditioning import Conditions
from phantom_s2v.training.config import Bucket
from phantom_s2v.training.latents import conditions_of
from phantom_s2v.training.transformer import drop

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from ablations import __main__ as command
from ablations import arms, older, results, tables, trial, world

LITTLE = {"depth": 1, "dim": 48, "heads": 2}


@pytest.fixture(scope="module")
def small(tiny) -> world.World:
    """Sixty animated subjects of noise and the tiny model."""
    subjects = tuple(Subject(f"{n:04x}", f"thing {n}", f"{n:04x}", 4 * n, 4) for n in range(60))
    pixels = np.random.default_rng(0).integers(0, 255, (240, 32, 32, 4), dtype=np.uint8)
    pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])  # premultiplied
    return world.load_world(Sprites(subjects, pixels), tiny, "float32")


def little(name: str) -> arms.Arm:
    """An arm on a network of one block, for two steps of a few small samples."""
    arm = arms.BY_NAME[name]
    buckets = tuple(Bucket(32, bucket.frames, 4 if bucket.frames == 1 else 1, bucket.share) for bucket in arm.recipe.buckets)
    return replace(
        arm,
        recipe=replace(
            arm.recipe, sizes=LITTLE, steps=2, buckets=buckets, references=((1 if arm.recipe.frames > 1 else 2, 1.0),)
        ),
    )


def stirred(name: str, small: world.World) -> world.Velocity:
    """The velocity of an arm before training, with weights that give every input an effect."""
    arm = little(name)
    return world.velocity_of(trial.stirred(world.network_of(arm, small, 0)), arm, torch.float32)


@pytest.fixture(scope="module")
def seen(small) -> Conditions:
    """What a model sees beside two clips: one reference each."""
    config = replace(arms.STILLS.config(0, {}), buckets=(Bucket(32, 1, 2, 1.0),))
    return conditions_of(small.encoder(arms.ArmTriplets(small.learned, config, small.text, False)(0)))


def moves(velocity: world.Velocity, c: Conditions, frames: int, changed: Conditions | None = None, frame: int | None = None):
    """Which latent frames' velocities change with the conditions, or with a frame of the noise: bool [T]."""
    x, t = torch.randn(2, 8, frames, 4, 4, generator=torch.Generator().manual_seed(0)), torch.full((2,), 0.5)
    other = x.clone()
    if frame is not None:
        other[:, :, frame] += 1
    difference = (velocity(other, t, changed or c) - velocity(x, t, c)).abs().amax((0, 1, 3, 4))
    return (difference > 1e-5).tolist()


def test_every_arm_has_the_budget_of_its_control():
    for arm in arms.ARMS:
        control = arms.BY_NAME[arms.CONTROLS[arm.recipe.name]]
        assert arm.recipe == control.recipe
        assert (arm.network, arm.training, arm.pairing, arm.one_index) != ({}, {}, "cross", False) or arm == control
        config, same = arm.recipe.config(1, arm.training), control.recipe.config(1, control.training)
        assert replace(config, **{name: getattr(same, name) for name in arm.training}) == same


def test_encoders(small, seen):
    latents = replace(seen, references=seen.references + 1)
    tokens = replace(seen, image_tokens=seen.image_tokens.flip(2))
    expected = {"both": (True, True), "clip-only": (False, True), "vae-only": (True, False)}
    for name, (by_latents, by_tokens) in expected.items():
        velocity = stirred(name, small)
        assert moves(velocity, seen, 1, latents) == [by_latents]
        assert moves(velocity, seen, 1, tokens) == [by_tokens]


@pytest.mark.parametrize(("name", "share"), [("dropout-0", 0.0), ("both", 0.3), ("dropout-0.7", 0.7)])
def test_dropout_of_latents(small, seen, name, share):
    many = replace(seen, **{k: v[:1].expand(600, *v.shape[1:]) for k, v in seen.arguments().items()})
    config = arms.STILLS.config(0, arms.BY_NAME[name].training)
    dropped = drop(many, replace(config, drop_all=0.0, drop_text=0.0, drop_image=0.0), small.empty)
    assert (dropped.references.flatten(1) == 0).all(1).float().mean() == pytest.approx(share, abs=0.06)
    assert torch.equal(dropped.image_seen, many.image_seen)


def test_pairings(small):
    drawn = {}
    for name in ("both", "in-pair", "in-pair-augmented"):
        triplets = arms.ArmTriplets(
            small.learned, little(name).recipe.config(0, {}), small.text, False, arms.BY_NAME[name].pairing
        )
        specs = [triplets._spec(np.random.default_rng(seed), 1, 32, 2) for seed in range(40)]
        drawn[name] = [
            (spec, cast, shot) for spec in specs for cast, of in zip(spec.casts, spec.shots, strict=True) for shot in of
        ]
    assert [(spec.casts, spec.background) for spec, _, _ in drawn["both"]] == [
        (s.casts, s.background) for s, _, _ in drawn["in-pair"]
    ]
    own = [shot.background == spec.background for spec, _, shot in drawn["both"]]
    assert sum(own) < 0.1 * len(own)
    assert not any(shot.in_pair for _, _, shot in drawn["both"])
    for name in ("in-pair", "in-pair-augmented"):
        assert all(shot.background == spec.background for spec, _, shot in drawn[name])
        assert all(shot.animated == cast.subject.animated for _, cast, shot in drawn[name])
        assert all(shot.phase - cast.phase == arms.MOMENT for _, cast, shot in drawn[name])  # another moment
    assert {(shot.turn, shot.gain, shot.shift) for _, _, shot in drawn["in-pair"]} == {(0.0, 1.0, (0.0, 0.0))}
    assert len({shot.turn for _, _, shot in drawn["in-pair-augmented"]}) == len(drawn["in-pair-augmented"])


def test_one_index(small, seen):
    other = replace(seen, subjects=1 - seen.subjects)
    assert moves(stirred("both", small), seen, 1, other) == [True]
    assert moves(stirred("one-index", small), seen, 1, other) == [False]


def test_windows_and_injection(small, seen):
    """One block, four latent frames: windows end what a frame sees, and once injected references reach the last one alone."""
    nothing = replace(seen, text_mask=torch.zeros_like(seen.text_mask))  # text would carry them from window to window
    latents = replace(nothing, references=nothing.references + 1)
    ends = {"window-10": 4, "window-4": 3, "window-3": 2}
    for name, end in ends.items():
        assert moves(stirred(name, small), nothing, 4, frame=0) == [frame < end for frame in range(4)]
        assert moves(stirred(name, small), nothing, 4, latents) == [True] * 4
    assert moves(stirred("window-3-tail", small), nothing, 4, latents) == [False, False, True, True]


@pytest.mark.parametrize("name", [arm.name for arm in arms.ARMS])
def test_two_steps(small, tmp_path, name):
    arm = little(name)
    config = arm.recipe.config(0, arm.training)
    config = replace(config, train=replace(config.train, warmup=1, log_steps=1, precision="float32"))
    first = world.network_of(arm, small, 0)
    trained = world.train_arm(arm, config, small, tmp_path)
    assert len(world.losses(tmp_path)) == 2
    assert np.isfinite(world.losses(tmp_path)).all()
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), trained.parameters(), strict=True))


def test_the_adapter_leaves_the_base_alone(small, seen, tmp_path):
    base = older.base_of(small)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    adapter = older.Adapter(base)
    velocity, plain = world.velocity_of(adapter, older.ADAPTER, torch.float32), older.text_only(small, older.base_of(small))
    x, t = torch.randn(2, 8, 1, 4, 4), torch.full((2,), 0.5)
    assert torch.equal(velocity(x, t, seen), plain(x, t, seen))  # at first
    config = arms.PACKAGED.config(0, {})
    short = replace(config.train, steps=2, warmup=1, log_steps=1, precision="float32")
    few = replace(config, train=short, buckets=(Bucket(32, 1, 2, 1.0),))
    assert min(count for count, _ in few.references) > 0  # a step without an image has no gradient
    trained = world.train_arm(older.ADAPTER, few, small, tmp_path, adapter)
    assert all(torch.equal(value, before[name]) for name, value in trained.base.state_dict().items())
    velocity = world.velocity_of(trained, older.ADAPTER, torch.float32)
    assert moves(velocity, seen, 1, replace(seen, image_tokens=seen.image_tokens.roll(1, 3))) == [True]
    assert moves(velocity, seen, 1, replace(seen, references=seen.references + 1)) == [False]


def test_a_token_is_learned_and_nothing_else(small):
    text = small.text
    tokens, mask = text.tokens(["The large subject moves up.", "A fox."])
    start = text.model.get_input_embeddings().weight[text.tokenizer.convert_tokens_to_ids(older.WORD)].clone()
    torch.testing.assert_close(older.LearnedWord(text, start).features(tokens, mask), text.features(tokens, mask))
    vector = older.learn_token(replace(small, encoder=replace(small.encoder)), small.shown[0], 0, 2)
    assert vector.shape == start.shape
    assert (vector - start).abs().max() > older.TOKEN_RATE / 2
    changed = older.LearnedWord(text, vector).features(tokens, mask) - text.features(tokens, mask)
    assert changed[0].abs().max() > 1e-4
    torch.testing.assert_close(changed[1], torch.zeros_like(changed[1]), atol=1e-5, rtol=0)
    assert torch.equal(text.model.get_input_embeddings().weight[text.tokenizer.convert_tokens_to_ids(older.WORD)], start)


@pytest.mark.long  # three commands of the package
def test_a_lora_is_the_commands(small, tmp_path):
    file = older.learn_lora(small, small.shown[0], 0, tmp_path, 2)
    base = older.base_of(small)
    older.add_lora(base, file, "subject")
    assert any("lora" in name for name, _ in base.named_parameters())


def test_a_configuration_counts_by_what_it_sets():
    config = arms.STILLS.config(0, {"drop_vae": 0.7})
    same = {**results.chosen(config), "train": results.chosen(config)["train"]}
    assert same["train"] == {"steps": 640, "warmup": 50, "decay_share": 0.5, "ema_decay": 0.99, "workers": 0}
    assert same["drop_vae"] == 0.7
    assert "t_scale" not in same
    assert results.config_hash(same) != results.config_hash(results.chosen(arms.STILLS.config(0, {})))
    assert results.config_hash(same) != results.config_hash(results.chosen(arms.STILLS.config(1, {"drop_vae": 0.7})))


def test_what_makes_a_row_valid():
    row = {"config": "a", "code": "b", "probe": [1.0, 2.0]}
    never = lambda: pytest.fail("no probe is needed")  # noqa: E731
    assert results.valid(row, "a", "b", never)
    assert not results.valid(row, "other", "b", never)
    assert results.valid(row, "a", "other", lambda: [1.00001, 2.0])
    assert not results.valid(row, "a", "other", lambda: [1.001, 2.0])


class Pretended:
    """Arms whose figures are made up."""

    def __init__(self, *_: object) -> None:
        self.ran: list[tuple[str, int]] = []

    def made_by(self, name: str, seed: int) -> dict:
        return {"name": name, "seed": seed}

    def probe(self, name: str) -> list[float]:
        return [1.0]

    def run(self, name: str, seed: int) -> dict:
        self.ran.append((name, seed))
        if len(self.ran) == 3:
            raise ValueError("a fault of one arm")
        if len(self.ran) > 5:
            raise KeyboardInterrupt
        cost = {"seconds_of_all": 0, "seconds_of_a_subject": 90 + seed, "bytes_of_a_subject": 1536}
        return {"cost": cost, "figures": {"error_with": [0.5 + (name == "clip-only"), 0.7 + (name == "clip-only")]}}


def test_a_run_goes_on_with_what_is_missing(tmp_path, monkeypatch, small):
    file, made = tmp_path / "rows.jsonl", []
    monkeypatch.setattr(command, "load_world", lambda: small)
    monkeypatch.setattr(command, "code_hash", lambda *own: f"code of {own}")
    for part in ("Trials", "Ways"):
        monkeypatch.setattr(command, part, lambda *_: made.append(Pretended()) or made[-1])
    names = ["both", "clip-only", "token"]
    with pytest.raises(KeyboardInterrupt):
        command.run(file, tmp_path, names[:2])  # the third training fails, the sixth is killed
    first = [(row["arm"], row["seed"]) for row in results.read(file)]
    assert first == [("both", 0), ("clip-only", 0), ("clip-only", 1), ("both", 2)]
    with pytest.raises(SystemExit, match=r"failed: token \(2\)"):
        command.run(file, tmp_path, names)
    command.run(file, tmp_path, names)
    done = [(row["arm"], row["seed"]) for row in results.read(file)]
    assert sorted(done) == sorted((name, seed) for name in names for seed in arms.SEEDS)
    assert len(done) == len(set(done))
    printed = tables.tables(results.read(file))  # intervals are of subjects: seeds agree
    assert "| clip-only | 3 | 1.6000 [1.5000, 1.7000] |" in printed
    assert "| clip-only | +1.0000 [+1.0000, +1.0000]* |" in printed
    assert "| token | 0 | 91 | 1,536 |" in printed
    assert json.loads(file.read_text().splitlines()[0])["precision"] == "float32"
