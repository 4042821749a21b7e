"""Networks of a hub in `phantom data build` and `phantom evaluate`, by the options that a user gives."""

import io
import json
from dataclasses import fields
from pathlib import Path

import hub
import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from phantom_s2v.cli.evaluate import load_networks
from phantom_s2v.cli.options import Networks
from phantom_s2v.data.pipeline import engine
from phantom_s2v.data.pipeline.config import Config
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.triplets import TripletStore
from phantom_s2v.media import images as media
from phantom_s2v.models.registry import hub_folder
from phantom_s2v.vision.embed import Aesthetics

OPEN = {  # nothing is dropped for what it looks like
    "blur": 0.0, "still": 0.0, "shaking": 1.0, "letters": 1000, "smallest_box": 0.0, "largest_box": 1.0, "smallest_side": 1,
    "cut": 1.0,
}  # fmt: skip


@pytest.fixture
def videos(tmp_path):
    """One clip: a texture that moves over another one."""
    folder, rng = tmp_path / "videos", np.random.default_rng(0)
    folder.mkdir()
    behind, thing = (np.kron(rng.integers(0, 255, (n, n, 3)), np.ones((8, 8, 1))).astype(np.uint8) for n in (12, 4))
    frames = np.stack([behind] * 13)
    for i in range(13):
        frames[i, 32:64, 10 + 2 * i : 42 + 2 * i] = thing
    media.write_video(folder / "a.mp4", frames, 12)
    names = {each.name for each in fields(Config)}
    (tmp_path / "config.toml").write_text("".join(f"{name} = {value}\n" for name, value in OPEN.items() if name in names))
    return folder


@pytest.fixture
def served(network, tmp_path, monkeypatch):
    """A hub with the tiny networks, under the names OWNER/NETWORK."""
    names = ("qwen3-vl", "grounding-dino", "owlv2", "sam2", "dinov3", "siglip")
    files = {f"owner/{name}": {p.name: p.read_bytes() for p in network(name).iterdir()} | {"a.bin": b"x"} for name in names}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    one = hub.Hub(files)
    with hub.running(one) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        yield one


def build(call, videos, *options):
    out = videos.parent / "t.lance"
    code, said = call("data", "build", videos, "--out", out, "--config", videos.parent / "config.toml", *options)
    rows = SubjectIndex(engine.index_path(out)).open("clips")
    return code, said, rows.to_table().to_pylist() if rows else [], out


def test_a_chat_template_comes_with_its_model(served, network):
    folder = hub_folder("owner/qwen3-vl")
    assert (folder / "chat_template.jinja").read_text() == (network("qwen3-vl") / "chat_template.jinja").read_text()
    assert (hub_folder("owner/siglip") / "spiece.model").is_file()
    assert not [path for _, path, _ in served.asked if path.endswith("a.bin")]


def test_a_clip_is_captioned_and_embedded_by_models_of_a_hub(served, videos, call_phantom):
    options = ("--captioner", "owner/qwen3-vl", "--object-detector", "owner/owlv2", "--segmenter", "owner/sam2")
    code, said, clips, _ = build(call_phantom, videos, *options, "--embedder", "owner/dinov3")
    assert code == 0, said.err
    assert len(clips) == 1
    assert json.loads(said.out.splitlines()[-1])["source_videos"] == 1
    folders = {path.split("/")[2] for _, path, _ in served.asked if path.startswith("/owner/")}
    assert folders == {"qwen3-vl", "owlv2", "sam2", "dinov3"}


@pytest.mark.parametrize("detector", ["grounding-dino", "owlv2"])
def test_subjects_of_a_caption_are_found_by_name(network, videos, call_phantom, detector):
    (videos / "a.txt").write_text("A gray wolf stands beside a blue mug.")
    code, said, clips, out = build(call_phantom, videos, "--object-detector", network(detector), "--embedder", network("dinov3"))
    assert code == 0, said.err
    assert [clip["drop"] for clip in clips] == [""]
    subjects = SubjectIndex(engine.index_path(out)).open("subjects").to_table().to_pylist()
    assert {subject["name"] for subject in subjects} <= {"gray wolf", "blue mug"}  # one box: one subject
    assert len(subjects) == 1
    assert len(subjects[0]["vector"]) == 16


