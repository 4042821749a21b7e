"""Configurations and pickles that others made, bounded by what their files hold before anything of their size is allocated."""

import math
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.untrusted import is_file, parse_json

MAX_CONFIG_BYTES = 16 << 20  # bytes of a configuration
MAX_LAYERS = 1024
MAX_LIST = 1 << 20  # entries of a list, such as tokens that a configuration suppresses
MAX_NUMBER = 1 << 24  # sizes; Qwen's longest context is 2^20
SHORT = {  # of which tables and images are made at once
    "rope_max_seq_len": 1 << 14,
    "attention_head_dim": 1 << 12,
    "height": 1 << 13,
    "width": 1 << 13,
    "shortest_edge": 1 << 16,
}
LAYERS = re.compile(r"(^|_)(layers|depth|depths|blocks|heads|experts|stages)($|_)")
FREE = re.compile(r"theta|seed|_id$|_ids$|scale")  # numbers that are no sizes
COUNTS = re.compile(r"(^|_)(dim|channels|hidden_size|image_size|patch_size|vocab_size)$")  # with SHORT and LAYERS: never negative
CHOSEN = "feature"  # names of layers that are chosen by number, from the end where it is negative
SPARE = 64 << 20  # bytes that a model may have beside its stored weights
WIDEN = 8  # float8 to float64


def read_config(file: Path) -> dict[str, Any]:
    """A configuration. Raises CheckpointError where it is none, or holds a number that no model of its kind has."""
    try:
        if not file.is_file():
            raise ValueError("not a file")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError(f"it must have at most {MAX_CONFIG_BYTES:,} bytes (got {file.stat().st_size:,})")
        values = parse_json(file.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        for name, value in [] if file.name.startswith("tokenizer") else _numbers(values, ""):  # 1e30 there: no limit
            _check_number(name, value)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is not a valid configuration ({error})") from error
    return values


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """(name, value) of all numbers of a configuration, and the lengths of its lists."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _numbers(each, str(key))
    elif isinstance(value, list):
        if len(value) > MAX_LIST:
            raise ValueError(f"{name} must have at most {MAX_LIST:,} entries (got {len(value):,})")
        for each in value:
            yield from _numbers(each, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _check_number(name: str, value: float) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{name} is not finite")
        return
    if value < 0 and CHOSEN not in name and (name in SHORT or LAYERS.search(name) or COUNTS.search(name)):
        raise ValueError(f"{name} must be at least 0 (got {value})")
    maximum = SHORT.get(name) or (MAX_LAYERS if LAYERS.search(name) else 2**63 - 1 if FREE.search(name) else MAX_NUMBER)
    if abs(value) > maximum:
        raise ValueError(f"{name} must be at most {maximum:,} (got {'a very large number' if abs(value) > 2**63 else value})")


def check_layers(config: dict[str, Any], tensors: int, file: Path) -> None:
    """Raise CheckpointError where a configuration asks for more layers than the weights have tensors: each has one at least."""
    layers = [abs(value) for name, value in _numbers(config, "") if LAYERS.search(name) and "heads" not in name and value]
    lists = [len(value) for value in config.values() if isinstance(value, list)]
    asked = max([1, *layers]) * max([1, *lists]) if lists and layers else max([1, *layers, *lists])
    if asked > max(4096, 64 * tensors):
        raise CheckpointError(f"{file} specifies {asked:,.0f} layers, but the weights have {tensors} tensors")


@contextmanager
def loading(folder: Path, what: str, build: Callable[[Path], nn.Module] | None = None) -> Iterator[None]:
    """Around what loads a folder in transformers' layout. Raises CheckpointError where it is no `what`, or costs too much.

    `build` makes its model of the folder's configuration; it is called for a device that holds nothing.
    """
    try:
        _check_folder(folder, build)
        yield
    except CheckpointError:
        raise
    except Exception as error:  # what odd files make transformers raise has no base of its own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CheckpointError(f"{folder} is not a valid {what}: {reason}") from error


def _check_folder(folder: Path, build: Callable[[Path], nn.Module] | None) -> None:
    """Raise CheckpointError for a folder that would cost more than its files hold."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a folder")
    for path in folder.iterdir():
        if not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path} is neither a file nor a folder")
        if path.name.endswith("config.json"):
            read_config(path)
    if build is None or not (folder / "config.json").is_file():
        return
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with torch.device("meta"):
        needed = sum(each.numel() for each in build(folder).parameters())
    if needed > WIDEN * stored + SPARE:
        raise CheckpointError(
            f"{folder / 'config.json'} specifies {needed:,} weights, but the weight files have {stored:,} bytes"
        )


def check_archive(file: Path) -> None:
    """Raise CheckpointError for a .pth whose parts are compressed, which torch's are not: kilobytes could become any size."""
    if not is_file(file):
        raise CheckpointError(f"{file} is not a file")
    try:
        with zipfile.ZipFile(file) as archive:
            if packed := next((e for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED), None):
                raise CheckpointError(
                    f"{file} contains compressed data ({packed.filename[:80]!r}); PyTorch files are uncompressed"
                )
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{file} is truncated, in PyTorch's legacy format, or not a plain state dict ({error})") from error


def check_storage(value: torch.Tensor, name: str, file: Path) -> None:
    """Raise CheckpointError for a tensor that is larger than what is stored of it, by repeating it."""
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{file} stores less data than the shape {tuple(value.shape)} of {name} needs")
