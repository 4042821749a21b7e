"""A vision-language model that captions clips and answers questions: any image-text-to-text model, such as Qwen-VL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phantom_s2v.vision.transformers import default_device, load_chat, load_network, precision

CAPTION = (
    "These are frames of one clip, in order. Describe in one or two sentences what happens. "
    "Name every subject with its appearance, "
    "so that no two can be mistaken for each other."
)
PHRASES = "List the subjects of this caption with their appearance, one noun phrase on a line and nothing else:\n"
SAME = (
    "Do these two images show the very same subject (for a product its color, packaging and text, for a person the face and, "
    "where it shows, the clothing), and in different surroundings? Answer yes or no."
)
HAS_LOGO = (
    "Does this image show a manufactured thing with its brand's logo or lettering, whole and readable, so that the same "
    "product could be recognized elsewhere? Answer yes or no."
)
WHOLE = (
    "Does this image show one subject whole enough to be a reference of it: an animal or a thing that nothing cuts or covers, or "
    "a person whose head and shoulders show? Answer yes or no."
)
ANSWER = 128  # tokens
BATCH = 4  # questions at once: each has up to three images of about a thousand tokens


class VisionLanguageModel:
    """Images and questions -> answers, by an image-text-to-text model; on CUDA in bfloat16, elsewhere as it is stored."""

    def __init__(self, folder: Path, device: torch.device | None = None) -> None:
        device = device or default_device()
        self.prepare = load_chat(folder)
        self.model = load_network(
            "AutoModelForImageTextToText", folder, device, precision(device) if device.type == "cuda" else "auto"
        )

    def ask(self, images: list[np.ndarray], question: str, max_new_tokens: int = ANSWER) -> str:
        """What the model says, greedily, in at most `max_new_tokens` tokens."""
        return self.answers([(images, question)], max_new_tokens)[0]

    @torch.no_grad()
    def answers(self, asked: Sequence[tuple[list[np.ndarray], str]], max_new_tokens: int = ANSWER) -> list[str]:
        """What the model says to each (images, question), greedily; BATCH of them at once, padded on the left."""
        said: list[str] = []
        for start in range(0, len(asked), BATCH):
            inputs = self.prepare.apply_chat_template(
                [_chat(images, question) for images, question in asked[start : start + BATCH]],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True, "padding_side": "left"},
            ).to(self.model.device)
            out = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
            said += self.prepare.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [answer.strip() for answer in said]

    def captions(self, clips: Sequence[list[np.ndarray]]) -> list[str]:
        """What each clip shows, by its stills."""
        return self.answers([(stills, CAPTION) for stills in clips])

    def phrases(self, captions: Sequence[str]) -> list[list[str]]:
        """The subjects of each caption."""
        said = self.answers([([], PHRASES + caption) for caption in captions])
        lines = [[line.strip(" -*\t.0123456789") for line in each.splitlines()] for each in said]
        return [list(dict.fromkeys(line for line in each if line)) for each in lines]

    def have_logos(self, images: Sequence[np.ndarray]) -> list[bool]:
        """Whether things carry their mark whole, and so are the same wherever they show (Phantom-Data, section 4)."""
        return self._agrees([([image], HAS_LOGO) for image in images])

    def whole(self, images: Sequence[np.ndarray]) -> list[bool]:
        """Whether images show a whole subject; of a person head and shoulders are enough."""
        return self._agrees([([image], WHOLE) for image in images])

    def same(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[bool]:
        """Whether the two images of each pair show one subject in different places."""
        return self._agrees([([one, other], SAME) for one, other in pairs])

    def _agrees(self, asked: Sequence[tuple[list[np.ndarray], str]]) -> list[bool]:
        return [answer.lower().startswith("yes") for answer in self.answers(asked)]


def _chat(images: list[np.ndarray], question: str) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(image)} for image in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
