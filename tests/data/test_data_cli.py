"""phantom data source-videos, build and check, as a user calls them."""

import json
import re
from dataclasses import fields as fields_of
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.triplets import TripletStore
from phantom_s2v.errors import InputError
from phantom_s2v.media import images


@pytest.fixture
def phantom(call_phantom):
    return partial(call_phantom, "data")


def test_source_videos_are_made_checked_and_built_again(phantom, tmp_path):
    code, said = phantom("check", "--out", tmp_path / "c", "--videos", "3")
    assert code == 0, said.err
    found = json.loads(said.out.splitlines()[-1])
    assert {"shot_f1", "subject_recall", "pair_precision", "pair_recall", "near_duplicates_kept", "decoys_kept"} <= set(found)
    assert found["shot_f1"] > 0.9
    assert found["subject_recall"] > 0.7
    page = (tmp_path / "c" / "triplets.html").read_text()
    for word in ("Dropped clips", "Pairs by subject", "kept from", "Pairs just rejected", "CPU time by stage", "<svg", "<video"):
        assert word in page
    assert "://" not in re.sub(r"data:[^\"]+", "", page)  # it opens anywhere
    videos = tmp_path / "犬 と 猫"
    videos.mkdir()
    (videos / "映画 1.mp4").write_bytes((tmp_path / "c" / "source_videos" / "video-0000.mp4").read_bytes())
    (videos / "broken.mp4").write_bytes(b"no source video")
    code, said = phantom("build", videos, "--out", tmp_path / "t.lance", "--license", "MIT", "--require-license")
    assert code == 3
    assert "broken.mp4: not a readable video" in said.err
    facts = json.loads(said.out)
    assert (facts["source_videos"], facts["left_behind"]) == (2, 1)
    assert len(TripletStore(tmp_path / "t.lance")) == facts["triplets"] > 0
    assert "broken.mp4" in (tmp_path / "t.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "none", "--out", "t.lance"), "none does not exist"),
        (("build", ".", "--out", "t.db"), "NAME.lance"),
        (("build", ".", "--out", "t.lance"), "contains no videos"),
        (("build", ".", "--out", "no/t.lance"), "does not exist"),
        (("build", ".", "--out", "t.lance", "--workers", "0"), "workers must be between 1 and 1,024 (got 0"),
        (("build", ".", "--out", "t.lance", "--shot-detector", "eye"), "scenedetect, transnet or both"),
        (("build", ".", "--out", "t.lance", "--config", "a.toml"), "not a valid TOML"),
        (("build", ".", "--out", "t.lance", "--config", "b.toml"), "b.toml has an unknown key 'blurr' (did you mean blur?)"),
        (("build", ".", "--out", "t.lance", "--config", "c.toml"), "(got 'much')"),
        (("build", ".", "--out", "t.lance", "--embedder", "a/b/c"), "a/b/c"),
        (("check", "--out", "no/c"), "does not exist"),
        (("source-videos", "--out", "f", "--videos", "0"), "videos must be between 1 and 10,000 (got 0"),
        (("check", "--out", "f", "--videos", "1000000000"), "videos must be between 1 and 10,000 (got 1000000000"),
    ],
)
def test_bad_input_is_one_sentence(phantom, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text("= 3")
    (tmp_path / "b.toml").write_text("blurr = 3")
    (tmp_path / "c.toml").write_text("blur = 'much'")
    code, got = phantom(*arguments)
    assert code == 2
    assert said in got.err
    assert "Traceback" not in got.err
    assert not list(tmp_path.glob("*.lance"))


def test_a_build_that_made_nothing_says_so(phantom, tmp_path):
    images.write_video(tmp_path / "gray.mp4", np.full((24, 64, 64, 3), 128, np.uint8), 12)
    code, got = phantom("build", tmp_path / "gray.mp4", "--out", tmp_path / "t.lance")
    assert (code, json.loads(got.out)["triplets"]) == (0, 0)
    assert f"no triplets were created; see {tmp_path / 't.html'} for why clips were dropped" in got.err


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--version", "99"), r"t\.lance has no version 99; its versions are 1 to 1"),
        (("--version", str(10**30)), "version"),
        (("--start", "-3"), "start"),
        (("--limit", "0"), "limit"),
    ],
)
def test_what_a_dataset_does_not_have_is_one_plain_sentence(phantom, tmp_path, asked, said):
    TripletStore.create(tmp_path / "t.lance")
    code, got = phantom("show", tmp_path / "t.lance", *asked)
    assert (code, got.out, len(got.err.splitlines())) == (2, "", 1)
    assert re.search(said, got.err)
    assert ".rs:" not in got.err
    code, got = phantom("show", tmp_path / "t.lance", "--start", 10**9, "--limit", 10**9, "--version", 1)
    assert (code, json.loads(got.out)) == (0, {"triplets": 0, "versions": [1]})


