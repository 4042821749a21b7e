"""PhantomPipeline: subject-to-video generation as a DiffusionPipeline. Command line, evaluation and studio all come through it.

Legend: N videos, C latent channels, T latent time, h w latent grid, n reference places, L text tokens, D text width.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import get_module_execution_device
from diffusers.video_processor import VideoProcessor

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.media.images import letterbox
from phantom_s2v.models.autoencoder import decode, encode, to_pixels
from phantom_s2v.models.base import Preset
from phantom_s2v.models.finite import check_finite
from phantom_s2v.models.saving import check_savable, plain_names
from phantom_s2v.pipeline.conditions import Branches, Conditions, Dropped, Guided, repeat_rows
from phantom_s2v.pipeline.images import Named, read_images
from phantom_s2v.pipeline.inputs import check_arguments, check_tensors, images_of, python_names, requests_of, texts_of
from phantom_s2v.pipeline.loading import load_pipeline, pipeline_of
from phantom_s2v.pipeline.request import Request, check_request
from phantom_s2v.pipeline.sampling.denoise import denoise
from phantom_s2v.pipeline.sampling.guidance import combine, weights


@dataclass
class PhantomPipelineOutput(BaseOutput):
    """`frames`: np float32 [N, F, H, W, 3] in 0..1, pt [N, F, 3, H, W], pil lists of images, or latents [N, C, T, h, w]."""

    frames: Any


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
    whole_timesteps = False  # whether t of a training is a multiple of 1/1000
    english_only = False  # whether its text encoder reads no other language
    max_tokens: ClassVar[int | None] = None  # of text features that it sees; None: any number

    def __init__(self) -> None:
        super().__init__()
        self.video_processor = VideoProcessor(vae_scale_factor=8)
        self._interrupt, self._num_timesteps, self._current_timestep = False, 0, None
        self._attention_kwargs: dict[str, Any] | None = None
        self._guidance_scale: Any = None
        self._image_guidance_scale: Any = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Load a model by name, folder or OWNER/MODEL of a hub; the arguments are DiffusionPipeline's.

        Weights are checked: safetensors only, of the right names and shapes, finite. Raises CheckpointError.
        """
        return load_pipeline(cls, pretrained_model_name_or_path, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Any:
        """A pipeline with the components of another, of the class for its transformer; see DiffusionPipeline."""
        if cls is PhantomPipeline:
            return pipeline_of(pipeline.transformer).from_pipe(pipeline, **kwargs)
        return super().from_pipe(pipeline, **kwargs)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write a model folder that `from_pretrained` and the command line read; the arguments are DiffusionPipeline's.

        LoRAs are no part of it: fuse them, or save them alone. Raises InputError, before anything is written, for adapters that
        are on and not fused, for quantized weights, for pickles and for variants, which are not read.
        """
        if not kwargs.get("safe_serialization", True) or kwargs.get("variant"):
            raise InputError("weights are saved as safetensors and without a variant, which from_pretrained reads")
        if self.transformer is None:
            super().save_pretrained(str(save_directory), **kwargs)
            return
        check_savable(self.transformer)
        with plain_names(self.transformer):
            super().save_pretrained(str(save_directory), **kwargs)

    @property
    @abstractmethod
    def preset(self) -> Preset:
        """The model's defaults and limits."""

    @abstractmethod
    def encode_texts(self, texts: list[str], places: int) -> torch.Tensor:
        """Features [N, L, D] of texts of at most `places` tokens, each at its own length, then zeros."""

    @abstractmethod
    def reference_tensors(self, images: list[np.ndarray], height: int, width: int) -> dict[str, torch.Tensor]:
        """What training needs of reference images: latents "references" [n, C, h, w] at the video's size, and the model's own."""

    @abstractmethod
    def training_velocity(
        self, x: torch.Tensor, t: torch.Tensor, batch: dict[str, torch.Tensor], dropped: Dropped
    ) -> torch.Tensor:
        """Velocity [B, C, T, h, w] of noisy latents x at t [B], with gradients, by the forward that generation uses.

        `batch` holds "text" [B, L, D], zero beyond a prompt's length, "references" [B, n, C, h, w], "subjects" int [B, n], and
        what else `reference_tensors` gives.
        """

    def pad_features(self, features: torch.Tensor) -> torch.Tensor:
        """Features [N, L, D] at the length that the model sees."""
        return features

    def encode_prompt(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        do_classifier_free_guidance: bool = True,
        num_videos_per_prompt: int = 1,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        max_sequence_length: int = 512,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """Features [N, L, D] of prompts and negative prompts, zero beyond a prompt's own length; given ones are passed on.

        The arguments are WanPipeline's: without `do_classifier_free_guidance` there are none of negative prompts.
        """
        sources = [(prompt_embeds, prompt, "prompt"), (negative_prompt_embeds, negative_prompt, "negative_prompt")]
        first, *second = (
            self.encode_texts(texts_of(text, name), max_sequence_length) if embeds is None else embeds
            for embeds, text, name in sources[: 1 + do_classifier_free_guidance]
        )
        if second and len(second[0]) not in (1, len(first)):
            raise InputError(f"number of negative prompts must be {len(first)}, as of prompts (got {len(second[0])})")
        both = (self.pad_features(each) for each in (first, *(each.expand(len(first), -1, -1) for each in second)))
        where = device or self._execution_device
        first, *second = (each.repeat_interleave(num_videos_per_prompt, 0).to(where, dtype) for each in both)
        return first, second[0] if second else None

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
        return get_module_execution_device(self.vae if self.transformer is None else self.transformer)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.vae.config.z_dim

    def check_inputs(self, requests: Sequence[Request], arguments: dict[str, Any]) -> None:
        """Raise InputError, in one sentence, for what cannot be made; `arguments` are those of a call, by name."""
        check_arguments(arguments, self._callback_tensor_inputs)
        for request in requests:
            check_request(request, self.preset)
        size = VideoSize(requests[0].num_frames, requests[0].height, requests[0].width)
        width = self.transformer.config.get("text_dim")
        check_tensors(arguments, size, self.latent_channels, width, self.preset.max_images, self.max_tokens)

    def _check_parts(self, decodes: bool) -> None:
        """Raise CheckpointError where a part that a call needs is None."""
        if lacking := [name for name in ("transformer", *(["vae"] if decodes else [])) if getattr(self, name) is None]:
            advice = "; without it output_type must be latent, and references latents" if lacking == ["vae"] else ""
            raise CheckpointError(f"this pipeline has no {lacking[0]}{advice}")

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
        if latents is not None:
            return latents.to(device, torch.float32)
        frames, *grid = size.latent
        drawn = (self.latent_channels, self.noise_frames(frames, places), *grid)
        sources = generator if isinstance(generator, list) else [generator] * count
        where = device if released_behavior else torch.device("cpu")
        rows = [torch.randn(drawn, generator=g, device=g.device if g is not None else where) for g in sources]
        return torch.stack([row[:, :frames].to(device) for row in rows])

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        *,
        reference_images: Any = None,
        image: Any = None,
        background: Any = None,
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
        guidance_scale_2: None = None,
    ) -> PhantomPipelineOutput | tuple[Any]:
        """Generate videos of the subjects of reference images. Positional arguments are in WanPipeline's order.

        Args:
            prompt: what happens; a list makes a batch. Describe each subject.
            negative_prompt: one, or one per prompt; default is the model's.
            reference_images: paths, PIL images, arrays [H, W, 3] or tensors [3, H, W] (uint8, or 0..1): one, a list of
                subjects, or {name: image or views}, of all prompts alike; of each prompt its own as a list of lists.
            image: first frame that the video starts from (the paper's own model): one, or one per prompt.
            background: image of the place, never cut out; it takes the last reference place.
            height, width: pixels; num_frames: 4n+1. Defaults and limits are the model's (`pipe.preset`).
            num_inference_steps: steps of `pipe.scheduler`.
            guidance_scale: of the text; image_guidance_scale: of the references (released code: 7.5 and 5). At 1 and 1 there is
                no guidance and one forward per step; at 0 the prompt, or the references, have no effect.
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
            max_sequence_length: of the prompt, in tokens. guidance_scale_2: of Wan2.2, refused.

        Raises InputError for what cannot be made, NotFiniteError where values that are not finite first arise.
        """
        if isinstance(callback_on_step_end, PipelineCallback | MultiPipelineCallbacks):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        arguments = dict(locals())
        with python_names():
            named = images_of(arguments)
            self._check_parts(output_type != "latent" or image is not None or bool(named[0]))
            requests = requests_of(arguments, named, self.preset, self.scheduler)
            self.check_inputs(requests, arguments)
        request = requests[0]
        self._guidance_scale, self._image_guidance_scale = request.guidance_scale, request.image_guidance_scale
        self._attention_kwargs, self._interrupt, self._current_timestep = attention_kwargs, False, None
        device, size = self._execution_device, VideoSize(request.num_frames, request.height, request.width)
        with python_names():
            conditions = self._conditions(arguments, named, size)
        count = len(conditions.prompt_embeds)
        noise = self.prepare_latents(count, size, conditions.places, generator, latents, device, released_behavior)
        steps, wanted = request.num_inference_steps, callback_on_step_end_tensor_inputs
        out = denoise(self, conditions, noise, steps, resume_state, callback_on_step_end, wanted)
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

    def _conditions(self, arguments: dict[str, Any], named: list[tuple[Named, ...]], size: VideoSize) -> Conditions:
        """What the arguments of a call and the images of its prompts become."""
        negative, each = arguments["negative_prompt"], arguments["num_videos_per_prompt"]
        embeds = self.encode_prompt(
            arguments["prompt"],
            self.preset.negative_prompt if negative is None else negative,
            num_videos_per_prompt=each,
            prompt_embeds=arguments["prompt_embeds"],
            negative_prompt_embeds=arguments["negative_prompt_embeds"],
            max_sequence_length=arguments["max_sequence_length"],
        )
        for value, what in zip(embeds, ("the prompt", "the negative prompt"), strict=True):
            check_finite(value, f"the embedding of {what}")
        reading = (arguments["released_behavior"], arguments["cutout"], arguments["segmenter"])
        read = [read_images(images, *reading)[0] for images in named]
        references, places = self._references(read, named, arguments["reference_latents"], size, each)
        first = self._first_frames(arguments["image"], size, len(embeds[0]))
        negated = arguments["negative_prompt_embeds"] is not None or any(negative or ())
        return Conditions(*embeds, references, places, first, negated)

    def _references(
        self,
        read: list[list[np.ndarray]],
        named: list[tuple[Named, ...]],
        latents: torch.Tensor | None,
        size: VideoSize,
        each: int,
    ) -> tuple[Any, int]:
        """The model's references for N videos, and the number of their places."""
        rows = [i for i in range(len(read)) for _ in range(each)]
        if latents is not None:
            latents = latents.to(self._execution_device, torch.float32).expand(len(read), -1, -1, -1, -1)
            return latents[rows], latents.shape[2]
        if not read[0]:
            return None, 0
        prepared = [[letterbox(image, size.height, size.width) for image in images] for images in read]
        subjects = [[list(dict.fromkeys(n.subject for n in row)).index(n.subject) for n in row] for row in named]
        encoded = self.encode_references(read, prepared, subjects)
        return repeat_rows(encoded, rows), len(read[0])

    def _first_frames(self, image: Any, size: VideoSize, count: int) -> torch.Tensor | None:
        """Latents [count, C, 1, h, w] of the frames that the videos start from, one for all or one per prompt."""
        if image is None:
            return None
        each = image if isinstance(image, list | tuple) else [image]
        frames, _ = read_images([Named(one, "the first frame") for one in each])
        latents = [self.encode_images([letterbox(frame, size.height, size.width)]) for frame in frames]
        return torch.cat(latents).repeat_interleave(count // len(latents), 0)
