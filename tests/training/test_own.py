"""From a dataset of triplets to a fine-tuned model: encoded, trained, stopped and resumed, generated with."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from phantom_s2v.data import buckets
from phantom_s2v.data.buckets import Bucket, Target, bucket_of, fitted, plan
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference, TripletStore
from phantom_s2v.errors import DataError
from phantom_s2v.media import images
from phantom_s2v.models.memory import Placement
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.training import encoding, own, recipes
from phantom_s2v.training.batches import Batches, collate, split
from phantom_s2v.training.encoded import EncodedStore, JoinedStore, Row
from phantom_s2v.training.guard import encoder_hashes

TARGET = Target(32 * 32, 9, 8.0, 8)


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def triplet(tmp_path, number: int, size=(40, 40), frames=9, views=1) -> Triplet:
    path = tmp_path / f"{number}.mp4"
    images.write_video(path, np.random.default_rng(number).integers(0, 255, (frames, *size, 3), dtype=np.uint8), 8)
    names = ["fox"] * views + ["犬"] * (number % 2)
    references = tuple(TripletReference(picture(number * 10 + i), name, "cross-pair") for i, name in enumerate(names))
    return Triplet(path.read_bytes(), f"A fox, number {number}.", references, 8.0, frames, *size)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TripletStore:
    folder = tmp_path_factory.mktemp("triplets")
    store = TripletStore.create(folder / "t.lance")
    shapes = [{}, {}, {"views": 3}, {"size": (30, 60)}, {"frames": 5}, {}, {}, {"size": (30, 60)}]
    store.write(triplet(folder, number, **shape) for number, shape in enumerate(shapes))
    return store


@pytest.fixture(scope="module")
def latents(store, tiny, tiny_models, tmp_path_factory) -> EncodedStore:
    return encode(store, tiny_models, tiny, tmp_path_factory.mktemp("latents") / "l.lance")


def encode(store, pipe, folder, path, refused=None, target=TARGET, begun=None) -> EncodedStore:
    out, planned = EncodedStore.create(path, encoder_hashes(folder)), plan(store, target)
    encoders = encoding.Encoders(folder, Placement())
    keys = encoding.bring_up_to_date(store, out, planned, target)
    rows = (store, keys, encoders, target, planned, lambda count: None, ({} if refused is None else refused).__setitem__, pipe)
    out.write(encoding.rows_of(*rows, begun))
    return out


@pytest.mark.parametrize(("video", "bucket"), [
    ((480, 832, 81, 16), (480, 832, 81)),
    ((1080, 1920, 300, 30), (464, 832, 81)),  # 16:9 of 16 pixels, 81 of 160 frames
    ((832, 480, 40, 16), (832, 464, 37)),
    ((100, 100, 2, 16), (96, 96, 1)),  # never enlarged
    ((720, 720, 200, 60), (624, 624, 53)),  # 200 frames of 60 are 53 of 16
])  # fmt: skip
def test_videos_keep_their_aspect_and_are_never_enlarged(video, bucket):
    target = Target(480 * 832, 81, 16.0, 16)
    got = bucket_of(*video, target)
    assert (got.height, got.width, got.frames) == pytest.approx(bucket, abs=16)
    assert got.frames == bucket[2]
    assert got.height * got.width <= 480 * 832
    assert got.height % 16 == got.width % 16 == 0
    assert (got.height, got.width) <= (video[0], video[1])
    assert got.width <= video[1]


def test_a_video_that_is_too_small_is_refused():
    with pytest.raises(DataError, match="each side must have at least 16"):
        bucket_of(8, 400, 9, 8.0, Target(480 * 832, 81, 16.0, 16))


def test_videos_are_resampled_by_time_and_cut_in_the_middle():
    video = np.zeros((16, 10, 30, 3), np.uint8)
    video += np.arange(16, dtype=np.uint8)[:, None, None, None] * 10
    video[:, :, :10] = 255
    got = fitted(video, 16.0, Bucket(10, 10, 5), Target(100, 5, 8.0, 1))
    assert got[:, 5, 5, 0].tolist() == [0, 20, 40, 60, 80]  # every second frame
    assert (got < 200).all()  # nothing of the left third


def test_what_is_encoded_is_what_the_pipeline_would_see(store, latents, tiny_models):
    """Latents of the clip, references letterboxed, and the prompt, each by the pipeline's own functions, in float16."""
    number = store.ids().index(next(each[0] for each in latents.sizes() if each[1:4] == (32, 32, 9)))
    triplet = store.take([number])[0]
    row = latents.take([latents.ids().index(triplet.id)])[0]
    text = tiny_models.encode_texts([triplet.caption], 512)[0]
    torch.testing.assert_close(row["text"].float(), text, atol=5e-3, rtol=5e-3)
    image = images.read_image(io.BytesIO(triplet.references[0].image), name="x")[0]
    prepared = images.letterbox(image, 32, 32)
    torch.testing.assert_close(row["references"][0].float(), tiny_models.encode_images([prepared])[0, :, 0], atol=5e-3, rtol=5e-3)
    assert row["latents"].shape == (8, 3, 4, 4)
    assert row["image_tokens"].shape[1:] == (16, 32)


