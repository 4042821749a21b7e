"""A vision-language model that captions clips and answers questions: any image-text-to-text model, such as Qwen-VL."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from phantom_s2v.vision.transformers import load_transformers

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
ANSWER = 128  # tokens


class VisionLanguageModel:
    """Images and a question -> an answer, by an image-text-to-text model."""

    def __init__(self, folder: Path) -> None:
        self.prepare, self.model = load_transformers("AutoModelForImageTextToText", folder)

    @torch.no_grad()
    def ask(self, images: list[np.ndarray], question: str, max_new_tokens: int = ANSWER) -> str:
        """What the model says, greedily, in at most `max_new_tokens` tokens."""
        content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(p)} for p in images]
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        inputs = self.prepare.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        out = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return self.prepare.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()

    def caption(self, stills: list[np.ndarray]) -> str:
        """What a clip shows."""
        return self.ask(stills, CAPTION)

    def phrases(self, caption: str) -> list[str]:
        """The subjects of a caption."""
        lines = (line.strip(" -*\t.0123456789") for line in self.ask([], PHRASES + caption).splitlines())
        return list(dict.fromkeys(line for line in lines if line))

    def has_logo(self, image: np.ndarray) -> bool:
        """Whether a thing carries its mark whole, and so is the same wherever it shows (Phantom-Data, section 4)."""
        return self.ask([image], HAS_LOGO).lower().startswith("yes")

    def same(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two images show one subject in different places."""
        return self.ask([one, other], SAME).lower().startswith("yes")
