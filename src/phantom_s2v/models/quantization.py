"""Whether a way to quantize weights can work here: asked before anything loads, since a 14B model loads for minutes."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

from phantom_s2v.errors import InputError, not_installed

PACKAGES = ("torchao", "gguf", "bitsandbytes")
ONLY_CUDA = ("bitsandbytes",)


def check_method(method: str) -> None:
    """Raise InputError where the package of a method, in diffusers' words, is missing here, or the GPU that it needs."""
    package = method.removesuffix("_4bit").removesuffix("_8bit")
    if package not in PACKAGES:
        return
    if package in ONLY_CUDA and not torch.cuda.is_available():
        raise InputError(f"quantization by {package} needs a CUDA GPU, and there is none here; quantization int8 needs none")
    if find_spec(package) is None:
        raise InputError(not_installed(package))


def check_config(config: Any) -> None:
    """Raise InputError, as `check_method` does, for a quantization_config of diffusers: of a model or of a pipeline."""
    for method in _methods(config):
        check_method(str(getattr(method, "value", method)))


def _methods(config: Any) -> Iterator[Any]:
    if config is None:
        return
    if (own := getattr(config, "quant_method", None)) is not None:
        yield own
    if backend := getattr(config, "quant_backend", None):  # PipelineQuantizationConfig: one for all parts, or one a part
        yield backend
    for part in (getattr(config, "quant_mapping", None) or {}).values():
        yield from _methods(part)
