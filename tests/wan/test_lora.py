"""Every spelling of a LoRA is the product of its factors, times its strength, added to the weight."""

import copy
import json
import re

import native
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from peft import LoraConfig
from safetensors.torch import save_file

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.wan.lora import add_lora, lora_files, native_name, read_lora
from phantom_s2v.models.wan.transformer import PhantomWanTransformer
from phantom_s2v.models.weights import load_part

RANK, ALPHA = 3, 6.0
SELF, CROSS = "blocks.0.attn1.to_q", "blocks.1.attn2.to_k"


@pytest.fixture(scope="module")
def plain(converted):
    return load_part(WanTransformer3DModel, converted / "transformer")


@pytest.fixture
def model(plain):
    return copy.deepcopy(plain)


def factors(out=native.DIM, width=native.DIM, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(RANK, width, generator=generator) * 0.1, torch.randn(out, RANK, generator=generator) * 0.1


def check(model, plain, file, changes, scale=0.5, atol=1e-5):
    """`file` gives what `changes`, added to the parameters, give; and that is something else than without."""
    add_lora(model, file, "one", scale)
    if getattr(model, "peft_config", None):
        model.set_adapters(["one"], [scale])
    merged = copy.deepcopy(plain)
    for name, change in changes.items():
        merged.get_parameter(name).data.add_(scale * change)
    got, wanted = native.velocity(model), native.velocity(merged)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=atol)
    assert (wanted - native.velocity(plain)).abs().max() > 1e-2


