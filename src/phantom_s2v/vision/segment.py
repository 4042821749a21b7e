"""SAM2 (arXiv 2408.00714): masks of boxes in an image, and of boxes that are followed through a clip. transformers' own models.

It always sees whole frames, stretched to its square as it was trained; its processors need torchvision and are not used.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.finite import check_finite
from phantom_s2v.vision.transformers import TensorImages, at_speed, default_device, load_network

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
MEMORIES = 16  # frames back that SAM2 looks at most
MARGIN = 0.02  # share of the image that is left outside the box of a subject that fills it


class Segmenter:
    """Boxes in an image -> masks, by SAM2's image model; the best of its three for each box."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self.model = load_network("Sam2Model", folder, device)
        self.side = self.model.config.prompt_encoder_config.image_size
        self.prepare = TensorImages((self.side, self.side))

    @torch.no_grad()
    def __call__(self, image: np.ndarray, boxes: list[Box]) -> list[np.ndarray]:
        """Masks bool [H, W] of boxes in an image uint8 [H, W, 3]."""
        if not boxes:
            return []
        height, width = image.shape[:2]
        pixels = self.prepare([image]).to(self.model.device)
        corners = torch.tensor([boxes]) / torch.tensor([width, height, width, height]) * self.side
        with at_speed(self.model.device):
            out = self.model(pixel_values=pixels, input_boxes=corners.to(self.model.device))
        check_finite(out.pred_masks, "the mask of SAM2")
        best = out.iou_scores[0].argmax(-1)  # [boxes], of the three masks
        logits = out.pred_masks[0, torch.arange(len(boxes), device=best.device), best][None]
        return list((_enlarged(logits, height, width)[0] > 0).cpu().numpy())


class ClipSegmenter:
    """Boxes in some frames of a clip -> masks in all of them, by SAM2's video model.

    Raises CheckpointError where a folder holds the image model alone: it has no memory of earlier frames.
    """

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        try:
            self.model = load_network("Sam2VideoModel", folder, device)
        except CheckpointError as error:
            if "lacks" in str(error):
                raise CheckpointError(
                    f"{folder} holds SAM2's image model, which cannot follow subjects; use its video model"
                ) from error
            raise
        self.side = self.model.config.prompt_encoder_config.image_size
        self.prepare = TensorImages((self.side, self.side))

    def session(self, height: int, width: int) -> "Followed":
        """A clip of frames of this size, of which nothing is known yet."""
        return Followed(self, height, width)


class Followed:
    """Objects that are followed through the frames of one clip, given in order. Of earlier frames only memories are kept."""

    def __init__(self, segmenter: ClipSegmenter, height: int, width: int) -> None:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        self.segmenter, self.size, self.frame = segmenter, (height, width), -1
        self.pixels = torch.empty(0)
        self.session: Any = Sam2VideoInferenceSession(
            video_height=height,
            video_width=width,
            inference_device=segmenter.model.device,
            inference_state_device=segmenter.model.device,
            video_storage_device=segmenter.model.device,
            dtype=torch.float32,
        )

    def see(self, image: np.ndarray) -> list[np.ndarray]:
        """The next frame uint8 [H, W, 3]: masks bool [H, W] of the objects so far; empty where one is not to be seen."""
        self.frame, self.pixels = self.frame + 1, self.segmenter.prepare([image])
        return self._masks() if self.session.obj_ids else []

    def add(self, boxes: list[Box]) -> list[np.ndarray]:
        """Objects that are new in the last frame, by their boxes there: masks of all objects, the new ones last."""
        scale = self.segmenter.side / torch.tensor(self.size[::-1])
        fresh = [len(self.session.obj_ids) + i for i in range(len(boxes))]
        for number, box in zip(fresh, boxes, strict=True):
            corners = torch.tensor(box).view(1, 1, 2, 2) * scale
            labels = torch.tensor([[[2, 3]]], dtype=torch.int32)  # the two corners of a box
            place = self.session.obj_id_to_idx(number)
            self.session.add_point_inputs(place, self.frame, {"point_coords": corners, "point_labels": labels})
        self.session.obj_with_new_inputs = fresh
        return self._masks()

    @torch.no_grad()
    def _masks(self) -> list[np.ndarray]:
        self.session.processed_frames = None
        with at_speed(self.segmenter.model.device):
            out = self.segmenter.model(self.session, frame_idx=self.frame, frame=self.pixels)
        check_finite(out.pred_masks, "the mask of SAM2")
        for kept in self.session.output_dict_per_obj.values():
            for number in [n for n in kept["non_cond_frame_outputs"] if n <= self.frame - MEMORIES]:
                del kept["non_cond_frame_outputs"][number]
        return list((_enlarged(out.pred_masks, *self.size)[:, 0] > 0).cpu().numpy())


def follow(segmenter: ClipSegmenter, frames: Iterable[np.ndarray], boxes: list[Box]) -> Iterator[list[np.ndarray]]:
    """Masks, for every frame one of each box, of what the boxes hold in the first frame."""
    session: Followed | None = None
    for frame in frames:
        if session is None:
            session = segmenter.session(*frame.shape[:2])
            session.see(frame)
            yield session.add(boxes)
        else:
            yield session.see(frame)


def _enlarged(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Logits [n, k, h, w] at the size of the frame."""
    return interpolate(logits.float(), (height, width), mode="bilinear", align_corners=False)


@lru_cache(maxsize=1)
def load_segmenter(folder: Path) -> Segmenter:
    """SAM2's image model of a folder. Raises CheckpointError where it is none."""
    return Segmenter(folder, default_device())


def subject_mask(folder: Path, image: np.ndarray) -> np.ndarray:
    """Mask bool [H, W] of what fills the image uint8 [H, W, 3] up to a margin."""
    height, width = image.shape[:2]
    x, y = MARGIN * width, MARGIN * height
    box = (round(x), round(y), round(width - x), round(height - y))
    return load_segmenter(folder)(image, [box])[0]
