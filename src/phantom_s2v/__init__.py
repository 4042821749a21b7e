"""phantom-s2v: an open system for subject-to-video generation. Names load on first use; importing loads no torch."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("phantom-s2v")
except PackageNotFoundError:  # run from the source tree alone
    __version__ = "0+source"

_HOMES = {
    "CheckpointError": "errors",
    "DataError": "errors",
    "InputError": "errors",
    "OutputError": "errors",
    "PhantomError": "errors",
    "Output": "pipeline.generate",
    "PhantomMMDiTPipeline": "pipeline.mmdit_pipeline",
    "PhantomPipeline": "pipeline.phantom_pipeline",
    "PhantomPipelineOutput": "pipeline.phantom_pipeline",
    "PhantomWanPipeline": "pipeline.wan_pipeline",
    "PhantomTransformer": "models.phantom.transformer",
    "Placement": "models.memory",
    "Reference": "pipeline.request",
    "Request": "pipeline.request",
    "model_folder": "models.registry",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
