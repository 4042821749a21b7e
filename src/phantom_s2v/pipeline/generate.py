"""The one path from a request to a video: command line, pipeline, studio and evaluation all come through here."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from phantom_s2v.errors import NotFiniteError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.media import images
from phantom_s2v.models.autoencoder import decode, encode, load_autoencoder, to_pixels, to_video
from phantom_s2v.models.finite import all_finite, check_finite, first_not_finite
from phantom_s2v.models.memory import Placement, evaluating, place_transformer, taking_turns
from phantom_s2v.models.phantom.conditioning import Conditions, encode_references
from phantom_s2v.models.phantom.encoders import ImageEncoder, TextEncoder, text_encoder_folder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.registry import Preset, load_preset
from phantom_s2v.models.wan.step_cache import StepCache, read_ratios
from phantom_s2v.models.wan.transformer import WanTextEncoder, check_parts_agree, pad_text, wan_velocity
from phantom_s2v.models.weights import check_part, load_part, weights_hash
from phantom_s2v.pipeline.metadata import record_of
from phantom_s2v.pipeline.request import Request, check
from phantom_s2v.pipeline.sampling.guidance import Velocity, distilled, guided, guided_by, is_distilled
from phantom_s2v.pipeline.sampling.schedules import uniform
from phantom_s2v.pipeline.sampling.solvers import SOLVERS
from phantom_s2v.vision.segment import subject_mask

ENCODER_SIDE = 64  # pixels a side of what the image encoder sees
OnStep = Callable[[int, int, torch.Tensor], None]  # steps done, steps in all, predicted clean latent [1, C, T, h, w]


@dataclass(frozen=True)
class Models:
    """Everything that `load_models` loads."""

    preset: Preset
    transformer: PhantomTransformer | WanTransformer3DModel
    autoencoder: AutoencoderKLWan
    image_encoder: ImageEncoder | None  # phantom-mini alone
    text_encoder: TextEncoder | WanTextEncoder
    hash: str  # of the contents of weights and configurations, see `model_hash`
    placement: Placement = field(default_factory=Placement)
    step_cache: StepCache | None = None  # Phantom-Wan alone


@dataclass(frozen=True)
class Output:
    """A video, uint8 [F, H, W, 3], the prepared references, and the record of all that made it."""

    video: np.ndarray
    references: list[np.ndarray]
    record: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def load_models(folder: Path, placement: Placement | None = None, calibrate: bool = False) -> Models:
    """Load a model folder strictly, for inference. Raises CheckpointError where anything is missing or does not fit.

    To `calibrate`, MagCache measures its ratios instead of reading them.
    """
    preset = load_preset(folder)
    if preset.family == "wan":
        return _load_wan(folder, preset, placement or Placement(), calibrate)
    return Models(
        preset=preset,
        transformer=load_part(PhantomTransformer, folder / "transformer"),
        autoencoder=load_autoencoder(folder / "autoencoder"),
        image_encoder=load_part(ImageEncoder, folder / "image_encoder"),
        text_encoder=TextEncoder(),
        hash=model_hash(folder),
    )


def model_hash(folder: Path) -> str:
    """SHA-256 over the contents of everything that `load_models` reads of a model, the packaged text encoder among it."""
    if load_preset(folder).family == "wan":
        return weights_hash(*(folder / part for part in ("transformer", "vae", "text_encoder", "tokenizer")))
    own = (folder / part for part in ("transformer", "autoencoder", "image_encoder"))
    return weights_hash(*own, text_encoder_folder())


def check_models(folder: Path) -> None:
    """Raise CheckpointError for weights that cannot be loaded, without reading them."""
    if load_preset(folder).family == "wan":
        check_parts_agree(folder)
        parts: dict[str, Any] = {"transformer": WanTransformer3DModel, "vae": AutoencoderKLWan}
    else:
        parts = {"transformer": PhantomTransformer, "autoencoder": AutoencoderKLWan, "image_encoder": ImageEncoder}
    for name, kind in parts.items():
        check_part(kind, folder / name)


def _load_wan(folder: Path, preset: Preset, placement: Placement, calibrate: bool) -> Models:
    check_parts_agree(folder)
    weights = model_hash(folder)
    ratios = read_ratios(folder, weights) if placement.cache == "magcache" and not calibrate else None
    dtype = placement.torch_dtype()
    transformer = load_part(WanTransformer3DModel, folder / "transformer", dtype)
    cache = place_transformer(transformer, placement, ratios)
    autoencoder = load_autoencoder(folder / "vae")
    if placement.tiling:
        autoencoder.enable_tiling()
    reader = (torch.float32, torch.device("cpu")) if placement.text_on_cpu else (dtype, placement.torch_device())
    encoder = WanTextEncoder(folder, *reader)
    return Models(preset, transformer, autoencoder, None, encoder, weights, placement, cache)


def read_prompts(requests: list[Request], models: Models) -> None:
    """Let Phantom-Wan's text encoder read all prompts at once and drop it, before the transformer needs the memory."""
    if isinstance(models.text_encoder, WanTextEncoder):
        for request in requests:
            models.text_encoder(request.prompt)
            models.text_encoder(request.negative_prompt)
        models.text_encoder.drop()


