"""Fine-tuning of a tiny Wan: the released forward with gradients, all weights or LoRA, and a LoRA file that others read."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import native
import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from PIL import Image
from processes import held, in_processes
from safetensors import safe_open
from safetensors.torch import load_file

from phantom_s2v.data.buckets import Target, plan
from phantom_s2v.data.triplets import Triplet, TripletReference, TripletStore
from phantom_s2v.errors import InputError
from phantom_s2v.media import images
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.wan.transformer import PhantomWanTransformer, QuickRotation, wan_velocity
from phantom_s2v.models.weights import load_part
from phantom_s2v.pipeline.conditions import Dropped
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.training import adapters, cost, encoding, own, recipes, result, swap
from phantom_s2v.training.batches import collate
from phantom_s2v.training.config import Lora
from phantom_s2v.training.encoded import EncodedStore
from phantom_s2v.training.guard import encoder_hashes
from phantom_s2v.training.log import Log

TARGET = Target(32 * 32, 5, 16.0, 16)


@pytest.fixture(scope="module")
def latents(pipe, converted, tmp_path_factory) -> EncodedStore:
    folder = tmp_path_factory.mktemp("triplets")
    store = TripletStore.create(folder / "t.lance")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(4):
        images.write_video(folder / "a.mp4", rng.integers(0, 255, (5, 32, 48, 3), dtype=np.uint8), 16)
        picture = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(picture, "PNG")
        reference = TripletReference(picture.getvalue(), "dog", "cross-pair")
        rows.append(Triplet((folder / "a.mp4").read_bytes(), f"A dog, {number}.", (reference,), 16.0, 5, 32, 48))
    store.write(rows)
    out, planned = EncodedStore.create(folder / "l.lance", encoder_hashes(converted)), plan(store, TARGET)
    keys = encoding.bring_up_to_date(store, out, planned, TARGET)
    encoders = encoding.Encoders(converted, Placement())
    said: list[str] = []
    rows = encoding.rows_of(store, keys, encoders, TARGET, planned, lambda done: None, pytest.fail, begun=said.append)
    assert out.write(rows) == 4
    written = sum(len(tensors) for tensors in out.dataset.to_table(columns=["tensors"])["tensors"].to_pylist())
    number, unit = re.search(r"about ([0-9.]+) (kB|MB)", said[0]).groups()
    assert float(number) * {"kB": 1e3, "MB": 1e6}[unit] == pytest.approx(written, rel=0.3)  # headers of tiny rows
    return out


def run(latents, folder, out, lora, steps=3) -> dict:
    config = recipes.own_wan_lora() if lora else recipes.own_wan()
    train = replace(config.train, steps=steps, adam_lr=5e-3, warmup=1, precision="float32", workers=0, log_steps=1, decay_share=0)
    train = replace(train, ema_decay=0.0)
    return own.run(replace(config, train=train, lora=lora, t_tokens=16), folder, {latents.path: 0}, out, Placement(device="cpu"))


@pytest.mark.parametrize("stabilized", [False, True])
def test_a_lora_file_is_as_strong_as_the_adapters_it_was_trained_as(latents, converted, tmp_path, stabilized):
    """Loaded by our own --lora, in diffusers' way, and folded by hand."""
    lora = Lora(4, 16.0, stabilized, recipes.own_wan_lora().lora.targets)
    kept = {}
    real = result.write_lora
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(result, "write_lora", lambda adapters, *more: (kept.update(adapters), real(adapters, *more)))
        run(latents, converted, tmp_path / "run", lora)
    file = tmp_path / "run" / "lora.safetensors"
    by_hand = load_models(converted)
    scale = 16 / 2 if stabilized else 16 / 4
    factors = kept
    state = by_hand.transformer.state_dict()
    for name in [name for name in factors if "lora_A" in name]:
        layer = name.partition(".lora_A")[0]
        product = factors[name.replace("lora_A", "lora_B")].half().float() @ factors[name].half().float()
        assert product.abs().max() > 0
        state[f"{layer}.weight"] += scale * product
    by_hand.transformer.load_state_dict(state)
    given = (torch.randn(1, 16, 2, 4, 6), torch.tensor([500.0]), torch.randn(1, 512, 24), torch.randn(1, 16, 1, 4, 6))
    expected = wan_velocity(by_hand.transformer, *given)
    ours = load_models(converted)
    plain = wan_velocity(ours.transformer, *given)
    ours.load_lora_weights(str(file))
    torch.testing.assert_close(wan_velocity(ours.transformer, *given), expected, atol=1e-4, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-2
    with safe_open(file, "pt") as opened:
        assert opened.metadata()["ss_network_dim"] == "4"
    assert "diffusion_model.blocks.0.self_attn.q.lora_A.weight" in load_file(file)


def test_rotating_by_complex_numbers_gives_the_bits_of_diffusers(converted):
    """Output and gradients, by the transformer's own processor and by diffusers'."""
    given = (torch.randn(2, 16, 3, 4, 6), torch.tensor([500.0]), torch.randn(2, 512, 24), torch.randn(2, 16, 1, 4, 6))
    made = []
    for processor in (QuickRotation, WanAttnProcessor):
        transformer = load_models(converted).transformer.requires_grad_(True)
        assert isinstance(transformer.blocks[0].attn1.processor, QuickRotation)
        for block in transformer.blocks:
            block.attn1.set_processor(processor())
        out = wan_velocity(transformer, *given)
        out.square().mean().backward()
        made.append([out, *(p.grad for p in transformer.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def shared(folder, store, out, ulysses, **changes) -> list[float]:
    """Losses of a tiny Wan whose sequences so many processes share."""
    losses, config = [], recipes.own_wan()
    settings = {"steps": 3, "adam_lr": 2e-3, "warmup": 1, "precision": "float32", "log_steps": 1, "ulysses_degree": ulysses}
    config = replace(config, train=replace(config.train, **settings, **changes), validation=0.0, t_tokens=16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.accelerator, "device_count", lambda: 1)  # diffusers divides by it, and there is none here
        patch.setattr(Log, "write", lambda log, step, row: losses.append(row["loss"]))
        own.fine_tune(config, load_models(folder), store, out, {}, torch.device("cpu"))
    return losses


@pytest.mark.parametrize(("count", "parallel"), [(2, "ddp"), pytest.param(4, "fsdp", marks=pytest.mark.long)])
def test_processes_that_share_a_sequence_have_the_losses_of_one(converted, tmp_path, count, parallel):
    """By Ulysses, alone and beside sharded weights; lengths and numbers of processes that do not go together are refused."""
    store = held(16, (7, 24), None, [(32, 48, 5)] * 6)
    one = shared(converted, store, tmp_path / "one", 1, gradient_accumulation_steps=count // 2)
    many = in_processes(tmp_path, count, lambda: shared(converted, store, tmp_path / "many", 2, parallel=parallel))[0]
    np.testing.assert_allclose(many, one, atol=1e-5)
    odd = held(16, (7, 24), None, [(48, 48, 5)] * 6)
    said = in_processes(tmp_path, 2, lambda: shared(converted, odd, tmp_path / "odd", 2), fails=True)
    assert said[0].startswith("InputError: ring_degree x ulysses_degree must divide the 27 tokens of 5 frames at 48x48")
    said = in_processes(tmp_path, 2, lambda: shared(converted, store, tmp_path / "ring", 1, ring_degree=2), fails=True)
    assert said[0].startswith("InputError: ring_degree must be 1 without a GPU")


@pytest.mark.long
def test_the_example_runs_from_its_first_to_its_last_line(converted, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    given = {"PHANTOM": f"{sys.executable} -m phantom_s2v", "PRESET": "wan-1.3b-lora", "MODEL": str(converted), "STEPS": "2",
             "GENERATE": "--size 64x32 --num-frames 5 --num-inference-steps 2"}  # fmt: skip
    script = Path(__file__).parents[2] / "examples" / "own_product" / "run.sh"
    done = subprocess.run(
        ["bash", script, tmp_path / "photos", "rote Tasse", tmp_path / "out"],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out" / "video.mp4").stat().st_size > 500


@pytest.mark.parametrize("spelling", ["native", "comfyui", "diffusers"])
@pytest.mark.parametrize("stabilized", [False, True])
def test_a_converted_or_merged_lora_is_as_strong_as_the_one_it_was(converted, tmp_path, call_phantom, spelling, stabilized):
    """By our --lora, by diffusers' own loader, and in the weights."""
    from diffusers import WanTransformer3DModel

    from phantom_s2v.models.wan.transformer import wan_velocity

    file, out = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    names = ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2")
    pipe = load_models(converted)
    shapes = {name: pipe.transformer.get_submodule(name).weight.shape for name in names}
    draw = torch.Generator().manual_seed(0)
    factors = {
        f"{name}.lora_{factor}.weight": torch.randn(*size, generator=draw) * 0.3
        for name, (rows, columns) in shapes.items()
        for factor, size in (("A", (4, columns)), ("B", (rows, 4)))
    }
    result.write_lora(factors, Lora(4, 16.0, stabilized), "phantom-wan-1.3b", file)
    given = (torch.randn(1, 16, 2, 4, 6), torch.tensor([500.0]), torch.randn(1, 512, 24), torch.randn(1, 16, 1, 4, 6))
    plain = wan_velocity(pipe.transformer, *given)
    state, scale = pipe.transformer.state_dict(), 16 / (2 if stabilized else 4)
    for name in names:
        up, down = (factors[f"{name}.lora_{factor}.weight"].half().float() for factor in "BA")
        state[f"{name}.weight"] += scale * (up @ down)
    pipe.transformer.load_state_dict(state)
    expected = wan_velocity(pipe.transformer, *given)
    assert (plain - expected).abs().max() > 1e-2
    code, said = call_phantom("lora", "convert", file, "--to", spelling, "--model", converted, "--out", out)
    assert code == 0, said.err
    tolerance = 2e-2 if spelling == "diffusers" else 1e-4  # the strength is within B, in float16
    for source in (out, file):
        ours = load_models(converted, Placement(loras=((str(source), 1.0),)))
        torch.testing.assert_close(wan_velocity(ours.transformer, *given), expected, atol=tolerance, rtol=tolerance)
    if spelling != "comfyui":
        theirs = WanTransformer3DModel.from_pretrained(converted / "transformer")
        from diffusers import WanPipeline

        loaded = WanPipeline.lora_state_dict(str(out), return_lora_metadata=True)
        theirs.load_lora_adapter(loaded[0], metadata=loaded[1], prefix="transformer")
        from phantom_s2v.models.wan.transformer import PhantomWanTransformer

        got = wan_velocity(PhantomWanTransformer.of(theirs), *given)
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    if spelling == "native":
        code, said = call_phantom("lora", "merge", f"{file}=1", "--model", converted, "--out", tmp_path / "merged")
        assert code == 0, said.err
        merged = load_models(tmp_path / "merged")
        torch.testing.assert_close(wan_velocity(merged.transformer, *given), expected, atol=1e-4, rtol=1e-4)


def frozen_lora(latents, folder, out, **changes) -> dict[str, torch.Tensor]:
    """The LoRA after three steps on a base that is held as `changes` of the configuration say."""
    lora = Lora(2, 2.0, targets=("to_q", "ffn.net.0.proj"))
    config = replace(recipes.own_wan_lora(), lora=lora, t_tokens=16, **changes)
    train = replace(config.train, steps=3, adam_lr=5e-3, warmup=1, precision="float32", ema_decay=0.0, log_steps=1)
    own.run(replace(config, train=train), folder, {latents.path: 0}, out, Placement(device="cpu"))
    return load_file(out / "lora.safetensors")


def test_swapped_blocks_have_the_same_losses_and_the_same_lora(latents, converted, tmp_path):
    """On the CPU, where each copy is one more; the result is bit for bit that of a training without."""
    files = [frozen_lora(latents, converted, tmp_path / str(count), blocks_to_swap=count) for count in (0, 1)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert any(value.any() for name, value in files[0].items() if "lora_B" in name)


def test_an_adapter_beside_swapped_weights_comes_with_them():
    """peft makes the adapter that samples are made with trainable, where its base lies."""
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    block[0].requires_grad_(False)
    visiting = swap.Visiting(block, torch.device("meta"))
    assert visiting(torch.zeros(2, 4, device="meta")).device.type == "meta"
    block[0].requires_grad_(True)
    here = swap.Visiting(block, torch.device("cpu"))
    here(torch.zeros(2, 4)).sum().backward()
    assert all(p.grad is not None for p in block.parameters())


@pytest.mark.parametrize(
    ("kind", "compiled"), [("Q8_0", False), ("Q4_0", False), pytest.param("Q8_0", True, marks=pytest.mark.long)]
)
def test_a_lora_on_a_gguf_base_is_the_one_on_its_dequantized_weights(latents, converted, tmp_path, kind, compiled):
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[kind]
    file = native.write_gguf(tmp_path / "base.gguf", native.transformer(), kind)
    dense = shutil.copytree(converted, tmp_path / "dense")
    transformer = load_part(WanTransformer3DModel, converted / "transformer")
    for name, value in transformer.state_dict().items():
        if name.startswith("blocks.") and value.ndim == 2 and value.shape[1] % 32 == 0:
            stored = gguf.quants.dequantize(gguf.quants.quantize(value.float().numpy(), kind), kind)
            value.copy_(torch.from_numpy(stored))
    shutil.rmtree(dense / "transformer")
    transformer.save_pretrained(dense / "transformer")
    plain = frozen_lora(latents, converted, tmp_path / "plain")
    expected, found = (
        frozen_lora(latents, dense, tmp_path / "expected"),
        frozen_lora(latents, converted, tmp_path / "found", quantization=str(file), compile=compiled),
    )
    far, near = (
        torch.cat([(found[name] - value).flatten() for name, value in other.items()]).norm() for other in (plain, expected)
    )
    assert near < 0.05 * far  # AdamW enlarges roundings where a gradient is all but zero


def test_a_lora_is_trained_on_a_base_of_eight_bits(latents, converted, tmp_path):
    pytest.importorskip("torchao")
    plain, found = (frozen_lora(latents, converted, tmp_path / how, quantization=how) for how in ("none", "int8"))
    assert any("lora_B" in name and value.any() for name, value in found.items())
    difference = torch.cat([(found[name] - value).flatten() for name, value in plain.items()])
    assert 0 < difference.std() < 0.3 * torch.cat([value.flatten() for value in plain.values()]).std()


def test_training_starts_from_a_lora_and_on_merged_ones(latents, converted, tmp_path):
    """init_from at another alpha has the same strength at the first step; base_weights are part of the base."""
    run(latents, converted, tmp_path / "first", Lora(2, 4.0, targets=("to_q",)))
    file = tmp_path / "first" / "lora.safetensors"
    x, t = torch.randn(1, 16, 2, 4, 6), torch.tensor([0.5])
    batch = collate(latents.take([0]), np.random.default_rng(0))
    pipe = load_models(converted, Placement(loras=((str(file), 1.0),)))
    no = torch.tensor([False])
    dropped = Dropped(no, no, no, no, pipe.encode_texts([""], 512))
    x = torch.randn(batch["latents"].shape)
    expected = pipe.training_velocity(x, t, batch, dropped)
    started, merged = load_models(converted), load_models(converted)
    plain = started.training_velocity(x, t, batch, dropped)
    adapters.add_adapters(started.transformer, Lora(2, 1.0, True, ("to_q",)), str(file))
    adapters.merge_base(merged.transformer, (f"{file}=1",))
    for each in (started, merged):
        torch.testing.assert_close(each.training_velocity(x, t, batch, dropped), expected, atol=1e-5, rtol=1e-4)
    assert (plain - expected).abs().max() > 1e-3
    with pytest.raises(InputError, match=r"has rank 2 at .*, and the configuration 3"):
        adapters.add_adapters(load_models(converted).transformer, Lora(3, 3.0, targets=("to_q",)), str(file))
    with pytest.raises(InputError, match="is not among the targets to_k"):
        adapters.add_adapters(load_models(converted).transformer, Lora(2, 2.0, targets=("to_k",)), str(file))


@pytest.mark.parametrize(("changes", "said"), [
    ({"quantization": "4bit"}, "quantization by bitsandbytes needs a CUDA GPU"),
    ({"quantization": "3bit"}, "quantization must be none, int8, int4, 8bit, 4bit or a .gguf file"),
    ({"blocks_to_swap": 2}, "blocks_to_swap must be below the 2 blocks of the model"),
    ({"blocks_to_swap": 1, "gradient_checkpointing": False}, "blocks_to_swap needs gradient_checkpointing"),
    ({"quantization": "none.gguf"}, "none.gguf is not a file"),
    ({"compile": True}, "compile needs a compiler, and no-compiler is not installed; install it, or set compile to false"),
    ({"drop_latents": 0.7}, "sees no image tokens; drop_latents and drop_tokens must be 0"),
])  # fmt: skip
def test_a_base_that_cannot_be_held_is_refused_before_anything_loads(latents, converted, tmp_path, changes, said, monkeypatch):
    monkeypatch.setenv("CXX", "no-compiler")
    monkeypatch.setattr(own, "load_for", lambda *given, **more: pytest.fail("loaded"))
    with pytest.raises(InputError, match=said):
        own.run(
            replace(recipes.own_wan_lora(), **changes), converted, {latents.path: 0}, tmp_path / "run", Placement(device="cpu")
        )


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of diffusers' norms under autocast
@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("again", [True, False])
def test_the_estimated_bytes_are_those_that_a_forward_keeps(lora, again, tmp_path):
    """Of two blocks, by what autograd saves in bfloat16; block by block where blocks are computed again."""
    width, mlp, found = 256, 1024, {}
    sizes = {"num_attention_heads": 2, "attention_head_dim": 128, "ffn_dim": mlp, "num_layers": 2, "text_dim": 16, "freq_dim": 32}
    WanTransformer3DModel(**sizes, in_channels=16, out_channels=16).save_pretrained(tmp_path)
    dtype = torch.bfloat16 if lora else torch.float32
    network = PhantomWanTransformer.of(WanTransformer3DModel.from_pretrained(tmp_path, torch_dtype=dtype))
    if lora:
        adapters.add_adapters(network, recipes.own_wan_lora().lora)
    if again:
        network.enable_gradient_checkpointing()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    for side in (16, 32):
        saved: dict[int, torch.UntypedStorage] = {}
        x, references, text = torch.randn(1, 16, 3, side, side), torch.randn(1, 16, 1, side, side), torch.randn(1, 512, 16)
        note = lambda t, saved=saved: saved.setdefault(t.untyped_storage().data_ptr(), t.untyped_storage()) and t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            kept = wan_velocity(network.train(), x, torch.tensor([500.0]), text, references)
        assert kept.requires_grad
        found[side**2] = sum(each.nbytes() for place, each in saved.items() if place not in weights)
    (few, less), (many, more) = found.items()
    config = replace(
        recipes.own_wan_lora() if lora else recipes.own_wan(), gradient_checkpointing=again, activation_offload=False
    )
    estimated = cost.kept_bytes(config, many - few, (width, mlp), 2)[0]
    block = (many - few) * (cost.KEPT_D[lora] * width + cost.KEPT_F * mlp) * again  # which comes and goes in the backward pass
    assert 0.84 < (more - less) / (estimated - block) < 1.06
    assert cost.kept_bytes(replace(config, activation_offload=True), 100, (width, mlp), 2)[1] > 0


def test_estimates_of_trainings_name_memory_time_and_what_fits(call_phantom, converted, latents):
    """Without any weights here; against the parameters and block inputs that are known."""
    estimates = {}
    for preset in ("wan-1.3b-lora", "wan-14b-lora", "wan-1.3b"):
        code, said = call_phantom("estimate", "train", "--preset", preset, "--card", "rtx-4090", "--num-frames", 81)
        assert code == 0, said.err
        estimates[preset] = json.loads(said.out.splitlines()[-1])
    small, large, whole = estimates.values()
    assert small["tokens"] == 22 * 30 * 52
    assert small["peak"] < 12 * 2**30 * 0.97  # a card of 12 GB
    assert (large["fits"], whole["fits"]) == (True, False)
    assert whole["trained"] == pytest.approx(1.419e9, rel=1e-2)
    assert small["trained"] == 30 * 32 * (8 * 2 * 1536 + 2 * (1536 + 8960))
    assert small["flops"] < whole["flops"]
    code, said = call_phantom("estimate", "train", "--preset", "wan-1.3b-lora", "--latents", latents.path, "--model", converted)
    assert code == 0, said.err
    largest = max((row.frames + 3) // 4 + row.subjects for row in latents.sizes())
    pixels = max(row.height * row.width for row in latents.sizes())
    assert json.loads(said.out.splitlines()[-1])["tokens"] == largest * pixels // 16**2
    many = ("--preset", "wan-1.3b", "--card", "rtx-4090", "--num-frames", 81, "--num-processes", 8)
    each = {}
    for parallel in ("ddp", "fsdp"):
        code, said = call_phantom("estimate", "train", *many, "--parallel", parallel)
        assert code == 0, said.err
        each[parallel] = json.loads(said.out.splitlines()[-1])
    assert {**whole, "processes": 8} == each["ddp"]
    assert each["fsdp"]["fits"]
    assert " GB each (" in said.out
    assert each["fsdp"]["learning"] == pytest.approx(whole["trained"] * 20 / 8 + 47.7e6 * 10, rel=0.02)  # and a block
    for given, reason in (
        (("--parallel", "hsdp"), "needs shard_size"),
        (("--parallel", "fsdp", "--preset", "wan-14b-lora"), "blocks_to_swap need parallel ddp"),
        (("--parallel", "fsdp", "--num-processes", 1), "needs several processes; set --num-processes"),
    ):
        code, said = call_phantom("estimate", "train", *many, *given)
        assert (code, reason in said.err) == (2, True)
    code, said = call_phantom("estimate", "train", "--preset", "wan-14b-lora")
    assert (code, "phantom-wan-14b are not here" in said.err) == (2, True)
