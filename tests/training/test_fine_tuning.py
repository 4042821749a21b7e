"""What a fine-tuning draws, weighs, measures, writes and refuses."""

import io
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save
from test_own import TARGET, encode, picture, triplet

from phantom_s2v.data.buckets import plan, shown
from phantom_s2v.data.triplets import TripletReference, TripletStore
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.media import images
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import load_preset
from phantom_s2v.models.tensors import FILE
from phantom_s2v.pipeline.conditions import Dropped
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.training import aliases, cost, encoding, objective, own, recipes
from phantom_s2v.training.batches import PERIOD, collate, split
from phantom_s2v.training.checked import unusable
from phantom_s2v.training.config import Mix, OwnConfig
from phantom_s2v.training.encoded import EncodedStore
from phantom_s2v.training.log import Log


@pytest.fixture(scope="module")
def latents(tiny, tiny_models, tmp_path_factory) -> EncodedStore:
    """Six cross-pair triplets, two of which have an in-pair view too, one without references and one for regularization."""
    folder = tmp_path_factory.mktemp("fine-tuning")
    rows = [triplet(folder, number * 2) for number in range(8)]
    for number in (0, 1):
        inside = TripletReference(picture(100 + number), "fox", "in-pair")
        rows[number] = replace(rows[number], references=(*rows[number].references, inside))
    gray = np.zeros((40, 40, 3), np.uint8)
    gray[:, 20:] = 255
    images.write_image(folder / "mask.png", gray)
    from phantom_s2v.data.clips import store_mask

    rows[2] = replace(rows[2], mask=store_mask(folder / "mask.png"), repeats=3)
    rows[6] = replace(rows[6], references=())
    rows[7] = replace(rows[7], references=(), regularization=True)
    store = TripletStore.create(folder / "t.lance")
    store.write(rows)
    return encode(store, tiny_models, tiny, folder / "l.lance")


def numbers(latents, **facts) -> set[int]:
    return {n for n, row in enumerate(latents.sizes()) if all(getattr(row, name) == value for name, value in facts.items())}


def config(**changes) -> OwnConfig:
    train = {"steps": 3, "adam_lr": 2e-3, "warmup": 1, "precision": "float32", "log_steps": 1, "decay_share": 0.0}
    made = recipes.own_mini()
    return replace(made, train=replace(made.train, **{**train, **changes.pop("train", {})}), batch_size=2, **changes)


def run(latents, folder, out, score=None, **changes) -> list[dict]:
    own.run(config(**changes), folder, {latents.path: 0}, out, Placement(device="cpu"), score)
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_kinds_of_references_and_regularization_have_their_shares(latents):
    """Exactly over a period, on any number of processes at once; each kind shows its own references alone."""
    mixed, apart = split(latents, config(mix=Mix(0.2, 0.5, 0.3), regularization=0.1, validation=0.0))
    assert apart == []
    kinds = [mixed.of(2 * step, 2)[0].kind for step in range(PERIOD)]
    shares = {"in-pair": 180, "cross-pair": 450, "text-to-video": 270, "regularization": 100}
    assert {kind: kinds.count(kind) for kind in shares} == shares
    for number in range(40):
        stream, place = mixed.of(number)
        rows, batch = set(stream.of(place)), mixed(number)
        assert batch["ids"] == [latents.ids()[row] for row in stream.of(place)]
        seen = {"in-pair": (numbers(latents, in_pair=True), 1), "cross-pair": (numbers(latents, cross_pair=True), 1),
                "text-to-video": (numbers(latents, regularization=False), 0),
                "regularization": (numbers(latents, regularization=True), 0)}[stream.kind]  # fmt: skip
        assert rows <= seen[0]
        assert batch["references"].shape[1] == batch["subjects"].shape[1] == seen[1]
        if stream.kind in ("in-pair", "cross-pair"):
            for row, got in zip(latents.take(stream.of(place)), batch["references"], strict=True):
                wanted = int(stream.kind == "cross-pair")
                assert [n for n in range(len(row["cross"])) if torch.equal(got[0], row["references"][n].float())] == [
                    n for n, cross in enumerate(row["cross"].tolist()) if cross == wanted
                ]


