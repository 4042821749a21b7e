"""What a user asks for, and what a model has as defaults. No torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import exists, typed
from phantom_s2v.geometry import MAX_IMAGES, MAX_SUBJECTS, VideoSize
from phantom_s2v.models.base import Preset

SOLVERS = ("euler", "unipc")
MAX_FRAMES, MAX_SIDE = 10_001, 8192
MAX_PIXELS = 1 << 31  # of all frames: 121 frames of 1280x720 are 5% of it
LONGEST_PROMPT = 100_000  # characters; encoders read some hundred tokens


@dataclass(frozen=True)
class Reference:
    """A reference image; images with the same subject name are views of one subject."""

    path: str
    subject: str


@dataclass(frozen=True)
class Request:
    """What a user asks for."""

    prompt: str
    references: tuple[Reference, ...]
    height: int
    width: int
    num_frames: int
    fps: int
    seed: int
    num_inference_steps: int
    solver: str
    shift: float
    image_guidance_scale: float
    guidance_scale: float
    negative_prompt: str = ""
    first_frame: str | None = None
    untrained_size: bool = False
    background: str | None = None  # an image that is kept whole
    cutout: bool = False  # remove the background of the other references
    segmenter: str | None = None  # folder of SAM2, for cutouts from backgrounds that are not plain
    several_views: bool = False  # let Phantom-Wan have several images of one subject
    asked_prompt: str | None = None  # what the user wrote, where a rephraser changed it
    released_behavior: bool = False  # read images and draw noise as the released code does

    def subjects(self) -> list[str]:
        """Names in the order of their first image."""
        return list(dict.fromkeys(r.subject for r in self.references))

    def images(self) -> tuple[Reference, ...]:
        """Every image that takes a reference place: the references, then the background."""
        return self.references + ((Reference(self.background, "background"),) if self.background else ())


def with_defaults(preset: Preset, **options: Any) -> Request:
    """A request with the preset's defaults and seed 0; what is given as None takes the default."""
    shared = {name: getattr(preset, name) for name in Request.__dataclass_fields__ if hasattr(preset, name)}
    return Request(**{"seed": 0, **shared, **{name: value for name, value in options.items() if value is not None}})


def check_request(request: Request, preset: Preset) -> None:
    """Raise InputError for what cannot be made, before anything loads."""
    try:
        typed(Request, asdict(request), "the request")
    except ValueError as error:
        raise InputError(str(error)) from error
    _check_bounds(request)
    VideoSize(request.num_frames, request.height, request.width)
    subjects, images = len(request.subjects()) + bool(request.background), len(request.images())
    if subjects > MAX_SUBJECTS:
        counted = "with the background" if request.background else "images of one name are one subject"
        raise InputError(f"number of subjects must be at most {MAX_SUBJECTS} (got {subjects}; {counted})")
    if images > MAX_IMAGES:
        raise InputError(f"number of reference images must be at most {MAX_IMAGES} (got {images})")
    if "background" in request.subjects():
        raise InputError("a subject must not be named background; use --background for an image of the place")
    if request.segmenter and not request.cutout:
        raise InputError("--segmenter has an effect with --cutout only")
    if not request.prompt.strip() and not images:
        raise InputError("a prompt or a reference image is required")
    if request.solver not in SOLVERS:
        raise InputError(f"solver must be {' or '.join(SOLVERS)} (got {request.solver!r})")
    for name, low, high in (("num_inference_steps", 1, 1000), ("fps", 1, 120), ("seed", 0, 2**63 - 1)):
        if not low <= getattr(request, name) <= high:
            raise InputError(f"{name} must be between {low} and {high} (got {getattr(request, name)})")
    for name in ("image_guidance_scale", "guidance_scale"):
        if not 0 <= getattr(request, name) <= 100:
            raise InputError(f"{name} must be between 0 and 100 (got {getattr(request, name)})")
    _check_size(request, preset)
    _check_trained(request, preset)


def _check_bounds(request: Request) -> None:
    """Raise InputError for what no machine could hold."""
    for name, maximum in (("num_frames", MAX_FRAMES), ("height", MAX_SIDE), ("width", MAX_SIDE)):
        if not 1 <= getattr(request, name) <= maximum:
            raise InputError(f"{name} must be between 1 and {maximum:,} (got {getattr(request, name)})")
    if (pixels := request.num_frames * request.height * request.width) > MAX_PIXELS:
        raise InputError(
            f"the video must have at most {MAX_PIXELS:,} pixels (got {pixels:,}: {request.num_frames} frames of "
            f"{request.width}x{request.height})"
        )
    if not 0 < request.shift <= 1000:
        raise InputError(f"shift must be above 0 and at most 1000 (got {request.shift})")
    for name in ("prompt", "negative_prompt"):
        if len(getattr(request, name)) > LONGEST_PROMPT:
            raise InputError(f"{name} must have at most {LONGEST_PROMPT:,} characters (got {len(getattr(request, name)):,})")


def _check_size(request: Request, preset: Preset) -> None:
    size = (request.height, request.width)
    if any(side % preset.multiple for side in size):
        raise InputError(f"sides must be multiples of {preset.multiple} for {preset.name} (got {request.width}x{request.height})")
    low, high = preset.side_range
    fits = size in preset.sizes if preset.sizes else all(low <= side <= high for side in size)
    if not fits and not request.untrained_size:
        allowed = " or ".join(f"{w}x{h}" for h, w in preset.sizes) or (f"{low} to {high} pixels per side")
        raise InputError(
            f"size must be {allowed} for {preset.name} (got {request.width}x{request.height}; use --untrained-size to override)"
        )


def _check_trained(request: Request, preset: Preset) -> None:
    """What a model was never trained for."""
    if request.first_frame and not preset.takes_first_frame:
        raise InputError(f"{preset.name} does not support a first frame (not trained for it; phantom-mini is)")
    if len(request.images()) > preset.max_images:
        raise InputError(f"number of images must be at most {preset.max_images} for {preset.name} (got {len(request.images())})")
    if len(request.references) > len(request.subjects()) and not (preset.takes_views or request.several_views):
        raise InputError(
            f"{preset.name} takes one image per subject (got {len(request.references)} images of {len(request.subjects())} "
            "subjects): it tends to show a subject with several images twice (use --several-views to override)"
        )


def split_reference(text: str, number: int) -> tuple[str, str]:
    """(name, path) of "[NAME=]PATH"; a file whose own name holds "=" is taken as it is."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or exists(Path(text)):
        return f"subject {number + 1}", text
    if not name or not path:
        raise InputError(f"reference must be PATH or NAME=PATH (got {text!r})")
    return name, path
