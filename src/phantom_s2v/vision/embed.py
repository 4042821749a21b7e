"""Embeddings of images (DINOv2, DINOv3, CLIP, SigLIP) and LAION's aesthetic score."""

import pickle
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.bounds import check_archive, check_storage
from phantom_s2v.models.finite import check_finite
from phantom_s2v.models.tensors import read_tensors, save_tensors
from phantom_s2v.vision.transformers import BATCH, PreparedImages, at_speed, load_network, load_processor

CLIP = "openai/clip-vit-large-patch14"  # whose embeddings the aesthetic head judges
AESTHETIC_LAYERS = ((0, 768, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))  # place, width in, width out


class Embedder:
    """Images -> embeddings, by the class token of DINOv2 and DINOv3, or projected by CLIP and SigLIP; these read texts too."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        self.folder = folder
        self.prepare, self.model = PreparedImages(folder), load_network("AutoModel", folder, device)

    @torch.no_grad()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """float32 [n, d], of length one, of uint8 [H, W, 3] each; BATCH of them at once."""
        run = getattr(self.model, "get_image_features", None) or self.model
        found = []
        for start in range(0, len(images), BATCH):
            pixels = self.prepare(images[start : start + BATCH]).to(self.model.device)
            with at_speed(self.model.device):
                out = run(pixel_values=pixels)
            # a plain ViT's own pooler is random where only its backbone was trained, as DINO's was
            found.append(out.last_hidden_state[:, 0] if run is self.model else _pooled(out))
        return self._unit(torch.cat(found), "the embedding")

    @torch.no_grad()
    def words(self, text: str) -> np.ndarray:
        """float32 [d], of length one, of a text, in the images' space; it is cut at the model's length (77 tokens of CLIP)."""
        if not hasattr(self.model, "get_text_features"):
            raise CheckpointError(f"{self.folder} has no text encoder; the text score needs CLIP or SigLIP")
        longest = self.model.config.text_config.max_position_embeddings
        inputs = self._tokens([text], padding="max_length", truncation=True, max_length=longest, return_tensors="pt")
        with at_speed(self.model.device):
            out = self.model.get_text_features(**inputs.to(self.model.device))
        return self._unit(_pooled(out), "the embedding of a text")[0]

    @cached_property
    def _tokens(self) -> Any:
        return load_processor("AutoTokenizer", self.folder)

    def _unit(self, features: torch.Tensor, what: str) -> np.ndarray:
        check_finite(features, f"{what} by {self.folder}")
        return nn.functional.normalize(features.float(), dim=-1).cpu().numpy()


def _pooled(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out.pooler_output


class Aesthetics:
    """Images -> LAION's aesthetic score, 1..10: five linear layers on CLIP ViT-L/14's embeddings, without activations between.

    `folder` is CLIP's in transformers' layout, `head` the layers' safetensors file with the names layers.0.weight and so on; what
    is published is a pickle, which `convert_head` turns into it.
    """

    def __init__(self, folder: Path, head: Path) -> None:
        self.embed = Embedder(folder)
        try:
            state, _ = read_tensors(head)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{head} is not a safetensors file ({error})") from error
        for name, value in state.items():
            check_finite(value, f"the weight {name} of {head}", CheckpointError)
        self.layers = nn.ModuleDict({f"layers-{i}": nn.Linear(n, m) for i, n, m in AESTHETIC_LAYERS})
        try:
            self.layers.load_state_dict({name.replace("layers.", "layers-"): value.float() for name, value in state.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{head} is not an aesthetic head: {' '.join(str(error).split())[:200]}") from error

    @torch.no_grad()
    def __call__(self, images: list[np.ndarray]) -> np.ndarray:
        """float32 [n]."""
        values = torch.from_numpy(self.embed(images))
        for layer in self.layers.values():
            values = layer(values)
        check_finite(values, "the aesthetic score")
        return values[:, 0].numpy()


def convert_head(source: Path, target: Path) -> None:
    """The published aesthetic head (a pickle of tensors, read with weights_only) as safetensors."""
    try:
        check_archive(source)
        state = torch.load(source, weights_only=True, map_location="cpu")
        wanted = {f"layers.{i}.{part}" for i, _, _ in AESTHETIC_LAYERS for part in ("weight", "bias")}
        if set(state) != wanted:
            raise CheckpointError(
                f"an aesthetic head must have {', '.join(sorted(wanted)[:4])}, ... (got "
                f"{', '.join(sorted(state)[:4])} in {source})"
            )
        for name, value in state.items():
            check_storage(value, name, source)
        save_tensors(state, target)
    except (OSError, pickle.UnpicklingError, RuntimeError, TypeError, AttributeError, ValueError, KeyError, EOFError) as error:
        raise CheckpointError(f"{source} is not a pickle of tensors ({str(error).splitlines()[0]})") from error
