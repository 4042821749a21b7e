"""Conversion: every key accounted for, every source, nothing half-written."""

import json
import shutil

import native
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file, save_file

from phantom_s2v import PhantomPipeline
from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.models.tensors import Tensors
from phantom_s2v.models.wan.convert import convert
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.generate import generate, load_for
from phantom_s2v.pipeline.loading import model_hash

STATE = native.transformer()


def quiet(part, done, total):
    assert 0 < done <= total


def run(wan, phantom, tmp_path):
    out = tmp_path / "out"
    convert(wan, phantom, out, quiet)
    return WanTransformer3DModel.from_pretrained(out / "transformer")


def test_diffusers_reads_what_was_written(converted):
    model = WanTransformer3DModel.from_pretrained(converted / "transformer")
    assert torch.equal(model.blocks[1].attn2.to_k.weight, STATE["blocks.1.cross_attn.k.weight"])
    assert torch.equal(model.scale_shift_table, STATE["head.modulation"])
    vae = AutoencoderKLWan.from_pretrained(converted / "vae")
    assert torch.equal(vae.decoder.conv_out.weight, native.autoencoder()["decoder.head.2.weight"])


def test_diffusers_own_pipeline_opens_the_folder(converted):
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(converted, tokenizer=None)  # ours here is no sentencepiece model, as umT5's is
    embeds = {"prompt_embeds": torch.zeros(1, 512, native.TEXT), "negative_prompt_embeds": torch.zeros(1, 512, native.TEXT)}
    pipe.set_progress_bar_config(disable=True)
    assert pipe(**embeds, height=32, width=32, num_frames=5, num_inference_steps=1, output_type="latent").frames.shape[2] == 2


@pytest.mark.parametrize("count", [1, 3, 6])
def test_shards_give_the_same_weights(checkpoint, tmp_path, count):
    model = run(checkpoint[0], native.write_shards(STATE, tmp_path / "shards", count), tmp_path)
    assert torch.equal(model.patch_embedding.weight, STATE["patch_embedding.weight"])


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_a_community_file_in_fp16_stays_fp16(checkpoint, tmp_path, prefix):
    file = tmp_path / "community.safetensors"
    save_file({prefix + k: v.half() for k, v in STATE.items()}, file)
    convert(checkpoint[0], file, tmp_path / "out", quiet)
    stored = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {v.dtype for v in stored.values()} == {torch.float16}
    assert torch.equal(stored["proj_out.bias"], STATE["head.head.bias"].half())


def in_fp8(value, rows=False):
    """A weight in float8, and its scale: the largest value, of all or of each row, becomes 448."""
    largest = value.abs().amax(tuple(range(1, value.ndim)), keepdim=True) if rows else value.abs().max()
    scale = largest / 448
    return (value / scale).to(torch.float8_e4m3fn), scale


FORMAT = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
FP8 = {  # rows, end of the scale's name, its shape and type, and what else such files hold
    "one scale": (False, "scale_weight", lambda s: s.reshape(1), {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}),
    "one scale a row": (True, "scale_weight", lambda s: s, {"blocks.0.self_attn.q.scale_input": torch.ones(1)}),
    "one scale a row, flat": (True, "scale_weight", lambda s: s.flatten(), {}),
    "newer ComfyUI": (False, "weight_scale", lambda s: s.reshape(()), {"blocks.0.self_attn.q.comfy_quant": FORMAT}),
    "newer, a row": (True, "weight_scale", lambda s: s, {"blocks.0.self_attn.q.input_scale": torch.ones(())}),
}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("form", FP8)
def test_fp8_becomes_bfloat16_times_its_scale(tmp_path, form, prefix):
    """Rows of very different sizes; float8 has three bits after the first, so a value is off by a sixteenth at most."""
    rows, end, shape, more = FP8[form]
    value = STATE["blocks.0.self_attn.q.weight"] * torch.logspace(-3, 3, native.DIM)[:, None]
    stored, scale = in_fp8(value, rows)
    state = {"blocks.0.self_attn.q.weight": stored, f"blocks.0.self_attn.q.{end}": shape(scale), **more}
    save_file({prefix + name: each for name, each in state.items()}, tmp_path / "fp8.safetensors")
    source = Tensors([tmp_path / "fp8.safetensors"]).without_prefixes(("model.diffusion_model.",))
    assert source.names() == ["blocks.0.self_attn.q.weight"]
    raw = b"".join(source.read_finite("blocks.0.self_attn.q.weight"))
    got = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).reshape(value.shape)
    assert torch.equal(got, (stored.float() * scale).bfloat16())
    off = ((got.float() - value).abs() / value.abs())[value.abs() > 2**-6 * scale]
    assert off.max() < 0.07
    kept = (value.abs() > 2**-6 * scale)[0].any()  # with one scale for all, nothing of the smallest row is left
    assert kept == rows


