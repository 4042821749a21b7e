"""The metadata of a video: everything that made it, as JSON, and what has changed since."""

import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from phantom_s2v import __version__
from phantom_s2v.errors import InputError
from phantom_s2v.files.hashes import MADE_OF, content_hash, folder_hash
from phantom_s2v.files.reuse import Origin, code_version
from phantom_s2v.files.untrusted import is_file, typed, without_credentials
from phantom_s2v.models.wan.lora import lora_files
from phantom_s2v.pipeline.request import Request

FILES = ("references", "background", "first_frame", "segmenter")  # of a request: they count by content
PASSING = ("untrained_size", "several_views", "asked_prompt")
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS")
WHERE = ("device", "offload", "text_on_cpu", "parallel", "loras", "transformer")  # of a placement; LoRAs count by content


def build_metadata(request: Request, model: str, weights: str, placement: dict[str, Any]) -> dict[str, Any]:
    """Everything that made a video: request, weights by hash, how they were held, files by hash, versions."""
    files = [r.path for r in request.images()] + ([request.first_frame] if request.first_frame else [])
    files += [str(each) for file, _ in placement.get("loras", ()) for each in lora_files(Path(file))]
    files += [placement["transformer"]] if placement.get("transformer") else []
    return {
        "request": asdict(request),
        "model": model,
        "weights": weights,
        "placement": placement,
        "files": {path: content_hash(Path(path)) for path in files},
        "versions": versions(),
    }


def origin_of(
    request: Request,
    weights: str,
    placement: dict[str, Any],
    ratios: list[float] | None = None,
    best_of: Origin | None = None,
    rephrase: str | None = None,
) -> Origin:
    """All that makes the video of a request, by content: `weights` is the model's hash, files count by what is in them, `ratios`
    are MagCache's.

    Options that only let something pass, or say where and not what is computed, do not count. A rephraser counts, and not the
    words that it found; a server's counts by its address.
    """
    asked = {name: value for name, value in asdict(request).items() if name not in (*PASSING, *FILES)}
    held = {name: value for name, value in placement.items() if name not in WHERE}
    words = without_credentials(rephrase) if rephrase and "://" in rephrase else rephrase and folder_hash(Path(rephrase), MADE_OF)
    return {
        "request": {**asked, "prompt": request.asked_prompt or request.prompt if rephrase else request.prompt},
        "references": [[r.subject, content_hash(Path(r.path))] for r in request.images()],
        "first_frame": content_hash(Path(request.first_frame)) if request.first_frame else None,
        "segmenter": folder_hash(Path(request.segmenter), MADE_OF) if request.segmenter else None,
        "weights": weights,
        "placement": {
            **held,
            **({"transformer": content_hash(Path(file))} if (file := placement.get("transformer")) else {}),
            "loras": [[*map(content_hash, lora_files(Path(file))), scale] for file, scale in placement["loras"]],
        },
        "ratios": ratios,
        "rephrase": words,
        "best_of": best_of,
        "code": code_version("pipeline.batch"),
    }


def versions() -> dict[str, str]:
    """What the bits of a video depend on beside the request: libraries, processor and what its kernels are chosen by.

    The number of threads is that which torch has now, by OMP_NUM_THREADS, taskset or a container's set of processors: sums are
    split by it, and have other last bits.
    """
    libraries = {name: version(name) for name in ("diffusers", "transformers", "numpy", "av")}
    return {
        "phantom_s2v": __version__,
        "torch": torch.__version__,
        **libraries,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": str(torch.get_num_threads()),
        "kernels": _kernels(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def _kernels() -> str:
    """What torch's libraries choose their kernels by: the processor's name and its units for bfloat16, and what limits them."""
    has = getattr(torch.cpu, "get_capabilities", dict)()
    units = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if has.get(name)]
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    precise = torch.get_float32_matmul_precision()
    onednn = "with" if torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled else "without"
    return ", ".join([str(has.get("cpu_name", "unknown")), *units, f"{onednn} oneDNN", f"float32 {precise}", *limits])


def request_from(metadata: dict[str, Any]) -> Request:
    """The request in the metadata of a video. Raises InputError where it is none."""
    try:
        return typed(Request, metadata["request"], "its request")
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"invalid metadata: {error}") from error


def check_files(metadata: dict[str, Any]) -> None:
    """Raise InputError where a file that the metadata names is missing, or where its own parts are damaged."""
    files, known = metadata.get("files", {}), metadata.get("versions", {})
    if not isinstance(files, dict) or not isinstance(known, dict):
        raise InputError("invalid metadata: files and versions must be objects")
    if missing := next((path for path in files if not is_file(Path(path))), None):
        raise InputError(f"{missing}, which the metadata lists, is missing")


def changes(metadata: dict[str, Any], weights: str) -> list[str]:
    """What is no longer as it was when the metadata was written; `weights` is the hash of those loaded now."""
    changed = [] if metadata.get("weights") == weights else ["model weights or configuration have changed"]
    check_files(metadata)
    for path, before in metadata.get("files", {}).items():
        if content_hash(Path(path)) != before:
            changed.append(f"{path} has changed")
    for name, value in versions().items():
        before = metadata.get("versions", {}).get(name)
        if before is None:
            changed.append(f"the metadata does not say with which {name} it was made; here it is {value}")
        elif before != value:
            advice = f" (OMP_NUM_THREADS={before} gives that number again)" if name == "threads" else ""
            changed.append(f"{name} was {before} and is {value}{advice}")
    return changed
