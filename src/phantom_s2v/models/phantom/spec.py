"""The paper's own model as a base model: phantom-mini's defaults, what its index holds, and its cost."""

from typing import Any

from phantom_s2v.errors import CheckpointError
from phantom_s2v.geometry import windows
from phantom_s2v.models.base import Clip, Preset, VideoModel

WORDS = 24  # text tokens of a usual prompt
MINI = {  # defaults of phantom-mini, written beside its weights
    "name": "phantom-mini",
    "height": 64,
    "width": 64,
    "num_frames": 25,
    "fps": 8,
    "num_inference_steps": 16,
    "solver": "euler",
    "shift": 3.0,
    "image_guidance_scale": 3.5,
    "guidance_scale": 4.0,
    "side_range": [48, 96],
}


class PhantomModel(VideoModel):
    """The MMDiT of Phantom 3.2, whose defaults lie in the model's index."""

    transformers = ("PhantomTransformer",)
    pipeline = "phantom_s2v.pipeline.mmdit_pipeline:PhantomMMDiTPipeline"
    own_text_encoder = False
    checks_prompts = False
    image_tokens = True
    placed = frozenset({"loras"})
    depth, measured_depth = "depth", 2  # windows alternate

    def preset(self, config: dict[str, Any]) -> Preset:
        """There are none but those of a model's index."""
        raise CheckpointError("a PhantomTransformer needs a model_index.json with the model's preset")

    def parts(self) -> dict[str, Any]:
        """Transformer, autoencoder and image encoder."""
        from diffusers import AutoencoderKLWan

        from phantom_s2v.models.phantom.encoders import ImageEncoder
        from phantom_s2v.models.phantom.transformer import PhantomTransformer

        return {"transformer": PhantomTransformer, "vae": AutoencoderKLWan, "image_encoder": ImageEncoder}

    def flops(self, config: dict[str, Any], clip: Clip) -> int:
        """Of PhantomTransformer, with its windows, for a usual prompt."""
        frames, h, w = clip.size.latent
        d, s, n = config["dim"], h * w // config["patch"] ** 2, clip.images
        images = n if config["use_vae_references"] else 0
        image = n * config["image_tokens"] if config["use_image_tokens"] else 0
        vision, text = (frames + images) * s, WORDS + image
        total = 0
        for index in range(config["depth"]):
            total += 4 * d * d * (vision + text)
            total += 2 * d * int(d * config["mlp_ratio"]) * vision + 2 * d * int(d * config["text_mlp_ratio"]) * text
            for start, stop in windows(frames, config["window_size"], images, config["shift_windows"] and index % 2 == 1):
                total += 2 * d * ((stop - start + images) * s + text) ** 2
        channels = config["latent_channels"] * config["patch"] ** 2
        total += d * channels * (vision + frames * s) + WORDS * config["text_dim"] * d + image * config["image_dim"] * d
        return 2 * total

    def widths(self, config: dict[str, Any]) -> tuple[int, int]:
        """The width and that of the vision branch's MLP."""
        return config["dim"], int(config["dim"] * config["mlp_ratio"])

    def inputs(self, config: dict[str, Any], clip: Clip, branches: int, device: Any, dtype: Any) -> tuple[Any, ...]:
        """All branches as one batch."""
        import torch

        def zeros(*shape: int) -> Any:
            return torch.zeros(branches, *shape, device=device, dtype=dtype)

        n, channels, latent = clip.images, config["latent_channels"], clip.size.latent
        mask, seen = (torch.ones(branches, length, dtype=torch.bool, device=device) for length in (WORDS, n))
        subjects = torch.zeros(branches, n, dtype=torch.int64, device=device)
        tokens = zeros(n, config["image_tokens"], config["image_dim"])
        t = torch.ones(branches, device=device)
        return (
            zeros(channels, *latent),
            t,
            zeros(WORDS, config["text_dim"]),
            mask,
            zeros(n, channels, *latent[1:]),
            tokens,
            seen,
            subjects,
        )


def index_of(preset: dict[str, Any]) -> dict[str, Any]:
    """model_index.json of a model with these defaults; its text encoder comes from its package."""
    own = "phantom_s2v.models.phantom"
    return {
        "_class_name": "PhantomMMDiTPipeline",
        "preset": preset,
        "vae": ["diffusers", "AutoencoderKLWan"],
        "transformer": [f"{own}.transformer", "PhantomTransformer"],
        "image_encoder": [f"{own}.encoders", "ImageEncoder"],
        **{part: [None, None] for part in ("scheduler", "text_encoder", "tokenizer")},
    }
