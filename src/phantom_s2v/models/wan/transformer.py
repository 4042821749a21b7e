"""Phantom-Wan: the released weights on diffusers' Wan2.1 transformer, with the released code's text and timesteps.

Legend: B batch, C latent channels, T latent time, n reference places, h w latent grid, L = 512 text places, D text width.
"""

import gc
import html
import math
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import ftfy
import regex
import torch
from diffusers import WanTransformer3DModel
from torch import nn
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel
from transformers.utils.logging import disable_progress_bar

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.bounds import loading, read_config
from phantom_s2v.models.finite import check_weights
from phantom_s2v.models.memory import evaluating
from phantom_s2v.models.tensors import align, save_part

TEXT_PLACES = 512
TIMESTEPS = 1000


class Sinusoid(nn.Module):
    """Embedding of integer timesteps [B] -> [B, width], cosines first, computed in float64 as the released code does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """The embedding, in float32."""
        half = self.width // 2
        powers = torch.arange(half, dtype=torch.float64, device=timestep.device) / half
        angles = timestep.double()[:, None] * torch.exp(-math.log(10_000) * powers)
        return torch.cat([angles.cos(), angles.sin()], 1).float()


@contextmanager
def released_sinusoid(transformer: WanTransformer3DModel) -> Iterator[None]:
    """Within it, a Sinusoid gives what diffusers' float32 one gives else, whose angles near t = 1000 are off by 1e-4.

    A hook does it, so that a transformer of the caller's is afterwards what it was.
    """
    sinusoid, embedder = Sinusoid(cast(Any, transformer.config)["freq_dim"]), cast(Any, transformer.condition_embedder)
    hook = embedder.timesteps_proj.register_forward_hook(lambda _, inputs, __: sinusoid(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


def wan_velocity(
    transformer: WanTransformer3DModel, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, references: torch.Tensor
) -> torch.Tensor:
    """Velocity [B, C, T, h, w] of noisy latents x at t (a scalar in 0..1) under text [B, L, D] and references [B, C, n, h, w].

    The references follow the video as clean frames at the next time indices, with the same timestep; the velocity at their
    places is dropped (facts 2.5). Timesteps are integers: t * 1000 without its fraction.
    """
    network: Any = transformer
    dtype = network.patch_embedding.bias.dtype  # kept by layerwise casting and by quantisation
    timestep = (t.double() * TIMESTEPS).long().expand(len(x))
    places = torch.cat([x, references.to(x)], 2)
    with released_sinusoid(transformer):
        out = network(
            hidden_states=places.to(dtype), timestep=timestep, encoder_hidden_states=text.to(x.device, dtype), return_dict=False
        )
    return out[0][:, :, : x.shape[2]].float()


def pad_text(features: torch.Tensor) -> torch.Tensor:
    """Text features [B, L, D] with zeros up to 512 places; the zeros are seen by cross-attention (facts 2.5)."""
    missing = TEXT_PLACES - features.shape[1]
    if missing < 0:
        raise ValueError(f"text has {features.shape[1]} places; at most {TEXT_PLACES} are possible")
    return nn.functional.pad(features, (0, 0, 0, missing))


def check_parts_agree(folder: Path) -> None:
    """Raise CheckpointError where the parts of a model folder are of different models, by their configurations."""

    def config(part: str) -> dict[str, Any]:
        file = folder / part / "config.json"
        return read_config(file) if file.is_file() else {}

    transformer = config("transformer")
    for part, theirs, ours in (("text_encoder", "d_model", "text_dim"), ("vae", "z_dim", "in_channels")):
        given, wanted = config(part).get(theirs), transformer.get(ours)
        if given is not None and wanted is not None and given != wanted:
            raise CheckpointError(
                f"{folder / part} is the {part} of another model; its {theirs} is {given}, the transformer's {ours} is {wanted}"
            )


class _Features:
    """Features of prompts on disk, in a file without a name: those of a thousand prompts would take 8 GB of memory."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - it is closed with this object
        weakref.finalize(self, self.file.close)
        self.places: dict[str, tuple[int, tuple[int, ...]]] = {}

    def keep(self, prompt: str, features: torch.Tensor) -> None:
        """Write features, float32."""
        self.places[prompt] = (self.file.seek(0, 2), tuple(features.shape))
        self.file.write(features.contiguous().cpu().numpy().tobytes())

    def __getitem__(self, prompt: str) -> torch.Tensor:
        start, shape = self.places[prompt]
        self.file.seek(start)
        return torch.frombuffer(bytearray(self.file.read(4 * math.prod(shape))), dtype=torch.float32).reshape(shape)


