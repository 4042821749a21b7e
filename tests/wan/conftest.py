from pathlib import Path

import native
import pytest


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of Wan2.1 and the file of Phantom, tiny, in the native layout."""
    return native.write(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session")
def converted(checkpoint, tmp_path_factory) -> Path:
    """The same as a diffusers folder."""
    from phantom_s2v.models.wan.convert import convert

    out = tmp_path_factory.mktemp("converted") / "phantom-wan-tiny"
    convert(*checkpoint, out, lambda part, done, total: None, shard_bytes=200_000)
    return out


@pytest.fixture(scope="session")
def pipe(converted):
    from phantom_s2v.pipeline.loading import load_models

    return load_models(converted)
