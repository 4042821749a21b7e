"""Networks in transformers' layout, from a folder: none of them is packaged.

Images are prepared by transformers' Pillow processors, whether torchvision is installed or not, so that one image gives the same
numbers everywhere. The classes that exist for torchvision alone (SAM2's and DINOv3's images, videos of Qwen-VL) are not needed:
`TensorImages` computes what the first two do, and clips are shown to a vision-language model as images.
"""

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from phantom_s2v.errors import CheckpointError, not_installed
from phantom_s2v.models.bounds import loading, read_config
from phantom_s2v.models.finite import check_weights
from phantom_s2v.models.tensors import align

UNTRAINED = re.compile(r"^pooler\.")  # what a backbone may lack: `Embedder` does not use it
PACKAGES = ("torchvision", "sentencepiece")  # that some processors need and that an extra brings
BATCH = 8  # images that a network sees at once
RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers, as processors store them
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def default_device() -> torch.device:
    """A CUDA device where there is one, else the CPU: the first one that CUDA_VISIBLE_DEVICES leaves, or, of several processes
    of one machine, that of this one's LOCAL_RANK, as torchrun and the data pipeline's pool set it.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def precision(device: torch.device) -> torch.dtype:
    """What networks compute in: bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def at_speed(device: torch.device) -> AbstractContextManager[Any]:
    """Around a forward pass: matrix products in the device's `precision`, whatever the weights are stored in."""
    dtype = precision(device)
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def load_network(kind: str, folder: Path, device: torch.device | None = None, dtype: torch.dtype | str = torch.float32) -> Any:
    """The model of a folder by transformers' class `kind`, in `dtype` ("auto": as stored), on `device` (`default_device`).

    Raises CheckpointError where the folder does not hold it, or where a weight is missing: it would be random.
    """
    import transformers

    found = getattr(transformers, kind)
    options: dict[str, Any] = {}

    def build(place: Path) -> nn.Module:
        if kind.startswith("Auto"):
            config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
            return found.from_config(config, trust_remote_code=False)
        # a hub's SAM2 is a video model, of which the image model is a part
        named = {**read_config(place / "config.json"), "model_type": found.config_class.model_type}
        options["config"] = found.config_class.from_dict(named)
        return found(found.config_class.from_dict(named))

    with loading(folder, f"{kind} of transformers", build):
        options |= {"use_safetensors": True, "dtype": dtype, "output_loading_info": True}
        model, facts = found.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    if lacking := sorted(name for name in facts["missing_keys"] if not UNTRAINED.match(name)):
        raise CheckpointError(f"{folder} lacks {len(lacking)} weights of {type(model).__name__}, such as {lacking[0]}")
    return check_weights(align(model), str(folder)).eval().requires_grad_(False).to(device or default_device())


def load_processor(kind: str, folder: Path) -> Any:
    """A processor or tokenizer of a folder by transformers' class `kind`. Raises CheckpointError where it cannot be had."""
    import transformers

    options = {"backend": "pil"} if kind == "AutoImageProcessor" else {}
    try:
        with loading(folder, f"{kind} of transformers"):
            return getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    except CheckpointError as error:
        said = str(error.__cause__ or error)
        for package in PACKAGES:
            if package in said.lower() and not _installed(package):
                raise CheckpointError(f"{folder}: {not_installed(package)}") from error
        raise


def _installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


class TensorImages:
    """Images as transformers' torchvision processors make them of SAM2 and DINOv3, without torchvision: to [n, 3, height, width].

    They are stretched to `size` (height, width) by torch's antialiased interpolation. DINOv3 rescales to 0..1 before it (`late`
    is False); SAM2 rounds to whole numbers of 0..255 first, as torchvision does for uint8.
    """

    def __init__(
        self,
        size: tuple[int, int],
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        mode: str = "bilinear",
        late: bool = True,
    ) -> None:
        self.size, self.mode, self.late = size, mode, late
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __call__(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """float32 [n, 3, height, width] of uint8 [H, W, 3] each."""
        return torch.stack([(self._resized(image) - self.mean) / self.std for image in images])

    def _resized(self, image: np.ndarray) -> torch.Tensor:
        pixels = torch.tensor(np.asarray(image)).permute(2, 0, 1)[None].float()
        pixels = pixels if self.late else pixels / 255
        pixels = nn.functional.interpolate(pixels, self.size, mode=self.mode, antialias=True, align_corners=False)[0]
        return pixels.round().clamp(0, 255) / 255 if self.late else pixels


class PreparedImages:
    """Images of any size -> pixel_values, by the processor of a folder."""

    def __init__(self, folder: Path) -> None:
        file = folder / "preprocessor_config.json"
        stored = read_config(file) if file.is_file() else {}
        if str(stored.get("image_processor_type", "")).startswith("DINOv3ViTImageProcessor"):
            with loading(folder, "DINOv3 image processor"):
                size = (int(stored["size"]["height"]), int(stored["size"]["width"]))
                mode = RESAMPLE[stored.get("resample", 2)]
                self.prepare: Any = TensorImages(size, stored["image_mean"], stored["image_std"], mode, late=False)
        else:
            self.prepare = load_processor("AutoImageProcessor", folder)

    def __call__(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """float32 [n, 3, height, width] of uint8 [H, W, 3] each."""
        if isinstance(self.prepare, TensorImages):
            return self.prepare(images)
        return self.prepare(images=[Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]


def load_chat(folder: Path) -> Any:
    """The processor of a vision-language model: tokenizer, images and chat template, without videos, which need torchvision.

    Raises CheckpointError where it cannot be had.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

    kinds = {"image_processor": "AutoImageProcessor", "tokenizer": "AutoTokenizer"}
    with loading(folder, "vision-language model of transformers"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        found: Any = PROCESSOR_MAPPING.get(type(config), None)
    if found is None or {*found.get_attributes()} != {*kinds, "video_processor"}:
        return load_processor("AutoProcessor", folder)

    class Images(found):  # type: ignore[valid-type, misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return argument and super().check_argument_for_proper_class(argument_name, argument)

    parts = [load_processor(kinds[name], folder) if name in kinds else None for name in found.get_attributes()]
    with loading(folder, f"{found.__name__} of transformers"):
        return Images.from_args_and_dict(parts, found.get_processor_dict(folder, local_files_only=True)[0])
