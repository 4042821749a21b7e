"""Larger vision models for data and evaluation, through transformers and from a folder or the hub: none of them is packaged.

A captioner and judge (any image-text-to-text model, such as Qwen-VL), a detector that takes phrases (GroundingDINO, OWLv2), and
embeddings of pictures (DINOv2, CLIP, SigLIP). SAM2 is in segment.py.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import nn

from phantom_s2v.errors import CheckpointError
from phantom_s2v.geometry import iou
from phantom_s2v.model.bounds import check_archive, check_storage, loading
from phantom_s2v.model.finite import check_finite, check_weights
from phantom_s2v.model.tensors import align, read_tensors, save_tensors

CAPTION = (
    "These are frames of one clip, in order. Describe in one or two sentences what happens. Name every subject with its looks, "
    "so that no two can be mistaken for each other."
)
PHRASES = "List the subjects of this caption with their looks, one noun phrase on a line and nothing else:\n"
SAME = (
    "Do these two pictures show the very same subject (for a product its colour, packaging and text, for a person the face and, "
    "where it shows, the clothing), and in different surroundings? Answer yes or no."
)
MARKED = (
    "Does this picture show a manufactured thing with its brand's logo or lettering, whole and readable, so that the same "
    "product could be recognised elsewhere? Answer yes or no."
)
ANSWER = 128  # tokens
AESTHETIC_LAYERS = ((0, 768, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1))  # place, width in, width out
ONE_PLACE = 0.5  # IoU from which on two boxes of a phrase are one place


def load_transformers(kind: str, folder: Path) -> tuple[Any, Any]:
    """Processor and model of a folder in transformers' layout. Raises CheckpointError where they cannot be had."""
    import transformers

    def build(place: Path) -> nn.Module:
        config = transformers.AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False)
        return getattr(transformers, kind).from_config(config, trust_remote_code=False)

    processor = "AutoImageProcessor" if kind == "AutoModel" else "AutoProcessor"
    with loading(folder, f"{kind} of transformers", build):
        prepare = getattr(transformers, processor).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = getattr(transformers, kind).from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    model = check_weights(align(model), str(folder)).eval().requires_grad_(False)
    return prepare, model.to("cuda" if torch.cuda.is_available() else "cpu")