A, DOWN = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
OLD, NAMED = ("lora.down.weight", "lora.up.weight"), ("lora_A.default.weight", "lora_B.default.weight")
FORMS = {  # layer names of self- and cross-attention, ends of both factors, alpha beside them
    "diffusers": ("transformer.blocks.0.attn1.to_q", "transformer.blocks.1.attn2.to_k", A, False),
    "diffusers with alpha": ("transformer.blocks.0.attn1.to_q", "transformer.blocks.1.attn2.to_k", DOWN, True),
    "diffusers, old": ("transformer.blocks.0.attn1.to_q", "transformer.blocks.1.attn2.to_k", OLD, False),
    "diffusers, bare": ("blocks.0.attn1.to_q", "blocks.1.attn2.to_k", A, True),
    "native": ("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.1.cross_attn.k", A, False),
    "native with alpha": ("diffusion_model.blocks.0.self_attn.q", "diffusion_model.blocks.1.cross_attn.k", DOWN, True),
    "ComfyUI": ("model.diffusion_model.blocks.0.self_attn.q", "model.diffusion_model.blocks.1.cross_attn.k", DOWN, True),
    "native, bare": ("blocks.0.self_attn.q", "blocks.1.cross_attn.k", A, False),
    "DiffSynth": ("blocks.0.self_attn.q", "blocks.1.cross_attn.k", NAMED, False),
    "DiffSynth, newer": ("pipe.dit.blocks.0.self_attn.q", "pipe.dit.blocks.1.cross_attn.k", NAMED, False),
    "peft": ("base_model.model.blocks.0.attn1.to_q", "base_model.model.blocks.1.attn2.to_k", A, False),
    "peft, native": ("base_model.model.blocks.0.self_attn.q", "base_model.model.blocks.1.cross_attn.k", A, False),
    "musubi": ("lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_1_cross_attn_k", DOWN, True),
    "musubi without alpha": ("lora_unet_blocks_0_self_attn_q", "lora_unet_blocks_1_cross_attn_k", DOWN, False),
    "kohya": ("lora_unet__blocks_0_self_attn_q", "lora_unet__blocks_1_cross_attn_k", DOWN, True),
    "OneTrainer": ("lora_transformer_blocks_0_attn1_to_q", "lora_transformer_blocks_1_attn2_to_k", DOWN, True),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_its_product_added_to_the_weight(model, plain, tmp_path, form):
    *layers, ends, alpha = FORMS[form]
    state, changes = {}, {}
    for seed, (layer, ours) in enumerate(zip(layers, (SELF, CROSS), strict=True)):
        down, up = factors(seed=seed)
        state |= {f"{layer}.{ends[0]}": down, f"{layer}.{ends[1]}": up}
        state |= {f"{layer}.alpha": torch.tensor(ALPHA)} if alpha else {}
        changes[f"{ours}.weight"] = (ALPHA / RANK if alpha else 1.0) * up @ down
    save_file(state, tmp_path / "lora.safetensors")
    check(model, plain, tmp_path / "lora.safetensors", changes)


def test_every_layer_has_its_native_name(plain):
    """diffusers' own converter gives back the name that ours came from."""
    for name, _ in plain.named_parameters():
        assert list(convert_wan_transformer_to_diffusers({native_name(name): 0})) == [name]
    assert {native_name(name) for name, _ in plain.named_parameters()} == set(native.transformer())


@pytest.mark.parametrize("alpha", [16, 2.5])
def test_alpha_in_the_metadata_of_diffusers_is_obeyed(model, plain, converted, tmp_path, alpha):
    trained = copy.deepcopy(plain)
    trained.add_adapter(
        LoraConfig(r=4, lora_alpha=alpha, target_modules=["to_q"], alpha_pattern={CROSS.replace("to_k", "to_q"): 1})
    )
    changes = {}
    for name, layer in trained.named_modules():
        if name.endswith("to_q"):
            layer.lora_B["default"].weight.data = torch.randn(native.DIM, 4, generator=torch.Generator().manual_seed(1)) * 0.1
            scale = 1 / 4 if name == "blocks.1.attn2.to_q" else alpha / 4
            changes[f"{name}.weight"] = scale * layer.lora_B["default"].weight.data @ layer.lora_A["default"].weight.data
    pipe = WanPipeline.from_pretrained(converted, transformer=trained, vae=None, text_encoder=None, tokenizer=None)
    from peft.utils import get_peft_model_state_dict

    state = get_peft_model_state_dict(trained)
    pipe.save_lora_weights(tmp_path, state, transformer_lora_adapter_metadata=trained.peft_config["default"].to_dict())
    check(model, plain, tmp_path / "pytorch_lora_weights.safetensors", changes)


@pytest.mark.parametrize(
    ("settings", "strength"), [({"lora_alpha": 12}, 4), ({"lora_alpha": 12, "use_rslora": True}, 12 / 3**0.5)]
)
def test_alpha_in_the_configuration_beside_a_file_of_peft(model, plain, tmp_path, settings, strength):
    down, up = factors()
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.blocks.0.self_attn.q.lora_{p}.weight": f for p, f in (("A", down), ("B", up))}, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, **settings}))
    assert lora_files(file) == [file, tmp_path / "adapter_config.json"]
    check(model, plain, file, {f"{SELF}.weight": strength * up @ down})


def test_ranks_and_strengths_may_differ_between_layers(model, plain, tmp_path):
    down, up = factors(native.FFN, native.DIM)
    state = {
        "blocks.0.ffn.0.lora_down.weight": down,
        "blocks.0.ffn.0.lora_up.weight": up,
        "blocks.0.ffn.0.alpha": torch.tensor([1.0]),
    }
    state |= {"head.head.lora_A.weight": torch.ones(1, native.DIM), "head.head.lora_B.weight": torch.full((64, 1), 0.1)}
    state |= {
        "patch_embedding.lora_down.weight": torch.ones(2, 16, 1, 2, 2) / 8,
        "patch_embedding.lora_up.weight": torch.ones(native.DIM, 2, 1, 1, 1) / 8,
    }
    save_file(state, tmp_path / "lora.safetensors")
    changes = {
        "blocks.0.ffn.net.0.proj.weight": up @ down / RANK,
        "proj_out.weight": torch.full((64, native.DIM), 0.1),
        "patch_embedding.weight": torch.full((native.DIM, 16, 1, 2, 2), 2 / 64),
    }
    check(model, plain, tmp_path / "lora.safetensors", changes, atol=1e-4)


def test_differences_are_added(model, plain, tmp_path):
    """Lightx2v's files: factors, and beside them differences of biases, norms, modulations and whole layers."""
    down, up = factors()
    noise = {name: 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) for name, p in plain.named_parameters()}
    places = {
        "blocks.0.self_attn.q.diff_b": f"{SELF}.bias", "blocks.0.cross_attn.v.diff_b": "blocks.0.attn2.to_v.bias",
        "blocks.1.self_attn.norm_q.diff": "blocks.1.attn1.norm_q.weight", "blocks.1.norm3.diff": "blocks.1.norm2.weight",
        "blocks.1.norm3.diff_b": "blocks.1.norm2.bias", "blocks.1.diff_m": "blocks.1.scale_shift_table",
        "head.modulation.diff": "scale_shift_table", "head.head.diff": "proj_out.weight", "head.head.diff_b": "proj_out.bias",
        "patch_embedding.diff": "patch_embedding.weight", "blocks.1.ffn.0.diff": "blocks.1.ffn.net.0.proj.weight",
    }  # fmt: skip
    changes = {ours: noise[ours] for ours in places.values()}
    state = {f"diffusion_model.{theirs}": noise[ours] for theirs, ours in places.items()}
    state |= {
        f"diffusion_model.blocks.0.self_attn.{leaf}": value
        for leaf, value in (("q.lora_down.weight", down), ("q.lora_up.weight", up), ("q.alpha", torch.tensor(ALPHA)))
    }
    state |= {
        "diffusion_model.blocks.0.norm3.diff": torch.zeros(native.DIM),
        "diffusion_model.blocks.0.self_attn.k.diff_b": torch.zeros(native.DIM),
    }
    changes[f"{SELF}.weight"] = ALPHA / RANK * up @ down
    save_file(state, tmp_path / "lora.safetensors")
    check(model, plain, tmp_path / "lora.safetensors", changes, atol=1e-3)
    assert read_lora(tmp_path / "lora.safetensors", plain)[1]["transformer.lora_bias"]


