"""What memory options change: nothing, or as little as they should; and what two processes give."""

import gc
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import native
import pytest
import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from phantom_s2v import PhantomPipeline
from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.models.memory import Placement, placement_from
from phantom_s2v.models.wan.step_cache import ONE_BATCH, RATIOS
from phantom_s2v.pipeline.batch import parse_loras
from phantom_s2v.pipeline.cost.estimate import KEPT, cache_bytes
from phantom_s2v.pipeline.loading import load_models, model_hash

SETTINGS = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 6, "output_type": "latent"}


def latents(pipe, **changes):
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "reference_latents": torch.randn(1, 16, 2, 4, 4, generator=generator),
        "prompt_embeds": torch.randn(1, 7, native.TEXT, generator=generator),
        "negative_prompt_embeds": torch.randn(1, 5, native.TEXT, generator=generator),
    }
    return pipe(**{**inputs, **SETTINGS, "generator": torch.Generator().manual_seed(0), **changes}).frames


@pytest.fixture(scope="module")
def plain(pipe):
    return latents(pipe)


def placed(converted, **options):
    return load_models(Path(converted), Placement(**options))


@pytest.mark.threads
@pytest.mark.parametrize(
    "options",
    [{"cache_text": True}, {"offload": "model", "device": "cpu"}, {"offload": "group", "device": "cpu"}, {"tiling": True}],
)
def test_exact_options_change_no_bit(converted, plain, options):
    pipe = placed(converted, **options)
    assert torch.equal(latents(pipe), plain)
    assert torch.equal(latents(pipe), plain)


def test_metadata_have_the_type_that_auto_stands_for():
    assert Placement(device="cpu").resolved()["dtype"] == "float32"
    assert Placement(device="cpu", dtype="bfloat16").resolved() == asdict(Placement(device="cpu", dtype="bfloat16"))
    assert placement_from({"placement": Placement(device="cpu").resolved()}).dtype == "float32"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keys_and_values_of_the_text_are_computed_once_a_video(converted, dtype):
    pipe, calls = placed(converted, cache_text=True, dtype=dtype, device="cpu"), []
    pipe.transformer.blocks[0].attn2.to_k.module.register_forward_hook(lambda *_: calls.append(1))
    latents(pipe)
    assert len(calls) == 2  # one for the prompt, one for the negative prompt, not three times six steps
    latents(pipe, prompt_embeds=torch.ones(1, 3, native.TEXT))
    assert len(calls) == 4


@pytest.mark.threads
def test_tiles_decode_to_nearly_the_same_pixels(converted, pipe):
    """Tiles blend their borders; inside a single tile they are exact."""
    first, second = (latents(p, output_type="np") for p in (pipe, placed(converted, tiling=True)))
    assert (first == second).all()


def test_fp8_is_near_and_takes_a_quarter_of_the_memory(converted, plain):
    pipe = placed(converted, quantization="fp8")
    block = pipe.transformer.blocks[0]
    assert block.attn1.to_q.weight.dtype is torch.float8_e4m3fn
    assert block.norm2.weight.dtype is torch.float32
    difference = (latents(pipe, num_inference_steps=1) - latents(placed(converted), num_inference_steps=1)).std()
    assert 0 < difference < 0.5 * plain.std()


def test_int8_is_near(converted, plain):
    pytest.importorskip("torchao")
    one = latents(placed(converted, quantization="int8"), num_inference_steps=1)
    assert 0 < (one - latents(placed(converted), num_inference_steps=1)).std() < 0.1 * plain.std()