class Embedder:
    """Pictures -> embeddings, by DINO's class token or CLIP's projected one; CLIP reads texts too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare, self.model = load_transformers("AutoModel", folder)

    @torch.no_grad()
    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """float32 [n, d], of length one, of uint8 [H, W, 3] each."""
        inputs = self.prepare(images=[Image.fromarray(p) for p in pictures], return_tensors="pt").to(self.model.device)
        run = getattr(self.model, "get_image_features", None) or self.model
        out = run(**inputs)
        # a plain ViT's own pooler is random where only its backbone was trained, as DINO's was
        features = (
            out if isinstance(out, torch.Tensor) else out.pooler_output if run is not self.model else out.last_hidden_state[:, 0]
        )
        check_finite(features, f"the embedding by {self.folder}")
        return nn.functional.normalize(features.float(), dim=-1).cpu().numpy()

    @torch.no_grad()
    def words(self, text: str) -> np.ndarray:
        """float32 [d], of length one, of a text, in the pictures' space; it is cut at the model's length (77 tokens of CLIP)."""
        from transformers import AutoTokenizer

        if not hasattr(self.model, "get_text_features"):
            raise CheckpointError(f"{self.folder} reads no text; the text score needs CLIP or SigLIP")
        with loading(self.folder, "tokenizer"):
            tokens = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        inputs = tokens([text], padding="max_length", truncation=True, return_tensors="pt").to(self.model.device)
        out = self.model.get_text_features(**inputs)
        features = out if isinstance(out, torch.Tensor) else out.pooler_output
        check_finite(features, f"the embedding of a text by {self.folder}")
        return nn.functional.normalize(features.float(), dim=-1)[0].cpu().numpy()


class Aesthetics:
    """Pictures -> LAION's aesthetic score, 1..10: five linear layers on CLIP ViT-L/14's embeddings, without activations between.

    `folder` is CLIP's in transformers' layout, `head` the layers' safetensors file with the names layers.0.weight and so on; what
    is published is a pickle, which `convert_head` turns into it.
    """

    def __init__(self, folder: Path, head: Path) -> None:
        self.embed = Embedder(folder)
        try:
            state, _ = read_tensors(head)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{head} is no safetensors file ({error})") from error
        for name, value in state.items():
            check_finite(value, f"the weight {name} of {head}", CheckpointError)
        self.layers = nn.ModuleDict({f"layers-{i}": nn.Linear(n, m) for i, n, m in AESTHETIC_LAYERS})
        try:
            self.layers.load_state_dict({name.replace("layers.", "layers-"): value.float() for name, value in state.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{head} is no aesthetic head: {' '.join(str(error).split())[:200]}") from error

    @torch.no_grad()
    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        """float32 [n]."""
        values = torch.from_numpy(self.embed(pictures))
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
                f"{source} holds {', '.join(sorted(state)[:4])}; an aesthetic head holds {', '.join(sorted(wanted)[:4])}, ..."
            )
        for name, value in state.items():
            check_storage(value, name, source)
        save_tensors(state, target)
    except (OSError, pickle.UnpicklingError, RuntimeError, TypeError, AttributeError, ValueError, KeyError, EOFError) as error:
        raise CheckpointError(f"{source} is no pickle of tensors ({str(error).splitlines()[0]})") from error


class Grounder:
    """Phrases -> boxes in a picture."""

    def __init__(self, folder: Path, threshold: float = 0.3) -> None:
        self.prepare, self.model = load_transformers("AutoModelForZeroShotObjectDetection", folder)
        self.threshold = threshold

    @torch.no_grad()
    def __call__(self, picture: np.ndarray, phrases: list[str]) -> list[tuple[tuple[int, int, int, int], str, float]]:
        """(box in pixels, phrase, score), the surest first. A phrase that fits several places names none of them (facts 4.2)."""
        if not phrases:
            return []
        inputs = self.prepare(text=[phrases], images=Image.fromarray(picture), return_tensors="pt").to(self.model.device)
        found = self.prepare.post_process_grounded_object_detection(
            self.model(**inputs), threshold=self.threshold, target_sizes=[picture.shape[:2]], text_labels=[phrases]
        )[0]
        check_finite(found["scores"], "the score of a detection")
        height, width = picture.shape[:2]
        rows: list[tuple[tuple[int, int, int, int], str, float]] = []
        for i in found["scores"].argsort(descending=True).tolist():
            corners = np.clip(found["boxes"][i].tolist(), 0, [width, height, width, height]).round().astype(int).tolist()
            box, label = (corners[0], corners[1], corners[2], corners[3]), found["text_labels"][i]
            new = all(label != other or iou(box, place) < ONE_PLACE for place, other, _ in rows)
            if box[2] > box[0] and box[3] > box[1] and new:
                rows.append((box, label, float(found["scores"][i])))
        return [row for row in rows if sum(label == row[1] for _, label, _ in rows) == 1]


class Talker:
    """Pictures and a question -> an answer, by an image-text-to-text model."""

    def __init__(self, folder: Path) -> None:
        self.prepare, self.model = load_transformers("AutoModelForImageTextToText", folder)

    @torch.no_grad()
    def ask(self, pictures: list[np.ndarray], question: str, most: int = ANSWER) -> str:
        """What the model says, greedily, in at most `most` tokens."""
        content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(p)} for p in pictures]
        chat = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
        inputs = self.prepare.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device)
        out = self.model.generate(**inputs, max_new_tokens=most, do_sample=False)
        return self.prepare.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()

    def caption(self, stills: list[np.ndarray]) -> str:
        """What a clip shows."""
        return self.ask(stills, CAPTION)

    def phrases(self, caption: str) -> list[str]:
        """The subjects of a caption."""
        lines = (line.strip(" -*\t.0123456789") for line in self.ask([], PHRASES + caption).splitlines())
        return list(dict.fromkeys(line for line in lines if line))

    def marked(self, picture: np.ndarray) -> bool:
        """Whether a thing carries its mark whole, and so is the same wherever it shows (facts 4.2)."""
        return self.ask([picture], MARKED).lower().startswith("yes")

    def same(self, one: np.ndarray, other: np.ndarray) -> bool:
        """Whether two pictures show one subject in different places."""
        return self.ask([one, other], SAME).lower().startswith("yes")