def test_without_a_mix_every_triplet_is_seen_as_often_as_its_repeats_say(latents):
    """Those without references too, whose batches have no places for them; the largest bucket is first."""
    mixed, apart = split(latents, config(validation=0.2, regularization=0.0))
    (stream,) = mixed.streams
    seen = [row for batch in stream.epoch(0) for row in batch]
    repeats = {n: row.repeats for n, row in enumerate(latents.sizes()) if not row.regularization and n not in apart}
    assert {n: seen.count(n) for n in set(seen)} == repeats
    assert len(apart) == 1
    assert 3 in repeats.values()
    largest = max(len(batch) * latents.sizes()[batch[0]].subjects for batch in stream.epoch(0))
    assert len(stream.of(0)) * latents.sizes()[stream.of(0)[0]].subjects == largest
    with pytest.raises(DataError, match="no triplets with in-pair references, which the mix asks for"):
        split(latents, config(mix=Mix(in_pair=1.0)), frozenset(row.id for row in latents.sizes() if row.in_pair))


@pytest.mark.parametrize("changes", [
    {}, {"t_density": "uniform"}, {"t_shift": 3.0, "t_density": "uniform"}, {"t_mean": 0.8, "t_tokens": 0},
    {"min_timestep": 875}, {"min_timestep": 100, "max_timestep": 400, "t_shift": 2.0},
])  # fmt: skip
def test_times_have_the_density_that_was_asked_for(changes):
    """Quantiles of the analytic distribution, cut at the bounds."""
    c = config(**changes)
    t = objective.draw_t(20_000, c, 256).double()
    low, high = c.min_timestep / 1000, c.max_timestep / 1000
    assert low <= t.min() < t.max() <= high

    def cdf(value: float) -> float:
        if value in (0.0, 1.0):
            return value
        logit = math.log(value / (1 - value)) - math.log(c.t_shift)
        if c.t_density == "uniform":
            return 1 / (1 + math.exp(-logit))
        return 0.5 * (1 + math.erf((logit - c.t_mean) / c.t_scale / math.sqrt(2)))

    for q in (0.1, 0.5, 0.9):
        got = (cdf(float(t.quantile(q))) - cdf(low)) / (cdf(high) - cdf(low))
        assert got == pytest.approx(q, abs=0.015)


def test_what_is_black_in_a_mask_has_no_part_in_the_loss(latents, tiny_models):
    """Its latents may change and the loss stays; with a weight outside it does not. A row without a mask counts whole."""
    (place,) = numbers(latents, repeats=3)
    batch = collate(latents.take([place]), np.random.default_rng(0))
    assert batch["mask"][0, 0, :, [0, -1]].tolist() == [[0.0, 1.0]] * 4
    changed = {**batch, "latents": batch["latents"].clone()}

    class Zero:
        whole_timesteps = False

        @staticmethod
        def training_velocity(x_t, t, given, dropped):
            return torch.zeros_like(x_t)

    changed["latents"][..., 0] += 5
    for outside, same in ((0.0, True), (0.5, False)):
        losses = []
        for each in (batch, changed):
            torch.manual_seed(0)
            loss = objective.loss_of(Zero(), config(outside_mask=outside), torch.zeros(1, 1, 1))
            losses.append(float(loss(each, 0)["loss"]))
        assert (losses[0] == pytest.approx(losses[1])) == same
    other = next(iter(numbers(latents, repeats=1, regularization=False, cross_pair=True)))
    both = collate(latents.take([place, other]), np.random.default_rng(0))
    assert (both["mask"][1] == 1).all()


def test_losses_by_band_are_those_of_their_samples():
    target = torch.randn(4, 2, 3, 4, 4)
    counted = torch.ones(4, 3, dtype=torch.bool)
    times = torch.tensor([0.1, 0.2, 0.6, 1.0])
    found = objective._by_band(torch.zeros_like(target), target, times, counted, None)
    assert found.keys() == {"loss_t0.25", "loss_t0.75", "loss_t1"}
    assert float(found["loss_t0.25"]) == pytest.approx(float(target[:2].square().mean()), rel=1e-5)


