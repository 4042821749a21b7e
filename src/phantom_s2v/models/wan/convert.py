"""The released weights -> a folder in diffusers' layout, tensor by tensor, so that memory holds one tensor and not a model.

Sources: native Wan layout as .pth, single or sharded safetensors; community single files in fp16 or fp8; text encoder,
tokenizer and autoencoder in native files or in a Wan2.1 folder of diffusers. Every key is accounted for.
"""

import math
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers
from transformers import UMT5Config, UMT5EncoderModel

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.hashes import remember_hash
from phantom_s2v.files.io import check_new_folder, write_json, writing_folder
from phantom_s2v.models.bounds import read_config
from phantom_s2v.models.registry import INDEX
from phantom_s2v.models.tensors import Tensors, write_sharded
from phantom_s2v.models.wan.spec import WanModel
from phantom_s2v.models.weights import FILE, check_shapes, shapes_of, shard_files

KNOWN = {1536: (12, 30), 5120: (40, 40)}  # width: heads and layers of the released models (Wan2.1's config files)
HEAD_WIDTH = 128
CUSTOM_PIPELINE = "from phantom_s2v.pipeline.wan_pipeline import PhantomWanPipeline  # noqa: F401 - diffusers looks for it here\n"
T5_FILE, VAE_FILE = "models_t5_umt5-xxl-enc-bf16.pth", "Wan2.1_VAE.pth"
T5_NAMES = (
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^blocks\.(\d+)\.pos_embedding\.embedding\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
)
Report = Callable[[str, int, int], None]  # part, bytes done, bytes in all