def test_a_file_of_differences_alone(model, plain, tmp_path):
    change = torch.full((native.DIM,), 0.3)
    save_file({"diffusion_model.blocks.0.norm3.diff": change}, tmp_path / "lora.safetensors")
    check(model, plain, tmp_path / "lora.safetensors", {"blocks.0.norm2.weight": change})


def test_differences_of_norms_go_on_and_off_with_their_adapter(converted, tmp_path):
    """Bit for bit, with factors beside them and alone; two adapters at strengths of their own."""
    down, up = factors()
    base = PhantomWanTransformer.of(load_part(WanTransformer3DModel, converted / "transformer"))
    norm, before = base.get_parameter("blocks.0.norm2.weight"), base.get_parameter("blocks.0.norm2.weight").detach().clone()
    one, other = torch.full((native.DIM,), 0.3), torch.full((native.DIM,), 0.7)
    state = {"diffusion_model.blocks.0.norm3.diff": one}
    save_file(state, tmp_path / "alone.safetensors")
    layer = "diffusion_model.blocks.0.self_attn.q.lora_"
    state = {"diffusion_model.blocks.0.norm3.diff": other, f"{layer}down.weight": down, f"{layer}up.weight": up}
    save_file(state, tmp_path / "both.safetensors")
    add_lora(base, tmp_path / "alone.safetensors", "alone", 1.0)
    assert torch.equal(norm, before + one)
    add_lora(base, tmp_path / "both.safetensors", "both", 1.0)
    torch.testing.assert_close(norm, before + one + other)
    base.disable_lora()
    assert torch.equal(norm, before)
    base.enable_lora()
    torch.testing.assert_close(norm, before + one + other)
    base.set_adapters(["both"], [0.5])
    torch.testing.assert_close(norm, before + 0.5 * other)
    base.set_adapters(["alone", "both"], [2.0, 0.0])
    torch.testing.assert_close(norm, before + 2 * one)
    base.delete_adapters("alone")
    assert torch.equal(norm, before)
    base.set_adapters("both")
    assert not torch.equal(norm, before)
    base.unload_lora()
    assert torch.equal(norm, before)


