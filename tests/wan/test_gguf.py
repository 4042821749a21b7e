"""A transformer in GGUF is near the one it was made of; what is no such transformer is refused in one sentence."""

import json
import shutil

import native
import pytest
import torch
from diffusers import WanTransformer3DModel

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.models.wan.gguf import load_gguf
from phantom_s2v.models.weights import load_part

gguf = pytest.importorskip("gguf")
KINDS = gguf.GGMLQuantizationType
STATE = native.transformer()


@pytest.mark.parametrize(
    ("kind", "prefix", "near"), [("F16", "", 0.01), ("Q8_0", "model.diffusion_model.", 0.05), ("Q4_0", "", 0.6)]
)
def test_its_velocity_is_near_the_original(converted, tmp_path, kind, prefix, near):
    file = native.write_gguf(tmp_path / "model.gguf", STATE, KINDS[kind], prefix)
    model = load_gguf(file, converted / "transformer", torch.float32)
    assert not model.training
    assert (model.blocks[0].ffn.net[0].proj.weight.dtype is torch.uint8) == (kind != "F16")
    original = native.velocity(load_part(WanTransformer3DModel, converted / "transformer"))
    assert 0 < (native.velocity(model) - original).std() / original.std() < near


def test_what_is_no_transformer_in_gguf_is_one_sentence(converted, tmp_path, monkeypatch):
    sound = native.write_gguf(tmp_path / "sound.gguf", STATE, KINDS.Q8_0)
    lost = native.write_gguf(tmp_path / "lost.gguf", {k: v for k, v in STATE.items() if k != "blocks.1.ffn.2.bias"}, KINDS.Q8_0)
    native.write_gguf(tmp_path / "wide.gguf", native.transformer(dim=128), KINDS.Q8_0)
    native.write_gguf(tmp_path / "more.gguf", STATE | {"img_emb.proj.1.weight": torch.zeros(32)}, KINDS.Q8_0)
    native.write_gguf(tmp_path / "nan.gguf", STATE | {"head.modulation": torch.full((1, 2, 64), torch.nan)}, KINDS.Q8_0)
    (tmp_path / "cut.gguf").write_bytes(sound.read_bytes()[:-3000])
    (tmp_path / "head.gguf").write_bytes(sound.read_bytes()[:40])
    (tmp_path / "junk.gguf").write_bytes(b"junk" * 100)
    shutil.copyfile(lost, tmp_path / "model.bin")
    for name, said in (
        ("lost.gguf", r"1 missing \(blocks.1.ffn.net.2.bias\)"), ("wide.gguf", "of another shape"), ("more.gguf", "1 extra"),
        ("nan.gguf", "is not finite"), ("cut.gguf", "truncated or not GGUF"), ("head.gguf", "truncated or not GGUF"),
        ("junk.gguf", "truncated or not GGUF"), ("model.bin", "must be an existing"), ("no.gguf", "must be an existing"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=said) as error:
            load_gguf(tmp_path / name, converted / "transformer", torch.float32)
        assert "\n" not in str(error.value)
    config = json.loads((converted / "transformer" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"in_channels": 36}))
    with pytest.raises(CheckpointError, match="36 input and 16 output channels"):
        load_gguf(sound, tmp_path, torch.float32)
    monkeypatch.setattr("phantom_s2v.models.quantization.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r'pip install "phantom-s2v\[gguf\]"'):
        load_gguf(sound, converted / "transformer", torch.float32)


def test_an_estimate_counts_a_file_with_its_own_size(converted, tmp_path):
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import video_model
    from phantom_s2v.pipeline.cost.measure import read_configs, weight_bytes

    file = native.write_gguf(tmp_path / "model.gguf", STATE, KINDS.Q4_0)
    transformer, autoencoder = read_configs(converted)
    for placement, expected in ((Placement(transformer=str(file)), file.stat().st_size), (Placement(), None)):
        sizes = weight_bytes(converted, video_model(converted), transformer, autoencoder, placement, 4)
        assert (sizes["transformer"] == pytest.approx(file.stat().st_size)) == (expected is not None)


def test_kinds_that_diffusers_does_not_read_are_named(converted, tmp_path, monkeypatch):
    file = native.write_gguf(tmp_path / "model.gguf", STATE, KINDS.Q8_0)
    monkeypatch.setattr("diffusers.quantizers.gguf.utils.SUPPORTED_GGUF_QUANT_TYPES", [KINDS.Q4_0])
    with pytest.raises(CheckpointError, match="is quantized as Q8_0; it must be F32, F16, Q4_0"):
        load_gguf(file, converted / "transformer", torch.float32)


def test_a_command_takes_the_file_and_knows_it_again(converted, tmp_path, call_phantom):
    file = native.write_gguf(tmp_path / "q8.gguf", STATE, KINDS["Q8_0"])
    ask = (
        "generate",
        "--model",
        converted,
        "--prompt",
        "A cat.",
        "--size",
        "32x32",
        "--num-frames",
        5,
        "--num-inference-steps",
        1,
    )
    ask = (*ask, "--transformer", file)
    code, said = call_phantom(*ask, "--out", tmp_path / "v.mp4")
    assert code == 0, said.err
    known = json.loads((tmp_path / "v.metadata.json").read_text())
    assert str(file) in known["files"]
    assert len(known["origin"]["made_by"]["placement"]["transformer"]) == 64
    code, said = call_phantom(*ask, "--quantization", "fp8", "--out", tmp_path / "w.mp4")
    assert (code, "already quantized" in said.err) == (2, True)
