"""From a request to a video, through PhantomPipeline: what the command line and the evaluation call."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from phantom_s2v.media import images
from phantom_s2v.models.memory import Placement, split_dtypes
from phantom_s2v.models.wan.text import PromptFeatures
from phantom_s2v.pipeline.images import BACKGROUND, Named, read_images
from phantom_s2v.pipeline.loading import check_placed, load_models, no_bars
from phantom_s2v.pipeline.metadata import build_metadata
from phantom_s2v.pipeline.phantom_pipeline import PhantomPipeline
from phantom_s2v.pipeline.request import Request, check_request
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler

OnStep = Callable[[int, int, torch.Tensor], None]  # steps done, steps in all, predicted clean latent [1, C, T, h, w]
State = dict[str, torch.Tensor]  # all that the next steps need beside the request, as safetensors stores it


@dataclass(frozen=True)
class Output:
    """A video, uint8 [F, H, W, 3], the prepared references, and the metadata of all that made it."""

    video: np.ndarray
    references: list[np.ndarray]
    metadata: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def request_images(request: Request) -> tuple[list[np.ndarray], list[str]]:
    """The images of a request in the order of their places, uint8 [H, W, 3], and notices of what was done to them."""
    return read_images(_named(request), request.released_behavior, request.cutout, request.segmenter)


def _named(request: Request) -> list[Named]:
    named = [Named(r.path, r.subject) for r in request.references]
    return named + ([Named(request.background, BACKGROUND)] if request.background else [])


def generate(
    request: Request,
    pipe: Any,
    on_step: OnStep | None = None,
    resume_state: State | None = None,
    on_state: Callable[[State], None] | None = None,
) -> Output:
    """Make the video of a request. The same request, weights and machine give the same bits.

    `on_state` gets the state after each step, after `on_step`; one of them, as `resume_state`, goes on with the same bits.
    `pipe` is of `load_for`, or any PhantomPipeline. Raises NotFiniteError where values that are not finite first arise, and names
    the step and the block, or the embedding.
    """
    check_request(request, pipe.preset)
    reference_images, notices = request_images(request)
    first, first_notices = images.read_image(Path(request.first_frame)) if request.first_frame else (None, [])
    place = pipe.vae.device if request.released_behavior else torch.device("cpu")
    pipe.scheduler = build_scheduler(request.solver, request.shift)

    def callback(_: Any, step: int, __: Any, tensors: dict[str, Any]) -> dict[str, torch.Tensor]:
        if on_step:
            on_step(step + 1, request.num_inference_steps, tensors["clean_latents"])
        if on_state:
            on_state(tensors["resume_state"])
        return {}

    wanted = [name for name, used in (("clean_latents", on_step), ("resume_state", on_state)) if used]

    frames = pipe(
        **_texts(request, pipe),
        reference_images=_views(request, reference_images),
        image=first,
        background=reference_images[-1] if request.background else None,
        height=request.height,
        width=request.width,
        num_frames=request.num_frames,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        image_guidance_scale=request.image_guidance_scale,
        generator=torch.Generator(place).manual_seed(request.seed),
        several_views=request.several_views,
        untrained_size=request.untrained_size,
        released_behavior=request.released_behavior,
        resume_state=resume_state,
        callback_on_step_end=callback if wanted else None,
        callback_on_step_end_tensor_inputs=wanted,
    ).frames[0]
    prepared = [images.letterbox(image, request.height, request.width) for image in reference_images]
    metadata = build_metadata(request, pipe.preset.name, pipe.weights, pipe.placement.resolved())
    return Output(
        (frames * 255).round().astype(np.uint8), prepared, metadata, text_notices(request.prompt, pipe) + notices + first_notices
    )


def _views(request: Request, reference_images: list[np.ndarray]) -> dict[str, list[np.ndarray]] | None:
    """The read images by the names of their subjects."""
    views: dict[str, list[np.ndarray]] = {}
    for reference, image in zip(request.references, reference_images, strict=False):
        views.setdefault(reference.subject, []).append(image)
    return views or None


def _texts(request: Request, pipe: Any) -> dict[str, Any]:
    """The prompts of a request, or their features where they were read beforehand."""
    features = getattr(pipe, "features", None)
    if features is None:
        return {"prompt": request.prompt, "negative_prompt": request.negative_prompt}
    return {"prompt_embeds": features[request.prompt], "negative_prompt_embeds": features[request.negative_prompt]}


def load_for(
    requests: list[Request],
    folder: Path,
    placement: Placement | None = None,
    calibrate_magcache: bool = False,
    texts: tuple[Any, Any] | None = None,
    **parts: Any,
) -> Any:
    """The pipeline of a model folder, for the prompts of `requests`.

    A text encoder of gigabytes (umT5 has 11) reads all of them first and is gone before the transformer is loaded, so that memory
    holds one of both; `texts` is what `read_texts` gave, where that was done. `parts` replace the folder's.
    """
    placement = placement or Placement()
    if not (folder / "text_encoder").is_dir():
        return load_models(folder, placement, calibrate_magcache, **parts)
    check_placed(folder, placement, calibrate_magcache)
    features, tokenizer = texts or read_texts(requests, folder, placement)
    pipe = load_models(folder, placement, calibrate_magcache, text_encoder=None, tokenizer=tokenizer, **parts)
    pipe.features = features
    return pipe


def read_texts(requests: list[Request], folder: Path, placement: Placement) -> tuple[PromptFeatures, Any]:
    """Features of all prompts of requests, by a text encoder that is gone afterwards, and its tokenizer."""
    features = PromptFeatures()
    with no_bars():
        reader = PhantomPipeline.from_pretrained(folder, dtype=split_dtypes(placement), transformer=None, vae=None)
    reader.text_encoder.to("cpu" if placement.text_on_cpu else placement.torch_device())
    for prompt in dict.fromkeys(text for r in requests for text in (r.prompt, r.negative_prompt)):
        features.keep(prompt, reader.encode_text(prompt))
    return features, reader.tokenizer


def text_notices(text: str, pipe: Any, what: str = "prompt") -> list[str]:
    """What of a prompt or caption the text encoder will not read as the user wrote it."""
    notices = []
    if pipe.english_only and re.search(r"[^\W\d_a-zA-Z\u00c0-\u024f]", text):
        notices.append(f"{pipe.preset.name} has an English-only text encoder; other scripts are poorly supported")
    if rest := pipe.cut(text):
        notices.append(f"the {what} is too long for the text encoder and was truncated before {rest[:40]!r}")
    return notices