@pytest.mark.parametrize("changes", [{"activation_offload": True}, {"gradient_checkpointing": True, "activation_offload": True}])
def test_offloaded_activations_have_the_same_gradients(latents, tiny, changes):
    batch = collate(latents.take([0]), np.random.default_rng(0))
    grads = []
    for given in ({}, changes):
        pipe = load_models(tiny)
        pipe.transformer.requires_grad_(True).train()
        if given.get("gradient_checkpointing"):
            pipe.transformer.enable_gradient_checkpointing()
        torch.manual_seed(0)
        objective.loss_of(pipe, config(**given), pipe.encode_texts([""], 512))(batch, 0)["loss"].backward()
        grads.append([p.grad for p in pipe.transformer.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_bad_data_is_named_before_the_first_step_and_skipped_or_refused(latents, tiny, tmp_path, capsys):
    """Torn tensors, NaN, too few frames; the second run does not read the dataset again."""
    bad = EncodedStore.create(tmp_path / "bad.lance", latents.origin)
    table = latents.dataset.to_table().to_pylist()
    tensors = latents.take(list(range(len(table))))
    tensors[0]["latents"][0, 0, 0, 0] = float("nan")
    tensors[1]["latents"] = tensors[1]["latents"][:, :2].contiguous()
    for row, given in zip(table, tensors, strict=True):
        row["tensors"] = save(given)
    table[2]["tensors"] = table[2]["tensors"][:-9]
    bad.write(table)
    with pytest.raises(DataError, match="3 of 8 triplets cannot be used") as error:
        run(bad, tiny, tmp_path / "stops")
    assert all(reason in str(error.value) for reason in ("are not finite", "is too short", "cannot be read", "--bad-data skip"))
    log = run(bad, tiny, tmp_path / "skips", bad_data="skip")
    said = capsys.readouterr().err
    assert all(row["id"] in said for row in table[:3])
    assert log[-1]["step"] == 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phantom_s2v.training.checked._look", lambda *given: pytest.fail("looked again"))
        run(bad, tiny, tmp_path / "skips", bad_data="skip")


def test_the_best_the_last_and_earlier_states_are_kept_with_a_card(latents, tiny, tmp_path):
    log = run(
        latents, tiny, tmp_path / "run", validation=0.2, max_step_saves_to_keep=2,
        train={"steps": 4, "save_steps": 1, "validate_steps": 1},
    )  # fmt: skip
    judged = {row["step"]: np.mean([v for k, v in row.items() if k.startswith("with_")]) for row in log if "with_0.5" in row}
    assert sorted(judged) == [1, 2, 3, 4]
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["step"] == min(judged, key=judged.__getitem__)
    kept = tmp_path / "run" / "saves"
    assert sorted(path.name for path in kept.iterdir()) == ["step-00000003", "step-00000004"]
    last, fourth = (load_file(folder / "transformer" / FILE) for folder in (tmp_path / "run" / "model", kept / "step-00000004"))
    assert all(torch.equal(last[name], fourth[name]) for name in last)
    load_models(tmp_path / "run" / "best")
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert card.startswith("---\nbase_model: tiny\n")
    assert "| not stated | 8 |" in card
    assert f"| with_0.5 | {log[-1]['with_0.5']:.5g}"[:20] in card
    assert '"adam_lr": 0.002' in card


def test_what_is_kept_before_the_rates_fall_has_the_name_of_its_step(latents, tiny, tmp_path):
    """The weights of three steps are not those of four; what others keep in the folder stays."""
    (tmp_path / "run" / "saves").mkdir(parents=True)
    (tmp_path / "run" / "saves" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="saves exists without"):
        run(latents, tiny, tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").write_text('{"step": 0}\n')
    run(latents, tiny, tmp_path / "run", max_step_saves_to_keep=1, train={"steps": 4, "decay_share": 0.5, "ema_decay": 0.0})
    assert sorted(path.name for path in (tmp_path / "run" / "saves").iterdir()) == ["notes.txt", "step-00000004"]
    run(latents, tiny, tmp_path / "two", max_step_saves_to_keep=2, train={"steps": 4, "decay_share": 0.5, "ema_decay": 0.0})
    run(latents, tiny, tmp_path / "three", train={"steps": 3, "ema_decay": 0.0})
    assert sorted(path.name for path in (tmp_path / "two" / "saves").iterdir()) == ["step-00000003", "step-00000004"]
    kept, three = (
        load_file(folder / "transformer" / FILE)
        for folder in (tmp_path / "two" / "saves" / "step-00000003", tmp_path / "three" / "model")
    )
    assert all(torch.equal(kept[name], three[name]) for name in kept)


@pytest.mark.parametrize("name", ["README.md", "model", "best.safetensors"])
def test_files_of_others_in_the_folder_of_a_run_are_not_replaced(latents, tiny, tmp_path, name, monkeypatch):
    monkeypatch.setattr(own, "load_for", lambda *given, **more: pytest.fail("loaded"))
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataError, match=f"{name} exists without log.jsonl"):
        run(latents, tiny, tmp_path, lora=recipes.own_mini_lora().lora)
    assert (tmp_path / name).read_text() == "mine"


def test_a_changed_rate_is_refused_and_accepted_by_the_option_that_the_error_names(latents, tiny, tmp_path, call_phantom):
    """What says only what is written when may change."""
    command = ["train", "--preset", "mini", "--model", tiny, "--latents", latents.path, "--out", tmp_path / "run"]

    def go_on(steps, text, *more):
        (tmp_path / "c.toml").write_text(f'validation = 0.2\n{text}\nprecision = "float32"\n')
        return call_phantom(*command, "--steps", steps, "--config", tmp_path / "c.toml", *more)

    assert go_on(1, "[train]\nadam_lr = 1e-3")[0] == 0
    code, said = go_on(2, "[train]\nadam_lr = 2e-3")
    assert (code, "train.adam_lr was 0.001 and is 0.002" in said.err, "--allow-change adam_lr" in said.err) == (2, True, True)
    code, said = go_on(2, "[train]\nadam_lr = 2e-3", "--allow-change", "adam_lr")
    assert code == 0, said.err
    text = "max_step_saves_to_keep = 1\nbad_data = 'skip'\n[train]\nadam_lr = 2e-3\nvalidate_steps = 1\nsave_steps = 1"
    code, said = go_on(3, text)
    assert code == 0, said.err
    assert json.loads(said.out.splitlines()[-1])["steps"] == 3


def test_a_run_says_what_it_learns_from_how_long_it_takes_and_where_it_goes_on(latents, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("phantom_s2v.training.log.NOTICE", -1.0)  # after each step
    run(latents, tiny, tmp_path / "run", train={"steps": 3, "log_steps": 50})
    said = capsys.readouterr().err
    assert "0.05 of 6 triplets with references is none that is held out; no validation, and no best weights" in said
    assert "phantom: all: 7 triplets, 5 batches an epoch; 3 steps = 0.54 epochs" in said
    assert [line.partition(",")[0] for line in said.splitlines() if " left" in line] == [
        f"phantom: step {n} of 3" for n in (2, 3)
    ]
    run(latents, tiny, tmp_path / "run", train={"steps": 4})
    assert (
        f"phantom: resuming after step 3 of 4, from {tmp_path / 'run' / 'checkpoints' / 'step-00000003'}"
        in capsys.readouterr().err
    )


def test_latents_of_another_autoencoder_are_refused_before_anything_loads(latents, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "load_for", lambda *given, **more: pytest.fail("loaded"))
    other = EncodedStore.create(tmp_path / "other.lance", {**latents.origin, "vae": "0" * 64})
    with pytest.raises(DataError, match="was encoded with another vae than the model's"):
        run(other, tiny, tmp_path / "run")


def test_a_caption_that_the_text_encoder_cannot_read_is_named(tiny, tiny_models, tmp_path):
    store = TripletStore.create(tmp_path / "t.lance")
    store.write([replace(triplet(tmp_path, 0), caption="犬が走る。"), triplet(tmp_path, 2)])
    planned, said = plan(store, TARGET), list[str]()
    keys, encoders = list(planned.buckets), encoding.Encoders(tiny, Placement())
    rows = encoding.rows_of(store, keys, encoders, TARGET, planned, lambda done: None, pytest.fail, tiny_models, said.append)
    assert len(list(rows)) == 2
    named, sizes = said
    assert "(犬が走る。): tiny has an English-only text encoder" in named
    assert sizes.startswith("2 triplets of 1 size: about ")


def test_estimates_are_of_the_size_that_videos_are_encoded_at(tiny):
    preset = load_preset(tiny)
    usual = [cost.usual_size(name) for name in (str(tiny), "phantom-wan-14b")]
    assert usual == [VideoSize(preset.num_frames, preset.height, preset.width), VideoSize(121, 480, 832)]


def test_what_was_checked_does_not_stand_for_other_triplets_at_the_same_place(latents, tiny, tmp_path):
    """A dataset that was removed and made again has the path and the version of the one before."""
    table = latents.dataset.to_table().to_pylist()
    for place, value in ((0, 0.0), (1, float("nan"))):
        shutil.rmtree(tmp_path / "l.lance", ignore_errors=True)
        store, row = EncodedStore.create(tmp_path / "l.lance", latents.origin), dict(table[place])
        (tensors,) = latents.take([place])
        tensors["latents"] += value
        store.write([row | {"tensors": save(tensors)}])
        given = (store, own.dataset_hash(store), config(), tiny_channels(tiny), tmp_path)
        if place == 0:
            assert unusable(*given) == frozenset()
            continue
        with pytest.raises(DataError, match="its latents are not finite"):
            unusable(*given)


def tiny_channels(folder) -> int:
    return json.loads((folder / "vae" / "config.json").read_text())["z_dim"]


@pytest.mark.parametrize("lora", [False, True])
def test_a_sample_has_the_bytes_of_generate_and_changes_nothing_that_is_learned(latents, tiny, tmp_path, call_phantom, lora):
    images.write_image(tmp_path / "fox.png", np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    requests = tmp_path / "samples.jsonl"
    requests.write_text(json.dumps({"prompt": "A fox.", "reference": [f"fox={tmp_path / 'fox.png'}"], "out": "fox.mp4"}))
    measured = []

    def score(video, references) -> float:
        measured.append((video, [each.shape for each in references]))
        return 0.25 * len(measured)

    changes = {"lora": replace(recipes.own_mini_lora().lora, rank=2, alpha=4.0) if lora else None}
    changes["train"] = {"validate_steps": 2, "ema_decay": 0.0}
    log = run(latents, tiny, tmp_path / "with", score, samples=str(requests), evaluate=True, **changes)
    folders = [tmp_path / "with" / "samples" / f"step-{step:08d}" for step in (2, 3)]
    assert measured == [(folder / "fox.mp4", [(20, 20, 3)]) for folder in folders]
    assert [row["similarity"] for row in log if "similarity" in row] == [0.25, 0.5]
    assert "| similarity | 0.5 |" in ((tmp_path / "with") / ("README.md" if lora else "model/README.md")).read_text()
    run(latents, tiny, tmp_path / "without", **changes)
    name = "lora.safetensors" if lora else f"model/transformer/{FILE}"
    one, other = (load_file(tmp_path / each / name) for each in ("with", "without"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    sample = tmp_path / "with" / "samples" / "step-00000003"
    assert (sample.parent / "step-00000002" / "fox.sheet.png").is_file()
    made = ("--model", tiny, "--lora", tmp_path / "with" / name) if lora else ("--model", tmp_path / "with" / "model")
    code, said = call_phantom(
        "generate", "--prompt", "A fox.", "--reference", f"fox={tmp_path / 'fox.png'}", "--out", tmp_path / "fox.mp4", *made
    )
    assert code == 0, said.err
    assert (tmp_path / "fox.mp4").read_bytes() == (sample / "fox.mp4").read_bytes()
    assert (sample / "fox.mp4").read_bytes() != (sample.parent / "step-00000002" / "fox.mp4").read_bytes()


@pytest.mark.parametrize(("text", "path", "value"), [
    ("network_dim = 8", ("lora", "alpha"), 1.0),
    ("network_dim = 8\nnetwork_alpha = 4.0", ("lora", "alpha"), 4.0),
    ("discrete_flow_shift = 3.0\ntimestep_sampling = 'shift'", ("t_shift",), 3.0),
    ("discrete_flow_shift = 3.0\ntimestep_sampling = 'sigmoid'", ("t_shift",), 1.0),
    ("timestep_sampling = 'uniform'", ("t_density",), "uniform"),
    ("save_every_n_steps = 7", ("train", "save_steps"), 7),
    ("eval_every_n_steps = 9", ("train", "validate_steps"), 9),
    ("caption_dropout_rate = 0.2", ("drop_text",), 0.2),
    ("blocks_to_swap = 1", ("blocks_to_swap",), 1),
    ("gradient_checkpointing_cpu_offload = true", ("activation_offload",), True),
    ("max_step_saves_to_keep = 3\nresume_from_checkpoint = true", ("max_step_saves_to_keep",), 3),
    ("mixed_precision = 'bf16'", ("train", "precision"), "bfloat16"),
])  # fmt: skip
def test_options_that_people_know_set_our_fields(call_phantom, tmp_path, text, path, value):
    (tmp_path / "c.toml").write_text(text)
    code, said = call_phantom("train", "--preset", "mini-lora", "--config", tmp_path / "c.toml", "--print-config")
    assert code == 0, said.err
    got = json.loads(said.out)
    for name in path:
        got = got[name]
    assert got == value


@pytest.mark.parametrize(("table", "said"), [
    ({"trigger_word": "x"}, "phantom data import --trigger-word"),
    ({"resume_from_checkpoint": "a"}, "resumes by itself"),
    ({"timestep_sampling": "logsnr"}, "timestep_sampling must be uniform, sigmoid or shift"),
    ({"network_dim": 4, "lora": {"rank": 4}}, "lora.rank is set twice"),
    ({"max_train_epochs": 4}, "count in steps; phantom train says how many an epoch has"),
    ({"optimizer_type": "prodigy"}, "the optimizer is AdamW"),
    ({"steps": 4}, "write it below a line"),
])  # fmt: skip
def test_options_that_have_another_place_are_one_sentence(table, said):
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        aliases.known(table, lambda line: None)


@pytest.mark.parametrize(("changes", "said"), [
    ({"min_timestep": 500, "max_timestep": 400}, "min_timestep must be below max_timestep"),
    ({"t_density": "normal"}, "t_density must be logit-normal or uniform"),
    ({"drop_text": 1.5}, "drop_text must be between 0 and 1"),
    ({"blocks_to_swap": 2}, "need LoRA"),
    ({"samples": "none.jsonl"}, "samples must be a JSON Lines file"),
    ({"lora": recipes.own_mini_lora().lora, "quantization": "4bit"}, "quantization is for Phantom-Wan only"),
    ({"lora": recipes.own_mini_lora().lora, "init_from": "none.safetensors"}, "none.safetensors is not a file"),
])  # fmt: skip
def test_a_wrong_configuration_is_refused_before_anything_loads(latents, tiny, tmp_path, changes, said, monkeypatch):
    monkeypatch.setattr(own, "load_for", lambda *given, **more: pytest.fail("loaded"))
    with pytest.raises(InputError, match=said):
        run(latents, tiny, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_batch_without_references_is_a_text_to_video_one(latents, tiny_models):
    """Its velocity is that of generating without reference images."""
    (place,) = numbers(latents, subjects=0, regularization=False)
    batch = collate(latents.take([place]), np.random.default_rng(0))
    x, no = torch.randn(batch["latents"].shape), torch.tensor([False])
    empty = tiny_models.encode_texts([""], 512)
    got = tiny_models.training_velocity(x, torch.tensor([0.5]), batch, Dropped(no, no, no, no, empty))
    from phantom_s2v.pipeline.conditions import Conditions

    tiny_models.scheduler.set_timesteps(2)
    tiny_models.scheduler.sigmas[0] = 0.5
    conditions = Conditions(batch["text"], empty, None, 0, None, False)
    wanted = tiny_models.branches(conditions, x, None)(x, torch.tensor(500), 0, ["both"])["both"]
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("how", "shape", "white"), [("whole", (40, 60), False), ("box", (22, 22), False), ("cutout", (22, 22), True)]
)
def test_references_are_shown_whole_as_boxes_or_cut_out(how, shape, white):
    image, mask = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    mask[10:30, 20:30] = 255
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    reference = TripletReference(b"", "fox", "cross-pair", (1 / 3, 0.25, 2 / 3, 0.75), buffer.getvalue())
    got = shown(reference, image, how)
    assert got.shape[:2] == shape
    assert (got[11, 0] == (255 if white else 0)).all()
    assert (got[11, 5] == 0).all()
    assert (got[-2, -2] == (255 if white else 0)).all()
    assert shown(TripletReference(b"", "fox", "cross-pair"), image, how).shape == image.shape


@pytest.mark.long
def test_processes_and_ray_encode_what_one_process_does(tiny, tmp_path):
    """Two processes as torchrun starts them, each its share, and two actors."""
    store = TripletStore.create(tmp_path / "t.lance")
    store.write(triplet(tmp_path, number) for number in range(5))

    def command(name: str, *more: str) -> list[str]:
        out = str(tmp_path / f"{name}.lance")
        return [sys.executable, "-m", "phantom_s2v", "encode", str(store.path), "--model", str(tiny), "--out", out, *more]

    subprocess.run(command("one"), check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        places = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    each = [{**os.environ, **places, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    running = [subprocess.Popen(command("two"), env=env, stdout=subprocess.PIPE, text=True) for env in each]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert json.loads(said[0].splitlines()[-1]) == {"new": 5, "triplets": 5, "left_out": 0}
    assert said[1] == ""
    gently = {**os.environ, "RAY_worker_niceness": "0"}  # else its workers get nothing beside other work
    subprocess.run(command("ray", "--ray", "local", "--workers", "2"), check=True, env=gently)
    rows = [
        {row["id"]: row["tensors"] for row in EncodedStore(tmp_path / f"{name}.lance").dataset.to_table().to_pylist()}
        for name in ("one", "two", "ray")
    ]
    assert rows[0] == rows[1] == rows[2]


@pytest.mark.long
def test_encoding_that_is_killed_goes_on_with_what_it_had(tiny, tmp_path):
    """Killed after its first rows are there, and again before any new ones are: none is lost, none is there twice."""
    store = TripletStore.create(tmp_path / "t.lance")
    store.write(triplet(tmp_path, number) for number in range(40))
    whole, parts = tmp_path / "whole.lance", tmp_path / "parts.lance"
    command = [sys.executable, "-m", "phantom_s2v", "encode", str(store.path), "--model", str(tiny), "--out"]
    counts = []
    for until in (lambda: rows_in(parts) > 0, lambda: True):
        running = subprocess.Popen([*command, str(parts)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert running.stderr
        while not until() or "to encode" not in running.stderr.readline():
            assert running.poll() is None
            time.sleep(0.01)
        running.kill()
        running.communicate()
        counts.append(rows_in(parts))
    assert 0 < counts[0] <= counts[1] < 40
    done = subprocess.run([*command, str(parts)], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"new": 40 - counts[1], "triplets": 40, "left_out": 0}
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    tables = [EncodedStore(path).dataset.to_table().to_pylist() for path in (whole, parts)]
    first, second = (sorted((row["id"], row["tensors"]) for row in table) for table in tables)
    assert first == second


def rows_in(path) -> int:
    return len(EncodedStore(path)) if path.exists() else 0


def test_a_resumed_training_goes_on_with_its_run_of_weights_and_biases(tmp_path, monkeypatch):
    """Two folders of one name are two runs; the package, which is not installed for tests, is stood in for."""
    asked = []
    run = SimpleNamespace(log=lambda row, step: asked.append((step, row)), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **given: asked.append(given) or run))
    for folder, start in ((tmp_path / "a" / "run", 0), (tmp_path / "b" / "run", 0), (tmp_path / "a" / "run", 1)):
        folder.mkdir(parents=True, exist_ok=True)
        log = Log(folder, replace(config().train, wandb="foxes"), None, start)
        log.write(start, {"loss": 0.5})
        log.close()
    first, _, second, _, third, row = asked
    assert first["id"] == third["id"] != second["id"]
    assert (first["project"], first["name"], first["resume"], row) == ("foxes", "run", "allow", (2, {"loss": 0.5}))
