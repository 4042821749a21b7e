"""Loading of weights: strictly, safetensors only, with one sentence where they do not fit."""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.hashes import MADE_OF, combined_hash, folder_hash
from phantom_s2v.files.io import write_json, writing_folder
from phantom_s2v.files.untrusted import parse_json
from phantom_s2v.models.bounds import check_layers, read_config
from phantom_s2v.models.finite import check_finite
from phantom_s2v.models.phantom.spec import index_of
from phantom_s2v.models.tensors import FILE, aligned, read_tensors, save_tensors

M = TypeVar("M", bound=ModelMixin)
INDEX = f"{FILE}.index.json"


def check_part(kind: type[M], folder: Path) -> tuple[M, dict[Path, list[str]]]:
    """An empty model of `kind` as `folder` configures it, and the names in each weight file, which fit it; no tensor is read.

    Raises CheckpointError where config or weights are missing, truncated, a pickle, or of another shape.
    """
    config = folder / "config.json"
    values = {k: v for k, v in read_config(config).items() if not k.startswith("_")}
    shapes = {file: read_shapes(file) for file in weight_files(folder)}
    check_layers(values, sum(map(len, shapes.values())), config)
    try:
        with init_empty_weights(include_buffers=False):
            model: Any = kind(**values)
    except Exception as error:  # what odd values make a model raise has no base of its own
        raise CheckpointError(f"{config} is not a valid {kind.__name__} configuration: {error}") from error
    check_shapes(folder, {k: v for each in shapes.values() for k, v in each.items()}, shapes_of(model))
    return model, {file: list(names) for file, names in shapes.items()}


def load_part(kind: type[M], folder: Path, dtype: torch.dtype = torch.float32) -> M:
    """A model of `kind` from a diffusers folder, whole or in shards, for inference; strict as `check_part`.

    It is built without memory and takes the stored tensors one by one, so that no second set of weights ever exists; tensors
    stored in `dtype` and aligned stay in the mapped file until they are used. Parts that diffusers keeps in float32 stay so.
    Raises CheckpointError for a weight that is not finite.
    """
    model, files = check_part(kind, folder)
    exact = tuple(getattr(kind, "_keep_in_fp32_modules", None) or ())
    for file, names in files.items():
        with safe_open(file, "pt") as tensors:
            for name in names:
                target = torch.float32 if any(part in name.split(".") for part in exact) else dtype
                value = tensors.get_tensor(name)
                check_finite(value, f"the weight {name} of {file}", CheckpointError)
                _assign(model, name, aligned(value.to(target)))
    return cast(Any, model).eval().requires_grad_(False)


def _assign(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Put a tensor in the place of the empty parameter or buffer of this name."""
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    places: Any = owner._parameters if last in owner._parameters else owner._buffers
    places[last] = nn.Parameter(value, requires_grad=False) if places is owner._parameters else value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a part: one, or the shards of its index. Raises CheckpointError where one is missing."""
    if (folder / INDEX).is_file():
        return shard_files(folder / INDEX)
    if not (folder / FILE).is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        why = f"; {others[0]} is a pickle, and only safetensors are read" if others else ""
        raise CheckpointError(f"{folder} has no {FILE}{why}")
    return [folder / FILE]


def shard_files(index: Path) -> list[Path]:
    """The shards of an index, beside it. Raises CheckpointError where it is damaged or one of them is missing."""
    folder = index.parent
    try:
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged; it has no weight_map") from error
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names files outside its folder ({outside[0]})")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise CheckpointError(f"{folder} lacks {len(missing)} of {len(names)} shards ({', '.join(missing[:3])})")
    return [folder / name for name in names]


def read_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a safetensors file, by name. Raises CheckpointError where it is none."""
    try:
        with safe_open(file, "pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file ({error})") from error


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes that a model's state needs, by name."""
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def check_shapes(source: Path, got: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError that lists missing, extra and misshapen keys (the first few of each)."""
    faults = {
        "missing": [k for k in wanted if k not in got],
        "extra": [k for k in got if k not in wanted],
        "of another shape": [k for k in wanted if k in got and got[k] != wanted[k]],
    }
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for what, keys in faults.items() if keys
    ]
    if problems:
        raise CheckpointError(f"{source} does not match its configuration: {'; '.join(problems)}")


def pack(parts: dict[str, Path], preset: dict[str, Any], facts: dict[str, Any], out: Path) -> None:
    """Write a model folder in float16 from one folder of each part, with its defaults and facts beside.

    `parts` names transformer, vae and image_encoder. Where a part was loaded from, which diffusers notes in its config,
    is a path of this machine and stays behind. Raises OutputError where something is in `out` already.
    """
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with writing_folder(out) as scratch:
        for name, folder in parts.items():
            state = {key: value.half() for key, value in read_tensors(folder / FILE)[0].items()}
            config = read_config(folder / "config.json")
            config.pop("_name_or_path", None)
            (scratch / name).mkdir()
            save_tensors(state, scratch / name / FILE)
            write_json(scratch / name / "config.json", dict(sorted(config.items())), indent=2)
        write_json(scratch / "model_index.json", index_of(preset), indent=2)
        write_json(scratch / "facts.json", facts)


def weights_hash(*folders: Path) -> str:
    """SHA-256 over the contents of all weights and configurations in the folders of a model's parts, and in theirs.

    Measurements and metadata of the weights (magcache.json, facts.json) and diffusers' own index are no part of it.
    """
    return combined_hash((folder.name, folder_hash(folder, MADE_OF)) for folder in folders)