def test_fp8_weights_make_a_model(checkpoint, tmp_path):
    state = dict(STATE)
    for name in [name for name in STATE if name.endswith("attn.q.weight")]:
        state[name], state[name.replace(".weight", ".weight_scale")] = in_fp8(STATE[name], rows=True)
    save_file(state, tmp_path / "fp8.safetensors")
    got = run(checkpoint[0], tmp_path / "fp8.safetensors", tmp_path).blocks[0].attn1.to_q.weight
    torch.testing.assert_close(got.float(), STATE["blocks.0.self_attn.q.weight"], rtol=0.07, atol=1e-3)


Q8, SCALE8 = in_fp8(STATE["blocks.0.self_attn.q.weight"])
OTHERS = {
    "blocks": ({"weight": Q8, "weight_scale": torch.ones(2, 2)}, r"scales of shape \(2, 2\) for .*q.weight, which is \(64, 64\)"),
    "columns": ({"weight": Q8, "scale_weight": torch.ones(1, 64)}, r"scales of shape \(1, 64\)"),
    "int8": ({"weight": Q8.view(torch.int8), "weight_scale": SCALE8}, "q.weight as I8; weights must be in floating point"),
    "nvfp4": ({"weight": Q8.view(torch.uint8), "weight_scale_2": SCALE8}, "q.weight as U8; weights must be"),
    "mxfp8": ({"weight": Q8, "comfy_quant": torch.tensor(list(b'{"format": "mxfp8"}'), dtype=torch.uint8)}, "as 'mxfp8'"),
    "a damaged format": ({"weight": Q8, "comfy_quant": torch.tensor([1, 2], dtype=torch.uint8)}, "a damaged .*comfy_quant"),
    "a scale of bfloat16": ({"weight": Q8.bfloat16(), "weight_scale": SCALE8}, "q.weight, but it is BF16, not float8"),
    "a scale of nothing": ({"scale_weight": SCALE8}, "q.weight, but there is none"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_quantized_weights_are_refused_with_the_reason(tmp_path, kind):
    state, said = OTHERS[kind]
    save_file({f"blocks.0.self_attn.q.{name}": value for name, value in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=said):
        Tensors([tmp_path / "a.safetensors"])


def test_a_folder_of_diffusers_gives_the_other_parts(checkpoint, converted, tmp_path):
    convert(converted, checkpoint[1], tmp_path / "again", quiet)
    prompt = {"prompt": "A dog.", "height": 32, "width": 32, "num_frames": 1, "num_inference_steps": 1}
    pipes = (PhantomPipeline.from_pretrained(f) for f in (converted, tmp_path / "again"))
    first, second = (pipe(**prompt, generator=torch.Generator().manual_seed(0)).frames for pipe in pipes)
    assert (first == second).all()


def broken(tmp_path, **changes):
    state = {k: v for k, v in (STATE | changes).items() if v is not None}
    torch.save(state, tmp_path / "broken.pth")
    return tmp_path / "broken.pth"


FAULTS = {
    "missing": ({"blocks.1.ffn.2.bias": None}, r"1 missing \(blocks.1.ffn.net.2.bias\)"),
    "extra": ({"img_emb.proj.1.weight": torch.zeros(2)}, "1 extra"),
    "misshapen": ({"blocks.0.self_attn.q.weight": torch.zeros(3, 3)}, "1 of another shape"),
    "not a Wan transformer": (
        {"patch_embedding.weight": None},
        "is not a Wan transformer; missing: patch_embedding.weight",
    ),
    "integers": ({"head.modulation": torch.zeros(1, 2, 64, dtype=torch.int64)}, "floating point"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_key_is_accounted_for(checkpoint, tmp_path, fault):
    changes, said = FAULTS[fault]
    with pytest.raises(CheckpointError, match=said):
        convert(checkpoint[0], broken(tmp_path, **changes), tmp_path / "out", quiet)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.pth"]


def test_a_layer_fewer_is_missing_and_not_a_smaller_model(checkpoint, tmp_path):
    """Phantom#36: with strict=False a lost shard gave wrong colors."""
    state = {k: v for k, v in STATE.items() if not k.startswith("blocks.1.")}
    torch.save(state, tmp_path / "lost.pth")
    with pytest.raises(CheckpointError, match=r"missing \(blocks.1"):
        convert(checkpoint[0], tmp_path / "lost.pth", tmp_path / "out", quiet)


def test_missing_truncated_and_swapped_shards(checkpoint, tmp_path):
    folder = native.write_shards(STATE, tmp_path / "shards", 3)
    second = folder / "Phantom_Wan_14B-00002-of-00003.safetensors"
    whole = second.read_bytes()
    second.unlink()
    with pytest.raises(CheckpointError, match=r"lacks 1 of 3 shards \(Phantom_Wan_14B-00002"):
        convert(checkpoint[0], folder, tmp_path / "out", quiet)
    second.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        convert(checkpoint[0], folder, tmp_path / "out", quiet)
    other = native.write_shards(native.transformer(dim=128), tmp_path / "other", 3)
    shutil.copyfile(other / second.name, second)
    with pytest.raises(CheckpointError, match="of another shape"):
        convert(checkpoint[0], folder, tmp_path / "out", quiet)
    shutil.copyfile(folder / "Phantom_Wan_14B-00001-of-00003.safetensors", second)
    with pytest.raises(CheckpointError, match="repeats"):
        convert(checkpoint[0], folder, tmp_path / "out", quiet)
    assert not (tmp_path / "out").exists()


def test_a_header_that_lies_about_its_size(checkpoint, tmp_path):
    file = tmp_path / "lie.safetensors"
    for length in (2**60, 2**20, 3):
        file.write_bytes(length.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}')
        with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
            convert(checkpoint[0], file, tmp_path / "out", quiet)


def test_a_text_encoder_or_an_autoencoder_of_another_model(checkpoint, tmp_path):
    wan = shutil.copytree(checkpoint[0], tmp_path / "wan")
    torch.save(native.text_encoder(50, width=32), wan / "models_t5_umt5-xxl-enc-bf16.pth")
    with pytest.raises(CheckpointError, match="32 wide and the transformer takes 24; it is the text encoder of another model"):
        convert(wan, checkpoint[1], tmp_path / "out", quiet)
    torch.save(STATE, wan / "Wan2.1_VAE.pth")
    with pytest.raises(CheckpointError, match="is not a Wan VAE"):
        convert(wan, checkpoint[1], tmp_path / "out", quiet)
    (wan / "Wan2.1_VAE.pth").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(wan, checkpoint[1], tmp_path / "out", quiet)
    assert not list(tmp_path.glob(".out*"))


def test_pickles_that_execute_gguf_and_others_are_refused(checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("x")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, said in (
        ("evil.pth", "not a plain state dict"), ("model.gguf", "GGUF"), ("notes.txt", "weights must be .safetensors or .pth"),
        ("list.pth", "is not a state dict"), ("nothing.pth", "does not exist"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=said):
            convert(checkpoint[0], tmp_path / name, tmp_path / "out", quiet)


def test_an_output_that_exists_is_left_alone(checkpoint, converted):
    before = sorted(p.name for p in converted.iterdir())
    with pytest.raises(InputError, match="already exists"):
        convert(*checkpoint, converted, quiet)
    assert sorted(p.name for p in converted.iterdir()) == before


def test_a_width_without_heads_asks_for_the_native_config(checkpoint, tmp_path):
    wan = shutil.copytree(checkpoint[0], tmp_path / "wan")
    (wan / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"put Wan's config.json beside it"):
        convert(wan, checkpoint[1], tmp_path / "out", quiet)


def test_loading_is_strict(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "model")
    index = folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    (folder / "transformer" / names[1]).unlink()
    with pytest.raises(CheckpointError, match="lacks 1 of 3 shards"):
        PhantomPipeline.from_pretrained(folder)


def test_native_names_stream_as_they_are(tmp_path):
    """Bytes of a tensor come in parts and are those that were saved, from a pickle and from safetensors."""
    torch.save(STATE, tmp_path / "a.pth")
    save_file(STATE, tmp_path / "a.safetensors")
    for file in ("a.pth", "a.safetensors"):
        source = Tensors([tmp_path / file])
        for name in ("patch_embedding.weight", "head.modulation"):
            raw = b"".join(source.read(name))
            assert raw == STATE[name].numpy().tobytes()


def test_a_converted_shard_with_doubled_values_has_another_hash(converted, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(converted, folder)
    before = model_hash(folder)
    assert before == model_hash(converted)
    for file in (sorted((folder / "transformer").glob("*-00002-of-*.safetensors"))[0], folder / "text_encoder" / "config.json"):
        kept = file.read_bytes()
        if file.suffix == ".json":
            file.write_text(file.read_text().replace("24", "25"))
        else:
            save_file({name: 2 * value for name, value in load_file(file).items()}, file)
        assert model_hash(folder) != before
        file.write_bytes(kept)
    (folder / "facts.json").write_text("{}")
    assert model_hash(folder) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_source_that_is_not_finite_is_not_converted(checkpoint, tmp_path, dtype):
    value = STATE["blocks.1.ffn.2.bias"].clone()
    value[-1] = float("inf")
    torch.save({k: v.to(dtype) for k, v in (STATE | {"blocks.1.ffn.2.bias": value}).items()}, tmp_path / "source.pth")
    with pytest.raises(CheckpointError, match=r"the weight blocks.1.ffn.2.bias of .*source.pth is not finite"):
        convert(checkpoint[0], tmp_path / "source.pth", tmp_path / "out", quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["source.pth"]


def test_the_command_line_converts_generates_and_refuses(checkpoint, tmp_path, monkeypatch, capsys):
    from phantom_s2v import cli

    def phantom(*arguments):
        monkeypatch.setattr("sys.argv", ["phantom", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, capsys.readouterr()

    model = tmp_path / "模型"
    code, said = phantom("convert", "--wan", checkpoint[0], "--phantom", checkpoint[1], "--out", model)
    assert (code, json.loads(said.out)["out"]) == (0, str(model))
    ask = ("--model", model, "--prompt", "犬が走る。", "--size", "32x32", "--num-frames", "5", "--num-inference-steps", "2")
    code, said = phantom("generate", *ask, "--out", tmp_path / "a.mp4")
    assert (code, said.out.strip()) == (0, str(tmp_path / "a.mp4"))
    assert "forwards" in said.err
    lora = tmp_path / "lora.safetensors"
    names = ("transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight")
    save_file({name: torch.ones(shape) for name, shape in zip(names, ((3, 64), (64, 3)), strict=True)}, lora)
    assert phantom("generate", *ask, "--lora", f"{lora}=0.5", "--cache-text", "--out", tmp_path / "l.mp4")[0] == 0
    code, said = phantom("generate", "--from", tmp_path / "l.metadata.json", "--model", model, "--out", tmp_path / "again.mp4")
    assert (code, "nothing has changed" in said.err) == (0, True)
    assert (tmp_path / "again.mp4").read_bytes() == (tmp_path / "l.mp4").read_bytes() != (tmp_path / "a.mp4").read_bytes()
    image = tmp_path / "赤.png"
    Image.new("RGB", (40, 40), "red").save(image)
    measure = (
        "--model",
        model,
        "--prompt",
        "a ball",
        "--reference",
        image,
        "--size",
        "32x32",
        "--num-frames",
        "5",
        "--num-inference-steps",
        "3",
    )
    code, said = phantom("calibrate-magcache", *measure)
    assert (code, said.out.strip()) == (0, str(model / "magcache.json"))
    assert len(json.loads((model / "magcache.json").read_text())["ratios"]) == 3
    assert phantom("generate", *ask, "--cache", "magcache", "--out", tmp_path / "m.mp4")[0] == 0
    assert phantom("generate", *ask, "--budget", "1MB", "--out", tmp_path / "b.mp4")[0] == 2
    assert phantom("estimate", *ask, "--card", "l4")[0] == 0
    shard = sorted((model / "transformer").glob("*.safetensors"))[0]
    config = model / "text_encoder" / "config.json"
    for harm, part in (
        (
            lambda: config.write_text(config.read_text().replace('"d_model": 24', '"d_model": 32')),
            "text_encoder of another model",
        ),
        (lambda: shard.write_bytes(shard.read_bytes()[:-9]), "truncated or not a safetensors file"),
        (
            lambda: shard.write_bytes((2**50).to_bytes(8, "little") + shard.read_bytes()[8:]),
            "truncated or not a safetensors file",
        ),
        (shard.unlink, "diffusion_pytorch_model.safetensors"),
    ):
        kept = {f: f.read_bytes() for f in (shard, config)}
        harm()
        code, said = phantom("generate", *ask, "--out", tmp_path / "c.mp4")
        assert (code, len(said.err.strip().splitlines())) == (2, 1), said.err
        assert part in said.err
        assert not list(tmp_path.glob("*c.*"))
        for file, content in kept.items():
            file.write_bytes(content)


def test_the_text_encoder_is_gone_before_the_transformer_is_loaded(converted, pipe):
    request = build_request(
        {"prompt": "A dog.", "size": "32x32", "num_frames": 1, "num_inference_steps": 1, "untrained_size": True}, pipe.preset
    )
    alone = load_for([request], converted)
    assert alone.text_encoder is None
    assert np.array_equal(generate(request, alone).video, generate(request, pipe).video)
