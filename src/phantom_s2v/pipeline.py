"""PhantomPipeline: the face that users of diffusers know, over the same path as the command line."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from phantom_s2v.errors import InputError
from phantom_s2v.generate import Models, Reference, Request, generate, load_models
from phantom_s2v.presets import model_folder


@dataclass(frozen=True)
class PhantomPipelineOutput:
    """`frames` is uint8 [1, F, H, W, 3]."""

    frames: np.ndarray


class PhantomPipeline:
    """Subject-to-video generation in diffusers' manner.

    >>> pipe = PhantomPipeline.from_pretrained("phantom-mini")  # doctest: +SKIP
    >>> video = pipe("The subject moves to the left.", references=["fox.webp"]).frames[0]  # doctest: +SKIP
    """

    def __init__(self, models: Models) -> None:
        self.models = models

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "PhantomPipeline":
        """Load a model by name or folder. Raises CheckpointError where it cannot be read."""
        return cls(load_models(model_folder(str(name_or_path))))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a model folder that `from_pretrained` and the command line read."""
        target = Path(folder)
        for name in ("transformer", "autoencoder", "image_encoder"):
            getattr(self.models, name).save_pretrained(target / name)
        (target / "preset.json").write_text(json.dumps(asdict(self.models.preset), indent=1) + "\n")

    def __call__(
        self,
        prompt: str,
        references: Sequence[str | Path | tuple[str, str | Path]] = (),
        *,
        first_frame: str | Path | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_image: float | None = None,
        guidance_text: float | None = None,
        negative_prompt: str = "",
        solver: str | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        callback_on_step_end: Callable[[int, int, torch.Tensor], None] | None = None,
    ) -> PhantomPipelineOutput:
        """Make one video. A reference is a path, or (name, path): one name's pictures are views of one subject.

        The seed is `seed`, or the initial seed of `generator`, or 0. Raises InputError for what cannot be made.
        """
        if seed is not None and generator is not None:
            raise InputError("both seed and generator were given; give one of them")
        preset = self.models.preset

        def chosen(value, default):
            return default if value is None else value

        pictures = tuple(
            Reference(str(r[1]), r[0]) if isinstance(r, tuple) else Reference(str(r), f"subject {i + 1}")
            for i, r in enumerate(references)
        )
        request = Request(
            prompt=prompt,
            references=pictures,
            height=chosen(height, preset.height),
            width=chosen(width, preset.width),
            frames=chosen(num_frames, preset.frames),
            fps=preset.fps,
            seed=generator.initial_seed() if generator is not None else chosen(seed, 0),
            steps=chosen(num_inference_steps, preset.steps),
            solver=chosen(solver, preset.solver),
            shift=preset.shift,
            guidance_image=chosen(guidance_image, preset.guidance_image),
            guidance_text=chosen(guidance_text, preset.guidance_text),
            negative_prompt=negative_prompt,
            first_frame=str(first_frame) if first_frame else None,
        )
        return PhantomPipelineOutput(generate(request, self.models, callback_on_step_end).video[None])
