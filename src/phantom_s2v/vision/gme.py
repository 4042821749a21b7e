"""Images and texts in one space, by GME (arXiv 2412.16855), which embeds with Qwen2-VL.

Its own class is code in its repository, which is never run. Here transformers' Qwen2VLModel, on which it builds, is used with
what that code does: its prompt, the hidden state of the last token, and positions that count tokens, without Qwen's grid of an
image.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from phantom_s2v.models.finite import check_finite
from phantom_s2v.vision.transformers import default_device, load_chat, load_network, precision

DEFAULT, QUERY = "You are a helpful assistant.", "Find an image that matches the given text."  # instructions of images and texts
PROMPT = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
TOKENS, LONGEST = (256, 1280), 1800  # of an image, least and most; of a whole prompt
BATCH = 4  # images at once, of up to 1,280 tokens each


class MultimodalEmbedder:
    """Images, or a text, -> unit vectors in one space; on CUDA in bfloat16, elsewhere as the weights are stored."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        device = device or default_device()
        self.folder, self.prepare = folder, load_chat(folder)
        self.model = load_network("Qwen2VLModel", folder, device, precision(device) if device.type == "cuda" else "auto")
        images = self.prepare.image_processor
        self.side = images.patch_size * images.merge_size  # of a token of an image, pixels
        images.size = dict(zip(("shortest_edge", "longest_edge"), (n * self.side**2 for n in TOKENS), strict=True))

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n, d], of length one, of uint8 [H, W, 3] each; BATCH of them at once."""
        found = []
        for start in range(0, len(images), BATCH):
            part = [self._even(image) for image in images[start : start + BATCH]]
            found.append(self._embedded([PROMPT.format(DEFAULT, IMAGE)] * len(part), part))
        return np.concatenate(found)

    def words(self, text: str) -> np.ndarray:
        """float32 [d], of length one, of a text that is to be found among images; it is cut at 1,800 tokens."""
        return self._embedded([PROMPT.format(QUERY, text)], None)[0]

    def _even(self, image: np.ndarray) -> Image.Image:
        """An image whose sides are whole numbers of tokens, as GME resizes it first."""
        height, width = (max(self.side, round(each / self.side) * self.side) for each in image.shape[:2])
        return Image.fromarray(image).resize((width, height))

    @torch.no_grad()
    def _embedded(self, texts: list[str], images: list[Image.Image] | None) -> np.ndarray:
        options = {"padding": True, "padding_side": "right", "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
        inputs = self.prepare(text=texts, images=images, **options).to(self.model.device)
        shape = inputs["input_ids"].shape
        positions = torch.arange(shape[1], device=self.model.device).expand(3, *shape)
        hidden = self.model(**inputs, position_ids=positions, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        vectors = hidden[torch.arange(len(texts), device=hidden.device), last].float()
        check_finite(vectors, f"the embedding by {self.folder}")
        return nn.functional.normalize(vectors, dim=-1).cpu().numpy()
