"""The networks that the evaluation is given, by backend: what packages ship, or models of the hub."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.instruments import BACKENDS, LIMITS, Faces, Instruments
from phantom_s2v.evaluation.metrics.table import FROM_HUB
from phantom_s2v.files.hashes import MADE_OF, combined_hash, content_hash, folder_hash
from phantom_s2v.geometry import fit_inside
from phantom_s2v.models.autoencoder import decode, encode, load_autoencoder, to_pixels, to_video
from phantom_s2v.models.registry import load_preset, model_folder, source_path
from phantom_s2v.models.weights import weights_hash
from phantom_s2v.vision import faces, fetched
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.embed import CLIP, Aesthetics, Embedder
from phantom_s2v.vision.factory import FEATURES, features_hash
from phantom_s2v.vision.gme import MultimodalEmbedder
from phantom_s2v.vision.segment import MARGIN, Segmenter
from phantom_s2v.vision.vlm import VisionLanguageModel

ARCFACE_SAME = 0.3  # cosine below which verification by ArcFace usually says two persons; not measured here
WHY_NOT = "its model comes from a hub (--backend hub)"
HUB = {"clip": CLIP, "dino": "facebook/dinov2-base"}  # what the hub's backend takes by itself


@dataclass(frozen=True)
class Wanted:
    """Which instruments: `features` by name, a `backend`, and folders or OWNER/MODEL of a hub for the larger networks."""

    features: str = "efficientnet-lite0"
    backend: str = "packaged"
    clip: str = ""
    dino: str = ""
    aesthetic: str = ""  # safetensors of the head on CLIP ViT-L/14
    arcface: str = ""  # an ONNX file
    curricularface: str = ""  # an ONNX file, for OpenS2V
    vlm: str = ""  # an image-text-to-text model, for OpenS2V
    gme: str = ""  # GME on Qwen2-VL, for OpenS2V
    segmenter: str = ""  # SAM2
    object_detector: str = ""  # GroundingDINO or OWLv2: finds the box of what the segmenter cuts out
    reconstruct: str = "none"  # none, references, videos
    model: str = "phantom-mini"  # whose autoencoder reconstructs


def instruments(wanted: Wanted) -> Instruments:
    """What was wanted, loaded. Raises InputError for invalid names, CheckpointError for missing models."""
    for name, allowed in (
        ("features", tuple(FEATURES)),
        ("backend", BACKENDS),
        ("reconstruct", ("none", "references", "videos")),
    ):
        if getattr(wanted, name) not in allowed:
            raise InputError(f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]} (got {getattr(wanted, name)!r})")
    if wanted.backend == "packaged" and any((wanted.clip, wanted.dino, wanted.aesthetic)):
        raise InputError("--clip, --dino and --aesthetic need --backend hub")
    tools = Instruments(wanted.features, FEATURES[wanted.features](), LIMITS[wanted.features], wanted.backend)
    tools = replace(tools, hashes={"similarity": features_hash(wanted.features)})
    tools = _with_hub(tools, wanted) if wanted.backend == "hub" else replace(tools, absent=dict.fromkeys(FROM_HUB, WHY_NOT))
    tools = _with_faces(tools, wanted.arcface)
    tools = _with_larger(tools, wanted)
    if wanted.reconstruct == "none":
        return tools
    named = {**tools.names, "reconstruction": wanted.model}
    videos = wanted.reconstruct == "videos"
    weights = {**tools.hashes, "reconstruction": weights_hash(_autoencoder_folder(wanted.model))}
    return replace(tools, reconstruct=_reconstruction(wanted.model), reconstruct_videos=videos, names=named, hashes=weights)


def _with_hub(tools: Instruments, wanted: Wanted) -> Instruments:
    """CLIP for the text score and CLIP-I, DINO for DINO-I, and the aesthetic head where one is given."""
    clip_name, dino_name = wanted.clip or HUB["clip"], wanted.dino or HUB["dino"]
    clip, dino = Embedder(source_path(clip_name)), Embedder(source_path(dino_name))
    named = {"text": clip_name, "clip_i": clip_name, "dino_i": dino_name}
    by = {name: folder_hash(source_path(name), MADE_OF) for name in (clip_name, dino_name)}
    tools = replace(tools, hashes={**tools.hashes, **{metric: by[name] for metric, name in named.items()}})
    if not wanted.aesthetic:
        absent = {"aesthetic": "no aesthetic head was given (--aesthetic)"}
        return replace(tools, clip=clip, words=clip.words, dino=dino, names=named, absent=absent)
    aesthetic = Aesthetics(source_path(clip_name), Path(wanted.aesthetic))
    named["aesthetic"] = f"{Path(wanted.aesthetic).name} on {clip_name}"
    head = combined_hash([("clip", by[clip_name]), ("head", content_hash(Path(wanted.aesthetic)))])
    tools = replace(tools, hashes={**tools.hashes, "aesthetic": head})
    return replace(tools, clip=clip, words=clip.words, dino=dino, aesthetic=aesthetic, names=named)


def _with_faces(tools: Instruments, arcface: str) -> Instruments:
    if not fetched.fetched():
        why = "phantom-s2v[people] is not installed, or phantom models fetch was not run"
        return replace(tools, absent={**tools.absent, "face": why})
    faces_network, weights = Faces("dlib", faces.dlib_faces, faces.dlib_alike), faces.dlib_hash()
    if arcface:
        weights = content_hash(Path(arcface))
        network = faces.ArcFace(Path(arcface))
        faces_network = Faces(f"arcface {Path(arcface).name}", network, lambda one, other: float(one @ other))
        tools = replace(tools, limits=replace(tools.limits, face=ARCFACE_SAME))
    return replace(
        tools, faces=faces_network, names={**tools.names, "face": faces_network.name}, hashes={**tools.hashes, "face": weights}
    )


def _with_larger(tools: Instruments, wanted: Wanted) -> Instruments:
    """A detector and a segmenter for the subject on photographs, and the networks of OpenS2V's remaining scores."""
    named, hashes = dict(tools.names), dict(tools.hashes)
    if wanted.curricularface:
        file = Path(wanted.curricularface)
        network = Faces(f"curricularface {file.name}", faces.ArcFace(file), lambda one, other: float(one @ other))
        tools, named["cur_score"], hashes["cur_score"] = replace(tools, curricular=network), network.name, content_hash(file)
    if wanted.object_detector:
        tools = replace(tools, find=OpenVocabularyDetector(source_path(wanted.object_detector)))
        named["object_detector"] = wanted.object_detector
    if wanted.vlm:
        tools, named["vlm"] = replace(tools, ask=VisionLanguageModel(source_path(wanted.vlm)).ask), wanted.vlm
    if wanted.gme:
        gme = MultimodalEmbedder(source_path(wanted.gme))
        tools, named["gme"] = replace(tools, gme=gme, gme_words=gme.words), wanted.gme
    if wanted.segmenter:
        tools, named["segmenter"] = replace(tools, segment=_segment(wanted.segmenter, tools)), wanted.segmenter
    return replace(tools, names=named, hashes=hashes)