def generate(request: Request, models: Models, on_step: OnStep | None = None) -> Output:
    """Make the video of a request. The same request, weights and machine give the same bits.

    Raises NotFiniteError where values that are not finite first arise, and names the step and the block, or the embedding.
    """
    check(request, models.preset)
    pictures, notices = read_pictures(request)
    prepared = [images.letterbox(p, request.height, request.width) for p in pictures]
    first = None
    if request.first_frame:
        picture, said = images.read_picture(Path(request.first_frame))
        notices += said
        first = images.letterbox(picture, request.height, request.width)
    latents = sample(request, models, velocity_of(request, models, pictures, prepared), len(pictures), first, on_step)
    record = record_of(request, models.preset.name, models.hash, asdict(models.placement))
    return Output(to_video(decode_latents(models, latents)[0]), prepared, record, prompt_notices(request, models) + notices)


def read_pictures(request: Request) -> tuple[list[np.ndarray], list[str]]:
    """The pictures of a request in the order of their places, uint8 [H, W, 3], and notices of what was done to them."""
    pictures, notices = [], []
    segment = partial(subject_mask, Path(request.segmenter)) if request.segmenter else None
    for reference in request.pictures():
        cutout = request.cutout and reference.path != request.background
        picture, said = images.read_picture(Path(reference.path), request.released_behaviour, cutout, segment)
        pictures.append(picture)
        notices += said
    return pictures, notices


def velocity_of(request: Request, models: Models, pictures: list[np.ndarray], prepared: list[np.ndarray]) -> Velocity:
    """Guided velocity(x, t) of a request, whichever model stands behind it."""
    if isinstance(models.text_encoder, WanTextEncoder):
        read_prompts([request], models)
        text, negative = models.text_encoder(request.prompt), models.text_encoder(request.negative_prompt)
        return wan_guided(request, models, text, negative, wan_references(models, prepared))
    shape = VideoSize(request.frames, request.height, request.width).latent
    conditions = condition(models, request.prompt, pictures, prepared, subject_indices(request))
    if not pictures:
        none = conditions.references.new_zeros(1, 0, conditions.references.shape[2], *shape[1:])
        conditions = replace(conditions, references=none)
    weights = (request.guidance_image, request.guidance_text)
    if is_distilled(cast(Any, models.transformer.config).guidance_range, *weights, request.negative_prompt):
        return distilled(models.transformer, conditions, *weights)
    negative = models.text_encoder([request.negative_prompt])
    check_finite(negative[0], "the embedding of the negative prompt")
    return guided(models.transformer, conditions, negative, *weights)


