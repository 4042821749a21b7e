"""The paper's own model: an MMDiT over a vision and a text branch (Phantom 3.2, equations 1 and 2, figure 5).

Legend: B batch, C latent channels, T latent time, h w latent grid, n reference places, L text tokens, k image tokens
of an image, D width, N tokens of a branch.
"""

from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from einops import rearrange
from torch import nn

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import MAX_SUBJECTS, windows
from phantom_s2v.models.phantom.attention import Seen, Tokens, window_attention
from phantom_s2v.models.phantom.layers import GuidanceEmbedding, Mlp, TimeEmbedding, grid_positions, modulate, rotary_table

SMALLEST_T = 0.05  # below it the velocity of a predicted clean latent is no longer amplified


class Stream(nn.Module):
    """One branch of a block: its own projections, norms, modulation and MLP."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.mlp = Mlp(dim, mlp_ratio)
        self.modulation = nn.Parameter(torch.zeros(6, dim))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, N, D] -> queries, keys, values [B, H, N, E], with normalized queries and keys."""
        q, k, v = (rearrange(f(x), "b n (h e) -> b h n e", h=self.heads) for f in (self.q, self.k, self.v))
        return _normed(self.norm_q, q).to(v.dtype), _normed(self.norm_k, k).to(v.dtype), v