def _segment(segmenter: str, tools: Instruments) -> Callable[[np.ndarray, str], np.ndarray]:
    """What puts the subject of an image on white: SAM2's mask of the box that a detector finds for its name, or of the image."""
    masks = Segmenter(source_path(segmenter))

    def segment(image: np.ndarray, name: str) -> np.ndarray:
        height, width = image.shape[:2]
        across, down = round(MARGIN * width), round(MARGIN * height)
        box = across, down, width - across, height - down
        if tools.find and (detections := tools.find([image], [name])[0]):
            box = detections[0][0]
        return np.where(masks(image, [box])[0][..., None], image, np.uint8(255))

    return segment


def _autoencoder_folder(model: str) -> Path:
    return model_folder(model) / "vae"


def _reconstruction(model: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Frames, at most as large as the model's videos and as many as its autoencoder takes, and what comes out of it."""
    preset = load_preset(model_folder(model))
    autoencoder = load_autoencoder(_autoencoder_folder(model))

    @torch.no_grad()
    def reconstruct(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width, height = fit_inside(video.shape[2], video.shape[1], preset.width, preset.height)
        size = [max(preset.multiple, side // preset.multiple * preset.multiple) for side in (width, height)]
        frames = video[: (len(video) - 1) // 4 * 4 + 1]
        resized = np.stack([np.asarray(Image.fromarray(f).resize((size[0], size[1]), Image.Resampling.LANCZOS)) for f in frames])
        return resized, to_video(decode(autoencoder, encode(autoencoder, to_pixels(resized)[None]))[0])

    return reconstruct
