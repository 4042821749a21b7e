"""phantom data films, build and check, as a user calls them."""

import json
import re
from functools import partial

import pytest

from phantom_s2v.data.triplets import TripletStore


@pytest.fixture
def phantom(call_phantom):
    return partial(call_phantom, "data")


def test_films_are_made_checked_and_built_again(phantom, tmp_path):
    code, said = phantom("check", "--out", tmp_path / "c", "--films", "3")
    assert code == 0, said.err
    found = json.loads(said.out.splitlines()[-1])
    assert {"shot_f1", "subject_recall", "pair_precision", "pair_recall", "near_duplicates_kept", "decoys_kept"} <= set(found)
    assert found["shot_f1"] > 0.9
    assert found["subject_recall"] > 0.7
    page = (tmp_path / "c" / "triplets.html").read_text()
    for word in ("Why clips were dropped", "Similarity of subjects", "Pairs kept", "Seconds of CPU by stage", "<svg"):
        assert word in page
    assert "http" not in re.sub(r"data:image/[^\"]+", "", page)  # it opens anywhere
    videos = tmp_path / "犬 と 猫"
    videos.mkdir()
    (videos / "映画 1.mp4").write_bytes((tmp_path / "c" / "films" / "film-0000.mp4").read_bytes())
    (videos / "broken.mp4").write_bytes(b"no film")
    code, said = phantom("build", videos, "--out", tmp_path / "t.lance", "--licence", "MIT", "--require-licence")
    assert code == 3
    assert "broken.mp4: not a video that can be read" in said.err
    facts = json.loads(said.out)
    assert (facts["films"], facts["left_behind"]) == (2, 1)
    assert len(TripletStore(tmp_path / "t.lance")) == facts["triplets"] > 0
    assert "broken.mp4" in (tmp_path / "t.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build", "none", "--out", "t.lance"), "none does not exist"),
        (("build", ".", "--out", "t.db"), "NAME.lance"),
        (("build", ".", "--out", "t.lance"), "holds no video"),
        (("build", ".", "--out", "no/t.lance"), "does not exist"),
        (("build", ".", "--out", "t.lance", "--workers", "0"), "1 or more"),
        (("build", ".", "--out", "t.lance", "--detector", "eye"), "scenedetect, transnet, both"),
        (("build", ".", "--out", "t.lance", "--config", "a.toml"), "no TOML"),
        (("build", ".", "--out", "t.lance", "--config", "b.toml"), "blurr is no threshold"),
        (("build", ".", "--out", "t.lance", "--config", "c.toml"), "blur is 'much'"),
        (("build", ".", "--out", "t.lance", "--embedder", "a/b/c"), "a/b/c"),
        (("check", "--out", "no/c"), "does not exist"),
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


def test_thresholds_come_from_a_file(tmp_path):
    from phantom_s2v.cli.data import read_config

    (tmp_path / "a.toml").write_text("instants = [0.1, 0.9]\nlower = 1\n")
    config = read_config(tmp_path / "a.toml", {"detector": "both"})
    assert (config.instants, config.lower, config.detector) == ((0.1, 0.9), 1, "both")
