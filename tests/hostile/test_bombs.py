"""Small inputs that ask for much: refused before what they ask for is made."""

import io
import json
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from phantom_s2v.data.formats.published import decode_mask, read_phantom_data
from phantom_s2v.data.triplets import Rights
from phantom_s2v.errors import CheckpointError, DataError, InputError
from phantom_s2v.media import images
from phantom_s2v.models import bounds
from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.models.tensors import Tensors
from phantom_s2v.models.weights import check_part
from phantom_s2v.pipeline.loading import check_models
from phantom_s2v.pipeline.request import check_request, with_defaults

MINI = model_folder("phantom-mini")


@given(st.integers(0, 2**32 - 1), st.integers(3, 30), st.integers(3, 30))
def test_the_cutout_is_what_a_flood_from_the_border_reaches(seed, height, width):
    alike = np.random.default_rng(seed).random((height, width)) < 0.6
    framed = Image.fromarray(np.pad(alike, 1, constant_values=True).astype(np.uint8) * 255).copy()
    ImageDraw.floodfill(framed, (0, 0), 128)
    assert np.array_equal(images._outside(alike), np.asarray(framed)[1:-1, 1:-1] == 128)


def test_a_large_plain_image_is_cut_out_in_one_pass(tmp_path):
    """12 megapixels took 23.6 s of Python; the bound is of the kind of work, and generous for machines under load."""
    shape = np.full((3000, 4000, 3), 255, np.uint8)
    shape[1000:2000, 1000:3000] = 40
    Image.fromarray(shape).save(tmp_path / "a.png")
    begun = time.process_time()
    image = images.read_image(tmp_path / "a.png", cutout=True)[0]
    assert time.process_time() - begun < 15
    assert image[1500, 2000].tolist() == [40, 40, 40]


def test_the_frames_of_an_animation_are_not_counted(tmp_path):
    """A GIF of many frames: each costs Python's work where they are counted."""
    frames = [Image.new("P", (2, 2), i % 2) for i in range(3000)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=20, optimize=False)
    with Image.open(tmp_path / "a.gif") as image:
        seeks, real = [], type(image).seek
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(image), "seek", lambda own, frame: (seeks.append(frame), real(own, frame))[1])
            assert "animated" in images.read_image(tmp_path / "a.gif")[1][0]
    assert len(seeks) < 10


def test_run_lengths_of_a_mask_are_added_up_before_a_mask_is_made():
    huge = "".join(chr(48 + 63) for _ in range(6)) + chr(48 + 15)
    tracemalloc.start()
    for size, counts in (((10, 10), huge), ((10**9, 10**9), "0"), ((10, 10), [10**12]), ((10, 10), "\x7f" * 9), ((-1, -5), "5")):
        with pytest.raises(DataError):
            decode_mask({"size": list(size), "counts": counts})
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert decode_mask({"size": [2, 3], "counts": "132"}).sum() == 3


def test_a_long_text_that_a_parquet_repeats_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = {"video_id": ["a"] * 64, "video_caption": ["x" * 5_000_000] * 64, "cross_pair": ["{}"] * 64}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 100_000
    with pytest.raises(DataError, match=r"video_caption in .* must be texts of at most 1,048,576 bytes"):
        list(read_phantom_data(tmp_path / "a.parquet", tmp_path, Rights(), pytest.fail))
    pq.write_table(pa.table({**rows, "video_caption": [5] * 64}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="must be texts"):
        list(read_phantom_data(tmp_path / "b.parquet", tmp_path, Rights(), pytest.fail))


def copy_of(folder, target, part, **changes):
    """A model folder whose weights are links and of which one configuration is changed."""
    for path in folder.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    file = target / part
    values = {**json.loads(file.read_text()), **changes}
    file.unlink()
    file.write_text(json.dumps(values))
    return target


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("transformer/config.json", {"depth": 10**8}), ("transformer/config.json", {"depth": 1000}),
        ("transformer/config.json", {"dim": 10**8}), ("transformer/config.json", {"heads": 10**9}),
        ("transformer/config.json", {"depth": "x"}), ("transformer/config.json", {"depth": [1]}),
        ("transformer/config.json", {"depth": -1}),
        ("transformer/config.json", {"heads": 0}), ("transformer/config.json", {"dim": -5}),
        ("vae/config.json", {"num_res_blocks": 10**8}), ("vae/config.json", {"dim_mult": [1] * 100_000}),
        ("vae/config.json", {"latents_mean": [0.0] * 2_000_000}), ("image_encoder/config.json", {"width": 10**9}),
    ],
)  # fmt: skip
def test_a_configuration_is_bounded_by_its_weights(tmp_path, part, changes):
    folder = copy_of(MINI, tmp_path / "m", part, **changes)
    begun = time.process_time()
    with pytest.raises(CheckpointError):
        check_models(folder)
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"depth": -1}, "depth must be at least 0 .got -1"),
        ({"a": {"num_hidden_layers": -2}}, "num_hidden_layers must be at least 0"),
        ({"patch_size": [1, -2]}, "patch_size must be at least 0"),
        ({"vision_feature_layers": [-2], "pad_token_id": -1, "window_size": -1, "depth": 0}, None),
    ],
)
def test_what_is_counted_in_a_configuration_is_not_negative(tmp_path, values, said):
    (tmp_path / "config.json").write_text(json.dumps(values))
    if said is None:
        assert bounds.read_config(tmp_path / "config.json") == values
        return
    with pytest.raises(CheckpointError, match=said):
        bounds.read_config(tmp_path / "config.json")