def test_two_files_lie_over_each_other(model, plain, tmp_path):
    down, up = factors()
    save_file(
        {f"lora_unet_blocks_0_self_attn_q.lora_{p}.weight": f for p, f in (("down", down), ("up", up))},
        tmp_path / "a.safetensors",
    )
    add_lora(model, tmp_path / "a.safetensors", "zero")
    save_file({f"{SELF}.lora_{p}.weight": f for p, f in (("A", down), ("B", up))}, tmp_path / "b.safetensors")
    add_lora(model, tmp_path / "b.safetensors", "one")
    model.set_adapters(["zero", "one"], [0.5, 0.25])
    merged = copy.deepcopy(plain)
    merged.get_parameter(f"{SELF}.weight").data.add_(0.75 * up @ down)
    torch.testing.assert_close(native.velocity(model), native.velocity(merged), rtol=1e-4, atol=1e-5)


IMAGE = [f"blocks.{n}.cross_attn.k_img" for n in range(2)]
Q = "transformer.blocks.0.attn1.to_q"
SOUND = {f"{Q}.lora_A.weight": torch.ones(3, 64), f"{Q}.lora_B.weight": torch.ones(64, 3)}
REFUSED = {
    "image to video": (SOUND | {f"diffusion_model.{k}.lora_{p}.weight": torch.ones(3, 3) for k in IMAGE for p in "AB"},
        r"4 keys that do not match.*\(diffusion_model.blocks.N.cross_attn.k_img.lora_A.weight in 2 blocks, .*lora_B.weight in 2"),
    "text encoder": (SOUND | {"lora_te_blocks_0_attn_q.lora_up.weight": torch.ones(3)}, "lora_te_blocks_0_attn_q.lora_up.weight"),
    "DoRA": (SOUND | {f"{Q}.lora_magnitude_vector": torch.ones(64)}, "1 keys .*lora_magnitude_vector"),
    "DoRA of kohya": (SOUND | {f"{Q}.dora_scale": torch.ones(64)}, "1 keys .*dora_scale"),
    "LoKr": ({f"{Q}.lokr_w1": torch.ones(3)}, "1 keys .*lokr_w1"),
    "one factor": ({f"{Q}.lora_A.weight": torch.ones(3, 64)}, "blocks.0.attn1.to_q with only down"),
    "alpha alone": (SOUND | {"transformer.blocks.0.attn1.to_k.alpha": torch.ones(1)}, "attn1.to_k with only alpha"),
    "twice": (SOUND | {"blocks.0.self_attn.q.lora_down.weight": torch.ones(3, 64)}, "1 keys .*attn1.to_q.lora_A.weight"),
    "deep": ({k.replace("blocks.0", "blocks.9"): v for k, v in SOUND.items()}, "2 keys"),
    "empty": ({}, "it is empty"),
    "ranks": (SOUND | {f"{Q}.lora_B.weight": torch.ones(64, 4)}, r"up of .*to_q is \(64, 4\), and the layer \(64, 64\)"),
    "width": (SOUND | {f"{Q}.lora_A.weight": torch.ones(3, 32)}, r"down of blocks.0.attn1.to_q is \(3, 32\)"),
    "factors of a norm": ({k.replace("to_q", "norm_q"): v for k, v in SOUND.items()}, "norm_q, which is not a linear"),
    "norm": ({"blocks.0.norm3.diff": torch.ones(3)}, r"blocks.0.norm2 is \(64,\), not \(3,\)"),
    "not finite": (SOUND | {f"{Q}.lora_B.weight": torch.full((64, 3), torch.nan)}, "lora_B.weight of .* is not finite"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_does_not_fit_is_named_and_changes_nothing(model, plain, tmp_path, fault):
    state, said = REFUSED[fault]
    save_file(state, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match=said) as error:
        add_lora(model, tmp_path / "lora.safetensors", "one")
    assert "\n" not in str(error.value)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert torch.equal(native.velocity(model), native.velocity(plain))


def test_damaged_settings_are_one_sentence(plain, tmp_path):
    file = tmp_path / "lora.safetensors"
    for text in ("{", "[1]", json.dumps({"transformer.lora_alpha": "strong"})):
        save_file(SOUND, file, {"lora_adapter_metadata": text})
        with pytest.raises(CheckpointError, match=re.escape(str(file))):
            read_lora(file, plain)
    for name, content in (("junk.safetensors", b"junk"), ("lora.bin", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="LoRA"):
            read_lora(tmp_path / name, plain)
