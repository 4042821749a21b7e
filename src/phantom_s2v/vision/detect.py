"""Detectors that take phrases (GroundingDINO, OWLv2)."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from phantom_s2v.geometry import iou
from phantom_s2v.models.finite import check_finite
from phantom_s2v.vision.transformers import load_transformers

ONE_PLACE = 0.5  # IoU from which on two boxes of a phrase are one place


class OpenVocabularyDetector:
    """Phrases -> boxes in an image."""

    def __init__(self, folder: Path, threshold: float = 0.3) -> None:
        self.prepare, self.model = load_transformers("AutoModelForZeroShotObjectDetection", folder)
        self.threshold = threshold

    @torch.no_grad()
    def __call__(self, image: np.ndarray, phrases: list[str]) -> list[tuple[tuple[int, int, int, int], str, float]]:
        """(box in pixels, phrase, score), highest score first. Phrases that match several regions are dropped."""
        if not phrases:
            return []
        inputs = self.prepare(text=[phrases], images=Image.fromarray(image), return_tensors="pt").to(self.model.device)
        detections = self.prepare.post_process_grounded_object_detection(
            self.model(**inputs), threshold=self.threshold, target_sizes=[image.shape[:2]], text_labels=[phrases]
        )[0]
        check_finite(detections["scores"], "the score of a detection")
        height, width = image.shape[:2]
        rows: list[tuple[tuple[int, int, int, int], str, float]] = []
        for i in detections["scores"].argsort(descending=True).tolist():
            corners = np.clip(detections["boxes"][i].tolist(), 0, [width, height, width, height]).round().astype(int).tolist()
            box, label = (corners[0], corners[1], corners[2], corners[3]), detections["text_labels"][i]
            new = all(label != other or iou(box, place) < ONE_PLACE for place, other, _ in rows)
            if box[2] > box[0] and box[3] > box[1] and new:
                rows.append((box, label, float(detections["scores"][i])))
        return [row for row in rows if sum(label == row[1] for _, label, _ in rows) == 1]