class WanTextEncoder:
    """umT5 as the released code calls it: loaded when it is first needed, dropped on request."""

    def __init__(self, folder: Path | None, dtype: torch.dtype, device: torch.device) -> None:
        self.folder, self.dtype, self.device = folder, dtype, device
        self.model: Any = None
        self.tokenizer: Any = None
        self.known = _Features()

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> "WanTextEncoder":
        """An encoder of parts that are loaded already, and that stay."""
        encoder = cls(None, torch.float32, torch.device("cpu") if model is None else model.device)
        encoder.model, encoder.tokenizer = model, tokenizer
        return encoder

    @torch.no_grad()
    def __call__(self, prompt: str) -> torch.Tensor:
        """[1, 512, D]: features of the cleaned prompt up to its own length, then zeros."""
        if prompt not in self.known.places:
            self._load()
            ids = torch.tensor([self._tokens(prompt)[0]], device=self.device)
            with evaluating(self.model):
                features = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            self.known.keep(prompt, features.float())
        return pad_text(self.known[prompt]).to(self.device)

    def cut(self, prompt: str) -> str:
        """What of a prompt lies beyond the 512 places; empty where nothing does."""
        return self.tokenizer.decode(rest) if (rest := self._tokens(prompt)[1]) else ""

    def save_pretrained(self, folder: Path) -> None:
        """Write model and tokenizer beside the other parts of a model folder."""
        self._load()
        save_part(self.model, folder / "text_encoder")
        self.tokenizer.save_pretrained(folder / "tokenizer")

    def drop(self) -> None:
        """Free the model, where it can be loaded again; prompts that were encoded stay known, on disk."""
        if self.folder is None:
            return
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _tokens(self, prompt: str) -> tuple[list[int], list[int]]:
        """Ids that fit, with the end mark last, and those that do not."""
        self._load_tokenizer()
        *ids, end = self.tokenizer(clean_text(prompt), add_special_tokens=True)["input_ids"]
        return [*ids[: TEXT_PLACES - 1], end], ids[TEXT_PLACES - 1 :]

    def _load_tokenizer(self) -> None:
        if self.tokenizer is None:
            folder = self._root() / "tokenizer"
            with loading(folder, "tokenizer of umT5"):
                self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)

    def _load(self) -> None:
        if self.model is None:
            self._load_tokenizer()
            self.model = load_text_encoder(self._root() / "text_encoder", self.dtype).to(self.device)

    def _root(self) -> Path:
        if self.folder is None:
            raise CheckpointError("this pipeline has no text encoder; give prompt_embeds, or a text encoder and its tokenizer")
        return self.folder


def load_text_encoder(folder: Path, dtype: torch.dtype) -> Any:
    """umT5 of a folder in transformers' layout, shard by shard. Raises CheckpointError where keys are missing or misshapen."""
    disable_progress_bar()
    with loading(
        folder,
        "umT5 encoder",
        lambda place: UMT5EncoderModel(UMT5Config.from_pretrained(place, local_files_only=True, trust_remote_code=False)),
    ):
        loaded: Any = UMT5EncoderModel.from_pretrained(
            folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    model, info = loaded
    faults = [
        f"{len(info[kind])} {kind.replace('_', ' ')}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if info[kind]
    ]
    if faults:
        raise CheckpointError(f"{folder} does not fit its configuration: {', '.join(faults)}")
    return check_weights(align(model), str(folder)).eval().requires_grad_(False)


def clean_text(text: str) -> str:
    """A prompt as the released code cleans it: mojibake mended, HTML entities resolved twice, white space single."""
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip()