@pytest.mark.parametrize("way", ["pipeline", "transformer"])
def test_torchao_quantizes_through_diffusers_config(converted, plain, tmp_path, way):
    """As users of diffusers write it, of a pipeline and of a transformer that a pipeline is given; in a folder it cannot be."""
    pytest.importorskip("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    config = TorchAoConfig(Int8WeightOnlyConfig(version=2))
    if way == "pipeline":
        options = {"quantization_config": PipelineQuantizationConfig(quant_mapping={"transformer": config})}
    else:
        folder = converted / "transformer"
        options = {"transformer": WanTransformer3DModel.from_pretrained(folder, quantization_config=config, dtype=torch.bfloat16)}
    pipe = PhantomPipeline.from_pretrained(converted, dtype=torch.bfloat16, **options)
    assert type(pipe.transformer.blocks[0].attn1.to_q.weight).__name__ == "Int8Tensor"
    one = latents(pipe, num_inference_steps=1)
    assert 0 < (one - latents(placed(converted), num_inference_steps=1)).std() < 0.1 * plain.std()
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(latents(pipe, num_inference_steps=1), one)
    with pytest.raises(InputError, match="quantized weights cannot be saved"):
        pipe.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    state, _ = lora_state(FORMS["peft"])
    save_file(state, tmp_path / "lora.safetensors")
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    assert not torch.equal(latents(pipe, num_inference_steps=1), one)


@pytest.fixture(scope="module")
def with_ratios(converted, tmp_path_factory):
    """The model and, beside its weights, ratios that differ from 1."""
    folder = tmp_path_factory.mktemp("ratios") / "model"
    shutil.copytree(converted, folder)
    (folder / RATIOS).write_text(json.dumps({"ratios": [1.0, 1.02, 0.99, 1.01], "weights": model_hash(folder)}))
    return folder


@pytest.mark.threads
@pytest.mark.parametrize(
    ("options", "fewer"),
    [
        ({"cache": "first-block", "cache_threshold": 10.0}, True),
        ({"cache": "first-block", "cache_threshold": 0.0}, False),
        ({"cache": "taylorseer"}, True),
        ({"cache": "magcache"}, True),
        ({"cache": "magcache", "cache_threshold": 0.0}, False),
        ({"cache": "seacache", "cache_threshold": 10.0}, True),
        ({"cache": "seacache", "cache_threshold": 0.0}, False),
        ({"cache": "pab"}, True),
        ({"cache": "fastercache"}, True),
    ],
)
def test_step_caches_skip_work(with_ratios, plain, options, fewer):
    pipe, rows = placed(with_ratios, **options), []
    pipe.transformer.blocks[1].ffn.net[0].proj.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    pipe.transformer.blocks[1].attn1.to_q.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    out = latents(pipe)
    assert torch.isfinite(out).all()
    assert (sum(rows) < 2 * 3 * 6) is fewer
    assert torch.equal(out, plain) is not fewer
    assert torch.equal(latents(pipe), out)  # nothing of one video stays for the next
    assert latents(pipe, num_inference_steps=9).isfinite().all()


@pytest.mark.threads
@pytest.mark.parametrize("cache", ONE_BATCH)
def test_branches_in_one_batch_are_the_branches_in_turn(converted, cache):
    """At the first step nothing is skipped yet."""
    one = {"num_inference_steps": 1}
    torch.testing.assert_close(
        latents(placed(converted, cache=cache), **one), latents(placed(converted), **one), atol=1e-4, rtol=1e-4
    )


@pytest.mark.threads
def test_no_branch_gets_the_attention_of_another(with_ratios):
    """With guidance (0, 0) only the null branch counts, so what the others would have left behind cannot matter."""
    for cache in ("pab", "fastercache", "magcache", "seacache", "taylorseer"):
        pipe = placed(with_ratios, cache=cache)
        alone = latents(pipe, image_guidance_scale=0.0, guidance_scale=0.0)
        nearly = latents(pipe, image_guidance_scale=1e-7, guidance_scale=1e-8)  # all three are computed
        torch.testing.assert_close(nearly, alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("cache", KEPT)
def test_the_estimate_counts_what_a_cache_keeps(with_ratios, cache, request):
    pipe = placed(with_ratios, cache=cache)
    tokens, kept = 16, []

    gc.freeze()  # what is there already is no state of the cache, and looking through all of it takes seconds
    request.addfinalizer(gc.unfreeze)

    def count(*_):
        gc.collect()
        states = {o.data_ptr(): o for o in gc.get_objects() if type(o) is torch.Tensor and o.shape[1:] == (tokens, native.DIM)}
        kept.append(sum(o.numel() * o.element_size() for o in states.values()))

    latents(pipe, num_inference_steps=9, callback_on_step_end=count)
    assert max(kept) == 3 * cache_bytes(pipe.transformer.config, tokens, 4, cache)


@pytest.mark.threads
def test_magcache_measures_the_growth_of_the_residual(converted):
    pipe = load_models(converted, Placement(cache="magcache"), calibrate_magcache=True)
    blocks, seen = pipe.transformer.blocks, []
    first = blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    last = blocks[-1].register_forward_hook(lambda *a: seen.append(a[-1]))
    latents(pipe)
    first.remove(), last.remove()
    residuals = [(out - start).norm(dim=-1) for start, out in zip(seen[::2], seen[1::2], strict=True)]
    expected = [1.0] + [
        sum(float((residuals[3 * step + b] / residuals[3 * step + b - 3]).mean()) for b in range(3)) / 3 for step in range(1, 6)
    ]
    assert pipe.step_cache.measured == pytest.approx(expected, rel=1e-4)


def test_magcache_needs_ratios(converted, with_ratios, tmp_path):
    with pytest.raises(InputError, match="calibrate-magcache"):
        placed(converted, cache="magcache")
    damaged = tmp_path / "model"
    shutil.copytree(with_ratios, damaged)
    (damaged / RATIOS).write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        placed(damaged, cache="magcache")
    (damaged / RATIOS).write_text((with_ratios / RATIOS).read_text().replace("1.02", "NaN"))
    with pytest.raises(CheckpointError, match="NaN is not a JSON number"):
        placed(damaged, cache="magcache")
    (damaged / RATIOS).write_text((with_ratios / RATIOS).read_text())
    placed(damaged, cache="magcache")
    file = next((damaged / "vae").glob("*.safetensors"))
    save_file({name: 2 * value for name, value in load_file(file).items()}, file)
    with pytest.raises(CheckpointError, match=r"measured on other weights .\w{12}, not \w{12}"):
        placed(damaged, cache="magcache")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_lora_that_is_not_finite_is_named(converted, tmp_path, value):
    state, _ = lora_state(FORMS["peft"])
    state[FORMS["peft"][1]][3, 1] = value
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=r"lora_B.weight of .*lora.safetensors is not finite"):
        placed(converted, loras=((str(tmp_path / "lora.safetensors"), 1.0),))
    with pytest.raises(InputError, match="scale of a LoRA must be finite"):
        Placement(loras=(("a.safetensors", value),))


RANK = 3


def lora_state(names):
    generator = torch.Generator().manual_seed(5)
    down, up = torch.randn(RANK, native.DIM, generator=generator) * 0.1, torch.randn(native.DIM, RANK, generator=generator) * 0.1
    return {names[0]: down, names[1]: up}, up @ down


FORMS = {
    "peft": ("transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight"),
    "musubi": ("lora_unet_blocks_0_self_attn_q.lora_down.weight", "lora_unet_blocks_0_self_attn_q.lora_up.weight"),
}


@pytest.mark.threads
@pytest.mark.parametrize("form", FORMS)
def test_a_lora_is_its_product_added_to_the_weight(converted, tmp_path, form):
    state, product = lora_state(FORMS[form])
    save_file(state, tmp_path / "lora.safetensors")
    pipe = placed(converted, loras=((str(tmp_path / "lora.safetensors"), 0.5),))
    merged = placed(converted)
    merged.transformer.blocks[0].attn1.to_q.weight.add_(0.5 * product)
    torch.testing.assert_close(latents(pipe), latents(merged), rtol=1e-3, atol=1e-3)
    assert (latents(merged) - latents(placed(converted))).abs().max() > 1e-2


def test_two_loras_add_up(converted, tmp_path):
    state, product = lora_state(FORMS["peft"])
    save_file(state, tmp_path / "a.safetensors")
    both = tuple((str(tmp_path / "a.safetensors"), scale) for scale in (0.5, 0.25))
    merged = placed(converted)
    merged.transformer.blocks[0].attn1.to_q.weight.add_(0.75 * product)
    torch.testing.assert_close(latents(placed(converted, loras=both)), latents(merged), rtol=1e-3, atol=1e-3)


def norm_files(tmp_path):
    """A LoRA file that holds the difference of a norm alone, one with factors as well, and what they add."""
    state, product = lora_state(FORMS["peft"])
    differences = torch.full((native.DIM,), 0.3), torch.full((native.DIM,), 0.7)
    save_file({"blocks.0.norm3.diff": differences[0]}, tmp_path / "norms.safetensors")
    save_file(state | {"blocks.0.norm3.diff": differences[1]}, tmp_path / "both.safetensors")
    return differences, product


def test_adapters_that_hold_differences_alone_are_switched_as_the_others(converted, tmp_path):
    (one, other), product = norm_files(tmp_path)
    pipe, merged = placed(converted), placed(converted)
    for name in ("norms", "both"):
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
    with pytest.raises(CheckpointError, match="adapter name norms is already in use"):
        pipe.load_lora_weights(tmp_path / "norms.safetensors", adapter_name="norms")
    assert sorted(pipe.get_list_adapters()["transformer"]) == ["both", "norms"]
    pipe.set_adapters("norms", 0.5)
    assert pipe.get_active_adapters() == ["norms"]
    block = merged.transformer.blocks[0]
    block.norm2.weight.data.add_(0.5 * one)
    torch.testing.assert_close(latents(pipe, num_inference_steps=2), latents(merged, num_inference_steps=2))
    pipe.set_adapters(["norms", "both"], [0.5, 0.25])
    block.norm2.weight.data.add_(0.25 * other)
    block.attn1.to_q.weight.data.add_(0.25 * product)
    wanted = latents(merged, num_inference_steps=2)
    torch.testing.assert_close(latents(pipe, num_inference_steps=2), wanted, rtol=1e-3, atol=1e-3)
    pipe.delete_adapters("both")
    pipe.load_lora_weights(tmp_path / "norms.safetensors")
    assert pipe.get_list_adapters() == {"transformer": ["norms", "default_0"]}


def test_fused_differences_stay_where_the_adapters_are_unloaded(converted, tmp_path):
    norm_files(tmp_path)
    pipe, plain = placed(converted), placed(converted)
    before = latents(plain, num_inference_steps=2)
    for name in ("norms", "both"):
        pipe.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
    pipe.set_adapters(["norms", "both"], [0.25, 0.5])
    half = latents(pipe, num_inference_steps=2)
    assert (half - before).abs().max() > 1e-2
    pipe.set_adapters(["norms", "both"], [0.5, 1.0])
    pipe.fuse_lora(lora_scale=0.5)
    assert pipe.fused_loras == {"norms", "both"}
    torch.testing.assert_close(latents(pipe, num_inference_steps=2), half, rtol=1e-3, atol=1e-3)
    pipe.unfuse_lora()
    assert pipe.fused_loras == set()
    pipe.disable_lora()
    torch.testing.assert_close(latents(pipe, num_inference_steps=2), before, rtol=1e-3, atol=1e-3)
    pipe.enable_lora()
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert pipe.get_list_adapters() == {}
    torch.testing.assert_close(latents(pipe, num_inference_steps=2), half, rtol=1e-3, atol=1e-3)
    merged = plain.transformer.blocks[0].norm2.weight + 0.25 * 0.3 + 0.5 * 0.7
    torch.testing.assert_close(pipe.transformer.blocks[0].norm2.weight, merged)


def test_a_few_step_lora_runs_with_one_forward_a_step(converted):
    pipe, calls = placed(converted), []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    latents(pipe, image_guidance_scale=1.0, guidance_scale=1.0, num_inference_steps=4)
    assert len(calls) == 4


def test_loras_that_do_not_fit_are_refused(converted, tmp_path):
    save_file({"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.ones(3, 64)}, tmp_path / "deep.safetensors")
    save_file(
        {f"transformer.blocks.0.attn1.to_q.lora_{p}.weight": torch.ones(3, 3) for p in "AB"}, tmp_path / "small.safetensors"
    )
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    for name, said in (
        ("deep", "1 keys that do not match"), ("small", "does not fit this transformer"), ("junk", "damaged or not a Wan LoRA"),
        ("absent", "existing .safetensors file"),
    ):  # fmt: skip
        with pytest.raises(CheckpointError, match=said):
            placed(converted, loras=((str(tmp_path / f"{name}.safetensors"), 1.0),))


def test_options_are_checked(tmp_path):
    assert parse_loras(["a.safetensors=0.5", "b.safetensors"]) == (("a.safetensors", 0.5), ("b.safetensors", 1.0))
    for options, said in (
        ({"offload": "all"}, "got 'all'"), ({"cache": "x"}, "cache must be"), ({"cache_threshold": -1.0}, "must be at least 0"),
        ({"dtype": "int4"}, "dtype must be"),
        ({"device": "tpu0"}, "got 'tpu0'"), ({"offload": "group"}, "must be none without a GPU"),
        ({"parallel": "fsdp", "offload": "model", "device": "cpu"}, "cannot be combined"),
    ):  # fmt: skip
        if said == "must be none without a GPU" and torch.cuda.is_available():
            continue
        with pytest.raises(InputError, match=said):
            Placement(**options)
    with pytest.raises(InputError, match="must be FILE or FILE=SCALE"):
        parse_loras(["a.safetensors=strong"])


def test_parallel_needs_torchrun(converted):
    with pytest.raises(InputError, match="needs several processes"):
        placed(converted, parallel="ulysses")


@pytest.mark.parametrize("kind", ["ulysses", pytest.param("fsdp", marks=pytest.mark.long)])
def test_two_processes_give_the_same_latents(converted, plain, tmp_path, kind):
    """Under gloo on CPUs. Ring attention needs what CPU backends lack, and is untested."""
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[n]) for n in (0, 1)]!r}\n"
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "from phantom_s2v.models.distributed import is_main, leave\n"
        "from test_placement import latents, placed\n"
        "torch.accelerator.device_count = lambda: 1  # diffusers divides by it, and there is no accelerator here\n"
        f"out = latents(placed({str(converted)!r}, parallel={kind!r}, device='cpu'))\n"
        f"torch.save(out, {str(tmp_path / 'out.pt')!r}) if is_main() else None\n"
        "leave()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    torch.testing.assert_close(torch.load(tmp_path / "out.pt", weights_only=True), plain, rtol=1e-4, atol=1e-4)