def test_encoding_goes_on_where_it_was_and_follows_the_dataset(store, latents, tiny, tiny_models, tmp_path, monkeypatch):
    calls = []
    real = encoding.encode_sample
    monkeypatch.setattr(encoding, "encode_sample", lambda *given: calls.append(given[1].id) or real(*given))
    path = tmp_path / "l.lance"
    some = TripletStore.create(tmp_path / "some.lance")
    some.write(list(store)[:3])
    encode(some, tiny_models, tiny, path)
    assert len(calls) == 3
    encode(some, tiny_models, tiny, path)
    assert len(calls) == 3
    some.remove(some.ids()[:1])
    some.write([list(store)[4]])
    out = encode(some, tiny_models, tiny, path)
    assert len(calls) == 4
    assert set(out.ids()) == set(some.ids())


@pytest.mark.parametrize("how", ["whole", "box"])
def test_references_that_are_shown_otherwise_are_encoded_again_and_licenses_follow(tiny, tiny_models, tmp_path, monkeypatch, how):
    """Boxes and rights are no part of a triplet's id."""
    calls, target = [], replace(TARGET, references=how)
    real = encoding.encode_sample
    monkeypatch.setattr(encoding, "encode_sample", lambda *given: calls.append(given[1].id) or real(*given))
    some, rows = TripletStore.create(tmp_path / "t.lance"), [triplet(tmp_path, number) for number in range(3)]
    some.write(rows)
    before = encode(some, tiny_models, tiny, tmp_path / "l.lance", target=target)
    assert before.rights() == {"not stated": 3}
    box, licensed = (
        replace(rows[0].references[0], box=(0.1, 0.1, 0.5, 0.5)),
        replace(rows[1].references[0], rights=Rights(license="Bob's own")),
    )
    some.write([replace(rows[0], references=(box,)), replace(rows[1], references=(licensed, *rows[1].references[1:]))])
    assert sorted(some.ids()) == sorted(before.ids())
    calls.clear()
    after = encode(some, tiny_models, tiny, tmp_path / "l.lance", target=target)
    assert calls == ([rows[0].id] if how == "box" else [])
    assert sorted(after.ids()) == sorted(before.ids())
    assert after.rights() == {"not stated": 2, "Bob's own; not stated": 1}


def test_no_more_of_a_video_is_decoded_than_is_learned_from(tiny, tiny_models, tmp_path, monkeypatch):
    """A file of minutes has its first frames encoded, and is never held whole; one that ends early has a shorter clip."""
    decoded = []
    real = buckets._fitted
    monkeypatch.setattr(buckets, "_fitted", lambda frame, bucket: decoded.append(1) or real(frame, bucket))
    monkeypatch.setattr(images, "MAX_VIDEO_BYTES", 20 * 40 * 40 * 3)
    store = TripletStore.create(tmp_path / "t.lance")
    long, short = triplet(tmp_path, 0, frames=40), replace(triplet(tmp_path, 2, frames=5), frames=9)
    store.write([long, short])
    refused: dict[str, str] = {}
    out = encode(store, tiny_models, tiny, tmp_path / "l.lance", refused)
    assert refused == {}
    assert {row.id: row.frames for row in out.sizes()} == {long.id: 9, short.id: 5}
    assert len(decoded) < 20  # of 45


