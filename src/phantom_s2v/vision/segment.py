"""SAM2 from a box, for backgrounds that are neither transparent nor plain: transformers' own model. Its processor needs
torchvision, and is not used.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phantom_s2v.models.bounds import loading
from phantom_s2v.models.finite import check_finite, check_weights
from phantom_s2v.models.tensors import align

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which SAM2 was trained with
MARGIN = 0.02  # share of the image that is left outside the box


@lru_cache(maxsize=1)
def load_segmenter(folder: Path) -> Any:
    """SAM2 of a folder in transformers' layout. Raises CheckpointError where it is none."""
    from transformers import Sam2Config, Sam2Model

    with loading(
        folder,
        "SAM2 model in transformers' layout",
        lambda place: Sam2Model(Sam2Config.from_pretrained(place, local_files_only=True, trust_remote_code=False)),
    ):
        model: Any = Sam2Model.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    return check_weights(align(model), str(folder)).eval().requires_grad_(False)


@torch.no_grad()
def subject_mask(folder: Path, image: np.ndarray) -> np.ndarray:
    """Mask bool [H, W] of what fills the image uint8 [H, W, 3] up to a margin: the best of SAM2's three for that box."""
    model = load_segmenter(folder)
    side = model.config.prompt_encoder_config.image_size
    height, width = image.shape[:2]
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = torch.from_numpy((small - MEAN) / STD).float().permute(2, 0, 1)[None]
    box = torch.tensor([[[MARGIN, MARGIN, 1 - MARGIN, 1 - MARGIN]]]) * side
    out = model(pixel_values=pixels, input_boxes=box)
    check_finite(out.pred_masks, "the mask of SAM2")
    best = int(out.iou_scores[0, 0].argmax())
    logits = torch.nn.functional.interpolate(out.pred_masks[:, 0, best : best + 1], (height, width), mode="bilinear")
    return (logits[0, 0] > 0).numpy()
