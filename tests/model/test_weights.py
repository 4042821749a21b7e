"""Model folders: what is packed is the parts in half precision, and nothing of the machine that made them."""

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import load_file

from phantom_s2v.model.autoencoder import load_autoencoder
from phantom_s2v.model.weights import FILE, pack


def test_a_packed_part_is_the_part_in_half_precision_without_the_path_it_came_from(tiny, tmp_path):
    AutoencoderKLWan.from_pretrained(tiny / "autoencoder").save_pretrained(tmp_path / "again")
    assert str(tiny) in (tmp_path / "again" / "config.json").read_text()
    pack({"autoencoder": tmp_path / "again"}, {}, {}, tmp_path / "packed")
    assert str(tiny) not in (tmp_path / "packed" / "autoencoder" / "config.json").read_text()
    halves, before = load_file(tmp_path / "packed" / "autoencoder" / FILE), load_file(tiny / "autoencoder" / FILE)
    assert all(torch.equal(halves[name], value.half()) for name, value in before.items())
    assert load_autoencoder(tmp_path / "packed" / "autoencoder").config["latents_std"] == [0.5] * 8
