"""Every metric of a score in one table, from which reports, KPIs, comparisons and calibrations are made.

A new metric is a field of SubjectScore or VideoScore (evaluation/score.py) and a line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What is known of a metric beside its value."""

    name: str  # of the field
    of: str  # "subject" or "video"
    better: str  # "more", "less", or "" where neither is better by itself
    network: str = ""  # key of its network in the `networks` of a score; "": none does
    in_summary: bool = False  # whether the mean over videos is printed

    @property
    def of_subjects(self) -> bool:
        """Whether each subject has a value; the video's is that of its worst subject."""
        return self.of == "subject"

    def worst(self, values: list[float]) -> float:
        """The value of the worst subject."""
        return max(values) if self.better == "less" else min(values)


def _image_similarity(name: str) -> tuple[Metric, ...]:
    """A network's cosine of reference and frames, whole (_i) and of the subject's region alone (_i_seg), mean and minimum."""
    return tuple(
        Metric(f"{name}_i{part}{low}", "subject", "more", f"{name}_i", in_summary=not low)
        for part in ("", "_seg")
        for low in ("", "_min")
    )


TABLE = (
    Metric("similarity", "subject", "more", "similarity", in_summary=True),
    Metric("similarity_min", "subject", "more", "similarity"),
    Metric("whole", "subject", "more", "similarity", in_summary=True),
    Metric("whole_min", "subject", "more", "similarity"),
    Metric("seen", "subject", "more", "similarity"),
    Metric("face", "subject", "more", "face", in_summary=True),
    Metric("face_min", "subject", "more", "face"),
    Metric("face_seen", "subject", "more", "face"),
    Metric("clothes", "subject", "more"),
    *_image_similarity("clip"),
    *_image_similarity("dino"),
    Metric("doubled", "subject", "less", "similarity"),
    Metric("copy_paste", "subject", "less", in_summary=True),
    Metric("copy_paste_cutout", "subject", "less"),
    Metric("flash", "subject", "less"),
    Metric("swapped", "video", "less", "similarity"),
    Metric("motion_fb", "video", "", in_summary=True),
    Metric("frozen", "video", "less"),
    Metric("flicker", "video", "less"),
    Metric("smoothness", "video", ""),
    Metric("sharpness", "video", ""),
    Metric("blur", "video", "less"),
    Metric("text", "video", "more", "text", in_summary=True),
    Metric("aesthetic", "video", "more", "aesthetic", in_summary=True),
)
METRICS = {metric.name: metric for metric in TABLE}
FROM_HUB = ("text", "clip_i", "dino_i", "aesthetic")  # networks that no package ships


def network_of(metric: str, names: Mapping[str, str]) -> str:
    """The network behind a metric by a score's `names`, "" where there is none; values of two networks are never compared.

    With the hashes of a score instead of its names, the hash of that network's weights.
    """
    return names.get(METRICS[metric].network, "") if metric in METRICS else ""
