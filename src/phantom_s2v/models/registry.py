"""Models by name, by folder or of a hub, and their defaults. No torch."""

import re
from pathlib import Path
from typing import Any

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.hashes import cache_folder
from phantom_s2v.files.untrusted import parse_json, read_small, typed
from phantom_s2v.models.base import Preset, VideoModel
from phantom_s2v.models.phantom.spec import PhantomModel
from phantom_s2v.models.wan.spec import WanModel

INDEX = "model_index.json"
MODELS = {"phantom-mini": Path(__file__).parents[1] / "weights" / "phantom-mini"}
FAMILIES: list[VideoModel] = [PhantomModel(), WanModel()]  # a new base model is one line here, or `register`
HUB_FILES = ("*.json", "*.safetensors", "*.pth", "*.model", "*.jinja", "*.txt")  # weights, tokenizers, chat templates
FETCHED = ("phantom-wan-1.3b", "phantom-wan-14b")  # by `phantom models fetch`


def register(model: VideoModel) -> None:
    """Add a base model, whose transformer's class names no other has."""
    FAMILIES.append(model)


def video_model(folder: Path) -> VideoModel:
    """The base model of a folder, by the class name of its transformer. Raises CheckpointError where it is none of ours."""
    if (folder / "transformer_2").exists():
        raise CheckpointError(f"{folder} holds two transformers, as Wan2.2 has; a model must have one")
    file = folder / "transformer" / "config.json"
    name = _read(folder, file).get("_class_name")
    for model in FAMILIES:
        if name in model.transformers:
            return model
    known = ", ".join(kind for model in FAMILIES for kind in model.transformers)
    raise CheckpointError(f"the class in {file} must be one of {known} (got {str(name)[:80]})")


def load_preset(folder: Path) -> Preset:
    """Defaults and limits of the model in `folder`: those in its index, or its base model's own. Raises CheckpointError."""
    index = _read(folder, folder / INDEX) if (folder / INDEX).exists() else {}
    config = _read(folder, folder / "transformer" / "config.json")
    try:
        return typed(Preset, index["preset"], "the preset") if "preset" in index else video_model(folder).preset(config)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is not a model folder: {error}") from error


def _read(folder: Path, file: Path) -> dict[str, Any]:
    try:
        values = parse_json(read_small(file))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} is not a model folder; it needs a readable {file.relative_to(folder)} ({error})"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder} is not a model folder; {file.relative_to(folder)} is not a JSON object")
    return values


def model_folder(name: str) -> Path:
    """Folder of a model by its name, by its path, or by the name OWNER/MODEL of a hub's repository, which is then fetched.

    Raises CheckpointError where there is none.
    """
    folder = MODELS.get(name) or source_path(name)
    if name in FETCHED and not folder.is_dir():
        folder = fetched_folder(name)
        if not folder.is_dir():
            raise CheckpointError(
                f"the weights of {name} are not here; run phantom models fetch {name}, or give the folder that has them"
            )
    if folder.is_dir():
        return folder
    raise CheckpointError(f"model must be {', '.join(MODELS)}, a model folder, or OWNER/MODEL on a hub (got {name!r})")


def fetched_folder(name: str) -> Path:
    """Where `phantom models fetch` puts a model, under the user's cache."""
    return cache_folder() / "models" / name


def source_path(name: str) -> Path:
    """A file or folder as it is named, or else a repository of the hub."""
    return hub_folder(name) if not Path(name).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else Path(name)


def hub_folder(name: str) -> Path:
    """A repository of the hub in the user's cache, fetched if it is not there. Raises CheckpointError if it cannot be had."""
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except GatedRepoError as error:
        raise CheckpointError(f"{name} is gated: accept its license on the hub, and log in with hf auth login") from error
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(f"{name} is not a folder, and no such repository can be downloaded from the hub") from error