def subject_indices(request: Request) -> list[int]:
    """Which subject each picture shows; the background is one of its own."""
    names = list(dict.fromkeys(p.subject for p in request.pictures()))
    return [names.index(p.subject) for p in request.pictures()]


@torch.no_grad()
def wan_references(models: Models, prepared: list[np.ndarray]) -> torch.Tensor | None:
    """Latents [1, C, n, h, w] of pictures at the video's size, each encoded alone as a video of one frame (facts 2.4)."""
    if not prepared:
        return None
    device = models.placement.torch_device()
    with taking_turns(models.autoencoder, models.placement):
        return torch.cat([encode(models.autoencoder, to_pixels(p[None])[None].to(device)) for p in prepared], 2)


def wan_guided(
    request: Request, models: Models, text: torch.Tensor, negative: torch.Tensor, references: torch.Tensor | None
) -> Velocity:
    """The three forwards of the released code, one after the other (facts 2.5): what each sees is written here.

    The null branch has zero latents in normalised space at the reference places, not an encoded blank. Caches that know of no
    branches get one forward over a batch of them.
    """
    transformer, device = models.transformer, models.placement.torch_device()
    assert isinstance(transformer, WanTransformer3DModel)
    check_finite(text, "the embedding of the prompt")
    check_finite(negative, "the embedding of the negative prompt")
    for place, latent in enumerate(references.unbind(2) if references is not None else (), 1):
        check_finite(latent, f"the latent of reference {place}")
    shape = VideoSize(request.frames, request.height, request.width).latent
    some = references if references is not None else torch.zeros(1, transformer.config["in_channels"], 0, *shape[1:])
    some, text, negative = (part.to(device) for part in (some, pad_text(text), pad_text(negative)))
    seen = {"both": (text, some), "image": (negative, some), "null": (negative, torch.zeros_like(some))}
    cache = models.step_cache
    if cache:
        cache.begin(request.steps, some.shape[2])
    elif transformer.is_cache_enabled:  # by the user, in parts that are his own
        transformer._reset_stateful_cache()
    steps = count()

    @lru_cache  # the same tensors at every step: keys and values of the text are kept by them
    def batch(group: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        texts, pictures = zip(*(seen[name] for name in group), strict=True)
        return (texts[0], pictures[0]) if len(group) == 1 else (torch.cat(texts), torch.cat(pictures))

    def velocities(x: torch.Tensor, t: torch.Tensor, names: Iterable[str]) -> dict[str, torch.Tensor]:
        step, out = next(steps), {}
        for group in [tuple(names)] if cache and cache.one_batch else [(name,) for name in names]:
            name = "+".join(group)
            with cache.context(name, step, float(t)) if cache else transformer.cache_context(name):
                parts = wan_velocity(transformer, x.expand(len(group), *x.shape[1:]), t, *batch(group))
            out |= dict(zip(group, parts.split(1), strict=True))
        return out

    return guided_by(velocities, request.guidance_image, request.guidance_text, references is not None)


def condition(
    models: Models, prompt: str, pictures: list[np.ndarray], prepared: list[np.ndarray], subjects: list[int]
) -> Conditions:
    """Conditions of one request; `prepared` are the pictures at the video's size, the image encoder sees them at 64."""
    assert isinstance(models.text_encoder, TextEncoder)
    assert models.image_encoder is not None
    text, mask = models.text_encoder([prompt])
    n, config = len(pictures), cast(Any, models.transformer.config)
    if n:
        small = [images.letterbox(p, ENCODER_SIDE, ENCODER_SIDE) for p in pictures]
        latents, tokens = encode_references(
            models.autoencoder, models.image_encoder, *(to_pixels(np.stack(p)[:, None])[:, :, 0] for p in (prepared, small))
        )
    else:
        latents = torch.zeros(0, config.latent_channels, 1, 1)
        tokens = torch.zeros(0, config.image_tokens, config.image_dim)
    check_finite(text, "the embedding of the prompt")
    for place, parts in enumerate(zip(latents, tokens, strict=True), 1):
        for part, what in zip(parts, ("latent", "image tokens"), strict=True):
            check_finite(part, f"the {what} of reference {place}")
    seen = torch.ones(1, n, dtype=torch.bool)
    return Conditions(text, mask, latents[None], tokens[None], seen, torch.tensor([subjects], dtype=torch.int64))


def draw_noise(request: Request, models: Models, pictures: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Noise [1, C, T, h, w], on the CPU from the seed, so that a seed means the same everywhere.

    The released code draws it once over video and reference places (facts 2.5) and on the device that computes; what falls on
    the reference places is never seen.
    """
    wan = models.preset.family == "wan"
    frames, *grid = VideoSize(request.frames, request.height, request.width).latent
    device = models.placement.torch_device() if request.released_behaviour else torch.device("cpu")
    generator = generator or torch.Generator(device).manual_seed(request.seed)
    channels = models.autoencoder.config["z_dim"]
    shape = (1, channels, frames + (pictures if wan else 0), *grid)
    return torch.randn(shape, generator=generator, device=generator.device)[:, :, :frames]


@torch.no_grad()
def sample(
    request: Request,
    models: Models,
    velocity: Velocity,
    pictures: int,
    first: np.ndarray | None = None,
    on_step: OnStep | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Latents [1, C, T, h, w]: noise, then the solver along the guided velocity."""
    x = draw_noise(request, models, pictures, generator).to(models.placement.torch_device())
    if first is not None:
        x[:, :, :1] = encode(models.autoencoder, to_pixels(first[None])[None])

    def framewise(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        frames = t.float().repeat(x.shape[2])
        if first is not None:
            frames[0] = 0  # the first latent frame is clean and stays so
        return velocity(x_t, frames)

    times = uniform(request.steps, request.shift, 1.0 if request.solver == "euler" else 0.999)
    report = (lambda done, clean: on_step(done, request.steps, clean)) if on_step else None
    watched = watch(velocity if models.preset.family == "wan" else framewise, models, request.steps)
    with taking_turns(models.transformer, models.placement), evaluating(models.transformer):
        latents = SOLVERS[request.solver](watched, x, times, report)
    check_finite(latents, f"the latents after step {request.steps}, the last")
    return latents


def watch(velocity: Velocity, models: Models, steps: int) -> Velocity:
    """The same velocity, which raises NotFiniteError at the first step that is not finite. The block is found by a second
    forward, so that a sound step costs two sums over the latents.
    """
    numbers = count(1)

    def watched(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        step = f"step {next(numbers)} of {steps}"
        check_finite(x, f"the latents before {step}")
        v = velocity(x, t)
        if not all_finite(v):
            block = first_not_finite(models.transformer, lambda: velocity(x, t))
            where = f"first in {block} of the transformer" if block else "and no block of the transformer shows it again"
            narrow = models.placement.torch_dtype() == torch.float16
            advice = "; float16 may be too narrow for this model, bfloat16 is not" if narrow else ""
            raise NotFiniteError(f"{step}: the velocity is not finite, {where}; no video was written{advice}")
        return v

    return watched


@torch.no_grad()
def decode_latents(models: Models, latents: torch.Tensor) -> torch.Tensor:
    """Pixels [1, 3, F, H, W] in -1..1, on the CPU, in float32."""
    with taking_turns(models.autoencoder, models.placement):
        return decode(models.autoencoder, latents.to(models.placement.torch_device())).cpu()


def prompt_notices(request: Request, models: Models) -> list[str]:
    """What the text encoder will not read as the user wrote it."""
    notices = []
    if models.preset.family == "phantom" and re.search(r"[^\W\d_a-zA-Z\u00c0-\u024f]", request.prompt):
        notices.append(f"{models.preset.name} reads English; other scripts in the prompt are hardly understood")
    if rest := models.text_encoder.cut(request.prompt):
        notices.append(f"the prompt is too long for the text encoder; it is cut before {rest[:40]!r}")
    return notices
