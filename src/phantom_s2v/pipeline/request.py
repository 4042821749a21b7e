"""What a user asks for, and what a model has as defaults. No torch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import exists, typed
from phantom_s2v.geometry import MAX_PICTURES, MAX_SUBJECTS, VideoSize
from phantom_s2v.models.base import Preset

SOLVERS = ("euler", "unipc")
MOST_FRAMES, MOST_SIDE = 10_001, 8192
MOST_PIXELS = 1 << 31  # of all frames: 121 frames of 1280x720 are 5% of it
LONGEST_PROMPT = 100_000  # characters; encoders read some hundred tokens


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
    background: str | None = None  # a picture that is kept whole
    cutout: bool = False  # remove the ground of the other references
    segmenter: str | None = None  # folder of SAM2, for cutouts from grounds that are not plain
    several_views: bool = False  # let Phantom-Wan have several pictures of one subject
    asked_prompt: str | None = None  # what the user wrote, where a rephraser changed it
    released_behaviour: bool = False  # read pictures and draw noise as the released code does

    def subjects(self) -> list[str]:
        """Names in the order of their first picture."""
        return list(dict.fromkeys(r.subject for r in self.references))

    def pictures(self) -> tuple[Reference, ...]:
        """Every picture that takes a reference place: the references, then the background."""
        return self.references + ((Reference(self.background, "background"),) if self.background else ())


def with_defaults(preset: Preset, **given: Any) -> Request:
    """A request with the preset's defaults and seed 0; what is given as None takes the default."""
    shared = {name: getattr(preset, name) for name in Request.__dataclass_fields__ if hasattr(preset, name)}
    return Request(**{"seed": 0, **shared, **{name: value for name, value in given.items() if value is not None}})


def check(request: Request, preset: Preset) -> None:
    """Raise InputError for what cannot be made, before anything loads."""
    try:
        typed(Request, asdict(request), "the request")
    except ValueError as error:
        raise InputError(str(error)) from error
    _check_bounds(request)
    VideoSize(request.frames, request.height, request.width)
    subjects, pictures = len(request.subjects()), len(request.pictures())
    if subjects > MAX_SUBJECTS:
        raise InputError(f"{subjects} subjects were given; at most {MAX_SUBJECTS} are possible (the same NAME= is one)")
    if pictures > MAX_PICTURES:
        raise InputError(f"{pictures} reference pictures were given; at most {MAX_PICTURES} are possible")
    if not request.prompt.strip() and not pictures:
        raise InputError("the prompt is empty and there is no reference; give a prompt, a reference, or both")
    if request.solver not in SOLVERS:
        raise InputError(f"solver is {request.solver!r}; it can be {' or '.join(SOLVERS)}")
    for name, low, high in (("steps", 1, 1000), ("fps", 1, 120), ("seed", 0, 2**63 - 1)):
        if not low <= getattr(request, name) <= high:
            raise InputError(f"{name} is {getattr(request, name)}; it can be {low} to {high}")
    for name in ("guidance_image", "guidance_text"):
        if not 0 <= getattr(request, name) <= 100:
            raise InputError(f"{name} is {getattr(request, name)}; it can be 0 to 100")
    _check_size(request, preset)
    _check_trained(request, preset)


def _check_bounds(request: Request) -> None:
    """Raise InputError for what no machine could hold."""
    for name, most in (("frames", MOST_FRAMES), ("height", MOST_SIDE), ("width", MOST_SIDE)):
        if not 1 <= getattr(request, name) <= most:
            raise InputError(f"{name} is {getattr(request, name)}; it can be 1 to {most:,}")
    if (pixels := request.frames * request.height * request.width) > MOST_PIXELS:
        raise InputError(
            f"{request.frames} frames of {request.width}x{request.height} are {pixels:,} pixels; at most {MOST_PIXELS:,} are made"
        )
    if not 0 < request.shift <= 1000:
        raise InputError(f"shift is {request.shift}; it can be above 0 and up to 1000")
    for name in ("prompt", "negative_prompt"):
        if len(getattr(request, name)) > LONGEST_PROMPT:
            raise InputError(f"{name} has {len(getattr(request, name)):,} characters; at most {LONGEST_PROMPT:,} are read")


def _check_size(request: Request, preset: Preset) -> None:
    size = (request.height, request.width)
    if any(side % preset.multiple for side in size):
        raise InputError(f"size is {request.width}x{request.height}; sides of {preset.name} are multiples of {preset.multiple}")
    low, high = preset.side_range
    fits = size in preset.sizes if preset.sizes else all(low <= side <= high for side in size)
    if not fits and not request.untrained_size:
        legal = " and ".join(f"{w}x{h}" for h, w in preset.sizes) or (
            f"sides of {low} to {high} pixels, since it was trained at {preset.width}x{preset.height}"
        )
        raise InputError(
            f"size is {request.width}x{request.height}; legal for {preset.name}: {legal} (--untrained-size lets others pass)"
        )


def _check_trained(request: Request, preset: Preset) -> None:
    """What a model was never trained for."""
    if request.first_frame and not preset.takes_first_frame:
        raise InputError(
            f"a first frame was given; {preset.name} is a text-to-video model with references and was never trained to start "
            "from a frame (phantom-mini was)"
        )
    if len(request.pictures()) > preset.most_images:
        raise InputError(
            f"{len(request.pictures())} pictures were given; {preset.name} was trained with at most {preset.most_images}"
        )
    if len(request.references) > len(request.subjects()) and not (preset.takes_views or request.several_views):
        raise InputError(
            f"{len(request.references)} pictures of {len(request.subjects())} subjects were given; {preset.name} never saw two "
            "pictures of one subject and tends to show it twice (--several-views lets it pass)"
        )


def split_reference(text: str, number: int) -> tuple[str, str]:
    """(name, path) of "[NAME=]PATH"; a file whose own name holds "=" is taken as it is."""
    name, equals, path = text.partition("=")
    if not equals or "/" in name or exists(Path(text)):
        return f"subject {number + 1}", text
    if not name or not path:
        raise InputError(f"reference is {text!r}; legal is PATH or NAME=PATH")
    return name, path
