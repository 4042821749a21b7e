"""Which of many known subjects a video shows, by features of EfficientNet-Lite0: the identification of the emoji suite."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from phantom_s2v.evaluation.metrics.regions import cut_out, regions
from phantom_s2v.vision.efficientnet import EfficientNetLite0

FRAMES = 5  # looked at, evenly spaced


class SubjectClassifier(EfficientNetLite0):
    """Names the subjects of a video among references that were cut out as subjects in frames are."""

    def reference(self, image: np.ndarray) -> np.ndarray:
        """Features [1280] of a reference, cut out as subjects in frames are."""
        candidates = regions(image, 1)
        return self.features([cut_out(image, candidates[0]) if candidates else image])[0]

    def rank(self, video: np.ndarray, reference_features: np.ndarray, right: Sequence[int]) -> list[int | None]:
        """Rank (0 is first) of each right reference among `reference_features` [N, 1280] by its region's mean features in a
        video.

        With several subjects the regions of a frame are assigned to the right references by similarity. None: not found.
        """
        sums, seen = np.zeros((len(right), reference_features.shape[1])), np.zeros(len(right), int)
        for index in np.linspace(0, len(video) - 1, FRAMES).round().astype(int):
            candidates = regions(video[index], len(right))
            if not candidates:
                continue
            features = self.features([cut_out(video[index], r) for r in candidates])
            for region, subject in zip(*linear_sum_assignment(-features @ reference_features[list(right)].T), strict=True):
                sums[subject] += features[region]
                seen[subject] += 1
        scores = sums @ reference_features.T
        return [int((scores[i] > scores[i, r]).sum()) if seen[i] else None for i, r in enumerate(right)]
