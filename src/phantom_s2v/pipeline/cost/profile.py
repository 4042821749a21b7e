"""What a machine knows of a model, from which the cost of any request follows by arithmetic. No torch.

`measure.profile` makes it, with torch, where the model's folder is.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.base import Clip, Preset, VideoModel
from phantom_s2v.models.registry import FAMILIES
from phantom_s2v.pipeline.cost import estimate as e
from phantom_s2v.pipeline.request import Request
from phantom_s2v.pipeline.sampling.guidance import is_distilled, weights

RUNTIME_BYTES = 1e8  # what torch itself takes when it first computes; measured (dev/LOG.md)
SIDE = 64  # pixels a side of the clip on which the autoencoder is counted


@dataclass(frozen=True)
class Profile:
    """A model as a machine holds it. As JSON by `as_json`, and back by `from_json`."""

    family: str  # class name of its transformer
    transformer: dict[str, Any]  # its configuration
    coder: tuple[int, int, int]  # FLOP at SIDE pixels: the first latent frame, each later one, encoding a still
    decoder_base: int  # channels
    sizes: dict[str, float]  # bytes of the weights of each part, as they are held
    width: int  # bytes of a number in the transformer
    cache: str
    one_batch: bool  # whether the branches of guidance are one batch, whatever the model does by itself
    offload: str
    speed: e.Speed

    def as_json(self) -> dict[str, Any]:
        """What a database keeps."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Profile":
        """The profile that `as_json` gave."""
        return Profile(**{**values, "coder": tuple(values["coder"]), "speed": e.Speed(**values["speed"])})

    @property
    def model(self) -> VideoModel:
        """Its base model. Raises InputError where none of ours has such a transformer."""
        for model in FAMILIES:
            if self.family in model.transformers:
                return model
        raise InputError(f"there is no model with a transformer of class {self.family}")


def estimate(profile: Profile, request: Request, preset: Preset) -> e.Estimate:
    """What a request takes there."""
    model, clip = profile.model, clip_of(request)
    branches = branch_count(request, profile.transformer)
    tokens = model.tokens(preset, clip)
    flops = float(model.flops(profile.transformer, clip) * branches * request.num_inference_steps)
    coder = coder_flops(profile.coder, request)
    running = e.activation_bytes(model.widths(profile.transformer), tokens, profile.width)
    running *= branches if profile.one_batch else model.batched(branches)
    if profile.cache != "none":
        running += e.cache_bytes(profile.transformer, tokens, profile.width, profile.cache) * branches
    decoding = e.autoencoder_bytes(profile.decoder_base, request)
    peak = RUNTIME_BYTES + peak_bytes(profile.sizes, running, decoding, profile.offload, model.own_text_encoder)
    seconds = flops / profile.speed.blocks + coder / profile.speed.convolutions
    held = sum(profile.sizes.values())
    return e.Estimate(tokens, branches * request.num_inference_steps, flops, coder, held, peak, seconds, profile.speed)


def clip_of(request: Request) -> Clip:
    """What one forward of a request computes."""
    return Clip(VideoSize(request.num_frames, request.height, request.width), len(request.images()))


def branch_count(request: Request, transformer: dict[str, Any]) -> int:
    """Forwards a step that guidance needs with a transformer of this configuration."""
    scales = (request.image_guidance_scale, request.guidance_scale)
    if is_distilled(transformer.get("guidance_range"), *scales, bool(request.negative_prompt)):
        return 1
    return len(weights(*scales, bool(request.images())))


def coder_flops(counts: tuple[int, int, int], request: Request) -> float:
    """Decoding the video and encoding every image, in proportion to pixels and frames."""
    first, later, still = counts
    frames = VideoSize(request.num_frames, request.height, request.width).latent[0]
    area = request.height * request.width / SIDE**2
    return area * (first + (frames - 1) * later + len(request.images()) * still)


def peak_bytes(sizes: dict[str, float], running: float, decoding: float, offload: str, leaves: bool) -> float:
    """Most memory at once, where the text encoder `leaves` before the transformer comes, and where it stays."""
    if not leaves:
        return sum(sizes.values()) + max(running, decoding)
    transformer, coder = sizes["transformer"], sizes["autoencoder"]
    if offload == "none":
        return max(sizes["text_encoder"], transformer + coder + max(running, decoding))
    return max(sizes["text_encoder"], transformer + running, coder + decoding)
