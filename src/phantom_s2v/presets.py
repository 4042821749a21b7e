"""Named models and runs: functions that return complete configurations."""

import re
from dataclasses import replace
from pathlib import Path

from phantom_s2v.errors import CheckpointError
from phantom_s2v.training.config import AutoencoderConfig, ImageEncoderConfig, TrainConfig

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
CONVOLUTIONS = "float32"  # with bfloat16 a CPU with AMX gives NaN for gradients of causal convolutions at 128 pixels (torch 2.13)
MODELS = {"phantom-mini": Path(__file__).parent / "weights" / "phantom-mini"}


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


def mini_autoencoder(steps: int = 2_150) -> AutoencoderConfig:
    """phantom-mini's autoencoder: its linear path, a quarter of an hour on one core, then the whole, some hours."""
    train = TrainConfig(steps, lr=0.005, adam_lr=5e-4, warmup=100, decay_share=0.9, ema_decay=0.998, precision=CONVOLUTIONS)
    return AutoencoderConfig(train, replace(train, steps=1_500, lr=0.008, adam_lr=1e-3, decay_share=0.7))


def mini_decoder(steps: int = 4_000) -> AutoencoderConfig:
    """The decoder alone, with the encoder frozen, so that latents stay what the transformer knows."""
    train = TrainConfig(steps, lr=0.005, decay_share=0.5, ema_decay=0.998, seed=1, precision=CONVOLUTIONS)
    return AutoencoderConfig(train, decoder_only=True)


def mini_image_encoder(steps: int = 800) -> ImageEncoderConfig:
    """phantom-mini's image encoder: about a quarter of an hour on one core."""
    return ImageEncoderConfig(TrainConfig(steps, lr=0.01, decay_share=0.4, ema_decay=0.995))
