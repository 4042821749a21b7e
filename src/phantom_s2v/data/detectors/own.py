"""A detector or an inpainter of the user's own package, by its name MODULE:FUNCTION.

A string, and no list that packages add themselves to: the processes of a pool and the actors of Ray import anew what a list in
this process would hold, and an entry point would need a package that is installed.
"""

import re
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from phantom_s2v.data.pipeline.config import Detection
from phantom_s2v.errors import InputError
from phantom_s2v.files.hashes import MADE_OF, combined_hash, content_hash, folder_hash

Detect = Callable[[list[np.ndarray], list[str]], list[list[Detection]]]  # stills, phrases -> detections of each still
Inpaint = Callable[[np.ndarray, np.ndarray], np.ndarray]  # uint8 [H, W, 3], mask bool [H, W] -> uint8 [H, W, 3]
HASHED = (*MADE_OF, ".py", ".pt", ".pth", ".onnx")  # files of a package that may change what it does


def is_own(name: str) -> bool:
    """Whether a name is MODULE:FUNCTION, and no folder or repository."""
    return bool(re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name)) and not Path(name).exists()


def load_detector(name: str) -> Detect:
    """The detector MODULE:FUNCTION, whose detections are checked. Raises InputError where it cannot be imported."""
    return partial(_checked, name, _imported("object_detector", name, "stills and phrases"))


def load_inpainter(name: str) -> Inpaint:
    """The inpainter MODULE:FUNCTION, whose images are checked. Raises InputError where it cannot be imported."""
    return partial(_filled, name, _imported("inpainter", name, "an image and a mask"))


def _imported(option: str, name: str, takes: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"{option} {name} cannot be imported ({error}); it must be MODULE:FUNCTION of an installed package, or of one in "
            "PYTHONPATH"
        ) from error
    if not callable(found):
        raise InputError(f"{option} {name} must be a function of {takes} (got {type(found).__name__})")
    return found


def _filled(name: str, fill: Inpaint, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image of a user's function. Raises InputError where it is none of the same size."""
    filled = np.asarray(fill(image, mask))
    if filled.dtype != np.uint8 or filled.shape != image.shape:
        raise InputError(f"inpainter {name} must give uint8 {image.shape} (got {filled.dtype} {filled.shape})")
    return filled


def own_hash(name: str) -> str:
    """Hash of the code and the weights in the package of a function of the user's own, which has been imported."""
    spec = find_spec(name.partition(":")[0].partition(".")[0])
    folders = [Path(each) for each in (spec.submodule_search_locations or ())] if spec else []
    if spec and not folders:
        return content_hash(Path(spec.origin or ""))
    return combined_hash((str(number), folder_hash(folder, HASHED)) for number, folder in enumerate(folders))


def _checked(name: str, detect: Detect, stills: list[np.ndarray], phrases: list[str]) -> list[list[Detection]]:
    """The detections of a user's function. Raises InputError where they are none, or do not fit the stills."""
    found = detect(stills, phrases)
    if len(found) != len(stills):
        raise InputError(f"object_detector {name} must give a list for each still (got {len(found)} for {len(stills)})")
    for still, detections in zip(stills, found, strict=True):
        height, width = still.shape[:2]
        for each in detections:
            left, top, right, bottom = each.box
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise InputError(f"object_detector {name}: box must lie in the still of {width}x{height} (got {each.box})")
            if each.mask.dtype != bool or each.mask.shape != (height, width) or not each.mask.any():
                what = f"{each.mask.dtype} {each.mask.shape}"
                raise InputError(f"object_detector {name}: mask must be bool {(height, width)} and not empty (got {what})")
    return found