def test_a_mask_that_moves_and_is_gray_is_encoded_as_it_moves(tiny, tiny_models, tmp_path):
    """Its weight at a latent position is the mean over the position's pixels and frames."""
    gray = np.zeros((9, 40, 40, 3), np.uint8)
    for number in range(9):
        gray[number, :, : 4 * number] = 128
    images.write_video(tmp_path / "mask.mp4", gray, 8)
    store = TripletStore.create(tmp_path / "t.lance")
    store.write([replace(triplet(tmp_path, 0), mask=(tmp_path / "mask.mp4").read_bytes())])
    (row,) = encode(store, tiny_models, tiny, tmp_path / "l.lance").take([0])
    edges = [4 * number * 32 / 40 for number in range(9)]  # columns that are gray, of 32
    columns = [[min(8.0, max(0.0, edge - 8 * place)) / 8 for place in range(4)] for edge in edges]
    expected = [columns[0], np.mean(columns[1:5], 0), np.mean(columns[5:], 0)]
    assert row["mask"].shape == (3, 4, 4)
    for time in range(3):
        np.testing.assert_allclose(row["mask"][time], np.tile(np.array(expected[time]) * 128 / 255, (4, 1)), atol=0.03)


def test_the_gigabytes_that_are_said_are_those_that_are_written(store, tiny, tiny_models, tmp_path):
    said: list[str] = []
    out = encode(store, tiny_models, tiny, tmp_path / "l.lance", begun=said.append)
    written = sum(len(tensors) for tensors in out.dataset.to_table(columns=["tensors"])["tensors"].to_pylist())
    number, unit = re.search(r"about ([0-9.]+) (kB|MB)", said[0]).groups()
    assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(written, rel=0.15)
    assert said[0].startswith("8 triplets of 3 sizes: ")


def test_the_order_of_batches_does_not_depend_on_the_order_of_writing():
    sizes = [Row(f"clip-{number}", 32, 32, 9, 1, False, True, 1, number % 2 == 1) for number in range(8)]

    def ids(rows) -> list[list[str]]:
        store = SimpleNamespace(sizes=lambda: rows, path="l.lance")
        mixed, _ = split(store, replace(recipes.own_mini(), validation=0.0, regularization=0.5))
        return [[rows[row].id for row in stream.epoch(0)[place]] for stream in mixed.streams for place in range(2)]

    assert ids(sizes) == ids(sizes[::-1])


def test_latents_of_another_model_are_refused(latents, tiny):
    with pytest.raises(DataError, match="was encoded otherwise: vae was"):
        EncodedStore(latents.path, {**encoder_hashes(tiny), "vae": "0" * 64})
    with pytest.raises(DataError, match="is not a dataset of encoded triplets"):
        EncodedStore(latents.path.parent.parent)


def test_every_triplet_is_in_one_batch_of_an_epoch(latents):
    config = replace(recipes.own_mini(), batch_size=2, validation=0.2)
    mixed, apart = split(latents, config)
    (batches,) = mixed.streams
    assert len(apart) == 1
    for epoch in (0, 1):
        rows = [row for number in range(batches.per_epoch()) for row in batches.of(epoch * batches.per_epoch() + number)]
        assert sorted(rows + apart) == list(range(len(latents)))
    first, second = (batches.epoch(e) for e in (0, 1))
    assert first != second
    for number in range(batches.per_epoch()):
        batch = batches(number)
        assert batch["references"].shape[1] == batch["subjects"].shape[1] <= 2
        assert batch["ids"] == [latents.ids()[row] for row in batches.of(number)]


