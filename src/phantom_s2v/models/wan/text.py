"""umT5 as the released code calls it, and the features of many prompts kept on disk."""

import math
import tempfile
import weakref
from pathlib import Path
from typing import Any

import torch
from transformers import UMT5Config, UMT5EncoderModel

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.bounds import loading, read_config
from phantom_s2v.models.wan.spec import TEXT_PLACES
from phantom_s2v.models.wan.transformer import clean_text
from phantom_s2v.models.weights import check_shapes, read_shapes, shapes_of, shard_files

WEIGHTS = "model.safetensors"
TIED = "encoder.embed_tokens.weight"  # the same tensor as shared.weight


def prompt_tokens(tokenizer: Any, prompt: str, places: int = TEXT_PLACES) -> tuple[list[int], list[int]]:
    """Ids of a cleaned prompt that fit into `places`, with the end mark last, and those that do not fit."""
    *ids, end = tokenizer(clean_text(prompt), add_special_tokens=True, verbose=False)["input_ids"]
    return [*ids[: places - 1], end], ids[places - 1 :]


def prompt_features(encoder: Any, tokenizer: Any, prompt: str, places: int, device: torch.device) -> torch.Tensor:
    """[1, L, D] of a prompt at its own length, which is what the released code gives it: a prompt's bits depend on no other."""
    ids = torch.tensor([prompt_tokens(tokenizer, prompt, places)[0]], device=device)
    return encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


def check_text_encoder(folder: Path) -> None:
    """Raise CheckpointError where umT5's weights in a folder do not fit its configuration; no tensor is read."""

    def build(place: Path) -> UMT5EncoderModel:
        return UMT5EncoderModel(UMT5Config.from_pretrained(place, local_files_only=True, trust_remote_code=False))

    with loading(folder, "umT5 encoder", build):
        index = folder / f"{WEIGHTS}.index.json"
        files = shard_files(index) if index.is_file() else [folder / WEIGHTS]
        shapes = {name: shape for file in files for name, shape in read_shapes(file).items()}
        with torch.device("meta"):
            wanted = shapes_of(build(folder))
        shapes.pop(TIED, None), wanted.pop(TIED, None)
        check_shapes(folder, shapes, wanted)


def check_parts_agree(folder: Path) -> None:
    """Raise CheckpointError where the parts of a model folder are of different models, by their configurations."""

    def config(part: str) -> dict[str, Any]:
        file = folder / part / "config.json"
        return read_config(file) if file.is_file() else {}

    transformer = config("transformer")
    for part, theirs, ours in (("text_encoder", "d_model", "text_dim"), ("vae", "z_dim", "in_channels")):
        value, wanted = config(part).get(theirs), transformer.get(ours)
        if value is not None and wanted is not None and value != wanted:
            raise CheckpointError(
                f"{folder / part} is the {part} of another model; its {theirs} is {value}, the transformer's {ours} is {wanted}"
            )


class PromptFeatures:
    """Features of prompts on disk, each at its own length, in a file without a name: memory does not grow with their number."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with this object
        weakref.finalize(self, self.file.close)
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}

    def keep(self, prompt: str, features: torch.Tensor) -> None:
        """Write features, float32."""
        self.places[prompt] = (self.file.seek(0, 2), tuple(features.shape))
        self.file.write(features.float().contiguous().cpu().numpy().tobytes())

    def __contains__(self, prompt: str) -> bool:
        return prompt in self.places

    def __getitem__(self, prompt: str) -> torch.Tensor:
        start, shape = self.places[prompt]
        self.file.seek(start)
        return torch.frombuffer(bytearray(self.file.read(4 * math.prod(shape))), dtype=torch.float32).reshape(shape)
