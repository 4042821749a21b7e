"""Loading of a model folder as the pipeline that its model_index.json names, checked first and strictly."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from phantom_s2v.errors import CheckpointError, InputError, PhantomError
from phantom_s2v.files.untrusted import parse_json, read_small
from phantom_s2v.models.finite import check_weights
from phantom_s2v.models.memory import Placement, place, split_dtypes
from phantom_s2v.models.phantom.encoders import text_encoder_folder
from phantom_s2v.models.quantization import check_config
from phantom_s2v.models.registry import FAMILIES, INDEX, load_preset, model_folder, video_model
from phantom_s2v.models.tensors import align
from phantom_s2v.models.wan.gguf import check_gguf, load_gguf
from phantom_s2v.models.wan.lora import read_lora
from phantom_s2v.models.wan.step_cache import read_ratios
from phantom_s2v.models.weights import check_part, weights_hash
from phantom_s2v.pipeline.inputs import refuse_wan22

LIBRARIES = ("diffusers", "transformers", "phantom_s2v")  # that an index may name, beside those of registered models


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a model folder. Raises CheckpointError where it is missing, damaged, or names what is not ours."""
    file = folder / INDEX
    try:
        index = parse_json(read_small(file))
        libraries = [value[0] for value in index.values() if isinstance(value, list) and value]
        name = index.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder} is not a model folder; it needs a readable {INDEX} ({error})") from error
    if name not in (known := [model.pipeline.rpartition(":")[2] for model in FAMILIES]):
        raise CheckpointError(f"the pipeline in {file} must be {' or '.join(known)} (got {str(name)[:80]!r})")
    allowed = dict.fromkeys([*LIBRARIES, *(re.split(r"[.:]", model.pipeline)[0] for model in FAMILIES)])
    if odd := [each for each in libraries if each is not None and str(each).split(".")[0] not in allowed]:
        raise CheckpointError(f"the library in {file} must be one of {', '.join(allowed)} (got {str(odd[0])[:80]!r})")
    return index


def check_models(folder: Path, without: tuple[str, ...] = ()) -> None:
    """Raise CheckpointError for weights that cannot be loaded, without reading them; parts in `without` are not looked at."""
    read_index(folder)
    load_preset(folder)
    model = video_model(folder)
    model.check_folder(folder, without)
    for part, kind in model.parts().items():
        if part not in without:
            check_part(kind, folder / part)


def load_pipeline(cls: Any, model: str | Path, **kwargs: Any) -> Any:
    """A pipeline of ours with DiffusionPipeline's own loading; see PhantomPipeline.from_pretrained."""
    check_config(kwargs.get("quantization_config"))
    refuse_wan22(kwargs)
    folder = model_folder(str(model))
    index = read_index(folder)
    module, _, name = video_model(folder).pipeline.partition(":")
    kind = getattr(import_module(module), name)
    if not issubclass(kind, cls):
        raise CheckpointError(f"{folder} holds a {kind.__name__}, not a {cls.__name__}")
    check_models(folder, tuple(part for part in kwargs if part in index))
    usual: dict[str, Any] = {} if "torch_dtype" in kwargs else {"dtype": torch.float32}
    kwargs = {**usual, "use_safetensors": True, "local_files_only": True} | kwargs
    with _one_sentence(folder):
        if "tokenizer" not in kwargs and (folder / "tokenizer").is_dir():  # whatever its class: the index can name only one
            kwargs["tokenizer"] = AutoTokenizer.from_pretrained(
                folder / "tokenizer", local_files_only=True, trust_remote_code=False
            )
        pipe = DiffusionPipeline.from_pretrained.__func__(kind, str(folder), **kwargs)  # type: ignore[attr-defined]
    for part, module in pipe.components.items():
        if isinstance(module, nn.Module) and part not in kwargs and not getattr(module, "hf_quantizer", None):
            check_weights(align(module), str(folder / part)).eval().requires_grad_(False)
    return pipe


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """What odd files make diffusers and transformers raise has no base of its own."""
    try:
        yield
    except (PhantomError, NotImplementedError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{folder} cannot be loaded: {reason}") from error


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the bars of diffusers and transformers while they load."""
    shown = [logging for logging in (diffusers_logging, transformers_logging) if logging.is_progress_bar_enabled()]
    for logging in shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        for logging in shown:
            logging.enable_progress_bar()


def model_hash(folder: Path) -> str:
    """SHA-256 over the contents of everything that is loaded of a model, the packaged text encoder among it."""
    own = [folder / part for part in video_model(folder).parts()]
    more = [folder / "text_encoder", folder / "tokenizer"]
    return weights_hash(*own, *(more if (folder / "text_encoder").is_dir() else [text_encoder_folder()]))


def check_placed(folder: Path, placement: Placement, calibrate_magcache: bool = False) -> list[float] | None:
    """MagCache's ratios where it needs them. Raises InputError and CheckpointError for packages and files that `placement` needs
    and that cannot be used with this model: before gigabytes are loaded.
    """
    placement.check_installed()
    if placement.transformer:
        check_gguf(Path(placement.transformer), folder / "transformer")
    elif placement.loras:
        empty, _ = check_part(video_model(folder).parts()["transformer"], folder / "transformer")
        for file, _ in placement.loras:
            read_lora(Path(file), empty)
    if placement.cache != "magcache" or calibrate_magcache:
        return None
    return read_ratios(folder, model_hash(folder))


def pipeline_of(transformer: Any) -> Any:
    """The class of our pipelines for a transformer. Raises InputError where there is none."""
    names = [kind.__name__ for kind in type(transformer).__mro__]
    found = next((model for model in FAMILIES if set(names) & set(model.transformers)), None)
    if found is None:
        raise InputError(f"there is no pipeline for a transformer of class {names[0]}")
    module, _, name = found.pipeline.partition(":")
    return getattr(import_module(module), name)


def load_models(folder: Path, placement: Placement | None = None, calibrate_magcache: bool = False, **parts: Any) -> Any:
    """The pipeline of a model folder, placed as `placement` says, with the hash of its weights; `parts` replace the folder's.

    For commands, which have progress bars of their own: its bars are off.

    If `calibrate_magcache`, MagCache measures its ratios instead of reading them. Raises CheckpointError.
    """
    from phantom_s2v.pipeline.phantom_pipeline import PhantomPipeline

    placement = placement or Placement()
    ratios = check_placed(folder, placement, calibrate_magcache)
    weights = model_hash(folder)
    if placement.transformer:
        parts["transformer"] = load_gguf(Path(placement.transformer), folder / "transformer", placement.torch_dtype())
    with no_bars():
        pipe = PhantomPipeline.from_pretrained(folder, dtype=split_dtypes(placement), **parts)
    pipe.set_progress_bar_config(disable=True)
    pipe.weights, pipe.placement = weights, placement
    pipe.step_cache = place(pipe, placement, ratios)
    return pipe
