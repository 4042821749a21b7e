"""phantom-s2v: an open system for subject-to-video generation. Names load on first use; importing loads no torch."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "InputError": "errors",
    "OutputError": "errors",
    "PhantomError": "errors",
    "Models": "generate",
    "Output": "generate",
    "PhantomPipeline": "pipeline",
    "PhantomTransformer": "model.transformer",
    "Placement": "model.placement",
    "Reference": "request",
    "Request": "request",
    "load_models": "generate",
    "model_folder": "presets",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