def test_reference_images_have_an_aesthetic_score_and_a_bound_for_it(network, videos, call_phantom):
    (videos / "a.txt").write_text("A gray wolf stands beside a blue mug.")
    folder, config = network("clip-with-head"), videos.parent / "config.toml"
    options = ["--object-detector", network("owlv2"), "--clip", folder, "--aesthetic", folder / "head.safetensors"]
    bounds = config.read_text()
    config.write_text(f"{bounds}reference_aesthetic = -1000\n")
    code, said, clips, out = build(call_phantom, videos, *options)
    assert code == 0, said.err
    assert [clip["drop"] for clip in clips] == [""]
    (triplet,) = TripletStore(out)
    (reference,) = triplet.references
    image = np.asarray(Image.open(io.BytesIO(reference.image)).convert("RGB"))
    value = Aesthetics(folder, folder / "head.safetensors")([image])[0]
    assert reference.scores["aesthetic"] == pytest.approx(float(value), abs=1e-4)
    assert reference.scores["blur"] is None  # too small
    assert set(reference.scores) == {"side", "sharpness", "blur", "clipped", "aesthetic"}
    config.write_text(f"{bounds}reference_aesthetic = {value + 1}\n")
    code, said, clips, out = build(call_phantom, videos, *options)
    assert clips[0]["drop"] == "no subject: a reference image of a low aesthetic score"
    page = out.with_suffix(".html").read_text()
    assert "Reference images not used" in page
    assert "lower reference_aesthetic in --config" in page


def darkened(image, mask):
    """An inpainter of one's own."""
    return np.where(mask[..., None], 0, image).astype(np.uint8)


def test_backgrounds_are_filled_by_a_pipeline_of_a_hub_or_a_function(network, videos, call_phantom, monkeypatch):
    (videos / "a.txt").write_text("A gray wolf stands beside a blue mug.")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    found = {}
    for name in (network("inpainting"), f"{Path(__file__).stem}:darkened", ""):
        options = ["--object-detector", network("owlv2"), "--background", *(["--inpainter", name] if name else [])]
        code, said, _, out = build(call_phantom, videos, *options)
        assert code == 0, said.err
        (triplet,) = TripletStore(out)
        assert [(r.subject, r.pairing) for r in triplet.references][-1] == ("background", "in-pair")
        found[str(name)] = triplet.references[-1].image
    assert len(set(found.values())) == 3  # another inpainter fills anew
    assert "clips with a background" in out.with_suffix(".html").read_text()
    dark = np.asarray(Image.open(io.BytesIO(found[f"{Path(__file__).stem}:darkened"])))
    assert 0 < (dark.max(-1) < 40).mean() < 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--inpainter", "inpainting"], "--inpainter needs --background: it fills the subjects in backgrounds"),
        (["--clip", "clip"], "--clip needs --aesthetic: it embeds the images that the aesthetic head scores"),
        (["--segmenter", "sam2"], "--segmenter needs --object-detector: SAM2 follows what the detector finds"),
        (["--object-detector", "owlv2"], "--object-detector needs captions: give --captioner, or NAME.txt beside the videos"),
    ],
)
def test_options_that_do_nothing_alone_are_refused(network, videos, call_phantom, options, said):
    code, printed, clips, out = build(call_phantom, videos, options[0], network(options[1]))
    assert code == 2
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert not clips
    assert not out.exists()


def test_scores_are_measured_by_siglip_and_dinov3(network):
    tools = load_networks(Networks(backend="hub", clip=str(network("siglip")), dino=str(network("dinov3"))))
    image = np.asarray(Image.effect_noise((32, 32), 90).convert("RGB"))
    assert tools.clip([image]).shape == (1, 16)
    assert tools.words("a red dog").shape == (16,)
    assert tools.dino([image]).shape == (1, 16)


def test_the_networks_of_opens2v_are_loaded(network):
    tools = load_networks(Networks(), "opens2v", vlm=str(network("qwen3-vl")))
    assert tools.ask
    assert tools.names["vlm"] == str(network("qwen3-vl"))


@pytest.mark.parametrize(
    ("available", "actors", "asked"), [(0, 4, 0), (1, 1, 1), (1, 4, 0.25), (1, 3, 0.333), (8, 2, 1), (2, 4, 0.5)]
)
def test_ray_asks_for_no_more_gpus_than_all_actors_can_have(available, actors, asked):
    assert engine._gpus(available, actors) == asked
    assert engine._gpus(available, actors) * actors <= max(available, actors)


def test_stages_with_networks_ask_ray_for_their_gpus():
    asked = {}

    class Rows:
        def map_batches(self, stage, **options):
            asked.update(options)

    pytest.importorskip("ray")
    engine._by_actors(Rows(), engine.KNOW, None, None, 2, 0.5)
    assert asked["num_gpus"] == 0.5
    assert asked["batch_size"] > 1  # a captioner is asked of several clips at once
    assert asked["compute"].max_size == 2
