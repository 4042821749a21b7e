"""The one path from a request to a video: command line, pipeline, studio and evaluation all come through here."""

import hashlib
import json
import platform
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from phantom_s2v import media
from phantom_s2v.conditioning import Conditions, encode_references
from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.geometry import MAX_PICTURES, MAX_SUBJECTS, VideoSize
from phantom_s2v.model.autoencoder import decode, encode, to_pixels, to_video
from phantom_s2v.model.encoders import ImageEncoder, TextEncoder
from phantom_s2v.model.transformer import PhantomTransformer
from phantom_s2v.model.weights import load_part, weights_hash
from phantom_s2v.sampling.guidance import guided
from phantom_s2v.sampling.schedules import uniform
from phantom_s2v.sampling.solvers import SOLVERS

ENCODER_SIDE = 64  # pixels a side of what the image encoder sees
OnStep = Callable[[int, int, torch.Tensor], None]  # steps done, steps in all, predicted clean latent [1, C, T, h, w]


@dataclass(frozen=True)
class Preset:
    """Defaults of a model, kept beside its weights in preset.json."""

    name: str
    height: int  # pixels
    width: int
    frames: int
    fps: int
    steps: int
    solver: str
    shift: float  # of the timestep grid
    guidance_image: float
    guidance_text: float
    side_range: tuple[int, int]  # pixels a side that are near to those trained


@dataclass(frozen=True)
class Reference:
    """A picture of a subject; pictures of one name are views of one subject."""

    path: str
    subject: str


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    prompt: str
    references: tuple[Reference, ...]
    height: int
    width: int
    frames: int
    fps: int
    seed: int
    steps: int
    solver: str
    shift: float
    guidance_image: float
    guidance_text: float
    negative_prompt: str = ""
    first_frame: str | None = None
    untrained_size: bool = False

    def subjects(self) -> list[str]:
        """Names in the order of their first picture."""
        return list(dict.fromkeys(r.subject for r in self.references))


@dataclass(frozen=True)
class Models:
    """Everything that `load_models` loads."""

    preset: Preset
    transformer: PhantomTransformer
    autoencoder: AutoencoderKLWan
    image_encoder: ImageEncoder
    text_encoder: TextEncoder
    hash: str  # SHA-256 over the weight files


