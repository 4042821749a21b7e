"""A tiny model with random weights, and small images."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

# A slow or busy machine is no fault; fixtures of one test serve all of its examples.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("any machine")
THREADS = torch.get_num_threads()  # OMP_NUM_THREADS, or torch's own choice: `make test` runs with one and with two
# Not idle: before this call MKL may take fewer threads than torch, and the first tests of a worker would get other bits.
torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def own_state():
    """Every test draws the same numbers, whatever ran before it in its worker, and a training's threads end with its test."""
    torch.manual_seed(0)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A model folder like phantom-mini's, with small random weights whose velocity is not zero."""
    from diffusers import AutoencoderKLWan

    from phantom_s2v.models.base import Preset
    from phantom_s2v.models.phantom.encoders import ImageEncoder
    from phantom_s2v.models.phantom.spec import index_of
    from phantom_s2v.models.phantom.transformer import PhantomTransformer
    from phantom_s2v.models.registry import INDEX

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    transformer = PhantomTransformer(latent_channels=8, dim=48, depth=2, heads=2, image_dim=32)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    autoencoder = AutoencoderKLWan(
        base_dim=8, z_dim=8, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True], patch_size=2,
        in_channels=12, out_channels=12, latents_mean=[0.1] * 8, latents_std=[0.5] * 8,
    )  # fmt: skip
    transformer.save_pretrained(folder / "transformer")
    autoencoder.save_pretrained(folder / "vae")
    ImageEncoder(width=32).save_pretrained(folder / "image_encoder")
    preset = Preset("tiny", 32, 32, 9, 8, 3, "euler", 1.0, 2.0, 3.0, (16, 48))
    (folder / INDEX).write_text(json.dumps(index_of(asdict(preset))))
    return folder


@pytest.fixture(scope="session")
def tiny_models(tiny):
    from phantom_s2v.pipeline.loading import load_models

    return load_models(tiny)


@pytest.fixture(scope="session")
def tiny_student(tiny, tmp_path_factory) -> Path:
    """The tiny model as guidance distillation starts: with weights of guidance as inputs that have no effect yet."""
    import shutil

    from phantom_s2v.models.phantom.transformer import PhantomTransformer
    from phantom_s2v.models.weights import load_part
    from phantom_s2v.training.distillation import student_of

    folder = tmp_path_factory.mktemp("tiny_student") / "model"
    shutil.copytree(tiny, folder)
    shutil.rmtree(folder / "transformer")
    student_of(load_part(PhantomTransformer, tiny / "transformer"), (1.0, 7.0)).save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of Wan2.1 and the file of Phantom, tiny, in the native layout."""
    import native

    return native.write(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session")
def converted(checkpoint, tmp_path_factory) -> Path:
    """The same as a diffusers folder."""
    from phantom_s2v.models.wan.convert import convert

    out = tmp_path_factory.mktemp("converted") / "phantom-wan-tiny"
    convert(*checkpoint, out, lambda part, done, total: None, shard_bytes=200_000)
    return out


@pytest.fixture(scope="session")
def misplace():
    """Writes a file as the safetensors package does, whose tensors lie at 8 mod 16 where their sizes let them."""
    from safetensors.torch import save_file

    def write(state: dict[str, torch.Tensor], file: Path) -> None:
        for padding in range(0, 16, 8):
            save_file(state, file, metadata={"padding": "x" * padding})
            if int.from_bytes(file.read_bytes()[:8], "little") % 16 == 0:
                return
        raise AssertionError("no header has such a length")

    return write


@pytest.fixture
def image(tmp_path) -> Path:
    """A small PNG with a name in another script."""
    path = tmp_path / "狐 image.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def call_phantom(monkeypatch, capsys):
    """The command line in this process: arguments -> (exit code, what was printed)."""
    from phantom_s2v import cli

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["phantom", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as done:
            code = done.code
        return code, capsys.readouterr()

    return call
