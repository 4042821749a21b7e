"""Model folders: what is packed is the parts in half precision, and nothing of the machine that made them."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from phantom_s2v.errors import OutputError
from phantom_s2v.models.autoencoder import load_autoencoder
from phantom_s2v.models.tensors import save_part
from phantom_s2v.models.weights import FILE, pack


def test_a_packed_part_is_the_part_in_half_precision_without_the_path_it_came_from(tiny, tmp_path):
    AutoencoderKLWan.from_pretrained(tiny / "vae").save_pretrained(tmp_path / "again")
    assert str(tiny) in (tmp_path / "again" / "config.json").read_text()
    pack({"vae": tmp_path / "again"}, {}, {}, tmp_path / "packed")
    assert str(tiny) not in (tmp_path / "packed" / "vae" / "config.json").read_text()
    halves, before = load_file(tmp_path / "packed" / "vae" / FILE), load_file(tiny / "vae" / FILE)
    assert all(torch.equal(halves[name], value.half()) for name, value in before.items())
    assert load_autoencoder(tmp_path / "packed" / "vae").config["latents_std"] == [0.5] * 8


def test_a_model_folder_of_others_is_left_alone(tiny, tmp_path, call_phantom):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="mine cannot be written"):
        pack({"vae": tiny / "vae"}, {}, {}, tmp_path / "mine")
    parts = ("--autoencoder", tiny / "vae", "--image-encoder", tiny / "image_encoder")
    code, said = call_phantom("train", "pack", *parts, "--out", tmp_path / "mine")
    assert (code, "mine already exists; choose another name" in said.err) == (2, True)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "notes.txt"]


def test_a_part_is_saved_whole_or_not_at_all(tiny, tmp_path, monkeypatch):
    autoencoder = load_autoencoder(tiny / "vae")
    save_part(autoencoder, tmp_path / "part")
    whole = {p.name: p.read_bytes() for p in (tmp_path / "part").iterdir()}
    assert set(whole) == {"config.json", FILE}

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("phantom_s2v.models.tensors._write_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        save_part(autoencoder, tmp_path / "part")
    assert {p.name: p.read_bytes() for p in (tmp_path / "part").iterdir()} == whole
