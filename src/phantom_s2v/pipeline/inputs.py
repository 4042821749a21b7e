"""The arguments of a call of PhantomPipeline, by name: the images and the requests that they make, and what they must be."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.base import Preset
from phantom_s2v.models.finite import check_finite
from phantom_s2v.pipeline.images import BACKGROUND, Named, per_prompt
from phantom_s2v.pipeline.request import Reference, Request, with_defaults
from phantom_s2v.pipeline.sampling.schedulers import check_scheduler, shift_of, solver_of

OUTPUT_TYPES = ("np", "pil", "pt", "latent")
MAX_SEQUENCE_LENGTH = 512  # tokens
NUMBERS = {"num_videos_per_prompt": (1, 1000), "max_sequence_length": (2, MAX_SEQUENCE_LENGTH)}  # whole, within these bounds
DICTIONARIES = ("attention_kwargs", "resume_state")
WAN22 = ("transformer_2", "boundary_ratio", "expand_timesteps", "guidance_scale_2")  # arguments of WanPipeline
EITHER = (  # of which a call gives one
    ("prompt", "prompt_embeds"),
    ("negative_prompt", "negative_prompt_embeds"),
    ("reference_images", "reference_latents"),
    ("background", "reference_latents"),
)
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
    "released_behavior",
)  # which a call and a request name alike


@contextmanager
def python_names() -> Iterator[None]:
    """Names of options in sentences as a call has them: untrained_size for --untrained-size."""
    try:
        yield
    except InputError as error:
        words = re.sub(r"--([a-z][a-z-]+)", lambda option: option[1].replace("-", "_"), str(error))
        if words == str(error):
            raise
        raise InputError(words) from error


def texts_of(text: str | Sequence[str] | None, name: str = "prompt") -> list[str]:
    """A prompt, or several, as a list. Raises InputError for what is none."""
    texts = [text or ""] if text is None or isinstance(text, str) else text
    if not isinstance(texts, list | tuple) or not all(isinstance(each, str) for each in texts):
        raise InputError(f"{name} must be a string or a list of strings (got {_brief(text)})")
    return list(texts)


def count_prompts(arguments: Mapping[str, Any]) -> int:
    """Prompts of a call, 0 where there is none. Raises InputError for what is no prompt."""
    prompt, embeds = arguments["prompt"], arguments["prompt_embeds"]
    if _given(prompt) or embeds is None:
        return 0 if prompt is None else len(texts_of(prompt))
    return len(_tensor(embeds, "prompt_embeds", 3))


def images_of(arguments: Mapping[str, Any]) -> list[tuple[Named, ...]]:
    """The images of each prompt, the background last."""
    named = per_prompt(arguments["reference_images"], max(1, count_prompts(arguments)))
    if arguments["background"] is not None:
        named = [(*each, Named(arguments["background"], BACKGROUND)) for each in named]
    if len({len(each) for each in named}) > 1:
        counts = ", ".join(str(len(each)) for each in named)
        raise InputError(f"all prompts of a batch must have the same number of reference images (got {counts})")
    return named


def requests_of(arguments: Mapping[str, Any], named: list[tuple[Named, ...]], preset: Preset, scheduler: Any) -> list[Request]:
    """The request that a call makes of each prompt, with the model's defaults."""
    check_scheduler(scheduler)
    background, segmenter = arguments["background"], arguments["segmenter"]
    encoded = arguments["prompt_embeds"] is not None or arguments["reference_latents"] is not None
    texts = texts_of(arguments["prompt"]) if _given(arguments["prompt"]) else [""] * len(named)
    return [
        with_defaults(
            preset,
            prompt=text or ("given as features" if encoded else ""),
            references=tuple(Reference(n.label, n.subject) for n in images[: len(images) - (background is not None)]),
            background=None if background is None else images[-1].label,
            first_frame=None if arguments["image"] is None else "the first frame",
            segmenter=segmenter if segmenter is None else str(segmenter),
            solver=solver_of(scheduler),
            shift=shift_of(scheduler),
            **{name: arguments[name] for name in REQUESTED},
        )
        for text, images in zip(texts, named, strict=True)
    ]


def refuse_wan22(arguments: Mapping[str, Any]) -> None:
    """Raise InputError for an argument that only Wan2.2's two transformers have."""
    if name := next((name for name in WAN22 if arguments.get(name) is not None), None):
        raise InputError(f"{name} is of Wan2.2, which has two transformers; Phantom was trained on Wan2.1, which has one")


