"""Lists and folders as other trainers read them, made into triplets."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.formats.listed import read_listed, read_subject
from phantom_s2v.data.loader import decode
from phantom_s2v.data.triplets import Rights, TripletStore
from phantom_s2v.errors import DataError
from phantom_s2v.media import images

ROWS = {
    "metadata.jsonl": {
        "file_name": "a.mp4",
        "text": "A dog runs.",
        "references": {"dog": ["dog.png", "dog 2.png"], "猫": "cat.png"},
    },
    "musubi.jsonl": {"video_path": "a.mp4", "caption": "A dog runs.", "control_path_0": "dog.png", "control_path_1": "cat.png"},
    "metadata.csv": {"video": "a.mp4", "prompt": "A dog runs.", "subject_image": "dog.png"},
    "train.json": {"file_path": "a.mp4", "text": "A dog runs.", "type": "video", "object_file_path": ["dog.png", "cat.png"]},
}
SUBJECTS = {"metadata.jsonl": ["dog", "dog", "猫"], "metadata.csv": ["subject 1"]}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    images.write_video(tmp_path / "a.mp4", rng.integers(0, 255, (5, 32, 32, 3), dtype=np.uint8), 8)
    for name in ("dog", "dog 2", "cat"):
        Image.fromarray(rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def write(file, rows) -> None:
    if file.suffix == ".csv":
        target = io.StringIO()
        writer = csv.DictWriter(target, sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
        file.write_text(target.getvalue())
    else:
        file.write_text("\n".join(map(json.dumps, rows)) if file.suffix == ".jsonl" else json.dumps(rows))


@pytest.mark.parametrize("name", ROWS)
def test_a_list_of_another_trainer_is_read(folder, name):
    write(folder / name, [ROWS[name]])
    (triplet,) = read_listed(folder / name, None, Rights(license="CC0-1.0"), pytest.fail, pytest.fail)
    assert triplet.caption == "A dog runs."
    assert triplet.video == (folder / "a.mp4").read_bytes()
    assert [r.subject for r in triplet.references] == SUBJECTS.get(name, ["subject 1", "subject 2"])
    assert triplet.references[0].image == (folder / "dog.png").read_bytes()
    assert triplet.references[0].rights.license == "CC0-1.0"


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "b.mp4"
    outside.write_bytes((folder / "a.mp4").read_bytes())
    good = ROWS["musubi.jsonl"]
    (folder / "link.mp4").symlink_to(outside)
    bad = [{**good, "video_path": path} for path in (str(outside), "../b.mp4", "none.mp4", "link.mp4")]
    write(folder / "list.jsonl", [*bad, {"caption": "x"}, good, [1]])
    said: list[str] = []
    assert len(list(read_listed(folder / "list.jsonl", None, Rights(), said.append, pytest.fail))) == 1
    assert len(said) == 6
    assert [("leads out" in line) for line in said] == [True, True, False, True, False, False]
    assert "row 5 of list.jsonl: it needs a video" in said[4]
    write(folder / "absolute.jsonl", [{**good, "video_path": str(folder / "a.mp4")}])
    assert len(list(read_listed(folder / "absolute.jsonl", None, Rights(), pytest.fail, pytest.fail))) == 1


@pytest.mark.parametrize(("name", "text"), [("a.json", "{}"), ("a.json", "[1"), ("a.jsonl", "{")])
def test_a_broken_list_is_one_sentence(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="cannot be read as a list of videos"):
        list(read_listed(tmp_path / name, None, Rights(), pytest.fail, pytest.fail))


def test_images_of_one_subject_are_clips_of_one_frame_with_the_others_as_references(folder):
    (folder / "cat.txt").write_text("The mug on a table.")
    rows = list(read_subject(folder, "red mug", Rights(), pytest.fail, pytest.fail))
    assert [row.caption for row in rows] == ["The mug on a table.", "A photo of red mug.", "A photo of red mug."]
    for row, name in zip(rows, ("cat", "dog 2", "dog"), strict=True):
        sample = decode(row)
        assert sample.video.shape == (1, 30, 40, 3)
        own = (folder / f"{name}.png").read_bytes()
        assert own not in [r.image for r in row.references]
        assert len(row.references) == 2
        assert {r.subject for r in row.references} == {"red mug"}
        pixels = np.asarray(Image.open(folder / f"{name}.png")).astype(int)
        assert np.abs(sample.video[0].astype(int) - pixels).mean() < np.abs(np.roll(pixels, 3, 1) - pixels).mean()
    with pytest.raises(DataError, match="at least two images of the subject"):
        list(read_subject(folder / "none", "x", Rights(), pytest.fail, pytest.fail))


def test_the_command_imports_both(folder, call_phantom, tmp_path):
    write(folder / "train.json", [ROWS["train.json"]])
    code, said = call_phantom("data", "import", folder / "train.json", "--out", tmp_path / "a.lance")
    assert code == 0, said.err
    code, said = call_phantom("data", "import", folder, "--subject", "dog", "--out", tmp_path / "a.lance")
    assert code == 0, said.err
    assert json.loads(said.out)["triplets"] == len(TripletStore(tmp_path / "a.lance")) == 4
