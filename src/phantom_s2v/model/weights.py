"""Loading of weights: strictly, safetensors only, with one sentence where they do not fit."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from phantom_s2v.errors import CheckpointError

M = TypeVar("M", bound=ModelMixin)
FILE = "diffusion_pytorch_model.safetensors"


def load_part(kind: type[M], folder: Path) -> M:
    """A model of `kind` from a diffusers folder, in float32, for inference.

    Raises CheckpointError where config or weights are missing, truncated, a pickle, or of another shape.
    """
    config, file = folder / "config.json", folder / FILE
    if not file.is_file():
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        why = f"; {others[0]} is a pickle, and only safetensors are read" if others else ""
        raise CheckpointError(f"{folder} has no {FILE}{why}")
    try:
        values = {k: v for k, v in json.loads(config.read_text()).items() if not k.startswith("_")}
        model: Any = kind(**values)
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{config} is no configuration of {kind.__name__}: {error}") from error
    try:
        with safe_open(file, "pt") as tensors:
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file ({error})") from error
    check_state(file, state, model.state_dict())
    model.load_state_dict({key: value.float() for key, value in state.items()})
    return model.eval().requires_grad_(False)


def check_state(file: Path, state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    """Raise CheckpointError that lists missing, extra and misshapen keys (the first few of each)."""
    faults = {
        "missing": [k for k in wanted if k not in state],
        "extra": [k for k in state if k not in wanted],
        "of another shape": [k for k in wanted if k in state and state[k].shape != wanted[k].shape],
    }
    said = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})" for what, keys in faults.items() if keys
    ]
    if said:
        raise CheckpointError(f"{file} does not fit its configuration: {'; '.join(said)}")


def pack(parts: dict[str, Path], preset: dict[str, Any], facts: dict[str, Any], out: Path) -> None:
    """Write a model folder in float16 from one folder of each part, with its defaults and facts beside.

    `parts` names transformer, autoencoder and image_encoder; a part may be its own place in `out` already.
    """
    for name, folder in parts.items():
        state = {key: value.half() for key, value in load_file(folder / FILE).items()}
        config = (folder / "config.json").read_text()
        (out / name).mkdir(parents=True, exist_ok=True)
        save_file(state, out / name / FILE)
        (out / name / "config.json").write_text(config)
    (out / "preset.json").write_text(json.dumps(preset, indent=1) + "\n")
    (out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")


def weights_hash(folder: Path) -> str:
    """SHA-256 over the weight files of a model folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