def convert(
    wan: Path,
    phantom: Path,
    out: Path,
    report: Report,
    shard_bytes: int = 2 << 30,
    origin: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the model folder `out`; returns its facts, `origin` among them.

    Raises CheckpointError, and then leaves nothing behind, and InputError where something is there already or the disk has too
    little room.
    """
    check_new_folder(out, room=sum(file.stat().st_size for file in find_weights(phantom)))
    with writing_folder(out) as scratch:
        hashes, config = _transformer(wan, phantom, scratch / "transformer", report, shard_bytes)
        hashes |= _autoencoder(wan, scratch / "vae", config, report, shard_bytes)
        hashes |= _text_encoder(wan, scratch / "text_encoder", config, report, shard_bytes)
        _tokenizer(wan, scratch / "tokenizer")
        _diffusers_index(scratch)
        facts = {"files": hashes, "source": phantom.name, **(origin or {})}
        write_json(scratch / "facts.json", facts)
    for name, value in hashes.items():
        remember_hash(out / name, value)  # so that the first use need not read all of it again
    return facts


def _transformer(wan: Path, phantom: Path, out: Path, report: Report, shard_bytes: int) -> tuple[dict[str, str], dict[str, Any]]:
    source = Tensors(find_weights(phantom)).without_prefixes(("model.diffusion_model.", "diffusion_model."))
    config = transformer_config(source, (phantom if phantom.is_dir() else phantom.parent, wan))
    WanModel().preset({"_class_name": "WanTransformer3DModel", **config})  # refuses Wan2.2 and what starts from an image
    names = renamed_transformer(source.names())
    with init_empty_weights(include_buffers=False):
        wanted = shapes_of(WanTransformer3DModel(**config))
    check_shapes(phantom, {new: source.shape(old) for new, old in names.items()}, wanted)
    return _write(
        "transformer", source, names, out, {"_class_name": "WanTransformer3DModel", **config}, report, shard_bytes
    ), config


def transformer_config(source: Tensors, folders: Iterable[Path]) -> dict[str, Any]:
    """Configuration that the shapes imply. Heads and layers come from the width of the released models, or else from a
    config.json in one of `folders` that has the same width, or else are counted.
    """
    needed = (
        "patch_embedding.weight",
        "time_embedding.0.weight",
        "text_embedding.0.weight",
        "blocks.0.ffn.0.weight",
        "head.head.bias",
    )
    _check_names(source, needed, "Wan transformer")
    dim, channels, *patch = source.shape("patch_embedding.weight")
    counted = 1 + max(int(name.split(".")[1]) for name in source.names() if re.match(r"blocks\.\d+\.", name))
    heads, layers = KNOWN.get(dim) or _config_beside(folders, dim) or (dim // HEAD_WIDTH, counted)
    if not heads or dim % heads:
        raise CheckpointError(f"{source.path} is {dim} wide, which gives no number of heads; put Wan's config.json beside it")
    return {
        "patch_size": patch,
        "num_attention_heads": heads,
        "attention_head_dim": dim // heads,
        "in_channels": channels,
        "out_channels": source.shape("head.head.bias")[0] // math.prod(patch),
        "text_dim": source.shape("text_embedding.0.weight")[1],
        "freq_dim": source.shape("time_embedding.0.weight")[1],
        "ffn_dim": source.shape("blocks.0.ffn.0.weight")[0],
        "num_layers": layers,
    }


def _config_beside(folders: Iterable[Path], dim: int) -> tuple[int, int] | None:
    """Heads and layers in a config.json of the right width, Wan's own or that of diffusers."""
    for file in (f / name for f in folders for name in ("config.json", "transformer/config.json")):
        if file.is_file():
            values = read_config(file)
            if values.get("dim") == dim:
                return values["num_heads"], values["num_layers"]
            if values.get("num_attention_heads", 0) * values.get("attention_head_dim", 0) == dim:
                return values["num_attention_heads"], values["num_layers"]
    return None


def _autoencoder(wan: Path, out: Path, transformer: dict[str, Any], report: Report, shard_bytes: int) -> dict[str, str]:
    if (wan / "vae" / "config.json").is_file():
        config = {k: v for k, v in read_config(wan / "vae" / "config.json").items() if k != "_diffusers_version"}
        source = Tensors(find_weights(wan / "vae"))
        names = {name: name for name in source.names()}
    else:
        source = Tensors(find_weights(wan / VAE_FILE))
        if "encoder.conv1.weight" not in source.names() or "conv2.weight" not in source.names():
            raise CheckpointError(f"{source.path} is not a Wan VAE; missing: encoder.conv1.weight or conv2.weight")
        names = renamed(source.names(), convert_wan_vae_to_diffusers)
        config = {"_class_name": "AutoencoderKLWan", "base_dim": source.shape("encoder.conv1.weight")[0], "z_dim": 16}
    with init_empty_weights(include_buffers=False):
        model: Any = AutoencoderKLWan(**{k: v for k, v in config.items() if not k.startswith("_")})
    check_shapes(source.path, {new: source.shape(old) for new, old in names.items()}, shapes_of(model))
    if model.config["z_dim"] != transformer["in_channels"]:
        raise CheckpointError(
            f"{source.path} has {model.config['z_dim']} latent channels and the transformer {transformer['in_channels']}; "
            "they belong to different models"
        )
    return _write("vae", source, names, out, config, report, shard_bytes)


def _text_encoder(wan: Path, out: Path, transformer: dict[str, Any], report: Report, shard_bytes: int) -> dict[str, str]:
    if (wan / "text_encoder" / "config.json").is_file():
        config = read_config(wan / "text_encoder" / "config.json")
        source = Tensors(find_weights(wan / "text_encoder"))
        names = {name: name for name in source.names()}
    else:
        source = Tensors(find_weights(wan / T5_FILE))
        names = {_t5_name(name): name for name in source.names()}
        config = _t5_config(source)
    with init_empty_weights(include_buffers=False):
        wanted = shapes_of(UMT5EncoderModel(UMT5Config(**config)))
    wanted.pop("encoder.embed_tokens.weight")  # the same tensor as shared.weight
    names.pop("encoder.embed_tokens.weight", None)
    check_shapes(source.path, {new: source.shape(old) for new, old in names.items()}, wanted)
    if config["d_model"] != transformer["text_dim"]:
        raise CheckpointError(
            f"{source.path} gives features {config['d_model']} wide and the transformer takes {transformer['text_dim']}; "
            "it is the text encoder of another model"
        )
    return _write("text_encoder", source, names, out, config, report, shard_bytes, "model.safetensors")


def _t5_name(name: str) -> str:
    for pattern, new in T5_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, new, name)
    return name


