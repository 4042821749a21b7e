"""LoRA files of Wan in every spelling that people have, read into diffusers' names with the strength that their authors meant.

Trainers write the same two factors under a dozen names. All are looked up in one table of the transformer's own parameters, so
that a key either has its place or is named in the error. The strength of a layer is alpha / rank, with alpha from the first of:
the key NAME.alpha; the metadata that diffusers' save_lora_weights writes, or adapter_config.json beside peft's file; the rank.

Full differences (Lightx2v's .diff and .diff_b) of linear layers and convolutions are products as well, with an identity as one
factor, so that adapters scale, fuse and unload them like the rest. Those of norms and modulations are added to the weights.
"""

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError
from torch import nn

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.untrusted import parse_json, read_small
from phantom_s2v.models.finite import check_finite
from phantom_s2v.models.tensors import read_tensors
from phantom_s2v.models.wan.transformer import unshare

PREFIXES = (
    "base_model.model.",  # peft's save_pretrained
    "transformer.",  # diffusers
    "model.diffusion_model.",  # ComfyUI
    "diffusion_model.",
    "pipe.dit.",  # DiffSynth
    "lora_unet__",  # kohya, musubi
    "lora_unet_",
    "lora_transformer_",
)
NATIVE = (  # names of diffusers -> names of the released code, part by part
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^proj_out\.", "head.head."),
    (r"^scale_shift_table$", "head.modulation"),
    (r"\.scale_shift_table$", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
    (r"\.norm2\.", ".norm3."),
)
_ADAPTER = r"(?:\.(?!weight$|bias$)\w+)?"  # DiffSynth and peft in training put the adapter's name here
KINDS = (  # what a key says of a layer, and the parameters that it may belong to
    ("down", re.compile(rf"\.(?:lora_A|lora_down|lora\.down){_ADAPTER}\.weight$"), (".weight",)),
    ("up", re.compile(rf"\.(?:lora_B|lora_up|lora\.up){_ADAPTER}\.weight$"), (".weight",)),
    ("up_bias", re.compile(rf"\.lora_B{_ADAPTER}\.bias$"), (".bias",)),
    ("alpha", re.compile(r"\.alpha$"), (".weight",)),
    ("diff", re.compile(r"\.diff$"), (".weight", "")),
    ("diff_b", re.compile(r"\.diff_b$"), (".bias",)),
    ("diff", re.compile(r"\.diff_m$"), (".modulation",)),
)
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # of a LoRA in a folder, as diffusers and peft name it
Parts = dict[str, torch.Tensor]  # of one layer, by kind


def add_lora(transformer: Any, file: Path, name: str, scale: float = 1.0) -> None:
    """Add a LoRA as the adapter `name`. The adapter itself stays at strength 1, which `set_adapters` changes; differences of
    norms and modulations, which no adapter of peft holds, are added to the weights times `scale`, and a transformer of ours
    switches them with the adapter (`Differences`).

    Raises CheckpointError as `read_lora` does and for a name that is in use, and then leaves the transformer as it was.
    """
    if name in adapters_of(transformer):
        raise CheckpointError(f"adapter name {name} is already in use; adapters are {', '.join(adapters_of(transformer))}")
    state, metadata = read_lora(file, transformer)
    differences = {key: state.pop(key) for key in list(state) if key.endswith(".diff")}
    if state:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Already found a `peft_config`")  # a second LoRA is what was asked for
                transformer.load_lora_adapter(state, prefix="transformer", adapter_name=name, metadata=metadata)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{file} does not fit this transformer: {str(error).splitlines()[-1].strip()}") from error
    if differences:
        places = {key.removeprefix("transformer.").removesuffix(".diff"): value for key, value in differences.items()}
        if getattr(transformer, "lora_differences", None) is None:
            transformer.lora_differences = Differences()
        transformer.lora_differences.add(transformer, name, places, scale)


class Differences:
    """What LoRA files add to norms and modulations, by adapter. The weights are always the untouched ones plus the differences of
    the adapters that are on, each times its strength: switching off gives back the same bits.

    Fusing is peft's: a weight that an adapter was fused into has the fused ones alone, until they are taken out again, and keeps
    them where the adapters are unloaded.
    """

    def __init__(self) -> None:
        self.untouched: Parts = {}
        self.by_adapter: dict[str, Parts] = {}
        self.strengths: dict[str, float] = {}  # as last set
        self.on: set[str] = set()
        self.fused: dict[str, float] = {}  # strengths at which adapters were fused

    def add(self, transformer: nn.Module, adapter: str, values: Parts, strength: float) -> None:
        """Take in an adapter's differences and switch them on."""
        unshare(transformer, (transformer.get_parameter(name) for name in values))
        for name in values:
            self.untouched.setdefault(name, transformer.get_parameter(name).detach().clone())
        self.by_adapter[adapter] = values
        self.switch(transformer, {**{name: self.strengths[name] for name in self.on}, adapter: strength})

    def switch(self, transformer: nn.Module, strengths: dict[str, float]) -> None:
        """Let the adapters of `strengths` be on, and the others off."""
        self.strengths |= {name: value for name, value in strengths.items() if name in self.by_adapter}
        self.on = set(strengths) & set(self.by_adapter)
        self.apply(transformer, True)

    def apply(self, transformer: nn.Module, on: bool) -> None:
        """Write the weights, with the differences of the adapters that are on or, if not `on`, without any."""
        for place, before in self.untouched.items():
            parameter = transformer.get_parameter(place)
            now = before.to(parameter.device, copy=True)
            for adapter, strength in self._seen(place).items() if on else ():
                now += strength * self.by_adapter[adapter][place].to(now)
            parameter.data.copy_(now)

    def fuse(self, transformer: nn.Module, adapters: Iterable[str] | None, scale: float) -> None:
        """Fuse adapters, by default those that are on, whose strengths `scale` multiplies."""
        self.strengths |= {name: scale * self.strengths[name] for name in self.on}
        names = self.on if adapters is None else set(adapters) & set(self.by_adapter)
        self.fused = {**{name: self.strengths[name] for name in names}, **self.fused}
        self.apply(transformer, True)

    def unfuse(self, transformer: nn.Module) -> None:
        """Take what was fused out again."""
        self.fused = {}
        self.apply(transformer, True)

    def forget(self, transformer: nn.Module, adapters: Iterable[str]) -> None:
        """Take adapters out for good. What was fused of them stays in the weights."""
        gone = set(adapters) & set(self.by_adapter)
        for adapter in gone & set(self.fused):
            for place, value in self.by_adapter[adapter].items():
                self.untouched[place] += self.fused[adapter] * value.to(self.untouched[place])
        for held in (self.by_adapter, self.strengths, self.fused):
            for name in gone & set(held):
                del held[name]
        self.on -= gone
        self.apply(transformer, True)

    def _seen(self, place: str) -> dict[str, float]:
        """Adapters that a weight has differences of now, and their strengths."""
        fused = {name: value for name, value in self.fused.items() if place in self.by_adapter[name]}
        return fused or {name: self.strengths[name] for name in sorted(self.on) if place in self.by_adapter[name]}


def adapters_of(transformer: Any) -> list[str]:
    """Names of the adapters of a transformer: peft's, and those that hold differences alone."""
    apart = getattr(transformer, "lora_differences", None)
    return list(dict.fromkeys([*(getattr(transformer, "peft_config", None) or {}), *(apart.by_adapter if apart else ())]))


def local_lora(source: str | Path, name: str | None = None) -> Path | None:
    """The LoRA of this machine that `source` names: a file, or in a folder the file `name` or one of the usual names; None where
    it can only be a repository of a hub. Raises CheckpointError for a folder without one.
    """
    path = Path(source)
    if path.is_dir():
        names = [name] if name else FILES
        found = next((path / each for each in names if (path / each).is_file()), None)
        if found is None:
            raise CheckpointError(f"{path} has no LoRA; it must hold {' or '.join(names)}")
        return found
    hub = isinstance(source, str) and not path.suffix and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.exists()
    return None if hub else path


def lora_files(file: Path) -> list[Path]:
    """What decides the strength of a LoRA: the file, and the adapter_config.json of peft beside it."""
    config = file.with_name("adapter_config.json")
    return [file, config] if config.is_file() else [file]


def read_lora(file: Path, transformer: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Factors under diffusers' names (transformer.LAYER.lora_A.weight, lora_B.weight, lora_B.bias), and peft's configuration as
    diffusers has it in a file's metadata (transformer.r, transformer.lora_alpha, ...): together what load_lora_adapter takes.

    Differences of norms and modulations that are not zero stay in it as transformer.PARAMETER.diff. Raises CheckpointError where
    the file is no LoRA of this transformer or not finite; every key that has no place in it is named.
    """
    if file.suffix != ".safetensors" or not file.is_file():
        raise CheckpointError(f"{file} is not a readable LoRA; it must be an existing .safetensors file")
    try:
        tensors, metadata = read_tensors(file)
        settings = _settings(file, tensors, metadata)
    except (SafetensorError, OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is damaged or not a Wan LoRA ({error})") from error
    for key, value in tensors.items():
        check_finite(value, f"the factor {key} of {file}", CheckpointError)
    layers, spelled = _by_layer(file, tensors, transformer)
    state, scales = {}, {}
    for layer, parts in layers.items():
        factors, scale = _factors(file, layer, spelled[layer], parts, transformer, settings)
        state |= {f"transformer.{layer}{kind}": value for kind, value in factors.items()}
        if ".lora_A.weight" in factors:
            scales[layer] = (factors[".lora_A.weight"].shape[0], scale)
    return state, _config(state, scales) if scales else {}


def factors(file: Path, transformer: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """(A, B, strength) of each layer of a LoRA file, in diffusers' names: what is added to a weight is strength x B A.

    Raises CheckpointError as `read_lora` does, and for a file that holds more than factors.
    """
    state, config = read_lora(file, transformer)
    if more := [name for name in state if not name.endswith((".lora_A.weight", ".lora_B.weight"))]:
        raise CheckpointError(f"{file} holds more than factors ({more[0].removeprefix('transformer.')}), which no LoRA file has")
    found = {}
    for name in [name for name in state if name.endswith(".lora_A.weight")]:
        layer = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
        place = f"^{re.escape(layer)}"
        rank = config["transformer.rank_pattern"].get(place, config["transformer.r"])
        alpha = config["transformer.alpha_pattern"].get(place, config["transformer.lora_alpha"])
        found[layer] = (state[name], state[name.replace("lora_A", "lora_B")], alpha / rank)
    return found


def native_name(parameter: str) -> str:
    """The released code's name of a parameter of diffusers' transformer; diffusers' own converter goes the other way."""
    for pattern, name in NATIVE:
        parameter = re.sub(pattern, name, parameter)
    return parameter


def _settings(file: Path, tensors: Iterable[str], metadata: dict[str, str]) -> dict[str, Any]:
    """peft's configuration of a file: in its metadata, or beside it."""
    if LORA_ADAPTER_METADATA_KEY in metadata:
        known = parse_json(metadata[LORA_ADAPTER_METADATA_KEY]).items()
        return {key.removeprefix("transformer."): value for key, value in known if key.startswith("transformer.")}
    if any(key.startswith("base_model.model.") for key in tensors):
        return {} if len(files := lora_files(file)) == 1 else dict(parse_json(read_small(files[1])).items())
    return {}


def _spellings(transformer: nn.Module) -> dict[str, str]:
    """Parameters of the transformer by each name that files have for them; those of adapters are left out."""
    places = {}
    for parameter, _ in transformer.named_parameters():
        if ".lora_" in parameter:
            continue
        parameter = parameter.replace(".base_layer.", ".")
        for name in (parameter, native_name(parameter)):
            layer, dot, leaf = name.rpartition(".")
            flat = layer.replace(".", "_") + dot + leaf if leaf in ("weight", "bias") else name.replace(".", "_")
            places[name] = places[flat] = parameter
    return places


def _by_layer(file: Path, tensors: Parts, transformer: nn.Module) -> tuple[dict[str, Parts], dict[str, str]]:
    """What a file says of each layer, by its name in diffusers, and that layer's name in the file."""
    places = _spellings(transformer)
    layers: dict[str, Parts] = {}
    spelled, odd = {}, []
    for key, value in tensors.items():
        place = _place(key, places)
        if place is None or place[1] in layers.get(place[0], {}):
            odd.append(key)
            continue
        layer, kind, name = place
        layers.setdefault(layer, {})[kind] = value
        spelled[layer] = name
    for layer, parts in layers.items():
        if len({"down", "up"} & set(parts)) == 1 or ({"alpha", "up_bias"} & set(parts) and "up" not in parts):
            odd += [f"{spelled[layer]} with only {', '.join(parts)}"]
    if odd or not layers:
        raise CheckpointError(f"{file} has {len(odd)} keys that do not match this transformer ({_summary(odd)})")
    return layers, spelled


def _place(key: str, places: dict[str, str]) -> tuple[str, str, str] | None:
    """(layer in diffusers' names, kind, layer as the file names it) of a key."""
    name = key
    while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    for kind, pattern, leaves in KINDS:
        if not (match := pattern.search(name)):
            continue
        stem = name[: match.start()]
        if parameter := next((places[stem + leaf] for leaf in leaves if stem + leaf in places), None):
            plain = parameter.endswith((".weight", ".bias"))
            return parameter.rpartition(".")[0] if plain else parameter, kind, stem
    return None


def _summary(keys: list[str]) -> str:
    """All keys, those that differ only by the number of a block as one."""
    alike: dict[str, list[str]] = {}
    for key in keys:
        alike.setdefault(re.sub(r"(?<=blocks[._])\d+", "N", key), []).append(key)
    descriptions = [each[0] if len(each) == 1 else f"{name} in {len(each)} blocks" for name, each in alike.items()]
    return ", ".join(descriptions) or "it is empty"


def _factors(
    file: Path, layer: str, name: str, parts: Parts, transformer: nn.Module, settings: dict[str, Any]
) -> tuple[Parts, float]:
    """Factors of a layer by the end of their names, and their strength."""
    module: Any = None if layer.endswith("scale_shift_table") else transformer.get_submodule(layer)
    module = getattr(module, "base_layer", module)
    if not isinstance(module, nn.Linear | nn.Conv3d):
        return _differences(file, layer, parts, transformer, module), 1.0
    shape = (module.out_features, module.in_features) if isinstance(module, nn.Linear) else tuple(module.weight.shape)
    _check_shapes(file, name, parts, shape)
    parts = {kind: value for kind, value in parts.items() if not kind.startswith("diff") or value.any()}
    if not parts:
        return {}, 1.0
    rank = parts["down"].shape[0] if "down" in parts else 0
    scale = _strength(file, layer, name, parts, settings, rank) if rank else 1.0
    down = parts["down"] if rank else torch.zeros(1, *shape[1:])
    up = parts["up"] if rank else torch.zeros(shape[0], *[1] * (len(shape) - 1))
    up = up.reshape(shape[0], down.shape[0], *[1] * (len(shape) - 2))
    bias = parts.get("up_bias")
    if "diff" in parts or "diff_b" in parts:  # they have no alpha, so that of the factors goes into the second one
        up, bias, scale = scale * up.float(), scale * (bias if bias is not None else torch.zeros(shape[0])), 1.0
        bias = bias + parts.get("diff_b", 0.0)
        if "diff" in parts:
            more = _as_product(parts["diff"].float())
            down, up = torch.cat([down.float(), more[0]]), torch.cat([up, more[1]], 1)
    out = {".lora_A.weight": down, ".lora_B.weight": up}
    return (out | {".lora_B.bias": bias} if bias is not None and bias.any() else out), scale


def _differences(file: Path, layer: str, parts: Parts, transformer: nn.Module, module: Any) -> Parts:
    """Differences of a norm or a modulation. Zeros, of which extracted files are full, are nothing to add."""
    differences = {}
    for kind, value in parts.items():
        leaf = {"diff": "" if module is None else ".weight", "diff_b": ".bias"}.get(kind)
        if leaf is None:
            raise CheckpointError(f"{file} has factors for {layer}, which is not a linear or convolution layer")
        wanted = transformer.get_parameter(layer + leaf).shape
        if value.numel() != math.prod(wanted):
            raise CheckpointError(f"{file} does not fit this transformer: {layer} is {tuple(wanted)}, not {tuple(value.shape)}")
        if value.any():
            differences[f"{leaf}.diff"] = value.reshape(wanted)
    return differences


def _check_shapes(file: Path, name: str, parts: Parts, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError where what a file says of a layer is not of that layer's shape."""
    rank = parts["down"].shape[0] if "down" in parts and parts["down"].ndim else 0
    wanted = {"down": (rank, *shape[1:]), "diff": shape, "diff_b": shape[:1], "up_bias": shape[:1]}
    for kind, value in parts.items():
        if kind == "alpha":
            fits = value.numel() == 1
        elif kind == "up":
            fits = value.ndim >= 2 and tuple(value.shape[:2]) == (shape[0], rank) and value.numel() == shape[0] * rank
        else:
            fits = tuple(value.shape) == wanted[kind]
        if not fits or (kind == "down" and not rank):
            raise CheckpointError(
                f"{file} does not fit this transformer: {kind} of {name} is {tuple(value.shape)}, and the layer {tuple(shape)}"
            )


def _strength(file: Path, layer: str, name: str, parts: Parts, settings: dict[str, Any], rank: int) -> float:
    """alpha / rank of a layer, or alpha / sqrt(rank) where peft's configuration says so (rsLoRA)."""
    if "alpha" in parts:
        return float(parts["alpha"]) / rank
    alpha = settings.get("lora_alpha", rank)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():  # the end of a name, or with ^ all of it
        end = pattern.removeprefix("^").replace("\\.", ".")
        if any(f".{each}".endswith(f".{end}") for each in (layer, name)):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise CheckpointError(f"{file} has alpha {alpha!r} for {name}; it must be a number")
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _as_product(diff: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors of a difference [out, in, ...], with an identity for the smaller side."""
    out, width, ones = diff.shape[0], math.prod(diff.shape[1:]), [1] * (diff.ndim - 2)
    if width <= out:
        return torch.eye(width).reshape(width, *diff.shape[1:]), diff.reshape(out, width, *ones)
    return diff, torch.eye(out).reshape(out, out, *ones)


def _config(state: Parts, scales: dict[str, tuple[int, float]]) -> dict[str, Any]:
    """peft's configuration of these factors, in the form of a file's metadata; layers that differ from the rest are named."""
    (usual, strength), _ = Counter(scales.values()).most_common(1)[0]
    biased = any(key.endswith(".lora_B.bias") for key in state)
    for layer in scales if biased else ():  # peft has them in every layer or in none
        up = state[f"transformer.{layer}.lora_B.weight"]
        state.setdefault(f"transformer.{layer}.lora_B.bias", up.new_zeros(up.shape[0]))
    odd = {f"^{re.escape(layer)}": each for layer, each in scales.items() if each != (usual, strength)}
    config = {
        "r": usual,
        "lora_alpha": strength * usual,
        "rank_pattern": {layer: rank for layer, (rank, _) in odd.items()},
        "alpha_pattern": {layer: rank * scale for layer, (rank, scale) in odd.items()},
        "target_modules": sorted(scales),
        "lora_bias": biased,
    }
    return {f"transformer.{name}": value for name, value in config.items()}
