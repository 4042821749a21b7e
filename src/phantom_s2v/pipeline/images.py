"""Reference images as users have them (files, PIL images, arrays, tensors) -> uint8 arrays under the names of their subjects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phantom_s2v.errors import InputError
from phantom_s2v.media.images import read_image
from phantom_s2v.vision.segment import subject_mask

BACKGROUND = "background"  # the name of its subject


@dataclass(frozen=True)
class Named:
    """An image, or the path of one, and the name of the subject that it shows."""

    image: Any  # PIL.Image, array, tensor or path
    subject: str

    @property
    def label(self) -> str:
        """What a message calls it: its path, or the name of its subject."""
        return str(self.image) if isinstance(self.image, str | Path) else f"the image of {self.subject}"


def is_image(value: Any) -> bool:
    """Whether a value is one image and not several: a path, a PIL image, an array [H, W, C] or a tensor [C, H, W]."""
    return isinstance(value, str | Path | Image.Image) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 3)


def name_images(value: Any) -> tuple[Named, ...]:
    """The images of one prompt in the order of their reference places.

    One image, a sequence of images (each a subject of its own), or a mapping from the subject's name to its image or its views.
    """
    if value is None:
        return ()
    if is_image(value):
        return (Named(value, "subject 1"),)
    if isinstance(value, Mapping):
        views = [(str(name), [views] if is_image(views) else views) for name, views in value.items()]
        if empty := [name for name, many in views if isinstance(many, list | tuple) and not many]:
            raise InputError(f"reference_images must have an image of each name (got none of {empty[0]})")
        return tuple(Named(view, name) for name, many in views for view in _sequence(many))
    return tuple(Named(image, f"subject {i + 1}") for i, image in enumerate(_sequence(value)))


def per_prompt(value: Any, prompts: int) -> list[tuple[Named, ...]]:
    """The images of each of several prompts: a sequence of one entry a prompt, or else the same images for all of them."""
    nested = isinstance(value, list | tuple) and any(each is None or not is_image(each) for each in value)
    if prompts == 1 and not nested:
        return [name_images(value)]
    if not nested:
        return [name_images(value)] * prompts
    if len(value) != prompts:
        raise InputError(f"reference_images must have one entry per prompt (got {len(value)} for {prompts} prompts)")
    return [name_images(each) for each in value]


def _sequence(value: Any) -> Sequence[Any]:
    if isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 4:
        return list(value)
    if not isinstance(value, list | tuple) or not all(is_image(each) for each in value):
        what = getattr(value, "shape", None) or type(value).__name__
        raise InputError(
            f"reference_images must be images (path, PIL image, array [H, W, 3], tensor [3, H, W]), a list of them, or a dict "
            f"of a name to its images (got {what})"
        )
    return value


def read_images(
    images: Sequence[Named], released: bool = False, cutout: bool = False, segmenter: str | None = None
) -> tuple[list[np.ndarray], list[str]]:
    """uint8 [H, W, 3] of each image, and notices of what was done to them. A background is never cut out.

    Raises InputError for what is no image.
    """
    segment = partial(subject_mask, Path(segmenter)) if segmenter else None
    read, notices = [], []
    for each in images:
        array, image_notices = read_image(_source(each), released, cutout and each.subject != BACKGROUND, segment, each.label)
        read.append(array)
        notices += image_notices
    return read, notices


def _source(named: Named) -> Path | Image.Image:
    """A path, or a PIL image of what is in memory."""
    image = named.image
    if isinstance(image, str) and "://" in image:
        raise InputError(f"{image} is not a file; download it first (diffusers.utils.load_image does)")
    if isinstance(image, str | Path):
        return Path(image)
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
        image = np.moveaxis(image, 0, -1) if image.ndim == 3 and image.shape[0] in (1, 3, 4) else image
    return Image.fromarray(_bytes(image, named.label))


def _bytes(image: np.ndarray, label: str) -> np.ndarray:
    """uint8 [H, W, C] or [H, W] of an array: uint8 as it is, floating point from 0..1."""
    if not isinstance(image, np.ndarray):
        kinds = "a path, a PIL image, an array [H, W, 3] or a tensor [3, H, W]"
        raise InputError(f"{label} must be {kinds} (got {type(image).__name__})")
    if image.ndim != 3 or image.shape[-1] not in (1, 3, 4) or not image.size:
        raise InputError(f"{label} must have shape [H, W, 3], or [3, H, W] for a tensor (got {tuple(image.shape)})")
    if image.dtype != np.uint8:
        if not np.issubdtype(image.dtype, np.floating):
            raise InputError(f"{label} must be uint8 or floating point from 0 to 1 (got {image.dtype})")
        if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
            raise InputError(f"{label} must have finite values from 0 to 1")
        image = (image * 255).round().astype(np.uint8)
    return image[..., 0] if image.shape[-1] == 1 else image
