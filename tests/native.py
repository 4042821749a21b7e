"""Tiny random checkpoints in the native layout of the release, names and shapes written out from the facts (2.2)."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

DIM, HEADS, LAYERS, FFN, TEXT, FREQ = 64, 4, 2, 96, 24, 32


def transformer(seed: int = 0, dim: int = DIM, layers: int = LAYERS) -> dict[str, torch.Tensor]:
    """State dict of a WanModel with weights that keep the std, and a head whose velocity has a std near 1."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, gain: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * gain

    state: dict[str, torch.Tensor] = {}

    def linear(name: str, out: int, width: int, gain: float = 1.0) -> None:
        state[f"{name}.weight"] = normal(out, width, gain=gain * width**-0.5)
        state[f"{name}.bias"] = normal(out, gain=0.1)

    state["patch_embedding.weight"] = normal(dim, 16, 1, 2, 2, gain=64**-0.5)
    state["patch_embedding.bias"] = normal(dim, gain=0.1)
    linear("text_embedding.0", dim, TEXT)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, FREQ)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim, gain=0.5)
    for n in range(layers):
        b = f"blocks.{n}"
        state[f"{b}.modulation"] = normal(1, 6, dim, gain=0.5)
        for attention in ("self_attn", "cross_attn"):
            for part in "qkvo":
                linear(f"{b}.{attention}.{part}", dim, dim)
            for part in "qk":
                state[f"{b}.{attention}.norm_{part}.weight"] = 1 + normal(dim, gain=0.1)
        state[f"{b}.norm3.weight"] = 1 + normal(dim, gain=0.1)
        state[f"{b}.norm3.bias"] = normal(dim, gain=0.1)
        linear(f"{b}.ffn.0", FFN, dim)
        linear(f"{b}.ffn.2", dim, FFN)
    linear("head.head", 64, dim)
    state["head.modulation"] = normal(1, 2, dim, gain=0.5)
    return state


def autoencoder(seed: int = 1, dim: int = 8) -> dict[str, torch.Tensor]:
    """State dict of WanVAE: four levels of two residual blocks, twice down in time."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, out: int, width: int, *kernel: int) -> None:
        fan = width * torch.tensor(kernel).prod().item()
        state[f"{name}.weight"] = torch.randn((out, width, *kernel), generator=generator) * fan**-0.5
        state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.05

    def block(name: str, width: int, out: int) -> None:
        state[f"{name}.residual.0.gamma"] = torch.ones(width, 1, 1, 1)
        conv(f"{name}.residual.2", out, width, 3, 3, 3)
        state[f"{name}.residual.3.gamma"] = torch.ones(out, 1, 1, 1)
        conv(f"{name}.residual.6", out, out, 3, 3, 3)
        if width != out:
            conv(f"{name}.shortcut", out, width, 1, 1, 1)

    def middle(name: str, width: int) -> None:
        block(f"{name}.0", width, width)
        state[f"{name}.1.norm.gamma"] = torch.ones(width, 1, 1)
        conv(f"{name}.1.to_qkv", 3 * width, width, 1, 1)
        conv(f"{name}.1.proj", width, width, 1, 1)
        block(f"{name}.2", width, width)

    widths = [dim, dim, 2 * dim, 4 * dim, 4 * dim]
    conv("encoder.conv1", dim, 3, 3, 3, 3)
    index = 0
    for level in range(4):
        for width in (widths[level], widths[level + 1]):
            block(f"encoder.downsamples.{index}", width, widths[level + 1])
            index += 1
        if level < 3:
            conv(f"encoder.downsamples.{index}.resample.1", widths[level + 1], widths[level + 1], 3, 3)
            if level:
                conv(f"encoder.downsamples.{index}.time_conv", widths[level + 1], widths[level + 1], 3, 1, 1)
            index += 1
    middle("encoder.middle", 4 * dim)
    state["encoder.head.0.gamma"] = torch.ones(4 * dim, 1, 1, 1)
    conv("encoder.head.2", 32, 4 * dim, 3, 3, 3)
    conv("conv1", 32, 32, 1, 1, 1)
    conv("conv2", 16, 16, 1, 1, 1)
    conv("decoder.conv1", 4 * dim, 16, 3, 3, 3)
    middle("decoder.middle", 4 * dim)
    index, ups = 0, [4 * dim, 4 * dim, 4 * dim, 2 * dim, dim]
    for level in range(4):
        width = ups[level] if level == 0 else ups[level] // 2
        for _ in range(3):
            block(f"decoder.upsamples.{index}", width, ups[level + 1])
            width = ups[level + 1]
            index += 1
        if level < 3:
            conv(f"decoder.upsamples.{index}.resample.1", width // 2, width, 3, 3)
            if level < 2:
                conv(f"decoder.upsamples.{index}.time_conv", 2 * width, width, 3, 1, 1)
            index += 1
    state["decoder.head.0.gamma"] = torch.ones(dim, 1, 1, 1)
    conv("decoder.head.2", 3, dim, 3, 3, 3)
    return state


def text_encoder(vocabulary: int, seed: int = 2, width: int = TEXT) -> dict[str, torch.Tensor]:
    """State dict of Wan's umT5 encoder."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, gain: float) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * gain).bfloat16()

    state = {"token_embedding.weight": normal(vocabulary, width, gain=1.0), "norm.weight": torch.ones(width).bfloat16()}
    for n in range(2):
        b = f"blocks.{n}"
        for part in "qkvo":
            state[f"{b}.attn.{part}.weight"] = normal(width, width, gain=width**-0.5)
        state[f"{b}.pos_embedding.embedding.weight"] = normal(32, 2, gain=0.5)
        state[f"{b}.norm1.weight"], state[f"{b}.norm2.weight"] = torch.ones(width).bfloat16(), torch.ones(width).bfloat16()
        state[f"{b}.ffn.gate.0.weight"] = normal(40, width, gain=width**-0.5)
        state[f"{b}.ffn.fc1.weight"] = normal(40, width, gain=width**-0.5)
        state[f"{b}.ffn.fc2.weight"] = normal(width, 40, gain=40**-0.5)
    return state


