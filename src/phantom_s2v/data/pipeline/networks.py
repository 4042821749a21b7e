"""The networks that the stages are given: what packages ship, or models of the hub."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from phantom_s2v.data.detectors.objects import detect_objects
from phantom_s2v.data.detectors.own import load_detector, load_inpainter
from phantom_s2v.data.detectors.people import LOOKED_AT, detect_people_too
from phantom_s2v.data.detectors.phrases import detect_phrases
from phantom_s2v.data.pipeline.config import Config, Models
from phantom_s2v.vision import faces
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.embed import Aesthetics, Embedder
from phantom_s2v.vision.factory import FEATURES, cut_chances, texture_mini
from phantom_s2v.vision.inpaint import Inpainter
from phantom_s2v.vision.segment import ClipSegmenter
from phantom_s2v.vision.text import fixed_lines
from phantom_s2v.vision.vlm import VisionLanguageModel

DEFAULTS = Config()


def packaged_models(config: Config = DEFAULTS, larger: dict[str, Any] | None = None) -> Models:
    """What works without a hub: objects by color and motion, embeddings by name; TransNetV2, people and text where asked for.

    People and text need `phantom models fetch` and phantom-s2v[people]. `larger` are the arguments of `with_larger`.
    """
    packaged = Models(
        detect=partial(detect_people_too, least=min(LOOKED_AT, config.person)) if config.people else detect_objects,
        embed=FEATURES[config.embedder](),
        features=texture_mini if config.embedder == "phantom-mini" else None,
        cuts=cut_chances() if config.shot_detector != "scenedetect" else None,
        face=faces.face_feature if config.people else None,
        text=fixed_lines if config.people else None,
    )
    return with_larger(packaged, config.detected, **larger) if larger else packaged


def with_larger(
    models: Models,
    detected: float = 0.0,
    captioner: Path | None = None,
    object_detector: Path | str | None = None,
    segmenter: Path | None = None,
    embedder: Path | None = None,
    arcface: Path | None = None,
    clip: Path | None = None,
    aesthetic: Path | None = None,
    inpainter: Path | str | None = None,
) -> Models:
    """`models` with those of the larger networks that are given: folders of models in transformers' layout (of the inpainter in
    diffusers'), MODULE:FUNCTION of a detector or an inpainter of the user's own, ArcFace's ONNX file, the safetensors file of the
    aesthetic head on `clip`. `detected` is the least score of what a detector of phrases finds, 0 for its own.

    Bounds of similarity hold for the embeddings that they were set for: another embedder needs its own.
    """
    vlm = VisionLanguageModel(captioner) if captioner else None
    if vlm:
        models = replace(models, captions=vlm.captions, phrases=vlm.phrases, same=vlm.same, whole=vlm.whole)
    if embedder:
        models = replace(models, embed=Embedder(embedder), features=None)
    if isinstance(object_detector, str):
        own = load_detector(object_detector)
        models = replace(models, detect=lambda stills, phrases, _: own(stills, phrases))
    elif object_detector:
        follows = ClipSegmenter(segmenter) if segmenter else None
        finds = partial(OpenVocabularyDetector(object_detector, detected or None), several=True)
        models = replace(models, follow=partial(detect_phrases, finds, follows, vlm))
    if arcface:
        network = faces.ArcFace(arcface)
        models = replace(models, face=lambda image: next((face.feature for face in network(image)), None), face_width=512)
    if inpainter:
        models = replace(models, inpaint=load_inpainter(inpainter) if isinstance(inpainter, str) else Inpainter(inpainter))
    if clip and aesthetic:
        models = replace(models, aesthetic=Aesthetics(clip, aesthetic))
    return models