def _t5_config(source: Tensors) -> dict[str, Any]:
    """umT5's configuration out of the shapes of its native file."""
    needed = (
        "token_embedding.weight",
        "blocks.0.attn.q.weight",
        "blocks.0.ffn.fc1.weight",
        "blocks.0.pos_embedding.embedding.weight",
    )
    _check_names(source, needed, "native umT5 encoder")
    vocabulary, width = source.shape("token_embedding.weight")
    buckets, heads = source.shape("blocks.0.pos_embedding.embedding.weight")
    layers = 1 + max(int(name.split(".")[1]) for name in source.names() if name.startswith("blocks."))
    return {
        "architectures": ["UMT5EncoderModel"],
        "model_type": "umt5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": source.shape("blocks.0.attn.q.weight")[0] // heads,
        "d_ff": source.shape("blocks.0.ffn.fc1.weight")[0],
        "num_heads": heads,
        "num_layers": 24 if width == 4096 else layers,
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }


def _check_names(source: Tensors, needed: Iterable[str], what: str) -> None:
    """Raise CheckpointError that lists the tensors that a source lacks."""
    if missing := [name for name in needed if name not in source.names()]:
        raise CheckpointError(f"{source.path} is not a {what}; missing: {', '.join(missing)}")


def _tokenizer(wan: Path, out: Path) -> None:
    choices = (wan / "tokenizer", wan / "google" / "umt5-xxl")
    folder = next((f for f in choices if f.is_dir()), None)
    files = sorted(f for f in folder.iterdir() if f.suffix in (".json", ".model")) if folder else []
    if not files:
        raise CheckpointError(f"{wan} has no tokenizer; it needs google/umt5-xxl or tokenizer with umT5's files")
    out.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, out / file.name)


def _diffusers_index(folder: Path) -> None:
    """model_index.json and the scheduler; diffusers' own WanPipeline opens the folder too, as a text-to-video model, and its
    DiffusionPipeline with custom_pipeline=FOLDER.
    """
    parts = {
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    }
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": 5.0,
    }
    write_json(folder / INDEX, {"_class_name": "PhantomWanPipeline", **parts})
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    (folder / "pipeline.py").write_text(CUSTOM_PIPELINE)


def renamed(names: Iterable[str], rule: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, str]:
    """New name -> old name under a conversion of diffusers that only renames."""
    return rule({name: name for name in names})


def renamed_transformer(names: Iterable[str]) -> dict[str, str]:
    """New name -> old name of a transformer's tensors; those that have diffusers' names keep them."""
    names = list(names)
    if any(name.startswith("condition_embedder.") for name in names):
        return {name: name for name in names}
    return renamed(names, convert_wan_transformer_to_diffusers)


def find_weights(path: Path) -> list[Path]:
    """The weight files that a path names: a file, or a folder with an index, or with one file. Raises CheckpointError."""
    if path.is_file():
        if path.suffix == ".gguf":
            raise CheckpointError(f"weights must be .safetensors or .pth (got {path}; quantized GGUF blocks cannot be converted)")
        if path.suffix not in (".safetensors", ".pth", ".pt", ".bin", ".ckpt"):
            raise CheckpointError(f"weights must be .safetensors or .pth (got {path})")
        return [path]
    if not path.is_dir():
        raise CheckpointError(f"{path} does not exist; it must be a weight file or a folder of weight files")
    for index in sorted(path.glob("*.safetensors.index.json")):
        return shard_files(index)
    files = sorted(p for p in path.iterdir() if p.suffix in (".safetensors", ".pth"))
    if len(files) != 1:
        raise CheckpointError(f"{path} has {len(files)} weight files and no index; specify one of them")
    return files


def _write(
    part: str,
    source: Tensors,
    names: dict[str, str],
    out: Path,
    config: dict[str, Any],
    report: Report,
    shard_bytes: int,
    file: str = FILE,
) -> dict[str, str]:
    """Stream the tensors of a part to shards; returns their hashes by path within the model folder."""
    out.mkdir(parents=True)
    write_json(out / "config.json", config)
    entries = [(new, source.stored(old), source.shape(old)) for new, old in names.items()]
    hashes = write_sharded(
        out, file, entries, lambda new: source.read_finite(names[new]), shard_bytes, lambda done, total: report(part, done, total)
    )
    return {f"{part}/{name}": value for name, value in hashes.items()}