@dataclass(frozen=True)
class Output:
    """A video, uint8 [F, H, W, 3], the prepared references, and the record of all that made it."""

    video: np.ndarray
    references: list[np.ndarray]
    record: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def load_preset(folder: Path) -> Preset:
    """Defaults of the model in `folder`. Raises CheckpointError where there is no model of ours."""
    try:
        values = json.loads((folder / "preset.json").read_text())
        return Preset(**{**values, "side_range": tuple(values["side_range"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder} is not a model folder; it needs a readable preset.json ({error})") from error


def load_models(folder: Path) -> Models:
    """Load a model folder strictly, in float32 and in evaluation mode."""
    return Models(
        preset=load_preset(folder),
        transformer=load_part(PhantomTransformer, folder / "transformer"),
        autoencoder=load_part(AutoencoderKLWan, folder / "autoencoder"),
        image_encoder=load_part(ImageEncoder, folder / "image_encoder"),
        text_encoder=TextEncoder(),
        hash=weights_hash(folder),
    )


def check(request: Request, preset: Preset) -> None:
    """Raise InputError for what cannot be made, before anything loads."""
    VideoSize(request.frames, request.height, request.width)
    subjects, pictures = len(request.subjects()), len(request.references)
    if subjects > MAX_SUBJECTS:
        raise InputError(f"{subjects} subjects were given; at most {MAX_SUBJECTS} are possible (the same NAME= is one)")
    if pictures > MAX_PICTURES:
        raise InputError(f"{pictures} reference pictures were given; at most {MAX_PICTURES} are possible")
    if not request.prompt.strip() and not request.references:
        raise InputError("the prompt is empty and there is no reference; give a prompt, a reference, or both")
    if request.solver not in SOLVERS:
        raise InputError(f"solver is {request.solver!r}; it can be {' or '.join(SOLVERS)}")
    for name, low, high in (("steps", 1, 1000), ("fps", 1, 120), ("seed", 0, 2**63 - 1)):
        if not low <= getattr(request, name) <= high:
            raise InputError(f"{name} is {getattr(request, name)}; it can be {low} to {high}")
    for name in ("guidance_image", "guidance_text"):
        if not 0 <= getattr(request, name) <= 100:
            raise InputError(f"{name} is {getattr(request, name)}; it can be 0 to 100")
    low, high = preset.side_range
    if not request.untrained_size and not all(low <= side <= high for side in (request.height, request.width)):
        raise InputError(
            f"size is {request.width}x{request.height}; {preset.name} was trained at {preset.width}x{preset.height}, so "
            f"sides of {low} to {high} pixels are legal (--untrained-size lets others pass)"
        )


def generate(request: Request, models: Models, on_step: OnStep | None = None) -> Output:
    """Make the video of a request. The same request, weights and machine give the same bits."""
    check(request, models.preset)
    notices = prompt_notices(request, models)
    pictures = []
    for reference in request.references:
        picture, said = media.read_picture(Path(reference.path))
        pictures.append(picture)
        notices += said
    prepared = [media.letterbox(p, request.height, request.width) for p in pictures]
    first = None
    if request.first_frame:
        picture, said = media.read_picture(Path(request.first_frame))
        notices += said
        first = media.letterbox(picture, request.height, request.width)
    subjects = [request.subjects().index(r.subject) for r in request.references]
    conditions = condition(models, request.prompt, pictures, prepared, subjects)
    latents = sample(request, models, conditions, first, on_step)
    with torch.no_grad():
        pixels = decode(models.autoencoder, latents)[0]
    return Output(to_video(pixels), prepared, record_of(request, models), notices)


def condition(
    models: Models, prompt: str, pictures: list[np.ndarray], prepared: list[np.ndarray], subjects: list[int]
) -> Conditions:
    """Conditions of one request; `prepared` are the pictures at the video's size, the image encoder sees them at 64."""
    text, mask = models.text_encoder([prompt])
    n, config = len(pictures), models.transformer.config
    if n:
        small = [media.letterbox(p, ENCODER_SIDE, ENCODER_SIDE) for p in pictures]
        latents, tokens = encode_references(
            models.autoencoder, models.image_encoder, *(to_pixels(np.stack(p)[:, None])[:, :, 0] for p in (prepared, small))
        )
    else:
        latents = torch.zeros(0, config.latent_channels, 1, 1)
        tokens = torch.zeros(0, config.image_tokens, config.image_dim)
    seen = torch.ones(1, n, dtype=torch.bool)
    return Conditions(text, mask, latents[None], tokens[None], seen, torch.tensor([subjects], dtype=torch.int64))


@torch.no_grad()
def sample(
    request: Request, models: Models, conditions: Conditions, first: np.ndarray | None, on_step: OnStep | None
) -> torch.Tensor:
    """Latents [1, C, T, h, w]: noise from the seed on the CPU, then the solver under guidance."""
    shape = VideoSize(request.frames, request.height, request.width).latent
    if not conditions.subjects.shape[1]:
        conditions = replace(
            conditions, references=conditions.references.new_zeros(1, 0, conditions.references.shape[2], *shape[1:])
        )
    generator = torch.Generator("cpu").manual_seed(request.seed)
    x = torch.randn(1, models.transformer.config.latent_channels, *shape, generator=generator)
    if first is not None:
        x[:, :, :1] = encode(models.autoencoder, to_pixels(first[None])[None])
    negative = models.text_encoder([request.negative_prompt])
    inner = guided(models.transformer, conditions, negative, request.guidance_image, request.guidance_text)

    def velocity(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        frames = t.float().repeat(shape[0])
        if first is not None:
            frames[0] = 0  # the first latent frame is clean and stays so
        return inner(x_t, frames)

    times = uniform(request.steps, request.shift, 1.0 if request.solver == "euler" else 0.999)
    report = (lambda done, clean: on_step(done, request.steps, clean)) if on_step else None
    return SOLVERS[request.solver](velocity, x, times, report)


def prompt_notices(request: Request, models: Models) -> list[str]:
    """What the text encoder will not read as the user wrote it."""
    notices = []
    if re.search(r"[^\W\d_a-zA-Z\u00c0-\u024f]", request.prompt):
        notices.append(f"{models.preset.name} reads English; other scripts in the prompt are hardly understood")
    if rest := models.text_encoder.cut(request.prompt):
        notices.append(f"the prompt is too long for the text encoder; it is cut before {rest[:40]!r}")
    return notices


def record_of(request: Request, models: Models) -> dict[str, Any]:
    """Everything that made a video, as JSON."""
    files = [r.path for r in request.references] + ([request.first_frame] if request.first_frame else [])
    return {
        "request": asdict(request),
        "model": models.preset.name,
        "weights": models.hash,
        "files": {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in files},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """What the bits of a video depend on beside the request."""
    return {
        "phantom_s2v": "0.1.0",
        "torch": torch.__version__,
        "machine": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def request_from(record: dict[str, Any]) -> Request:
    """The request in a record. Raises InputError where it is none."""
    try:
        values = dict(record["request"])
        values["references"] = tuple(Reference(**r) for r in values["references"])
        return Request(**values)
    except (KeyError, TypeError) as error:
        raise InputError(f"this is no record of a video: {error}") from error


def changes(record: dict[str, Any], models: Models) -> list[str]:
    """What is no longer as it was when the record was written."""
    said = [] if record.get("weights") == models.hash else ["the weights are not those of the record"]
    for path, digest in record.get("files", {}).items():
        if not Path(path).is_file():
            raise InputError(f"{path}, which the record names, is missing")
        if hashlib.sha256(Path(path).read_bytes()).hexdigest() != digest:
            said.append(f"{path} has changed")
    for name, value in versions().items():
        if record.get("versions", {}).get(name) != value:
            said.append(f"{name} was {record.get('versions', {}).get(name)} and is {value}")
    return said
