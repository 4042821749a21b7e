"""What cannot work here is refused in one sentence before anything loads, and what differs from the metadata is named."""

import json
import os
import shutil
import subprocess
import sys

import native
import pytest
import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, TorchAoConfig
from safetensors.torch import save_file

from phantom_s2v import PhantomPipeline
from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.models import quantization
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.registry import load_preset
from phantom_s2v.models.wan.convert import convert
from phantom_s2v.models.wan.spec import WanModel
from phantom_s2v.pipeline.generate import load_for
from phantom_s2v.pipeline.loading import check_models, load_models
from phantom_s2v.pipeline.metadata import changes, versions

RELEASED = {
    "_class_name": "WanTransformer3DModel", "num_attention_heads": 40, "attention_head_dim": 128, "num_layers": 40,
    "ffn_dim": 13824, "in_channels": 16, "out_channels": 16,
}  # fmt: skip


@pytest.fixture
def nothing_loads(monkeypatch):
    """Fails where a model's weights are looked at."""
    monkeypatch.setattr("phantom_s2v.pipeline.loading.model_hash", lambda _: pytest.fail("weights were read"))
    monkeypatch.setattr("phantom_s2v.pipeline.loading.check_models", lambda *_: pytest.fail("weights were read"))


def test_int8_without_torchao_is_refused_first(converted, nothing_loads, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r'torchao is not installed; .*pip install "phantom-s2v\[quantization\]"') as error:
        load_models(converted, Placement(quantization="int8"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("options", "said"), [
    ({"loras": (("nope.safetensors", 1.0),)}, "nope.safetensors is not a readable LoRA"),
    ({"transformer": "nope.gguf"}, "nope.gguf is not a GGUF file"),
    ({"cache": "magcache"}, "needs .*magcache.json, which does not exist"),
])  # fmt: skip
def test_files_that_cannot_be_used_are_refused_before_the_text_encoder_loads(converted, monkeypatch, options, said):
    monkeypatch.setattr(PhantomPipeline, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    with pytest.raises((InputError, CheckpointError), match=said):
        load_for([], converted, Placement(**options))


def test_a_lora_that_does_not_fit_is_refused_before_the_text_encoder_loads(converted, monkeypatch, tmp_path):
    monkeypatch.setattr(PhantomPipeline, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    save_file({"transformer.blocks.9.attn1.to_q.lora_A.weight": torch.ones(3, 64)}, tmp_path / "deep.safetensors")
    with pytest.raises(CheckpointError, match="1 keys that do not match"):
        load_for([], converted, Placement(loras=((str(tmp_path / "deep.safetensors"), 1.0),)))


@pytest.mark.long
def test_a_command_says_its_own_sentences_alone():
    """torchao, where it is installed, says at each import what it lacks."""
    done = subprocess.run([sys.executable, "-m", "phantom_s2v", "models", "fetch", "foo"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "phantom: there is no model 'foo' to fetch; it must be phantom-wan-1.3b or phantom-wan-14b"
    ]


def no_init(kind, **values):
    """A configuration without the checks of its package, which is not installed here."""
    config = kind.__new__(kind)
    config.__dict__.update(values)
    return config


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused without a GPU")
def test_quantization_configs_are_refused_first(converted, nothing_loads, monkeypatch):
    four = no_init(BitsAndBytesConfig, quant_method="bitsandbytes")
    for config in (four, no_init(PipelineQuantizationConfig, quant_backend=None, quant_mapping={"transformer": four})):
        with pytest.raises(InputError, match="by bitsandbytes needs a CUDA GPU, and there is none here"):
            PhantomPipeline.from_pretrained(converted, quantization_config=config)
    backend = no_init(PipelineQuantizationConfig, quant_backend="bitsandbytes_4bit", quant_mapping=None)
    with pytest.raises(InputError, match="by bitsandbytes needs a CUDA GPU"):
        PhantomPipeline.from_pretrained(converted, quantization_config=backend)
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="torchao is not installed"):
        PhantomPipeline.from_pretrained(converted, quantization_config=no_init(TorchAoConfig, quant_method="torchao"))


OTHERS = {
    "Wan2.2 5B": ({"in_channels": 48, "out_channels": 48, "num_attention_heads": 24}, "48 input and 48 output channels; Phantom"),
    "image to video": ({"in_channels": 36}, "36 input and 16 output channels; Phantom-Wan"),
    "Wan2.1's": (
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
        "36 input and 16 output channels and takes",
    ),
}


@pytest.mark.parametrize("model", OTHERS)
def test_other_wans_are_not_taken_for_phantom(converted, tmp_path, model):
    changed, said = OTHERS[model]
    folder = shutil.copytree(converted, tmp_path / "model")
    (folder / "transformer" / "config.json").write_text(json.dumps(RELEASED | changed))
    with pytest.raises(CheckpointError, match=said) as error:
        load_preset(folder)
    assert "\n" not in str(error.value)


def test_two_transformers_are_not_taken_for_phantom(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "model")
    (folder / "transformer_2").mkdir()
    for call in (load_preset, check_models):
        with pytest.raises(CheckpointError, match="holds two transformers, as Wan"):
            call(folder)


def test_models_are_named_by_their_shapes():
    small = RELEASED | {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    assert WanModel().preset(RELEASED).name == "phantom-wan-14b"
    assert WanModel().preset(small).name == "phantom-wan-1.3b"
    assert WanModel().preset(RELEASED | {"num_layers": 32}).name == "phantom-wan-5120"
    assert WanModel().preset(small | {"ffn_dim": 6144}).name == "phantom-wan-1536"


def test_weights_of_image_to_video_are_not_converted(checkpoint, tmp_path):
    state = native.transformer()
    state["patch_embedding.weight"] = torch.zeros(native.DIM, 36, 1, 2, 2)
    torch.save(state, tmp_path / "i2v.pth")
    with pytest.raises(CheckpointError, match="36 input and 16 output channels"):
        convert(checkpoint[0], tmp_path / "i2v.pth", tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_vae_names_its_file(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "model")
    shutil.rmtree(folder / "vae")
    with pytest.raises(CheckpointError, match=r"model/vae/config\.json"):
        check_models(folder)


def test_what_decides_bits_is_named_where_it_differs(monkeypatch):
    metadata = {"weights": "w", "files": {}, "versions": versions()}
    assert changes(metadata, "w") == []
    assert metadata["versions"]["threads"] == str(torch.get_num_threads())
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        told = f"threads was {before} and is {before + 1} (OMP_NUM_THREADS={before} gives that number again)"
        assert changes(metadata, "w") == [told]
    finally:
        torch.set_num_threads(before)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    said = changes(metadata, "w")
    assert len(said) == 1
    assert said[0].startswith("kernels was ")
    assert said[0].endswith("ONEDNN_MAX_CPU_ISA=AVX2")
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    del metadata["versions"]["threads"]
    assert changes(metadata, "w") == [f"the metadata does not say with which threads it was made; here it is {before}"]


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_the_threads_are_those_of_the_processors_that_a_process_may_use():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
    code += "from phantom_s2v.pipeline.metadata import versions; print(versions()['threads'])"
    env = {name: value for name, value in os.environ.items() if not name.endswith("NUM_THREADS")}
    got = [
        subprocess.run([sys.executable, "-c", each], env=env, capture_output=True, text=True, check=True).stdout.strip()
        for each in (code, code.partition("\n")[2])
    ]
    assert got[0] == "1" != got[1]
