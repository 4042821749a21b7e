"""Transformers in GGUF: weights that stay quantized in memory and are widened layer by layer, by diffusers' own reader."""

from pathlib import Path
from typing import Any

import torch
from diffusers import GGUFQuantizationConfig, WanTransformer3DModel

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.bounds import read_config
from phantom_s2v.models.finite import check_weights
from phantom_s2v.models.quantization import check_method
from phantom_s2v.models.wan.convert import renamed_transformer
from phantom_s2v.models.wan.spec import WanModel
from phantom_s2v.models.weights import check_shapes, shapes_of

PREFIXES = ("model.diffusion_model.", "diffusion_model.")


def load_gguf(file: Path, config_folder: Path, dtype: torch.dtype) -> WanTransformer3DModel:
    """The transformer in a .gguf, native or diffusers' names, whose configuration is `config_folder`/config.json.

    Products are computed in `dtype`. Raises InputError and CheckpointError as `check_gguf` does.
    """
    check_gguf(file, config_folder)
    try:
        model: Any = WanTransformer3DModel.from_single_file(
            str(file),
            config=str(config_folder),
            quantization_config=GGUFQuantizationConfig(compute_dtype=dtype),
            torch_dtype=dtype,
            local_files_only=True,
        )
    except Exception as error:  # what an odd file makes diffusers raise has no base of its own
        raise CheckpointError(f"{file} cannot be loaded as GGUF: {(str(error).splitlines() or ['?'])[0]}") from error
    check_weights(model, str(file)).eval().requires_grad_(False)
    return model


def check_gguf(file: Path, config_folder: Path) -> None:
    """Raise InputError without the package gguf, and CheckpointError where the file is damaged, is quantized in a way that
    diffusers does not read, or does not fit the configuration: every key is accounted for. No tensor is read.
    """
    if file.suffix != ".gguf" or not file.is_file():
        raise CheckpointError(f"{file} is not a GGUF file; it must be an existing .gguf")
    check_method("gguf")
    config = read_config(config_folder / "config.json")
    WanModel().preset(config)  # refuses what is no transformer of Phantom-Wan
    _check(file, {name: value for name, value in config.items() if not name.startswith("_")})


def _check(file: Path, config: dict[str, Any]) -> None:
    """Raise CheckpointError where names, shapes or kinds of the tensors are not what is needed; no tensor is read."""
    import gguf
    from accelerate import init_empty_weights
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES

    try:
        tensors = gguf.GGUFReader(file).tensors
    except Exception as error:  # struct, numpy and the package each have their own
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{file} is truncated or not GGUF ({why})") from error
    kinds = gguf.GGMLQuantizationType
    odd = {t.tensor_type.name for t in tensors if t.tensor_type not in {kinds.F32, kinds.F16, *SUPPORTED_GGUF_QUANT_TYPES}}
    if odd:
        known = ", ".join(sorted(kind.name for kind in SUPPORTED_GGUF_QUANT_TYPES))
        raise CheckpointError(f"{file} is quantized as {', '.join(sorted(odd))}; it must be F32, F16, {known}")
    got = {}
    for tensor in tensors:
        name = next((tensor.name.removeprefix(p) for p in PREFIXES if tensor.name.startswith(p)), tensor.name)
        got[name] = tuple(int(size) for size in reversed(tensor.shape))
    with init_empty_weights(include_buffers=False):
        wanted = shapes_of(WanTransformer3DModel(**config))
    check_shapes(file, {new: got[old] for new, old in renamed_transformer(got).items()}, wanted)