@pytest.mark.parametrize("together", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_of_a_step_are_equally_large_and_no_triplet_is_left_out(latents, size, together):
    """Also where buckets have fewer triplets than there are processes."""
    rows = (tuple(range(23)), tuple(range(23, 40)), (40,), (41, 42))
    batches = Batches(latents, ("",) * 43, "all", rows, (2, 1, 2, 2), (size, 2 * size, size, size), 0)
    for number in range(2):
        epoch = batches.epoch(number, together)
        assert len(epoch) == batches.per_epoch(together)
        assert len(epoch) % together == 0
        seen = [row for batch in epoch for row in batch]
        assert set(seen) == set(range(43))
        assert len(seen) - 43 < together
        for start in range(0, len(epoch), together):
            step = epoch[start : start + together]
            buckets = {next(i for i, bucket in enumerate(rows) if row in bucket) for batch in step for row in batch}
            lengths = {len(batch) for batch in step}
            assert max(lengths) - min(lengths) <= 1
            assert len(buckets) == 1 or lengths == {1}


def test_views_of_a_subject_are_drawn_in_turn(latents):
    row = next(row for row in latents.take(list(range(len(latents)))) if (row["subjects"] == 0).sum() == 3)
    drawn = {collate([row], np.random.default_rng(seed))["references"][0, 0].flatten()[0].item() for seed in range(20)}
    assert len(drawn) == 3


def test_a_model_with_another_autoencoder_is_not_trained_on_latents(latents, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(own, "encoder_hashes", lambda folder: encoder_hashes(folder) | {"vae": "0" * 64})
    with pytest.raises(DataError, match="was encoded with another vae than the model's; encode it again with this model"):
        run(latents, tiny, tmp_path / "run", 1)


def run(latents, folder, out, steps, **changes) -> dict:
    config = recipes.own_mini()
    train = replace(config.train, steps=steps, adam_lr=2e-3, warmup=2, precision="float32", workers=0, log_steps=1, decay_share=0)
    config = replace(config, train=train, validation=0.2, **changes)
    return own.run(config, folder, {latents.path: 0}, out, Placement(device="cpu"))


def test_a_fine_tuned_model_loads_and_generates(latents, tiny, tmp_path):
    whole = run(latents, tiny, tmp_path / "whole", 3)
    pipe = load_models(tmp_path / "whole" / "model")
    video = pipe("a fox", reference_images=np.zeros((20, 20, 3), np.uint8), generator=torch.Generator().manual_seed(0)).frames[0]
    assert video.shape == (9, 32, 32, 3)
    assert np.isfinite(video).all()
    assert whole["triplets"] == 8
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert {"with_0.5", "without_0.5"} < set(log[-1])


def test_it_learns_one_clip(latents, tiny, tmp_path):
    """Trained on its few clips, the error of what it was trained on falls."""
    run(latents, tiny, tmp_path / "run", 60, drop_references=0.0, drop_text=0.0)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in log if "loss" in row]
    assert np.mean(losses[-15:]) < 0.7 * np.mean(losses[:15])


def test_commands_go_from_triplets_to_a_model(call_phantom, store, tiny, tmp_path):
    latents, out, toml = tmp_path / "l.lance", tmp_path / "run", tmp_path / "run.toml"
    code, said = call_phantom("encode", store.path, "--model", tiny, "--out", latents)
    assert code == 0, said.err
    assert json.loads(said.out.splitlines()[-1]) == {"new": 8, "triplets": 8, "left_out": 0}
    toml.write_text('batch_size = 3\n[train]\nwarmup = 1\nprecision = "float32"\n')
    command = ("train", "--preset", "mini", "--model", tiny, "--latents", latents, "--out", out, "--steps", 2, "--config", toml)
    code, said = call_phantom(*command)
    assert code == 0, said.err
    assert json.loads(said.out.splitlines()[-1])["steps"] == 2
    assert (out / "model" / "transformer" / "config.json").is_file()
    code, said = call_phantom("train", "--preset", "mini", "--config", toml, "--print-config")
    assert json.loads(said.out)["batch_size"] == 3


@pytest.fixture(scope="module")
def small(store, tiny, tiny_models, tmp_path_factory) -> EncodedStore:
    """The same triplets at a quarter of the area."""
    target = replace(TARGET, area=16 * 16)
    return encode(store, tiny_models, tiny, tmp_path_factory.mktemp("small") / "s.lance", target=target)


def test_a_larger_size_joins_at_its_step(small, latents):
    """What is held out is so at both sizes, and the rest is seen once an epoch."""
    joined, count = JoinedStore([small, latents], [0, 3]), len(small)
    mixed, apart = split(joined, replace(recipes.own_mini(), batch_size=2, validation=0.3))
    held = {small.ids()[row] for row in apart}
    assert len(held) == 2
    batches = [mixed(number) for number in range(30)]
    assert not held & {key for batch in batches for key in batch["ids"]}
    sizes = [batch["latents"].shape[-1] for batch in batches]
    assert set(sizes[:3]) == {2}
    assert {2, 4} <= set(sizes[3:])
    ((start, later),) = mixed.later
    (stream,) = later.streams
    seen = [row for batch in stream.epoch(0) for row in batch]
    assert sorted(seen) == sorted(row for row in range(2 * count) if joined.sizes()[row].id not in held)
    assert (start, mixed.of(5), mixed.of(7, 2)) == (3, later.of(2), later.of(1, 2))
    assert mixed.of(5, 2)[0] is mixed.streams[0]
    assert [facts["rows"] for facts in mixed.stated().values()] == [count - 2, 2 * (count - 2)]
    largest = max(b["latents"][0, 0].numel() * len(b["latents"]) for b in batches)
    assert max(len(b["latents"]) for b in batches if b["latents"].shape[-1] == 2) > 2
    assert largest <= 2 * 3 * 4 * 4


def test_rows_of_joined_datasets_come_in_the_order_asked_for(small, latents):
    joined, count = JoinedStore([small, latents], [0, 0]), len(small)
    for got, (store, row) in zip(
        joined.take([count + 1, 0, count, 2]), ((latents, 1), (small, 0), (latents, 0), (small, 2)), strict=True
    ):
        torch.testing.assert_close(got["latents"], store.take([row])[0]["latents"], rtol=0, atol=0)
    assert sum(joined.rights().values()) == len(joined) == 2 * count
    assert own.dataset_hash(joined) != own.dataset_hash(JoinedStore([small, latents], [0, 5]))
    assert own.dataset_hash(JoinedStore([small], [0])) == own.dataset_hash(small)


def test_a_run_of_two_sizes_goes_on_bit_for_bit(call_phantom, small, latents, tiny, tmp_path):
    (tmp_path / "c.toml").write_text('[train]\nwarmup = 1\nprecision = "float32"\ndecay_share = 0.0\nlog_steps = 1\n')
    command = ["train", "--preset", "mini", "--model", tiny, "--config", tmp_path / "c.toml"]
    command += ["--latents", small.path, "--latents", f"{latents.path}=2"]
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        code, said = call_phantom(*command, "--out", tmp_path / name, "--steps", steps)
        assert code == 0, said.err
    whole, parts = (
        load_file(tmp_path / name / "model/transformer/diffusion_pytorch_model.safetensors") for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    noted = json.loads((tmp_path / "whole" / "data.json").read_text())["datasets"]
    assert set(noted) == {str(small.path), str(latents.path)}
    assert "from step 2" in (tmp_path / "whole" / "model" / "README.md").read_text()


@pytest.mark.parametrize(("given", "said"), [
    (["a.lance=0.5"], "latents must be FOLDER or FOLDER=STEP with a whole number (got 'a.lance=0.5')"),
    (["a.lance", "a.lance=2"], "a.lance was given twice"),
    (["{}=2"], "one dataset of latents must be learned from at step 0"),
])  # fmt: skip
def test_latents_that_make_no_training_are_one_sentence(call_phantom, small, tmp_path, given, said):
    options = [part for each in given for part in ("--latents", each.format(small.path))]
    code, out = call_phantom("train", "--preset", "mini", "--out", tmp_path / "run", *options)
    assert (code, said in out.err) == (2, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("text", "said"), [
    ("batchsize = 2", "unknown key 'batchsize' (did you mean batch_size?)"),
    ("[train]\nadam_lr = 'much'", "adam_lr must be"),
    ("batch_size = ", "run.toml: "),
    ("[train]\nlr = 1e-4", "lr is the rate of Muon, which fine-tuning does not use; set adam_lr"),
    ("[train]\nadam_lr = -1.0", "adam_lr must be at least 0 (got -1.0)"),
    ("[train]\nlog_steps = 0", "log_steps must be at least 1 (got 0)"),
    ("[train]\nthreads = 0", "threads must be at least 1"),
    ("mixed_precision = 'fp16'", "precision must be auto, float32 or bfloat16 (got 'fp16')"),
    ("[lora]\nrank = 8", "lora needs targets"),
    ("network_dim = 0", "rank must be above 0"),
    ("evaluate = true", "evaluate measures samples"),
    ("[train]\nshard_size = 2", "shard_size is for parallel hsdp"),
])  # fmt: skip
def test_a_wrong_field_is_one_sentence(call_phantom, tmp_path, text, said):
    (tmp_path / "run.toml").write_text(text)
    code, out = call_phantom("train", "--preset", "mini", "--config", tmp_path / "run.toml", "--print-config")
    assert code == 2
    assert said in out.err


def test_what_is_missing_is_one_sentence(call_phantom, tmp_path):
    code, out = call_phantom("train", "--preset", "large")
    assert (code, "preset must be mini, mini-lora, wan-1.3b, wan-1.3b-lora or wan-14b-lora (got 'large')" in out.err) == (2, True)
    code, out = call_phantom("train", "--preset", "mini", "--out", tmp_path)
    assert (code, "--latents and --out are needed" in out.err) == (2, True)
    code, out = call_phantom("encode", tmp_path / "none.lance", "--out", tmp_path / "l.lance")
    assert (code, "none.lance does not exist" in out.err) == (2, True)


def test_a_lora_of_the_own_model_is_loaded_by_generate(latents, tiny, tmp_path, call_phantom):
    """--lora gives the video of the adapters folded into the weights; at strength 0 that of the model without."""
    config = replace(recipes.own_mini_lora(), validation=0.0)
    train = replace(config.train, steps=3, adam_lr=2e-2, warmup=1, precision="float32", workers=0, decay_share=0, ema_decay=0.0)
    own.run(replace(config, train=train), tiny, {latents.path: 0}, tmp_path / "run", Placement(device="cpu"))
    file = tmp_path / "run" / "lora.safetensors"
    image = np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8)

    def make(placement, change=lambda pipe: None) -> np.ndarray:
        pipe = load_models(tiny, placement)
        change(pipe)
        return pipe("a fox", reference_images=image, generator=torch.Generator().manual_seed(0)).frames[0]

    def fold(pipe) -> None:
        state, saved = pipe.transformer.state_dict(), load_file(file)
        for name in [name for name in saved if name.endswith("lora_A.weight")]:
            layer = name.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
            up = saved[name.replace("lora_A", "lora_B")].float()
            state[f"{layer}.weight"] += up @ saved[name].float()  # alpha is the rank
        pipe.transformer.load_state_dict(state)

    plain, folded = make(Placement(device="cpu")), make(Placement(device="cpu"), fold)
    assert np.abs(folded - plain).max() > 1e-2
    np.testing.assert_allclose(make(Placement(device="cpu", loras=((str(file), 1.0),))), folded, atol=1e-3)
    np.testing.assert_allclose(make(Placement(device="cpu", loras=((str(file), 0.0),))), plain, atol=1e-5)
    np.testing.assert_allclose(make(Placement(device="cpu"), lambda pipe: pipe.load_lora_weights(file)), folded, atol=1e-3)


def test_recipes_load_no_lance():
    """Trainings compose batches in worker processes, and Lance does not survive a fork."""
    check = "import sys, phantom_s2v.training.recipes, phantom_s2v.training.run; assert 'lance' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
