"""The networks that the stages are given: what packages ship, or models of the hub."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from phantom_s2v.data.detectors.objects import detect_objects
from phantom_s2v.data.detectors.own import load_detector
from phantom_s2v.data.detectors.people import detect_people_too
from phantom_s2v.data.detectors.phrases import detect_phrases
from phantom_s2v.data.pipeline.config import Models
from phantom_s2v.vision import faces
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.embed import Embedder
from phantom_s2v.vision.factory import cut_chances, embed_mini, texture_mini
from phantom_s2v.vision.segment import ClipSegmenter
from phantom_s2v.vision.vlm import VisionLanguageModel


def packaged_models(transnet: bool = False, with_people: bool = False, larger: dict[str, Any] | None = None) -> Models:
    """What works without a hub: objects by color and motion, phantom-mini's encoders; TransNetV2 and people where asked for.

    People need `phantom models fetch` and phantom-s2v[people]. `larger` are the arguments of `with_larger`.
    """
    packaged = Models(
        detect=detect_people_too if with_people else detect_objects,
        embed=embed_mini,
        features=texture_mini,
        cuts=cut_chances() if transnet else None,
        face=faces.face_feature if with_people else None,
    )
    return with_larger(packaged, **larger) if larger else packaged


def with_larger(
    models: Models, captioner: Path | None, object_detector: Path | str | None, segmenter: Path | None, embedder: Path | None
) -> Models:
    """`models` with those of the larger networks that are given, each the folder of a model in transformers' layout, or
    for a detector of the user's own MODULE:FUNCTION.

    Bounds of similarity hold for the embeddings that they were set for: another embedder needs its own.
    """
    vlm = VisionLanguageModel(captioner) if captioner else None
    if vlm:
        models = replace(models, caption=vlm.caption, phrases=vlm.phrases, same=vlm.same)
    if embedder:
        models = replace(models, embed=Embedder(embedder))
    if isinstance(object_detector, str):
        models = replace(models, detect=load_detector(object_detector))
    elif object_detector:
        follows = ClipSegmenter(segmenter) if segmenter else None
        models = replace(models, detect=partial(detect_phrases, OpenVocabularyDetector(object_detector), follows, vlm))
    return models
