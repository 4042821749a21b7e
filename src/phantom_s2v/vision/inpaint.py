"""Fill a part of an image with what may be behind it, by an inpainting pipeline of diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phantom_s2v.geometry import fit_inside
from phantom_s2v.media.inpaint import composed
from phantom_s2v.models.bounds import loading, read_config
from phantom_s2v.vision.transformers import default_device, precision

STRIDE = 64  # sides of what a diffusion pipeline sees are multiples of it
TRAINED = 1024  # pixels a side of what pipelines were trained on, where their configuration does not say
PROMPT = "the empty scene, background without people, animals or objects in front of it"
SEED = 0


class Inpainter:
    """Any inpainting pipeline of diffusers, such as Stable Diffusion's, from its folder; one image has one result."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        from diffusers import AutoPipelineForInpainting

        device = device or default_device()
        index = folder / "model_index.json"
        parts = read_config(index) if index.is_file() else {}
        # what it takes for indecent it would make black
        unchecked: dict[str, Any] = {name: None for name in ("safety_checker",) if name in parts}
        unchecked |= {"requires_safety_checker": False} if unchecked else {}
        with loading(folder, "inpainting pipeline of diffusers"):
            options = {"use_safetensors": True, "torch_dtype": precision(device), **unchecked}
            pipe: Any = AutoPipelineForInpainting.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
        self.pipe = pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] with what `mask` (bool [H, W]) covers filled."""
        denoiser = getattr(self.pipe, "unet", None) or self.pipe.transformer
        latent = getattr(denoiser.config, "sample_size", None)
        side = latent * self.pipe.vae_scale_factor if isinstance(latent, int) else TRAINED
        width, height = (max(STRIDE, each // STRIDE * STRIDE) for each in fit_inside(image.shape[1], image.shape[0], side, side))
        out = self.pipe(
            prompt=PROMPT,
            image=Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS),
            mask_image=Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST),
            height=height,
            width=width,
            generator=torch.Generator("cpu").manual_seed(SEED),
        )
        return composed(image, np.asarray(out.images[0].convert("RGB")), mask)