def test_the_packaged_model_passes():
    check_models(MINI)


@pytest.mark.parametrize(
    "changes",
    [{"num_frames": 10**9 + 1}, {"num_frames": 10**30}, {"height": 8 * 10**8}, {"num_inference_steps": 10**9}, {"shift": 0.0},
     {"prompt": "a" * 200_000}, {"num_frames": "25"}, {"guidance_scale": "x"},
     {"num_frames": 9601, "height": 8192, "width": 8192}, {"seed": 1.5}],
)  # fmt: skip
def test_a_request_is_bounded_whatever_it_lets_pass(changes):
    preset = load_preset(MINI)
    request = with_defaults(preset, prompt="a", references=(), **{"untrained_size": True})
    check_request(request, preset)
    from dataclasses import replace

    with pytest.raises(InputError):
        check_request(replace(request, **{"prompt": "a", **changes}), preset)


@pytest.mark.parametrize(
    "values",
    [
        {"num_frames": 10**9 + 1}, {"num_frames": "x"}, {"references": 5}, {"references": [{"path": 5, "subject": "a"}]},
        {"extra": 1}, {"height": 10**12}, {"prompt": ["a"]},
    ],
)  # fmt: skip
def test_metadata_are_checked_before_anything_loads(call_phantom, tmp_path, monkeypatch, values):
    from dataclasses import asdict

    from phantom_s2v.pipeline import generate

    def load(*_):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(generate, "load_models", load)
    request = asdict(with_defaults(load_preset(MINI), prompt="a", references=()))
    (tmp_path / "a.json").write_text(json.dumps({"request": {**request, **values}}))
    code, said = call_phantom("generate", "--from", tmp_path / "a.json", "--out", tmp_path / "o.mp4")
    assert (code, len(said.err.splitlines())) == (2, 1), said.err


def test_a_tensor_of_a_pickle_is_stored_as_large_as_it_claims(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="stores less data than"):
        Tensors([tmp_path / "a.pth"])


def test_a_pickle_that_is_compressed_is_not_unpacked(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(CheckpointError, match="compressed"):
        Tensors([tmp_path / "a.pth"])


def test_a_folder_of_transformers_asks_for_no_more_than_it_holds(tmp_path):
    from transformers import CLIPConfig

    from phantom_s2v.vision.transformers import load_network

    CLIPConfig(vision_config={"hidden_size": 8192, "intermediate_size": 65536, "num_attention_heads": 8}).save_pretrained(
        tmp_path
    )
    with pytest.raises(CheckpointError, match=r"specifies .* weights|is not a valid AutoModel"):
        load_network("AutoModel", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["vision_config"]["num_hidden_layers"] = 10**8
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="num_hidden_layers must be at most"):
        load_network("AutoModel", tmp_path)


def test_a_part_that_is_a_pipe_does_not_hang(tmp_path):
    import os

    from phantom_s2v.models.phantom.encoders import ImageEncoder

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError):
        check_part(ImageEncoder, tmp_path)


def test_a_image_of_claimed_size_is_refused(tmp_path):
    header = (
        b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d49484452") + (200_000).to_bytes(4, "big") * 2 + bytes.fromhex("0802000000")
    )
    import zlib

    (tmp_path / "a.png").write_bytes(header + zlib.crc32(header[12:]).to_bytes(4, "big"))
    with pytest.raises(InputError, match=r"too many pixels|damaged|not a supported image"):
        images.read_image(tmp_path / "a.png")
    with pytest.raises(InputError):
        images.read_image(io.BytesIO(header).getvalue())