def _normed(norm: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """RMS norm in float32, whatever the weights' type."""
    weight = None if norm.weight is None else norm.weight.float()
    return nn.functional.rms_norm(x.float(), norm.normalized_shape, weight, norm.eps)


class Block(nn.Module):
    """MMDiT block: two streams meet in window attention."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, text_mlp_ratio: float) -> None:
        super().__init__()
        self.vision, self.text = Stream(dim, heads, mlp_ratio), Stream(dim, heads, text_mlp_ratio)

    def forward(  # noqa: D102 - the class says it
        self,
        vision: torch.Tensor,  # [B, T + n, S, D]
        text: torch.Tensor,  # [B, L + n k, D]
        time: tuple[torch.Tensor, torch.Tensor],  # modulation of each branch, [6, B, T + n, 1, D] and [6, B, 1, D]
        n: int,
        ranges: list[tuple[int, int]],
        angles: torch.Tensor,
        seen: Seen,
        everywhere: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        vision_mod = [each + own for each, own in zip(time[0], self.vision.modulation, strict=True)]
        text_mod = [each + own for each, own in zip(time[1], self.text.modulation, strict=True)]
        qkv_vision = self.vision.project(rearrange(modulate(vision, *vision_mod[:2]), "b t s d -> b (t s) d"))
        qkv_text = self.text.project(modulate(text, *text_mod[:2]))
        q, k, v = (_tokens(a, b, vision.shape[1] - n, n) for a, b in zip(qkv_vision, qkv_text, strict=True))
        out = window_attention(q, k, v, ranges, angles, seen, everywhere)
        attended = rearrange(torch.cat([out.video, out.references], 2), "b h t s e -> b t s (h e)")
        vision = vision + vision_mod[2] * self.vision.out(attended)
        text = text + text_mod[2] * self.text.out(rearrange(out.text, "b h n e -> b n (h e)"))
        vision = vision + vision_mod[5] * self.vision.mlp(modulate(vision, *vision_mod[3:5]))
        text = text + text_mod[5] * self.text.mlp(modulate(text, *text_mod[3:5]))
        return vision, text


class PhantomTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Velocity of a noisy video latent under text, reference latents and image tokens.

    The ablations of the paper are fields: `window_size`, `shift_windows` (ours), `inject_everywhere`,
    `use_vae_references`, `use_image_tokens`. `absolute_positions` and the subject-index embedding are ours
    (docs/method.md). The network predicts the clean latent and returns velocity = (x_t - x) / t.

    With `guidance_range` it is a student of guidance distillation (Meng 2023, arXiv 2210.03142): it takes the weights of image
    and text guidance as inputs, was trained with weights in this range, and gives the guided velocity in one forward.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "patch_in",
        "norm",
        "^time\\.",
        "^guidance",
    ]  # as Wan's: input, norms, embeddings of t
    _gradient_checkpointing_func: Any  # set by enable_gradient_checkpointing
    config: Any  # diffusers turns the arguments below into it

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        patch: int = 1,  # latent positions a token, per side
        dim: int = 192,
        depth: int = 8,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        text_mlp_ratio: float = 2.0,
        text_dim: int = 384,
        image_dim: int = 192,
        image_tokens: int = 16,  # of one image
        window_size: int = 10,  # latent frames, references included
        shift_windows: bool = True,
        inject_everywhere: bool = True,
        use_vae_references: bool = True,
        use_image_tokens: bool = True,
        absolute_positions: bool = True,
        guidance_range: tuple[float, float] | None = None,  # of weights that are inputs; None: they are no inputs
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False  # as diffusers' models have it; see enable_gradient_checkpointing
        self.patch_in = nn.Linear(latent_channels * patch**2, dim)
        self.text_in = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, dim))
        self.image_in = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, dim))
        self.image_position = nn.Parameter(torch.randn(image_tokens, dim) * 0.02)
        self.image_null = nn.Parameter(torch.randn(dim) * 0.02)
        self.subject = nn.Embedding(MAX_SUBJECTS, dim)
        self.reference_mark = nn.Parameter(torch.randn(dim) * 0.02)
        self.time = TimeEmbedding(dim)
        self.time_vision, self.time_text = nn.Linear(dim, 6 * dim), nn.Linear(dim, 6 * dim)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, text_mlp_ratio) for _ in range(depth))
        self.head_modulation = nn.Linear(dim, 2 * dim)
        self.head = nn.Linear(dim, latent_channels * patch**2)
        for layer in (self.time_vision, self.time_text, self.head_modulation, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.subject.weight, std=0.02)
        if guidance_range is not None:
            min_weight, max_weight = guidance_range
            if not 0 <= min_weight <= 1 <= max_weight:
                raise InputError(
                    f"guidance_range must include 1, where guidance has no effect (got {min_weight} to {max_weight})"
                )
            self.guidance = GuidanceEmbedding(dim)

    def forward(
        self,
        latents: torch.Tensor,  # [B, C, T, h, w]
        t: torch.Tensor,  # [B], or [B, T] where frames differ (a clean first frame has 0)
        text: torch.Tensor,  # [B, L, text_dim]
        text_mask: torch.Tensor,  # bool [B, L]
        references: torch.Tensor,  # [B, n, C, h, w]; zeros in the null branches; n = 0: text to video
        image_tokens: torch.Tensor,  # [B, n, k, image_dim]
        image_seen: torch.Tensor,  # bool [B, n]; False: the learned null instead of the tokens
        subjects: torch.Tensor,  # int [B, n], index of each image's subject
        reference_mask: torch.Tensor | None = None,  # bool [B, n]; False: a place that nothing attends to
        guidance: torch.Tensor | None = None,  # [B, 2], weights of image and text guidance; None: 1 and 1, the plain velocity
    ) -> torch.Tensor:
        """Velocity [B, C, T, h, w]; the reference places are dropped. `guidance` needs a model with `guidance_range`."""
        time = t if t.ndim == 2 else t[:, None].expand(-1, latents.shape[2])
        vision = self._vision_branch(latents, references, subjects)
        words, seen = self._text_branch(text, text_mask, image_tokens, image_seen, subjects, reference_mask)
        n = vision.shape[1] - latents.shape[2]
        mark, text_mark = self._marks(time, n, guidance)
        vision_time = rearrange(self.time_vision(mark), "b t (m d) -> m b t 1 d", m=6)
        text_time = rearrange(self.time_text(text_mark), "b (m d) -> m b 1 d", m=6)
        angles = self._angles(latents)
        for index, block in enumerate(self.blocks):
            shifted = self.config.shift_windows and index % 2 == 1
            ranges = windows(latents.shape[2], self.config.window_size, n, shifted)
            given = (vision, words, (vision_time, text_time), n, ranges, angles, seen, self.config.inject_everywhere)
            again = self.gradient_checkpointing and torch.is_grad_enabled()
            vision, words = self._gradient_checkpointing_func(block, *given) if again else block(*given)
        return self._velocity(latents, vision[:, : latents.shape[2]], mark[:, : latents.shape[2]], time)

    def _marks(self, time: torch.Tensor, n: int, guidance: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """What modulates vision [B, T + n, D] and text [B, D]: t, with that of the clean references 0, and guidance."""
        mark = self.time(torch.cat([time, time.new_zeros(len(time), n)], 1))
        text_mark = self.time(time.amax(1))
        if self.config.guidance_range is not None:
            weights = self.guidance(time.new_ones(len(time), 2) if guidance is None else guidance)
            mark, text_mark = mark + weights[:, None], text_mark + weights
        elif guidance is not None:
            raise ValueError("this transformer takes no guidance scales: its guidance_range is None")
        return nn.functional.silu(mark), nn.functional.silu(text_mark)

    def _vision_branch(self, latents: torch.Tensor, references: torch.Tensor, subjects: torch.Tensor) -> torch.Tensor:
        """Equation 2: video tokens with the reference tokens at the tail, [B, T + n, S, D]."""
        p, frames = self.config.patch, latents.shape[2]
        h, w = latents.shape[3] // p, latents.shape[4] // p
        n = references.shape[1] if self.config.use_vae_references else 0
        images = torch.cat([latents, references[:, :n].transpose(1, 2).to(latents.dtype)], 2)
        patches = rearrange(images, "b c t (h p) (w q) -> b t h w (c p q)", p=p, q=p)
        x = self.patch_in(patches.to(self.patch_in.weight))
        if self.config.absolute_positions:
            places = grid_positions(frames, h, w, self.config.dim, latents.device)
            still = grid_positions(1, h, w, self.config.dim, latents.device).expand(n, -1, -1, -1)
            x = x + torch.cat([places, still]).to(x.dtype)
        index = self.subject(subjects[:, :n]) + self.reference_mark
        x = torch.cat([x[:, :frames], x[:, frames:] + index[:, :, None, None]], 1)
        return rearrange(x, "b t h w d -> b t (h w) d")

    def _text_branch(
        self,
        text: torch.Tensor,
        text_mask: torch.Tensor,
        image_tokens: torch.Tensor,
        image_seen: torch.Tensor,
        subjects: torch.Tensor,
        reference_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, Seen]:
        """Equation 1: text tokens with the image tokens appended, [B, L + n k, D], and what is seen of them."""
        words = self.text_in(text.to(self.image_position.dtype))  # features are float32, and FSDP may gather weights in bfloat16
        reference_seen = reference_mask if self.config.use_vae_references else None
        if not self.config.use_image_tokens or not image_tokens.shape[1]:
            return words, Seen(reference_seen, text_mask)
        tokens = self.image_in(image_tokens.to(self.image_position.dtype))
        images = torch.where(image_seen[..., None, None], tokens, self.image_null)
        images = images + self.image_position + self.subject(subjects)[:, :, None]
        seen = torch.ones_like(image_seen) if reference_mask is None else reference_mask
        mask = torch.cat([text_mask, seen.repeat_interleave(image_tokens.shape[2], 1)], 1)
        return torch.cat([words, rearrange(images, "b n k d -> b (n k) d")], 1), Seen(reference_seen, mask)

    def _angles(self, latents: torch.Tensor) -> torch.Tensor:
        """RoPE's table of one window, [M, S, E/2]."""
        h, w = (side // self.config.patch for side in latents.shape[3:])
        table = rotary_table(self.config.window_size, h, w, self.config.dim // self.config.heads, latents.device)
        return rearrange(table, "m h w e -> m (h w) e")

    def _velocity(self, latents: torch.Tensor, vision: torch.Tensor, mark: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """The head: predicted clean latent, then velocity = (x_t - x) / t; a clean frame (t = 0) does not move."""
        p, h = self.config.patch, latents.shape[3] // self.config.patch
        shift, scale = (part[:, :, None] for part in self.head_modulation(mark).chunk(2, -1))
        x = self.head(modulate(vision, shift, scale))
        clean = rearrange(x, "b t (h w) (c p q) -> b c t (h p) (w q)", h=h, p=p, q=p)
        t = time[:, None, :, None, None]
        return torch.where(t > 0, (latents - clean.to(latents.dtype)) / t.clamp(min=SMALLEST_T), torch.zeros_like(latents))


def _tokens(vision: torch.Tensor, text: torch.Tensor, frames: int, n: int) -> Tokens:
    split = rearrange(vision, "b h (t s) e -> b h t s e", t=frames + n)
    return Tokens(split[:, :, :frames], split[:, :, frames:], text)
