"""What the pipeline, estimates and the command line ask of a base model. No torch: what needs it is imported when asked for.

Counts are of multiplications and additions (two for each product), matrix products alone.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from phantom_s2v.geometry import MAX_IMAGES, SPACE_STRIDE, VideoSize


@dataclass(frozen=True)
class Preset:
    """Defaults and limits of a model."""

    name: str
    height: int  # pixels
    width: int
    num_frames: int
    fps: int
    num_inference_steps: int
    solver: str
    shift: float  # of the timestep grid
    image_guidance_scale: float
    guidance_scale: float
    side_range: tuple[int, int]  # pixels a side that are near to those trained
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) that are supported; empty: all within side_range
    negative_prompt: str = ""
    patch: int = 1  # latent positions a token, per side
    max_images: int = MAX_IMAGES  # reference images of all subjects
    takes_views: bool = True  # was trained with several images of a subject
    takes_first_frame: bool = True  # was trained to start from a frame

    @property
    def multiple(self) -> int:
        """What a side in pixels must be a multiple of."""
        return SPACE_STRIDE * self.patch


@dataclass(frozen=True)
class Clip:
    """What one forward computes: the size of the video and the number of reference images."""

    size: VideoSize
    images: int


class VideoModel(ABC):
    """A base model: one object for each family, found by the class name in the transformer's config.json (models.registry)."""

    transformers: ClassVar[tuple[str, ...]]  # class names in transformer/config.json
    pipeline: ClassVar[str]  # "module:class" of its PhantomPipeline
    own_text_encoder: ClassVar[bool]  # the model folder has one, which may leave memory before the transformer comes
    checks_prompts: ClassVar[bool]  # prompts are free text, in which every reference should be described
    image_tokens: ClassVar[bool] = False  # it sees tokens of reference images beside their latents
    placed: ClassVar[frozenset[str]]  # fields of models.memory.Placement that it knows
    depth: ClassVar[str]  # of the transformer, in its config
    measured_depth: ClassVar[int]  # blocks that stand for all of them when a machine's speed is measured

    @abstractmethod
    def preset(self, config: dict[str, Any]) -> Preset:
        """Defaults and limits for a transformer of this configuration. Raises CheckpointError for one of another family."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Part of the model folder -> its class, for those that are checked strictly."""

    def check_folder(self, folder: Path, without: tuple[str, ...]) -> None:
        """Raise CheckpointError for what is wrong beside single parts; those in `without` are not looked at."""
        return

    @abstractmethod
    def flops(self, config: dict[str, Any], clip: Clip) -> int:
        """Of one forward of one branch."""

    @abstractmethod
    def widths(self, config: dict[str, Any]) -> tuple[int, int]:
        """Width of a token and of the MLP."""

    @abstractmethod
    def inputs(self, config: dict[str, Any], clip: Clip, branches: int, device: Any, dtype: Any) -> tuple[Any, ...]:
        """Arguments of a forward, zeros, for measuring; `branches` of guidance as one batch where the model computes them so."""

    def batched(self, branches: int) -> int:
        """How many of the branches of guidance are one batch."""
        return branches

    def tokens(self, preset: Preset, clip: Clip) -> int:
        """Of one forward: every latent frame and every image, in patches."""
        frames, h, w = clip.size.latent
        return (frames + clip.images) * h * w // preset.patch**2
