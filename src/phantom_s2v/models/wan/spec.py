"""Phantom-Wan as a base model: the released defaults and limits, and its cost."""

import math
from pathlib import Path
from typing import Any

from phantom_s2v.errors import CheckpointError
from phantom_s2v.geometry import MAX_SUBJECTS
from phantom_s2v.models.base import Clip, Preset, VideoModel

TEXT_PLACES = 512
NEGATIVE = (  # Wan's own negative prompt
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2")  # diffusers' names of q, k, v, o, ffn.0, ffn.2
CHANNELS = 16  # of the latents of Wan2.1's autoencoder, which Phantom-Wan was trained with
SHAPES = {  # of the released models
    "phantom-wan-1.3b": {"width": 1536, "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
    "phantom-wan-14b": {"width": 5120, "num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
}


class WanModel(VideoModel):
    """The released weights, on diffusers' Wan2.1 transformer."""

    transformers = ("WanTransformer3DModel", "PhantomWanTransformer")
    pipeline = "phantom_s2v.pipeline.wan_pipeline:PhantomWanPipeline"
    own_text_encoder = True
    checks_prompts = True
    placed = frozenset(
        {
            "device",
            "dtype",
            "offload",
            "quantization",
            "text_on_cpu",
            "tiling",
            "cache",
            "cache_threshold",
            "cache_text",
            "loras",
            "transformer",
        }
        | {"parallel"}
    )
    depth, measured_depth = "num_layers", 1

    def preset(self, config: dict[str, Any]) -> Preset:
        """Defaults of the released code for a transformer of this shape. Raises CheckpointError for Wan2.2 and others."""
        if config.get("_class_name") not in self.transformers:
            raise CheckpointError(f"the transformer must be a {self.transformers[0]} (got {config.get('_class_name')})")
        heads, head_width = config["num_attention_heads"], config["attention_head_dim"]
        if type(heads) is not int or type(head_width) is not int:
            raise ValueError("num_attention_heads and attention_head_dim must be integers")
        _check_channels(config)
        shape = {**config, "width": heads * head_width}
        alike = (name for name, each in SHAPES.items() if all(shape.get(key, value) == value for key, value in each.items()))
        name = next(alike, f"phantom-wan-{shape['width']}")
        wide = name == "phantom-wan-14b"
        return Preset(
            name=name,
            height=480,
            width=832,
            num_frames=121 if wide else 81,
            fps=24 if wide else 16,
            num_inference_steps=50,
            solver="unipc",
            shift=5.0,
            image_guidance_scale=5.0,
            guidance_scale=7.5,
            side_range=(16, 1280),
            sizes={"phantom-wan-1.3b": ((480, 832),), "phantom-wan-14b": ((480, 832), (720, 1280))}.get(name, ()),
            negative_prompt=NEGATIVE,
            patch=2,
            max_images=MAX_SUBJECTS,
            takes_views=False,
            takes_first_frame=False,
        )

    def parts(self) -> dict[str, Any]:
        """Transformer and autoencoder; the text encoder is checked by `check_folder`."""
        from diffusers import AutoencoderKLWan, WanTransformer3DModel

        return {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan}

    def check_folder(self, folder: Path, without: tuple[str, ...]) -> None:
        """Parts of one model, and a text encoder that fits its configuration."""
        from phantom_s2v.models.wan.text import check_parts_agree, check_text_encoder

        check_parts_agree(folder)
        if "text_encoder" not in without:
            check_text_encoder(folder / "text_encoder")

    def flops(self, config: dict[str, Any], clip: Clip) -> int:
        """Of WanTransformer3DModel, whatever its width."""
        d, f = self.widths(config)
        frames, h, w = clip.size.latent
        n, text = (frames + clip.images) * h * w // math.prod(config["patch_size"]), TEXT_PLACES
        own = 4 * n * d * d + 2 * n * n * d  # projections, scores and sums, in products
        cross = 2 * n * d * d + 2 * text * d * d + 2 * n * text * d
        block = own + cross + 2 * n * d * f
        ends = 2 * n * d * config["in_channels"] * math.prod(config["patch_size"])
        embedded = text * d * (config["text_dim"] + d) + d * config["freq_dim"] + d * d + 6 * d * d
        return 2 * (config["num_layers"] * block + ends + embedded)

    def widths(self, config: dict[str, Any]) -> tuple[int, int]:
        """Heads times their width, and the feed-forward's."""
        return config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]

    def inputs(self, config: dict[str, Any], clip: Clip, branches: int, device: Any, dtype: Any) -> tuple[Any, ...]:
        """Latents with the references behind them, a timestep, and a text: of one branch, since they come in turn."""
        import torch

        frames, h, w = clip.size.latent
        x = torch.zeros(1, config["in_channels"], frames + clip.images, h, w, device=device, dtype=dtype)
        text = torch.zeros(1, TEXT_PLACES, config["text_dim"], device=device, dtype=dtype)
        return x, torch.tensor([500], device=device), text

    def batched(self, branches: int) -> int:
        """The released code computes one branch after the other."""
        return 1


def _check_channels(config: dict[str, Any]) -> None:
    """Raise CheckpointError for Wan2.2 and models that start from an image, which have other channels or an image encoder."""
    channels = [config.get(name, CHANNELS) for name in ("in_channels", "out_channels")]
    image = config.get("image_dim") or config.get("added_kv_proj_dim")
    if channels != [CHANNELS, CHANNELS] or image:
        raise CheckpointError(
            f"the transformer has {channels[0]} input and {channels[1]} output channels{' and takes an image' if image else ''}; "
            f"Phantom-Wan, on Wan2.1's text to video, has {CHANNELS} and {CHANNELS}; Wan2.2 and others differ"
        )
