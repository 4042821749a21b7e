"""Detectors that take phrases: GroundingDINO (arXiv 2303.05499) and OWLv2 (arXiv 2306.09683).

Both score every box against every phrase that is asked. GroundingDINO scores boxes against tokens; the score of a phrase is its
best token's, as in its paper, so that a label is always a phrase that was asked and never a fragment such as "mug." or "[SEP]".
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from phantom_s2v.errors import CheckpointError
from phantom_s2v.geometry import iou
from phantom_s2v.models.finite import check_finite
from phantom_s2v.vision.transformers import BATCH, at_speed, load_network, load_processor

Found = tuple[tuple[int, int, int, int], str, float]  # box (left, top, right, bottom) in pixels, phrase, score
PLACES = 4  # of a phrase that are given at most
ONE_PLACE = 0.5  # IoU from which on two boxes of a phrase are one place
THRESHOLDS = {"grounding-dino": 0.3, "mm-grounding-dino": 0.3, "owlv2": 0.2, "owlvit": 0.2}  # least score, by model type


class OpenVocabularyDetector:
    """Images and phrases -> boxes. `threshold` is the least score, 0..1; by default that of THRESHOLDS."""

    def __init__(self, folder: Path, threshold: float | None = None, device: torch.device | None = None) -> None:
        self.model = load_network("AutoModelForZeroShotObjectDetection", folder, device)
        self.kind = self.model.config.model_type
        if self.kind not in THRESHOLDS:
            raise CheckpointError(f"the detector must be GroundingDINO or OWLv2 (got {self.kind} in {folder})")
        self.threshold = THRESHOLDS[self.kind] if threshold is None else threshold
        self.prepare, self.tokens = load_processor("AutoImageProcessor", folder), load_processor("AutoTokenizer", folder)

    def __call__(self, images: Sequence[np.ndarray], phrases: list[str], several: bool = False) -> list[list[Found]]:
        """What is found in each image uint8 [H, W, 3], highest score first. A phrase that matches several places names none of
        them: it is left out or, with `several`, given once for each of the surest PLACES.
        """
        found: list[list[Found]] = [[] for _ in images]
        for start in range(0, len(images) if phrases else 0, BATCH):
            for some in self._questions(phrases):
                scores, boxes = self._scores(images[start : start + BATCH], some)
                for i, image in enumerate(images[start : start + BATCH]):
                    found[start + i] += self._places(scores[i], boxes[i], some, image.shape, several)
        return [sorted(each, key=lambda row: -row[2]) for each in found]

    def _questions(self, phrases: list[str]) -> Iterator[list[str]]:
        """Phrases in groups that the text encoder takes at once."""
        some: list[str] = []
        for phrase in dict.fromkeys(phrases):
            if some and "owl" not in self.kind and len(self.tokens(_sentence([*some, phrase])[0])["input_ids"]) > self._longest:
                yield some
                some = []
            some.append(phrase)
        yield some

    @property
    def _longest(self) -> int:
        """Tokens that the text encoder takes."""
        config = self.model.config
        return config.text_config.max_position_embeddings if "owl" in self.kind else config.max_text_len

    @torch.no_grad()
    def _scores(self, images: Sequence[np.ndarray], phrases: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Scores [images, boxes, phrases], 0..1, and boxes [images, boxes, 4]: centers and sizes, in shares of the image."""
        pixels = self.prepare(images=[Image.fromarray(image) for image in images], return_tensors="pt")
        asked = phrases * len(images) if "owl" in self.kind else [_sentence(phrases)[0]] * len(images)
        options = {"return_token_type_ids": True} if "dino" in self.kind else {}
        tokens = self.tokens(
            asked, padding="max_length" if "owl" in self.kind else True, truncation=True, max_length=self._longest,
            return_tensors="pt", return_offsets_mapping="dino" in self.kind, **options,
        )  # fmt: skip
        offsets = tokens.pop("offset_mapping", None)
        with at_speed(self.model.device):
            out = self.model(**pixels.to(self.model.device), **tokens.to(self.model.device))
        scores = out.logits.float().sigmoid()
        check_finite(scores, "the score of a detection")
        if offsets is not None:
            scores = torch.stack([scores[..., _within(offsets[0], *span)].amax(-1) for span in _sentence(phrases)[1]], -1)
        return scores.cpu().numpy(), out.pred_boxes.float().cpu().numpy()

    def _places(
        self, scores: np.ndarray, boxes: np.ndarray, phrases: list[str], shape: tuple[int, ...], several: bool
    ) -> list[Found]:
        """Each phrase that is found at one place of an image, and there alone; with `several` the others as well."""
        height, width = shape[:2]
        across, down = (max(height, width),) * 2 if "owl" in self.kind else (width, height)  # OWLv2 pads to a square
        found = []
        for column, phrase in enumerate(phrases):
            places: list[Found] = []
            for i in np.argsort(-scores[:, column], kind="stable"):
                if scores[i, column] <= self.threshold:
                    break
                x, y, w, h = boxes[i].tolist()
                corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]) * (across, down, across, down)
                left, top, right, bottom = np.clip(corners, 0, [width, height, width, height]).round().astype(int).tolist()
                box = (left, top, right, bottom)
                if right > left and bottom > top and all(iou(box, place) < ONE_PLACE for place, _, _ in places):
                    places.append((box, phrase, float(scores[i, column])))
            found += places[:PLACES] if several or len(places) == 1 else []
        return found


def _sentence(phrases: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Phrases as GroundingDINO reads them, "gray wolf. red mug.", and where each of them lies in it."""
    text, spans = "", []
    for phrase in phrases:
        plain = " ".join(phrase.lower().replace(".", " ").replace("?", " ").split())  # both end a phrase
        spans.append((len(text), len(text) + len(plain)))
        text += f"{plain}. "
    return text.strip(), spans


def _within(offsets: torch.Tensor, start: int, stop: int) -> list[int]:
    """Numbers of the tokens that lie within a span of the text; none of [CLS], [SEP] and the padding does."""
    return [i for i, (a, b) in enumerate(offsets.tolist()) if a < b and start <= a and b <= stop]