def check_arguments(arguments: Mapping[str, Any], callback_tensors: Sequence[str]) -> None:
    """Raise InputError for what a request does not hold; `callback_tensors` is what a callback can ask for."""
    refuse_wan22(arguments)
    if not (prompts := count_prompts(arguments)):
        raise InputError("provide either prompt or prompt_embeds (got neither)")
    for pair in EITHER:
        if all(_given(arguments[name]) for name in pair):
            raise InputError(f"provide either {pair[0]} or {pair[1]} (got both)")
    if arguments["output_type"] not in OUTPUT_TYPES:
        raise InputError(f"output_type must be np, pil, pt or latent (got {arguments['output_type']!r})")
    for name, (low, high) in NUMBERS.items():
        value = arguments[name]
        if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
            raise InputError(f"{name} must be a whole number between {low} and {high} (got {_brief(value)})")
    for name in DICTIONARIES:
        if arguments[name] is not None and not isinstance(arguments[name], dict):
            raise InputError(f"{name} must be a dict (got {_brief(arguments[name])})")
    for name in ("negative_prompt", "image"):
        _check_count(arguments[name], name, prompts)
    _check_generator(arguments["generator"], prompts * arguments["num_videos_per_prompt"])
    _check_callback(arguments, callback_tensors)


def _check_count(value: Any, name: str, prompts: int) -> None:
    """Raise InputError where a list has neither one entry nor one per prompt, or where a negative prompt is no text."""
    count = len(texts_of(value, name) if name == "negative_prompt" else value if isinstance(value, list | tuple) else [value])
    if count not in (1, prompts):
        raise InputError(f"{name} must be one, or one per prompt (got {count} for {prompts} prompts)")


def _check_generator(generator: Any, videos: int) -> None:
    """Raise InputError for what noise cannot be drawn from."""
    each = generator if isinstance(generator, list) else [generator]
    if odd := [g for g in each if not (isinstance(g, torch.Generator) or (g is None and generator is None))]:
        raise InputError(f"generator must be a torch.Generator, or a list of one per video (got {_brief(odd[0])})")
    if isinstance(generator, list) and len(generator) != videos:
        raise InputError(f"generator must be one, or one per video (got {len(generator)} for {videos} videos)")


def _check_callback(arguments: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise InputError for what cannot be called, or asks for what there is not."""
    callback, names = arguments["callback_on_step_end"], arguments["callback_on_step_end_tensor_inputs"]
    if callback is not None and not callable(callback):
        raise InputError(f"callback_on_step_end must be a function (got {_brief(callback)})")
    if not isinstance(names, list | tuple) or (odd := [name for name in names if name not in allowed]):
        got = names if not isinstance(names, list | tuple) else odd[0]
        raise InputError(f"callback_on_step_end_tensor_inputs must be a list of {', '.join(allowed)} (got {_brief(got)})")


def check_tensors(
    arguments: Mapping[str, Any], size: VideoSize, channels: int, width: int | None, max_references: int, max_tokens: int | None
) -> None:
    """Raise InputError for tensors that are none, not finite or of the wrong shape.

    `channels` are the latents', `width` that of text features, None where any is taken, `max_tokens` their number.
    """
    prompts, frames = count_prompts(arguments), size.latent[0]
    grid = size.latent[1:]
    for name in ("prompt_embeds", "negative_prompt_embeds"):
        rows = (prompts,) if name == "prompt_embeds" else (1, prompts)
        _check_tensor(arguments[name], name, (rows, range(1, (max_tokens or 1 << 20) + 1), (width,)))
    videos = prompts * arguments["num_videos_per_prompt"]
    _check_tensor(arguments["latents"], "latents", ((videos,), (channels,), (frames,), *((side,) for side in grid)))
    places = range(max_references + 1)
    _check_tensor(
        arguments["reference_latents"], "reference_latents", ((1, prompts), (channels,), places, *((side,) for side in grid))
    )


def _check_tensor(value: Any, name: str, shape: Sequence[Sequence[int | None]]) -> None:
    """Raise InputError for a tensor of another shape than `shape`, which has the allowed sizes of each dimension."""
    if value is None:
        return
    got = tuple(_tensor(value, name, len(shape)).shape)
    if any(None not in sizes and one not in sizes for one, sizes in zip(got, shape, strict=True)):
        raise InputError(f"{name} must have shape [{', '.join(map(_sizes, shape))}] (got {list(got)})")
    check_finite(value, name, InputError)


def _tensor(value: Any, name: str, rank: int) -> torch.Tensor:
    """A tensor of floating point with `rank` dimensions. Raises InputError for another value."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise InputError(f"{name} must be a floating point tensor (got {getattr(value, 'dtype', None) or _brief(value)})")
    if value.ndim != rank:
        raise InputError(f"{name} must have {rank} dimensions (got shape {tuple(value.shape)})")
    return value


def _sizes(sizes: Sequence[int | None]) -> str:
    """The allowed sizes of a dimension, in words."""
    if isinstance(sizes, range):
        return f"{sizes.start} to {sizes.stop - 1}"
    return " or ".join(dict.fromkeys("any" if each is None else str(each) for each in sizes))


def _given(value: Any) -> bool:
    """Whether an argument is there; an empty text, list or dict is none."""
    return value is not None and (not isinstance(value, str | list | tuple | dict) or bool(value))


def _brief(value: Any) -> str:
    """A value in an error: what is short as it is, else its type."""
    plain = value is None or isinstance(value, str | int | float)
    return repr(value) if plain and len(repr(value)) < 80 else type(value).__name__