def test_thresholds_come_from_a_file(tmp_path):
    from phantom_s2v.cli.data import read_config

    (tmp_path / "a.toml").write_text("instants = [0.1, 0.9]\nlower = 1\n")
    config = read_config(tmp_path / "a.toml", {"shot_detector": "both"})
    assert (config.instants, config.lower, config.shot_detector) == ((0.1, 0.9), 1, "both")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("instants = []", "instants must be one or more shares"),
        ("instants = [0.5, 0.1]", "rising order (got [0.5, 0.1])"),
        ("instants = [0.5, 2]", "instants must be from 0 to 1 (got [0.5, 2.0])"),
        ("text_height = [0.1]", "text_height must be a minimum and a maximum (got [0.1])"),
        ("lower = 5", "lower must be from -1 to 1 (got 5.0)"),
        ("partners = 0", "partners must be from 1 to 1000 (got 0)"),
        ("shortest = 20", "shortest must not exceed longest (got 20 and 10)"),
        ("person = nan", "person must be"),
        ('models = "a"', "must not set models"),
        ("lowr = 0.5", "did you mean lower?"),
    ],
)
def test_thresholds_out_of_range_are_one_sentence(tmp_path, text, said):
    from phantom_s2v.cli.data import read_config

    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(InputError, match=re.escape(said)):
        read_config(tmp_path / "a.toml", {})


def test_the_embedder_of_a_config_file_holds_unless_an_option_gives_another(tmp_path):
    from phantom_s2v.cli.data import asked_models, read_config

    (tmp_path / "a.toml").write_text('embedder = "phantom-mini"\n')
    config = read_config(tmp_path / "a.toml", {})
    assert asked_models(config, {"embedder": ""})[0].embedder == "phantom-mini"
    assert asked_models(config, {"embedder": "efficientnet-lite0"})[0].embedder == "efficientnet-lite0"
    with pytest.raises(InputError, match="got 'dino'"):
        asked_models(replace(config, embedder="dino"), {"embedder": ""})


def test_every_threshold_is_documented_with_its_default():
    """Fields that options set, and those of drawn videos, are documented with these."""
    from phantom_s2v.data.pipeline.config import RANGES, Config

    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([^|]+) \|", (Path(__file__).parents[2] / "docs" / "data.md").read_text(), re.M)
    said = {}
    for names, values in rows:
        fields = re.findall("[a-z_]+", names)
        given = [value.strip() for value in values.split(", ")] if len(fields) > 1 else [values.strip()]
        said |= dict(zip(fields, given, strict=True))
    ranged = {name for names in RANGES for name in names.split()}
    for field in fields_of(Config):
        if field.name in ("shot_detector", "models", "people", "embedder"):
            continue
        default = field.default
        words = (
            {"instants": ", ", "text_height": " to "}[field.name].join(f"{value:g}" for value in default)
            if isinstance(default, tuple)
            else str(default).lower()
            if isinstance(default, bool)
            else f"{default:g}"
        )
        assert said.get(field.name) == words, field.name
        assert isinstance(default, bool) or field.name in ranged, f"{field.name} has no range"


def test_calibration_writes_a_file_that_a_build_takes_and_replaces_it_on_request(phantom, tmp_path):
    from phantom_s2v.cli.data import read_config

    folder, out = tmp_path / "images", tmp_path / "bounds.toml"
    folder.mkdir()
    for number, color in enumerate([(200, 30, 30), (190, 40, 30), (30, 30, 200), (40, 30, 190)]):
        image = np.full((60, 80, 3), 250, np.uint8)
        image[10:50, 10 + 5 * (number % 2) : 60] = color
        Image.fromarray(image).save(folder / f"{'red' if number < 2 else 'blue'}-0{number % 2}.png")
    code, got = phantom("calibrate", folder, "--out", out)
    assert code == 0, got.err
    said = json.loads(got.out)
    assert (said["same"], said["other"], said["precision"]) == (2, 4, 1.0)
    assert read_config(out, {}).lower == said["lower"]
    assert "efficientnet-lite0: precision 1.000" in out.read_text()
    assert phantom("calibrate", folder, "--out", out)[0] == 2
    assert phantom("calibrate", folder, "--out", out, "--force")[0] == 0
    code, got = phantom("calibrate", folder, "--out", tmp_path / "bounds.txt")
    assert (code, "must be a .toml file" in got.err) == (2, True)
    (folder / "red-00.png").write_bytes(b"no image")
    code, got = phantom("calibrate", folder, "--out", tmp_path / "b.toml")
    assert (code, len(got.err.strip().splitlines())) == (2, 1)
    assert "red-00.png" in got.err
