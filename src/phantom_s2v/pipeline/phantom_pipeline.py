"""PhantomPipeline: subject-to-video generation as a DiffusionPipeline. Command line, evaluation and studio all come through it.

Legend: N videos, C latent channels, T latent time, h w latent grid, n reference places, L text tokens, D text width.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import get_module_execution_device
from diffusers.video_processor import VideoProcessor

from phantom_s2v.errors import InputError, NotFiniteError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.media.images import letterbox
from phantom_s2v.models.autoencoder import decode, encode, to_pixels
from phantom_s2v.models.base import Preset
from phantom_s2v.models.finite import all_finite, check_finite, first_not_finite
from phantom_s2v.pipeline.images import BACKGROUND, Named, per_prompt, read_images
from phantom_s2v.pipeline.loading import load_pipeline
from phantom_s2v.pipeline.request import Reference, Request, check_request, with_defaults
from phantom_s2v.pipeline.sampling.guidance import combine, weights
from phantom_s2v.pipeline.sampling.schedulers import restore_state, set_timesteps, shift_of, solver_of, state_of

OUTPUT_TYPES = ("np", "pil", "pt", "latent")
Guided = Callable[[torch.Tensor, int], torch.Tensor]  # x, step -> velocity
Branches = Callable[[torch.Tensor, torch.Tensor, int, Iterable[str]], dict[str, torch.Tensor]]  # x, timestep, step, names


@dataclass
class PhantomPipelineOutput(BaseOutput):
    """`frames`: np float32 [N, F, H, W, 3] in 0..1, pt [N, F, 3, H, W], pil lists of images, or latents [N, C, T, h, w]."""

    frames: Any


@dataclass(frozen=True)
class Conditions:
    """What the videos of a call are made of, N rows each, before any noise."""

    prompt_embeds: torch.Tensor  # [N, L, D]
    negative_prompt_embeds: torch.Tensor  # [N, L, D]
    references: Any  # of the model: see `encode_references`
    places: int  # reference places
    first: torch.Tensor | None  # latent [N, C, 1, h, w] that a video starts from
    negated: bool  # a negative prompt was given


class PhantomPipeline(DiffusionPipeline):
    """Subject-to-video generation: one to four reference images and a prompt make a video that preserves those subjects.

    `PhantomPipeline.from_pretrained(name or folder)` gives a PhantomWanPipeline (the released weights) or a PhantomMMDiTPipeline
    (the paper's own model), as model_index.json says. Devices, offloading, dtypes, quantization, caches and progress bars are
    those of DiffusionPipeline.

    >>> pipe = PhantomPipeline.from_pretrained("phantom-mini")  # doctest: +SKIP
    >>> video = pipe("The subject moves to the left.", reference_images="fox.webp").frames[0]  # doctest: +SKIP
    """

    model_cpu_offload_seq = "text_encoder->image_encoder->transformer->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = [
        "latents",
        "prompt_embeds",
        "negative_prompt_embeds",
        "clean_latents",
        "resume_state",
    ]
    vae: Any
    transformer: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any
    step_cache: Any = None  # see models.memory.place
    english_only = False  # whether its text encoder reads no other language

    def __init__(self) -> None:
        super().__init__()
        self.video_processor = VideoProcessor(vae_scale_factor=8)
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model by name, folder or OWNER/MODEL of a hub; the arguments are DiffusionPipeline's.

        Weights are checked: safetensors only, of the right names and shapes, finite. Raises CheckpointError.
        """
        return load_pipeline(cls, pretrained_model_name_or_path, **kwargs)

    @property
    @abstractmethod
    def preset(self) -> Preset:
        """The model's defaults and limits."""

    @abstractmethod
    def encode_texts(self, texts: list[str], places: int) -> torch.Tensor:
        """Features [N, L, D] of texts of at most `places` tokens, each at its own length, then zeros."""

    def pad_features(self, features: torch.Tensor) -> torch.Tensor:
        """Features [N, L, D] at the length that the model sees."""
        return features

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        device: torch.device | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, L, D] of prompts and negative prompts, zero beyond a prompt's own length; given ones are passed on."""
        sources = (prompt_embeds, prompt), (negative_prompt_embeds, negative_prompt)
        first, second = (self.encode_texts(_texts(text), max_sequence_length) if e is None else e for e, text in sources)
        if len(second) not in (1, len(first)):
            raise InputError(f"number of negative prompts must be {len(first)}, as of prompts (got {len(second)})")
        both = (self.pad_features(each) for each in (first, second.expand(len(first), -1, -1)))
        where = device or self._execution_device
        first, second = (each.repeat_interleave(num_videos_per_prompt, 0).to(where) for each in both)
        return first, second

    @abstractmethod
    def encode_references(
        self, images: list[list[np.ndarray]], prepared: list[list[np.ndarray]], subjects: list[list[int]]
    ) -> Any:
        """What the model sees of the reference images of each of N videos: `images` as read, `prepared` at the video's size, and
        the index of the subject that each shows. A tensor, a dict of tensors, or a dataclass with `rows`, of N rows each.
        """

    @abstractmethod
    def branches(self, conditions: Conditions, latents: torch.Tensor, attention_kwargs: dict[str, Any] | None) -> Branches:
        """Function of (noisy latents, timestep, step, branch names) -> velocities [N, C, T, h, w] by branch: null (neither text
        nor references), image (references alone), both. It is called once a step.
        """

    def guided(self, conditions: Conditions, latents: torch.Tensor) -> Guided:
        """Function of (noisy latents, step) -> the guided velocity, of the branches that the weights of guidance need."""
        shares = weights(self._image_guidance_scale, self._guidance_scale, conditions.places > 0)
        branches = self.branches(conditions, latents, self._attention_kwargs)
        return lambda x, step: combine(branches(x, self.scheduler.timesteps[step], step, shares), shares)

    @abstractmethod
    def cut(self, prompt: str) -> str:
        """The part of a prompt beyond the maximum length of the text encoder; empty if none."""

    def noise_frames(self, frames: int, places: int) -> int:
        """Latent frames that noise is drawn for."""
        return frames

    @property
    def interrupt(self) -> bool:
        """Whether a callback has asked to stop (`pipe._interrupt = True`)."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Steps of the current or last call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Any:
        """The timestep being computed, None outside of a call."""
        return self._current_timestep

    @property
    def guidance_scale(self) -> float:
        """Text guidance scale of the current or last call."""
        return self._guidance_scale

    @property
    def image_guidance_scale(self) -> float:
        """Image guidance scale of the current or last call."""
        return self._image_guidance_scale

    @property
    def attention_kwargs(self) -> dict[str, Any] | None:
        """Of the current or last call."""
        return self._attention_kwargs

    @property
    def _execution_device(self) -> torch.device:
        return get_module_execution_device(self.transformer)

    def check_inputs(
        self,
        request: Request,
        prompts: int,
        tensors: dict[str, torch.Tensor | None],
        output_type: str,
        callback_tensors: Sequence[str],
        prompted: bool,
    ) -> None:
        """Raise InputError, in one sentence, for what cannot be made."""
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type must be np, pil, pt or latent (got {output_type!r})")
        if odd := [name for name in callback_tensors if name not in self._callback_tensor_inputs]:
            allowed = ", ".join(self._callback_tensor_inputs)
            raise InputError(f"callback_on_step_end_tensor_inputs must be of {allowed} (got {odd[0]!r})")
        if not prompts:
            raise InputError("provide either prompt or prompt_embeds (got neither)")
        if prompted and tensors["prompt_embeds"] is not None:
            raise InputError("provide either prompt or prompt_embeds (got both)")
        for name, rank in (("prompt_embeds", 3), ("negative_prompt_embeds", 3), ("latents", 5), ("reference_latents", 5)):
            value = tensors[name]
            if value is not None and value.ndim != rank:
                raise InputError(f"{name} must have {rank} dimensions (got shape {tuple(value.shape)})")
            if value is not None:
                check_finite(value, name, InputError)
        placeholder = tensors["prompt_embeds"] is not None or tensors["reference_latents"] is not None
        check_request(replace(request, prompt=request.prompt or "given as features") if placeholder else request, self.preset)

    def prepare_latents(
        self,
        count: int,
        size: VideoSize,
        places: int,
        generator: torch.Generator | list[torch.Generator] | None,
        latents: torch.Tensor | None,
        device: torch.device,
        released_behavior: bool = False,
    ) -> torch.Tensor:
        """Noise [count, C, T, h, w], drawn on the generator's device, without one the CPU, so that a seed is the same everywhere.

        `latents` are taken as they are. The released code draws noise on the device that computes.
        """
        frames, *grid = size.latent
        channels = self.vae.config.z_dim
        shape = (channels, frames, *grid)
        if latents is not None:
            if tuple(latents.shape) != (count, *shape):
                raise InputError(f"latents must have shape {(count, *shape)} (got {tuple(latents.shape)})")
            return latents.to(device, torch.float32)
        if isinstance(generator, list) and len(generator) != count:
            raise InputError(f"generator must be one, or one per video (got {len(generator)} for {count} videos)")
        drawn = (channels, self.noise_frames(frames, places), *grid)
        sources = generator if isinstance(generator, list) else [generator] * count
        where = device if released_behavior else torch.device("cpu")
        rows = [torch.randn(drawn, generator=g, device=g.device if g is not None else where) for g in sources]
        return torch.stack([row[:, :frames].to(device) for row in rows])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        reference_images: Any = None,
        image: Any = None,
        negative_prompt: str | list[str] | None = None,
        background: Any = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        reference_latents: torch.Tensor | None = None,
        resume_state: dict[str, torch.Tensor] | None = None,
        cutout: bool = False,
        segmenter: str | None = None,
        several_views: bool = False,
        untrained_size: bool = False,
        released_behavior: bool = False,
        output_type: str = "np",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Any = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = 512,
    ) -> PhantomPipelineOutput | tuple[Any]:
        """Generate videos of the subjects of reference images.

        Args:
            prompt: what happens; a list makes a batch. Describe each subject.
            reference_images: paths, PIL images, arrays [H, W, 3] (uint8, or 0..1) or tensors [3, H, W] (0..1): one, a list of
                subjects, or {name: image or views}; with a list of prompts also a list of one of these for each prompt.
            image: first frame that the video starts from (the paper's own model).
            negative_prompt: default is the model's.
            background: image of the place, never cut out; it takes the last reference place.
            height, width: pixels; num_frames: 4n+1. Defaults and limits are the model's (`pipe.preset`).
            num_inference_steps: steps of `pipe.scheduler`.
            guidance_scale: of the text; image_guidance_scale: of the references (released code: 7.5 and 5).
            num_videos_per_prompt: videos of each prompt.
            generator: one for all videos, or one for each; noise is drawn on its device.
            latents: noise [N, C, T, h, w]. prompt_embeds, negative_prompt_embeds: [N, L, D], of `encode_prompt`.
            reference_latents: [N, C, n, h, w], normalized, instead of reference_images (Phantom-Wan).
            resume_state: of an earlier call's callback, to go on from its step with the same bits; all else must be the same.
            cutout: remove the background of the references, with `segmenter` (folder of SAM2) where it is not uniform.
            several_views: allow several images of a subject with Phantom-Wan; untrained_size: allow other resolutions.
            released_behavior: read images and draw noise as Phantom-Wan's released code does.
            output_type: np, pil, pt or latent. return_dict: False gives a tuple.
            attention_kwargs: for the transformer's attention processors.
            callback_on_step_end: (pipe, step, timestep, kwargs) -> changed kwargs.
            callback_on_step_end_tensor_inputs: of latents, prompt_embeds, negative_prompt_embeds, clean_latents (the
                prediction of this step) and resume_state.
            max_sequence_length: of the prompt, in tokens.

        Raises InputError for what cannot be made, NotFiniteError where values that are not finite first arise.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        prompts = _prompt_count(prompt, prompt_embeds)
        named = self._named(reference_images, background, max(1, prompts))
        request = with_defaults(
            self.preset,
            prompt=prompt if isinstance(prompt, str) else " / ".join(prompt or ()),
            references=_as_references(named),
            background=None if background is None else Named(background, BACKGROUND).label,
            first_frame=None if image is None else "the first frame",
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            solver=solver_of(self.scheduler),
            shift=shift_of(self.scheduler),
            image_guidance_scale=image_guidance_scale,
            guidance_scale=guidance_scale,
            cutout=cutout,
            several_views=several_views,
            untrained_size=untrained_size,
        )
        tensors = {
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "latents": latents,
            "reference_latents": reference_latents,
        }
        self.check_inputs(request, prompts, tensors, output_type, callback_on_step_end_tensor_inputs, bool(prompt))
        negated = negative_prompt_embeds is not None or any(negative_prompt or ())
        negative_prompt = self.preset.negative_prompt if negative_prompt is None else negative_prompt
        self._guidance_scale, self._image_guidance_scale = request.guidance_scale, request.image_guidance_scale
        self._attention_kwargs, self._interrupt, self._current_timestep = attention_kwargs, False, None
        device, size = self._execution_device, VideoSize(request.num_frames, request.height, request.width)
        embeds = self.encode_prompt(
            prompt, negative_prompt, num_videos_per_prompt, prompt_embeds, negative_prompt_embeds, max_sequence_length, device
        )
        for value, what in zip(embeds, ("the prompt", "the negative prompt"), strict=True):
            check_finite(value, f"the embedding of {what}")
        count = len(embeds[0])
        read = [read_images(each, released_behavior, cutout, segmenter)[0] for each in named]
        references, places = self._references(read, named, reference_latents, size, num_videos_per_prompt)
        conditions = Conditions(*embeds, references, places, self._first_frame(image, size, count), negated)
        noise = self.prepare_latents(count, size, places, generator, latents, device, released_behavior)
        out = self._denoise(
            conditions, noise, request.num_inference_steps, resume_state, callback_on_step_end, callback_on_step_end_tensor_inputs
        )
        frames = out if output_type == "latent" else self.video_processor.postprocess_video(self.decode(out), output_type)
        self.maybe_free_model_hooks()
        return PhantomPipelineOutput(frames=frames) if return_dict else (frames,)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels [N, 3, F, H, W] in -1..1, float32 on the CPU, of normalized latents [N, C, T, h, w], one video at a time."""
        device = get_module_execution_device(self.vae)
        with torch.no_grad():
            rows = [decode(self.vae, row[None].to(device, self.vae.dtype)).float().cpu() for row in latents]
        return torch.cat(rows)

    def encode_images(self, prepared: list[np.ndarray]) -> torch.Tensor:
        """Latents [1, C, n, h, w] of images at the video's size, each encoded alone as a video of one frame (released code)."""
        device = get_module_execution_device(self.vae)
        pixels = (to_pixels(image[None])[None].to(device, self.vae.dtype) for image in prepared)
        return torch.cat([encode(self.vae, each).float() for each in pixels], 2).to(self._execution_device)

    def _named(self, reference_images: Any, background: Any, prompts: int) -> list[tuple[Named, ...]]:
        """The images of each prompt, the background last."""
        named = per_prompt(reference_images, prompts)
        if background is not None:
            named = [(*each, Named(background, BACKGROUND)) for each in named]
        if len({len(each) for each in named}) > 1:
            counts = ", ".join(str(len(each)) for each in named)
            raise InputError(f"all prompts of a batch must have the same number of reference images (got {counts})")
        return named

    def _references(
        self,
        read: list[list[np.ndarray]],
        named: list[tuple[Named, ...]],
        latents: torch.Tensor | None,
        size: VideoSize,
        each: int,
    ) -> tuple[Any, int]:
        """The model's references for N videos, and the number of their places."""
        if latents is not None:
            return latents.to(self._execution_device, torch.float32), latents.shape[2]
        if not read[0]:
            return None, 0
        prepared = [[letterbox(image, size.height, size.width) for image in images] for images in read]
        subjects = [[list(dict.fromkeys(n.subject for n in row)).index(n.subject) for n in row] for row in named]
        rows = [i for i in range(len(read)) for _ in range(each)]
        encoded = self.encode_references(read, prepared, subjects)
        return _rows(encoded, rows), len(read[0])

    def _first_frame(self, image: Any, size: VideoSize, count: int) -> torch.Tensor | None:
        if image is None:
            return None
        (frame,), _ = read_images([Named(image, "the first frame")])
        latent = self.encode_images([letterbox(frame, size.height, size.width)])
        return latent.expand(count, -1, -1, -1, -1)

    def _denoise(
        self,
        conditions: Conditions,
        latents: torch.Tensor,
        steps: int,
        resume_state: dict[str, torch.Tensor] | None,
        callback: Any,
        wanted: Sequence[str],
    ) -> torch.Tensor:
        """Latents [N, C, T, h, w]: the scheduler along the guided velocity."""
        timesteps = set_timesteps(self.scheduler, steps, latents.device)
        self._num_timesteps, begin = len(timesteps), 0
        if conditions.first is not None:
            latents = torch.cat([conditions.first.to(latents), latents[:, :, 1:]], 2)
        if resume_state is not None:
            if self.step_cache or getattr(self.transformer, "is_cache_enabled", False):
                raise InputError("resume_state cannot be combined with a step cache")
            latents, begin = restore_state(self.scheduler, resume_state, latents)
        guided = self.guided(conditions, latents)
        bar_of: Any = self.progress_bar  # the checker takes it for a decorator
        with bar_of(total=steps - begin) as bar:
            for step in range(begin, steps):
                if self._interrupt:
                    continue
                self._current_timestep = timesteps[step]
                velocity = self._velocity(guided, latents, step, steps)
                clean = latents - float(self.scheduler.sigmas[step]) * velocity
                latents = self.scheduler.step(velocity, timesteps[step], latents, return_dict=False)[0]
                if callback is not None:
                    held = {"latents": latents, "clean_latents": clean}
                    held |= {name: getattr(conditions, name) for name in ("prompt_embeds", "negative_prompt_embeds")}
                    if "resume_state" in wanted:
                        held["resume_state"] = state_of(self.scheduler, latents, step + 1)
                    changed = callback(self, step, timesteps[step], {name: held[name] for name in wanted}) or {}
                    latents = changed.get("latents", latents)
                    texts = {name: value for name, value in changed.items() if name in Conditions.__dataclass_fields__}
                    if any(value is not getattr(conditions, name) for name, value in texts.items()):
                        conditions = replace(conditions, **texts)
                        guided = self.guided(conditions, latents)
                bar.update()
        self._current_timestep = None
        if self.step_cache:
            self.step_cache.end()
        check_finite(latents, f"the latents after step {steps}, the last")
        return latents

    def _velocity(self, guided: Guided, x: torch.Tensor, step: int, steps: int) -> torch.Tensor:
        """The guided velocity. Raises NotFiniteError at the first step that is not finite; the block is found by a second
        forward, so that a sound step costs two sums over the latents.
        """
        where = f"step {step + 1} of {steps}"
        check_finite(x, f"the latents before {where}")
        v = guided(x, step)
        if not all_finite(v):
            block = first_not_finite(self.transformer, lambda: guided(x, step))
            place = f"first in {block} of the transformer" if block else "and no block of the transformer shows it again"
            narrow = self.transformer.dtype == torch.float16
            advice = "; float16 may be too narrow for this model, bfloat16 is not" if narrow else ""
            raise NotFiniteError(f"{where}: the velocity is not finite, {place}; no video was written{advice}")
        return v


def _prompt_count(prompt: str | list[str] | None, embeds: torch.Tensor | None) -> int:
    """Prompts of a call, 0 where there is none."""
    if prompt is not None and not (
        isinstance(prompt, str) or (isinstance(prompt, list) and all(isinstance(p, str) for p in prompt))
    ):
        raise InputError(f"prompt must be a string or a list of strings (got {type(prompt).__name__})")
    if isinstance(prompt, list):
        return len(prompt)
    return 1 if prompt is not None else 0 if embeds is None else len(embeds)


def _texts(text: str | list[str] | None) -> list[str]:
    return text if isinstance(text, list) else [text or ""]


def _as_references(named: list[tuple[Named, ...]]) -> tuple[Reference, ...]:
    """The images of the first prompt as a request names them, for its checks."""
    return tuple(Reference(each.label, each.subject) for each in named[0] if each.subject != BACKGROUND)


def _rows(encoded: Any, rows: list[int]) -> Any:
    """Rows of a tensor, of every tensor of a dict, or of those of a dataclass."""
    if isinstance(encoded, dict):
        return {name: value[rows] for name, value in encoded.items()}
    return encoded[rows] if isinstance(encoded, torch.Tensor) else encoded.rows(rows)
