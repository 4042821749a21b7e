"""Models by name, by folder or of a hub, and their defaults. No torch."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phantom_s2v.errors import CheckpointError
from phantom_s2v.files.untrusted import parse_json, read_small, typed

WAN_NEGATIVE = (  # Wan's own negative prompt (facts 2.5)
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)

INDEX = "model_index.json"
MINI = {  # defaults of phantom-mini, written beside its weights
    "name": "phantom-mini",
    "height": 64,
    "width": 64,
    "frames": 25,
    "fps": 8,
    "steps": 32,
    "solver": "euler",
    "shift": 1.0,
    "guidance_image": 3.5,
    "guidance_text": 4.0,
    "side_range": [48, 96],
}
MODELS = {"phantom-mini": Path(__file__).parents[1] / "weights" / "phantom-mini"}


@dataclass(frozen=True)
class Preset:
    """Defaults of a model. phantom-mini keeps them beside its weights in model_index.json."""

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
    family: str = "phantom"  # the paper's own model, or "wan": the released weights
    sizes: tuple[tuple[int, int], ...] = ()  # (height, width) that are supported; empty: all within side_range
    negative_prompt: str = ""

    @property
    def multiple(self) -> int:
        """What a side in pixels must be a multiple of: the autoencoder's 8, times Wan's patches of 2."""
        return 16 if self.family == "wan" else 8


def model_folder(name: str) -> Path:
    """Folder of a model by its name, by its path, or by the name OWNER/MODEL of a hub's repository, which is then fetched.

    Raises CheckpointError where there is none.
    """
    folder = MODELS.get(name) or source_path(name)
    if folder.is_dir():
        return folder
    raise CheckpointError(f"there is no model {name!r}; legal are {', '.join(MODELS)}, a model's folder, or OWNER/MODEL of a hub")


def source_path(name: str) -> Path:
    """A file or folder as it is named, or else a repository of the hub."""
    return hub_folder(name) if not Path(name).exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", name) else Path(name)


def hub_folder(name: str) -> Path:
    """A repository of the hub in the user's cache, fetched if it is not there. Raises CheckpointError if it cannot be had."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.pth", "*.model"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointError(
            f"there is no folder {name}, and a repository of that name cannot be had from the hub here"
        ) from error


def load_preset(folder: Path) -> Preset:
    """Defaults of the model in `folder`: those in its index, or Phantom-Wan's by its transformer. Raises CheckpointError."""
    try:
        config = folder / "transformer" / "config.json"
        index = parse_json(read_small(folder / INDEX)) if (folder / INDEX).exists() or not config.is_file() else {}
        if "preset" in index:
            return typed(Preset, index["preset"], "the preset")
        return wan_preset(parse_json(read_small(config)))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{folder} is not a model folder; it needs a readable {INDEX}, and with Phantom-Wan transformer/config.json ({error})"
        ) from error


def wan_preset(config: dict[str, Any]) -> Preset:
    """Defaults of the released code for a transformer of this configuration (facts 2.1, 2.5)."""
    if config.get("_class_name") not in ("WanTransformer3DModel", "PhantomWanTransformer"):
        raise CheckpointError(
            f"the transformer is a {config.get('_class_name')}; without {INDEX} it must be a WanTransformer3DModel"
        )
    heads, head_width = config["num_attention_heads"], config["attention_head_dim"]
    if type(heads) is not int or type(head_width) is not int:
        raise ValueError("num_attention_heads and attention_head_dim are whole numbers")
    width = heads * head_width
    name = {1536: "phantom-wan-1.3b", 5120: "phantom-wan-14b"}.get(width, f"phantom-wan-{width}")
    sizes = {1536: ((480, 832),), 5120: ((480, 832), (720, 1280))}.get(width, ())
    frames, fps = (121, 24) if width == 5120 else (81, 16)
    return Preset(name, 480, 832, frames, fps, 50, "unipc", 5.0, 5.0, 7.5, (16, 1280), "wan", sizes, WAN_NEGATIVE)


def index_of(preset: dict[str, Any]) -> dict[str, Any]:
    """model_index.json of the paper's own model with these defaults; its text encoder comes from its package."""
    own = "phantom_s2v.models.phantom"
    return {
        "_class_name": "PhantomMMDiTPipeline",
        "preset": preset,
        "vae": ["diffusers", "AutoencoderKLWan"],
        "transformer": [f"{own}.transformer", "PhantomTransformer"],
        "image_encoder": [f"{own}.encoders", "ImageEncoder"],
        **{part: [None, None] for part in ("scheduler", "text_encoder", "tokenizer")},
    }