def tokenizer(folder: Path) -> int:
    """A small T5 tokenizer over bytes, so that every script has tokens; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, **{letter: i + 3 for i, letter in enumerate(alphabet)}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return len(vocabulary)


def write(folder: Path) -> tuple[Path, Path]:
    """The folder of Wan2.1 and the file of Phantom, as people have them on disk."""
    wan = folder / "Wan2.1-T2V-tiny"
    (wan / "google").mkdir(parents=True)
    vocabulary = tokenizer(wan / "google" / "umt5-xxl")
    torch.save(autoencoder(), wan / "Wan2.1_VAE.pth")
    torch.save(text_encoder(vocabulary), wan / "models_t5_umt5-xxl-enc-bf16.pth")
    (wan / "config.json").write_text(json.dumps({"dim": DIM, "num_heads": HEADS, "num_layers": LAYERS}))
    phantom = folder / "Phantom-Wan-tiny.pth"
    torch.save(transformer(), phantom)
    return wan, phantom


def write_shards(state: dict[str, torch.Tensor], folder: Path, count: int) -> Path:
    """The state in `count` safetensors shards with an index, as the 14B weights come."""
    folder.mkdir(parents=True)
    names, where = list(state), {}
    for number in range(count):
        file = f"Phantom_Wan_14B-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: state[name] for name in names[number::count]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / "Phantom_Wan_14B.safetensors.index.json").write_text(json.dumps(index))
    return folder


@torch.no_grad()
def write_gguf(file, state, kind, prefix=""):
    """A GGUF as llama.cpp's and ComfyUI's converters write it: matrices of whole blocks quantized, the rest in float32."""
    import gguf

    writer = gguf.GGUFWriter(file, "wan")
    for name, value in state.items():
        small = value.ndim != 2 or value.shape[1] % 32 or not name.startswith("blocks")
        if small:
            writer.add_tensor(prefix + name, value.float().numpy())
        else:
            data = gguf.quants.quantize(value.float().numpy(), kind)
            writer.add_tensor(prefix + name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def velocity(transformer) -> torch.Tensor:
    """Of one noisy latent and one text, without references."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 2, 4, 4, generator=generator)
    text = torch.randn(1, 6, TEXT, generator=generator)
    return transformer(x, torch.tensor([500]), text, return_dict=False)[0]
