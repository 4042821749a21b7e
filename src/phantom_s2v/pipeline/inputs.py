"""The arguments of a call of PhantomPipeline, by name: the images and the request that they make, and what they must be."""

from collections.abc import Mapping, Sequence
from typing import Any

from phantom_s2v.errors import InputError
from phantom_s2v.models.base import Preset
from phantom_s2v.models.finite import check_finite
from phantom_s2v.pipeline.images import BACKGROUND, Named, per_prompt
from phantom_s2v.pipeline.request import Reference, Request, with_defaults
from phantom_s2v.pipeline.sampling.schedulers import shift_of, solver_of

OUTPUT_TYPES = ("np", "pil", "pt", "latent")
RANKS = {"prompt_embeds": 3, "negative_prompt_embeds": 3, "latents": 5, "reference_latents": 5}  # dimensions
REQUESTED = (
    "height",
    "width",
    "num_frames",
    "num_inference_steps",
    "image_guidance_scale",
    "guidance_scale",
    "cutout",
    "several_views",
    "untrained_size",
)  # which a call and a request name alike


def texts_of(text: str | list[str] | None) -> list[str]:
    """A prompt, or several, as a list."""
    return text if isinstance(text, list) else [text or ""]


def count_prompts(arguments: Mapping[str, Any]) -> int:
    """Prompts of a call, 0 where there is none. Raises InputError for what is no prompt."""
    prompt, embeds = arguments["prompt"], arguments["prompt_embeds"]
    if prompt is not None and not (
        isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(p, str) for p in prompt))
    ):
        raise InputError(f"prompt must be a string or a list of strings (got {type(prompt).__name__})")
    if isinstance(prompt, list):
        return len(prompt)
    return 1 if prompt is not None else 0 if embeds is None else len(embeds)


def images_of(arguments: Mapping[str, Any]) -> list[tuple[Named, ...]]:
    """The images of each prompt, the background last."""
    named = per_prompt(arguments["reference_images"], max(1, count_prompts(arguments)))
    if arguments["background"] is not None:
        named = [(*each, Named(arguments["background"], BACKGROUND)) for each in named]
    if len({len(each) for each in named}) > 1:
        counts = ", ".join(str(len(each)) for each in named)
        raise InputError(f"all prompts of a batch must have the same number of reference images (got {counts})")
    return named


def request_of(arguments: Mapping[str, Any], named: list[tuple[Named, ...]], preset: Preset, scheduler: Any) -> Request:
    """The request that a call makes, with the model's defaults; the images are those of the first prompt."""
    prompt, background = arguments["prompt"], arguments["background"]
    return with_defaults(
        preset,
        prompt=prompt if isinstance(prompt, str) else " / ".join(prompt or ()),
        references=tuple(Reference(each.label, each.subject) for each in named[0] if each.subject != BACKGROUND),
        background=None if background is None else Named(background, BACKGROUND).label,
        first_frame=None if arguments["image"] is None else "the first frame",
        solver=solver_of(scheduler),
        shift=shift_of(scheduler),
        **{name: arguments[name] for name in REQUESTED},
    )


def check_arguments(arguments: Mapping[str, Any], callback_tensors: Sequence[str]) -> None:
    """Raise InputError for what a request does not hold; `callback_tensors` is what a callback can ask for."""
    if arguments["output_type"] not in OUTPUT_TYPES:
        raise InputError(f"output_type must be np, pil, pt or latent (got {arguments['output_type']!r})")
    if odd := [name for name in arguments["callback_on_step_end_tensor_inputs"] if name not in callback_tensors]:
        raise InputError(f"callback_on_step_end_tensor_inputs must be of {', '.join(callback_tensors)} (got {odd[0]!r})")
    if not count_prompts(arguments):
        raise InputError("provide either prompt or prompt_embeds (got neither)")
    if arguments["prompt"] and arguments["prompt_embeds"] is not None:
        raise InputError("provide either prompt or prompt_embeds (got both)")
    for name, rank in RANKS.items():
        value = arguments[name]
        if value is not None and value.ndim != rank:
            raise InputError(f"{name} must have {rank} dimensions (got shape {tuple(value.shape)})")
        if value is not None:
            check_finite(value, name, InputError)
