"""Weight files as streams: names and shapes first, then the bytes of one tensor at a time, and safetensors written so.

The safetensors package reads lazily but writes whole files from memory; a 14B model in float32 is 56 GB, so files are
written here: eight bytes of length, a JSON header, the tensors one after the other.

Tensors of a file are mapped, and matrix products in MKL have other last bits where float32 weights lie at 8 mod 16. So what is
written here is aligned to multiples of 64 bytes, as torch's own memory does, and what a foreign file puts elsewhere is copied.
"""

import gc
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.io import write_json, writing
from phantom_s2v.files.untrusted import parse_json
from phantom_s2v.models.bounds import check_archive, check_storage

FILE = "diffusion_pytorch_model.safetensors"  # of a part of a model, as diffusers names it
WIDTH = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
TORCH = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
FLOAT8 = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}
FLOATS = ("F64", "F32", "F16", "BF16", *FLOAT8)
SCALES = (".scale_weight", ".weight_scale")  # beside a float8 weight: ComfyUI until 2025, and since
UNUSED = (".scale_input", ".input_scale", "scaled_fp8")  # for products in float8
QUANT = ".comfy_quant"  # JSON that names the format of a layer, ComfyUI since 2025
EXPONENT = {"F64": 0x7FF0_0000_0000_0000, "F32": 0x7F80_0000, "F16": 0x7C00, "BF16": 0x7F80}  # all of its bits
CHUNK = 16 << 20  # bytes read at once
REOPEN = 128 << 20  # bytes read from a mapped pickle before its pages are given back
ALIGNMENT = 64  # bytes

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Entry:
    """Where a tensor is: file, stored type, shape, and its first byte in a safetensors file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = -1


class Tensors:
    """Tensors of one or many weight files by name, safetensors or pickles (weights_only).

    Tensors in float8 are given out in bfloat16, times their scale where the file has one: one for all of a weight, or one a row.
    Raises CheckpointError for a file that is truncated, no weight file, or whose header does not agree with its length, and for
    weights that are quantized in another way.
    """

    def __init__(self, files: list[Path]) -> None:
        self.path = files[0] if len(files) == 1 else files[0].parent
        self.entries: dict[str, Entry] = {}
        for file in files:
            entries = _entries(file)
            if twice := sorted(set(entries) & set(self.entries)):
                raise CheckpointError(f"{file} repeats {len(twice)} tensors of another shard ({', '.join(twice[:3])})")
            self.entries |= entries
        self.mapped: tuple[Path, dict[str, torch.Tensor]] | None = None
        self.used = 0
        self.scales = {f"{k[: -len(end)]}.weight": k for k in self.entries for end in SCALES if k.endswith(end)}
        self.hidden = set(self.scales.values()) | {k for k in self.entries if k.endswith((*UNUSED, QUANT))}
        self._check_stored()

    def without_prefixes(self, prefixes: tuple[str, ...]) -> "Tensors":
        """The same tensors under names without the prefix that community files have."""
        for prefix in prefixes:
            if self.entries and all(name.startswith(prefix) or name in self.hidden for name in self.entries):
                self.entries = {name.removeprefix(prefix): entry for name, entry in self.entries.items()}
                self.scales = {k.removeprefix(prefix): v.removeprefix(prefix) for k, v in self.scales.items()}
                self.hidden = {name.removeprefix(prefix) for name in self.hidden}
        return self

    def names(self) -> list[str]:
        """Names of the tensors, without the scales of float8."""
        return [name for name in self.entries if name not in self.hidden]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self.entries[name].shape

    def stored(self, name: str) -> str:
        """Type in which a tensor is given out, in safetensors' words."""
        dtype = self.entries[name].dtype
        return "BF16" if dtype in FLOAT8 else dtype

    def read(self, name: str) -> Iterator[memoryview]:
        """The bytes of a tensor in parts."""
        entry = self.entries[name]
        if entry.dtype not in FLOAT8:
            yield from self._raw(entry)
            return
        raw = self._whole(entry).view(FLOAT8[entry.dtype]).reshape(entry.shape)
        scale: Any = 1.0
        if name in self.scales:
            held = self.entries[self.scales[name]]
            kind = next(k for k, v in TORCH.items() if v == held.dtype)
            scale = self._whole(held).view(kind).float().reshape(-1, *[1] * (len(entry.shape) - 1))
        value = (raw.float() * scale).bfloat16()
        yield value.view(torch.uint8).numpy().data

    def read_finite(self, name: str) -> Iterator[memoryview]:
        """The same bytes. Raises CheckpointError for a tensor that is not finite: in its bits the exponent is all ones."""
        dtype = self.stored(name)
        for part in self.read(name):
            if dtype in EXPONENT:
                bits = np.frombuffer(part, f"u{WIDTH[dtype]}")
                if ((bits & EXPONENT[dtype]) == EXPONENT[dtype]).any():
                    raise CheckpointError(
                        f"the weight {name} of {self.entries[name].file} is not finite; it holds NaN or infinity"
                    )
            yield part

    def _check_stored(self) -> None:
        """Raise CheckpointError for a weight that `read` would give out with other values than were meant."""
        for name, entry in self.entries.items():
            if name.endswith(QUANT):
                self._check_format(name, entry)
            elif name not in self.hidden and entry.dtype not in FLOATS:
                raise CheckpointError(
                    f"{entry.file} holds {name} as {entry.dtype}; weights must be in floating point, and of quantized ones only "
                    "float8 with one scale a weight or a row is read"
                )
        for name, scale in self.scales.items():
            entry, held = self.entries.get(name), self.entries[scale]
            if entry is None or entry.dtype not in FLOAT8 or held.dtype not in FLOATS[:4]:
                kind = "there is none" if entry is None else f"it is {entry.dtype}"
                raise CheckpointError(f"{held.file} has {scale} ({held.dtype}) for the weight {name}, but {kind}, not float8")
            rows = entry.shape[:1]
            if math.prod(held.shape) != 1 and held.shape not in (rows, (*rows, *[1] * (len(entry.shape) - 1))):
                raise CheckpointError(
                    f"{held.file} has scales of shape {held.shape} for {name}, which is {entry.shape}; "
                    "a weight must have one scale, or one a row"
                )

    def _check_format(self, name: str, entry: Entry) -> None:
        try:
            kind = parse_json(bytes(self._whole(entry).numpy()))["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{entry.file} has a damaged {name} ({error})") from error
        if kind not in ("float8_e4m3fn", "float8_e5m2"):
            raise CheckpointError(
                f"{entry.file} is quantized as {str(kind)[:40]!r} ({name}); only float8_e4m3fn and float8_e5m2 are read"
            )

    def _whole(self, entry: Entry) -> torch.Tensor:
        """The bytes of a tensor."""
        content = bytearray(b"".join(self._raw(entry)))
        return torch.frombuffer(content, dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)

    def _raw(self, entry: Entry) -> Iterator[memoryview]:
        yield from self._from_pickle(entry) if entry.start < 0 else _stored(entry)

    def _from_pickle(self, entry: Entry) -> Iterator[memoryview]:
        if self.mapped is None or self.mapped[0] != entry.file or self.used > REOPEN:
            self.mapped = None
            gc.collect()  # unmaps the file, so that its pages no longer count as memory
            self.mapped, self.used = (entry.file, _load_pickle(entry.file)), 0
        flat = _bytes(self.mapped[1][entry.name])
        self.used += flat.nbytes
        for start in range(0, flat.nbytes, CHUNK):
            yield flat[start : start + CHUNK]


