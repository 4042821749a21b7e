"""The same weights in one shard or in many, wherever a file puts them, give the same bits."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file
from test_placement import FORMS, latents, lora_state

from phantom_s2v import PhantomPipeline, PhantomWanPipeline
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.weights import FILE, INDEX, weight_files
from phantom_s2v.pipeline.loading import load_models

pytestmark = pytest.mark.threads


def unaligned(*states):
    """Names of tensors that lie at no multiple of 64 bytes."""
    return [name for state in states for name, value in state.items() if value.data_ptr() % 64]


def in_shards(folder, count, write):
    """Write the weights of a part of a model folder once more, in `count` files."""
    state = {name: value.clone() for file in weight_files(folder) for name, value in load_file(file).items()}
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    if count == 1:
        return write(state, folder / FILE)
    names, where = list(state), {}
    for number in range(count):
        file = f"diffusion_pytorch_model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: state[name] for name in names[number::count]}
        write(part, folder / file)
        where |= dict.fromkeys(part, file)
    return (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.fixture(scope="module")
def expected(pipe):
    return latents(pipe), latents(pipe, output_type="np")


@pytest.mark.parametrize("count", [1, 6, 20])
def test_the_same_weights_in_shards_give_the_same_bits(converted, expected, misplace, tmp_path, count):
    folder = shutil.copytree(converted, tmp_path / "model")
    for part in ("transformer", "vae"):
        in_shards(folder / part, count, misplace)
    assert any(unaligned(load_file(file)) for file in weight_files(folder / "transformer"))
    pipe = PhantomPipeline.from_pretrained(folder)
    assert unaligned(pipe.transformer.state_dict(), pipe.vae.state_dict()) == []
    assert torch.equal(latents(pipe), expected[0])
    assert (latents(pipe, output_type="np") == expected[1]).all()


def test_parts_that_diffusers_has_mapped_give_the_same_bits(converted, expected, misplace, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "model")
    for part in ("transformer", "vae"):
        in_shards(folder / part, 1, misplace)
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer")
    pipe = PhantomWanPipeline(None, None, AutoencoderKLWan.from_pretrained(folder / "vae"), None, transformer)
    assert unaligned(pipe.transformer.state_dict(), pipe.vae.state_dict()) == []
    assert torch.equal(latents(pipe), expected[0])
    assert (latents(pipe, output_type="np") == expected[1]).all()


def test_a_text_encoder_and_a_lora_are_moved_too(converted, misplace, tmp_path):
    """Of the LoRA peft takes a copy; this holds it to that."""
    model = shutil.copytree(converted, tmp_path / "model")
    (file,) = (model / "text_encoder").glob("*.safetensors")
    misplace({name: value.clone() for name, value in load_file(file).items()}, file)
    pipe = load_models(model)
    assert unaligned(pipe.text_encoder.state_dict()) == []
    misplace(lora_state(FORMS["peft"])[0], tmp_path / "lora.safetensors")
    pipe = load_models(converted, Placement(loras=((str(tmp_path / "lora.safetensors"), 0.5),)))
    assert unaligned(pipe.transformer.state_dict()) == []