def _entries(file: Path) -> dict[str, Entry]:
    if file.suffix != ".safetensors":
        entries = {}
        for name, value in _load_pickle(file).items():
            if not value.is_floating_point() or value.dtype not in TORCH:
                raise CheckpointError(f"weights must be floating point (got {value.dtype} for {name} in {file})")
            entries[name] = Entry(file, name, TORCH[value.dtype], tuple(value.shape))
        return entries
    try:
        with safe_open(file, "pt"):  # checks that header and length agree
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = parse_json(opened.read(length))
    except (SafetensorError, OSError, ValueError, OverflowError, MemoryError) as error:
        raise CheckpointError(f"{file} is truncated or not a safetensors file ({error})") from error
    header.pop("__metadata__", None)
    if odd := sorted({v["dtype"] for v in header.values()} - set(WIDTH)):
        raise CheckpointError(f"tensor types must be {', '.join(WIDTH)} (got {', '.join(odd)} in {file})")
    return {
        name: Entry(file, name, v["dtype"], tuple(v["shape"]), 8 + length + v["data_offsets"][0]) for name, v in header.items()
    }


def _stored(entry: Entry) -> Iterator[memoryview]:
    """The bytes of a tensor of a safetensors file, in parts."""
    left = math.prod(entry.shape) * WIDTH[entry.dtype]
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        while left:
            part = file.read(min(CHUNK, left))
            if not part:
                raise CheckpointError(f"{entry.file} ends within {entry.name}; it is truncated")
            left -= len(part)
            yield memoryview(part)


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    """A state dict out of a .pth, mapped and not read, by weights_only: nothing in it is executed."""
    check_archive(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # what an odd pickle raises has no base of its own
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{file} is truncated, in PyTorch's legacy format, or not a plain state dict ({why[:200]})"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise CheckpointError(f"{file} is not a state dict (a mapping of names to tensors)")
    for name, value in state.items():
        check_storage(value, name, file)
    return state


def aligned(value: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it where it does not lie at a multiple of 64 bytes."""
    return value.clone() if value.data_ptr() % ALIGNMENT else value


def align(model: M) -> M:
    """The model, whose parameters and buffers now lie at multiples of 64 bytes: after a library has mapped them from a file."""
    for tensor in (*model.parameters(), *model.buffers()):
        if type(tensor.data) is torch.Tensor:  # quantized and distributed ones are no plain memory
            tensor.data = aligned(tensor.data)
    return model


def read_tensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, aligned, and metadata of a safetensors file. Raises SafetensorError or OSError where it cannot be read."""
    with safe_open(file, "pt") as opened:
        return {name: aligned(opened.get_tensor(name)) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118


def save_tensors(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors, of any device and strides, to a safetensors file."""
    entries = [(name, TORCH[value.dtype], tuple(value.shape)) for name, value in tensors.items()]

    def read(name: str) -> Iterator[memoryview]:
        yield _bytes(tensors[name].detach().cpu())

    _write_file(file, entries, read, lambda done: None, metadata)


def save_part(model: Any, folder: Path) -> None:
    """Save a model of diffusers or transformers by its own save_pretrained, with its tensors at multiples of 64 bytes.

    Each file is written whole or not at all, the configuration last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        model.save_pretrained(scratch)
        for file in sorted(Path(scratch).iterdir(), key=lambda file: file.suffix == ".json"):
            _take_over(file, folder / file.name)


def _take_over(file: Path, target: Path) -> None:
    """Write `target` with the content of `file`, a safetensors file with its tensors aligned."""
    if file.suffix != ".safetensors":
        with writing(target) as opened:
            opened.write(file.read_bytes())
        return
    entries = _entries(file)
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
    order = [(name, entry.dtype, entry.shape) for name, entry in entries.items()]
    _write_file(target, order, lambda name: _stored(entries[name]), lambda done: None, metadata)


def _bytes(value: torch.Tensor) -> memoryview:
    flat = value.contiguous().flatten()
    return (flat.view(torch.uint8) if flat.numel() else flat.byte()).numpy().data


def write_sharded(
    folder: Path,
    name: str,
    entries: list[tuple[str, str, tuple[int, ...]]],
    read: Callable[[str], Iterator[memoryview]],
    shard_bytes: int,
    report: Callable[[int, int], None],
) -> dict[str, str]:
    """Write tensors (name, stored type, shape) to one file `name`, or to shards with an index as diffusers names them.

    Returns SHA-256 by file name. `report` gets the bytes done and in total.
    """
    sizes = {entry[0]: _size(entry) for entry in entries}
    shards: list[list[tuple[str, str, tuple[int, ...]]]] = [[]]
    for entry in entries:
        if shards[-1] and sum(sizes[e[0]] for e in shards[-1]) + sizes[entry[0]] > shard_bytes:
            shards.append([])
        shards[-1].append(entry)
    stem = name.removesuffix(".safetensors")
    files = (
        [name] if len(shards) == 1 else [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    )
    total, done, hashes = sum(sizes.values()), 0, {}
    for file, shard in zip(files, shards, strict=True):
        before = done

        def report_shard(written: int, before: int = before) -> None:
            report(before + written, total)

        hashes[file] = _write_file(folder / file, shard, read, report_shard)
        done += sum(sizes[e[0]] for e in shard)
    if len(shards) > 1:
        where = {entry[0]: file for file, shard in zip(files, shards, strict=True) for entry in shard}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(folder / f"{name}.index.json", index)
    return hashes


def _write_file(
    path: Path,
    entries: list[tuple[str, str, tuple[int, ...]]],
    read: Callable[[str], Iterator[memoryview]],
    report: Callable[[int], None],
    metadata: dict[str, str] | None = None,
) -> str:
    """Write one file and return its SHA-256.

    The format has no room between tensors, so those whose size is no multiple of 64 bytes, small ones, come last.
    """
    header: dict[str, Any] = {"__metadata__": metadata or {"format": "pt"}}
    sizes, end = {entry[0]: _size(entry) for entry in entries}, 0
    entries = sorted(entries, key=lambda entry: sizes[entry[0]] % ALIGNMENT > 0)
    for key, dtype, shape in entries:
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + sizes[key]]}
        end += sizes[key]
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    digest, written = hashlib.sha256(), 0
    with writing(path) as file:
        for part in (len(text).to_bytes(8, "little"), text):
            file.write(part)
            digest.update(part)
        for key, _, _ in entries:
            count = 0
            for piece in read(key):
                file.write(piece)
                digest.update(piece)
                count += piece.nbytes
                report(written + count)
            if count != sizes[key]:
                raise CheckpointError(f"{key} gave {count} bytes; its type and shape need {sizes[key]}")
            written += count
    return digest.hexdigest()


def _size(entry: tuple[str, str, tuple[int, ...]]) -> int:
    """Bytes of a tensor (name, stored type, shape)."""
    return math.prod(entry[2]) * WIDTH[entry[1]]
