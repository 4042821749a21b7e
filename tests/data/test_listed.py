"""Lists and folders as other trainers read them, made into triplets."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.formats.configured import read_toml
from phantom_s2v.data.formats.folders import read_captioned, read_subject
from phantom_s2v.data.formats.items import Reading
from phantom_s2v.data.formats.listed import read_listed
from phantom_s2v.data.loader import decode
from phantom_s2v.data.triplets import Rights, TripletStore
from phantom_s2v.errors import DataError, InputError
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
SILENT = Reading(Rights(), pytest.fail, pytest.fail)
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
    (triplet,) = read_listed(folder / name, None, Reading(Rights(license="CC0-1.0"), pytest.fail, pytest.fail))
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
    assert len(list(read_listed(folder / "list.jsonl", None, Reading(Rights(), said.append, pytest.fail)))) == 1
    assert len(said) == 6
    assert [("leads out" in line) for line in said] == [True, True, False, True, False, False]
    assert "row 5 of list.jsonl: it needs a video" in said[4]
    write(folder / "absolute.jsonl", [{**good, "video_path": str(folder / "a.mp4")}])
    assert len(list(read_listed(folder / "absolute.jsonl", None, SILENT))) == 1


@pytest.mark.parametrize(("name", "text"), [("a.json", "{}"), ("a.json", "[1"), ("a.jsonl", "{")])
def test_a_broken_list_is_one_sentence(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="cannot be read as a list of videos"):
        list(read_listed(tmp_path / name, None, SILENT))


def test_images_of_one_subject_are_clips_of_one_frame_with_the_others_as_references(folder):
    (folder / "cat.txt").write_text("The mug on a table.")
    rows = list(read_subject(folder, "red mug", SILENT))
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
    with pytest.raises(DataError, match="does not exist; --subject needs a folder"):
        list(read_subject(folder / "none", "x", SILENT))


def test_a_broken_image_of_a_subject_does_not_spoil_the_others(folder):
    (folder / "torn.jpg").write_bytes((folder / "dog.png").read_bytes()[:200])
    (folder / "empty.png").touch()
    (folder / "phone.HEIC").write_bytes(b"heic")
    (folder / ".hidden.png").touch()
    left: list[str] = []
    rows = list(read_subject(folder, "mug", Reading(Rights(), left.append, pytest.fail)))
    assert [len(row.references) for row in rows] == [2, 2, 2]
    assert sorted(line.partition(":")[0] for line in left) == ["empty.png", "phone.HEIC", "torn.jpg"]


def test_every_file_that_looks_like_data_is_read_or_named(tmp_path, call_phantom):
    for name in ("a", "b", "c"):
        counted(tmp_path, 5, name)
    (tmp_path / "b.txt").unlink()
    (tmp_path / "c.txt").write_text("")
    for name in ("lost.txt", "phone.heic", "old.wmv", ".DS_Store", "notes.md"):
        (tmp_path / name).write_text("x")
    code, said = call_phantom("data", "import", tmp_path, "--out", tmp_path / "a.lance")
    left = [line.split(": ", 2)[2] for line in said.err.splitlines() if "skipped: " in line]
    assert (code, sorted(left)) == (3, [
        "b.mp4: it has no caption; describe it in b.txt",
        "lost.txt: no video or image for this caption",
        *(line for line in sorted(left) if line.startswith(("old.wmv: .wmv is not read", "phone.heic: .heic is not read"))),
    ])  # fmt: skip
    assert "0 references, an empty caption (" in said.err
    assert "2 of 2 triplets have no reference images" in said.err
    assert f"next: phantom encode {tmp_path / 'a.lance'} " in said.err


def test_the_command_imports_both(folder, call_phantom, tmp_path):
    write(folder / "train.json", [ROWS["train.json"]])
    code, said = call_phantom("data", "import", folder / "train.json", "--out", tmp_path / "a.lance")
    assert code == 0, said.err
    code, said = call_phantom("data", "import", folder, "--subject", "dog", "--out", tmp_path / "a.lance")
    assert code == 0, said.err
    assert json.loads(said.out)["triplets"] == len(TripletStore(tmp_path / "a.lance")) == 4


def counted(tmp_path, frames: int, name: str = "a", fps: float = 16) -> None:
    """A video whose frame n is gray 5 n, with its caption."""
    video = np.repeat(np.arange(frames, dtype=np.uint8)[:, None, None, None] * 5, 32, 1).repeat(48, 2).repeat(3, 3)
    images.write_video(tmp_path / f"{name}.mp4", video, fps)
    if not name.endswith(".mask"):
        (tmp_path / f"{name}.txt").write_text(f"Video {name}.")


def shades(triplet) -> list[int]:
    return grays(decode(triplet).video)


def grays(video) -> list[int]:
    return np.round(video[:, 5, 5, 0] / 5).astype(int).tolist()


def picture(path, seed=0, size=(30, 40)) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)).save(path)


@pytest.mark.parametrize(("settings", "starts"), [
    ("target_frames = [1, 9, 81]", [(0, 1), (0, 9)]),
    ("target_frames = [9]\nframe_extraction = 'chunk'", [(0, 9), (9, 9)]),
    ("target_frames = [9]\nframe_extraction = 'slide'\nframe_stride = 5", [(0, 9), (5, 9), (10, 9)]),
    ("target_frames = [5]\nframe_extraction = 'uniform'\nframe_sample = 3", [(0, 5), (8, 5), (15, 5)]),
    ("frame_extraction = 'full'\nmax_frames = 17", [(0, 17)]),
    ("target_frames = [81]", [(0, 20)]),
    ("target_frames = [9]\nsource_fps = 32.0", [(0, 18)]),
])  # fmt: skip
def test_musubi_tuner_cuts_clips_as_it_says(tmp_path, settings, starts):
    """Each way of frame_extraction; a video that is shorter than all lengths is one clip, not none."""
    counted(tmp_path, 20)
    (tmp_path / "d.toml").write_text(
        f"[general]\nresolution = [48, 32]\nbatch_size = 2\nnum_repeats = 3\n[[datasets]]\nvideo_directory = '.'\n{settings}\n"
    )
    kept: list[str] = []
    rows = list(read_toml(tmp_path / "d.toml", None, Reading(Rights(), pytest.fail, lambda line: None, kept.append)))
    assert [shades(row) for row in rows] == [list(range(start, start + count)) for start, count in starts]
    assert [row.fps for row in rows] == [32.0 if "source_fps" in settings else 16.0] * len(rows)
    assert {row.repeats for row in rows} == {3}
    assert [line.partition(":")[0] for line in kept] == ["kept" if count == 20 else "trimmed" for _, count in starts]


@pytest.mark.parametrize(("more", "starts"), [
    ("frame_buckets = [1, 5, 9, 33]", [(0, 9)]),
    ("frame_buckets = [1, 33]", [(0, 20)]),
    ("frame_buckets = [9]\nvideo_clip_mode = 'single_middle'", [(5, 9)]),
    ("frame_buckets = [9]\nvideo_clip_mode = 'multiple_overlapping'", [(0, 9), (6, 9), (11, 9)]),
])  # fmt: skip
def test_diffusion_pipe_cuts_clips_as_it_says_and_has_masks(tmp_path, more, starts):
    for name in ("clips", "masks"):
        (tmp_path / name).mkdir()
    counted(tmp_path / "clips", 20)
    counted(tmp_path / "masks", 20)
    picture(tmp_path / "clips" / "b.png")
    (tmp_path / "clips" / "b.txt").write_text("An image.")
    (tmp_path / "masks" / "a.txt").unlink()
    (tmp_path / "d.toml").write_text(
        f"{more}\n[[directory]]\npath = 'clips'\nmask_path = 'masks'\nnum_repeats = 2\ncaption_prefix = 'ohwx '\n"
    )
    rows = list(read_toml(tmp_path / "d.toml", None, SILENT))
    assert [row.caption for row in rows] == ["ohwx Video a."] * len(starts) + ["ohwx An image."]
    assert [shades(row) for row in rows[:-1]] == [list(range(start, start + count)) for start, count in starts]
    for row in rows[:-1]:
        assert shades(row) == grays(images.read_video(io.BytesIO(row.mask))[0])
    assert (rows[-1].frames, rows[-1].mask, rows[-1].repeats) == (1, b"", 2)


def test_musubi_tuner_has_references_in_a_folder_and_in_a_list(tmp_path):
    (tmp_path / "control").mkdir()
    counted(tmp_path, 5)
    for seed, name in enumerate(("a_0", "a_1", "a_12", "ab_0", "a")):
        picture(tmp_path / "control" / f"{name}.png", seed)
    (tmp_path / "d.toml").write_text(
        "[[datasets]]\nvideo_directory = '.'\ntarget_frames = [5]\ncontrol_directory = 'control'\n"
        "[[datasets]]\nvideo_jsonl_file = 'l.jsonl'\nframe_extraction = 'full'\nis_reg = true\n"
    )
    write(tmp_path / "l.jsonl", [{"video_path": "a.mp4", "caption": "x", "control_path_0": "control/ab_0.png"}])
    first, second = read_toml(tmp_path / "d.toml", None, SILENT)
    expected = [(tmp_path / "control" / f"{name}.png").read_bytes() for name in ("a", "a_0", "a_1")]
    assert [r.image for r in first.references] == expected
    assert [r.subject for r in first.references] == ["subject 1", "subject 2", "subject 3"]
    assert (len(second.references), second.regularization, first.regularization) == (1, True, False)


@pytest.mark.parametrize(("text", "said"), [
    ("x = 1", r"must have \[\[datasets\]\]"),
    ("[[datasets]]\nvideo_directory = '.'\nframe_extration = 'head'", r"did you mean frame_extraction\?"),
    ("[[datasets]]\nvideo_directory = '.'\nframe_extraction = 'all'", "frame_extraction must be full, head"),
    ("[[datasets]]\nvideo_directory = '..'", "leads out of"),
    ("[[datasets]]\nvideo_directory = 'none'", "does not exist"),
    ("[[datasets]]\ntarget_frames = [1]", "needs one of video_directory"),
    ("[[directory]]\npath = '.'\nframe_buckets = [0]", "frame_buckets must be"),
    ("[[directory]]\nnum_repeats = 1", "is missing path"),
    ("[[datasets", "cannot be read as"),
])  # fmt: skip
def test_a_wrong_setting_is_one_sentence(tmp_path, text, said):
    (tmp_path / "d.toml").write_text(text)
    with pytest.raises((DataError, InputError), match=said):
        list(read_toml(tmp_path / "d.toml", None, SILENT))


def test_a_plain_folder_has_references_masks_and_images_as_clips(tmp_path):
    counted(tmp_path, 5)
    counted(tmp_path, 5, "a.mask")
    (tmp_path / "a").mkdir()
    names = ("a.ref.png", "a.fox.png", "a/dog_1.png", "a/dog_2.png", "a/3.png")
    for seed, name in enumerate((*names, "still.png", "still.mask.png", "alone.png")):
        picture(tmp_path / name, seed)
    (tmp_path / "still.txt").write_text("A still.")
    left: list[str] = []
    clip, still = read_captioned(tmp_path, Reading(Rights(), left.append, pytest.fail, trigger="ohwx"))
    assert [r.subject for r in clip.references] == ["fox", "subject 1", "subject 2", "dog", "dog"]
    assert shades(clip) == list(range(5)) == grays(images.read_video(io.BytesIO(clip.mask))[0])
    assert (still.frames, still.caption, clip.caption) == (1, "ohwx A still.", "ohwx Video a.")
    assert Image.open(io.BytesIO(still.mask)).mode == "L"
    assert [line.partition(":")[0] for line in left] == ["alone.png"]
    again = next(read_captioned(tmp_path, Reading(Rights(), left.append, pytest.fail, trigger="x", regularization=True)))
    assert again.caption == "Video a."


def test_the_command_reads_a_folder_of_captioned_images_and_says_what_is_missing(tmp_path, call_phantom):
    for name in ("photos", "videos", "bare"):
        (tmp_path / name).mkdir()
    for number in range(3):
        picture(tmp_path / "photos" / f"{number}.png", number)
        picture(tmp_path / "bare" / f"{number}.png", number)
        (tmp_path / "photos" / f"{number}.txt").write_text("A mug.")
    counted(tmp_path / "videos", 5)
    (tmp_path / "videos" / "a.txt").unlink()
    code, said = call_phantom("data", "import", tmp_path / "photos", "--out", tmp_path / "p.lance")
    assert code == 0, said.err
    assert json.loads(said.out) == {"new": 3, "triplets": 3, "left_out": 0}
    assert [row.frames for row in TripletStore(tmp_path / "p.lance")] == [1, 1, 1]
    code, said = call_phantom("data", "import", tmp_path / "videos", "--out", tmp_path / "v.lance")
    assert (code, "skipped: a.mp4: it has no caption; describe it in a.txt" in said.err) == (3, True)
    code, said = call_phantom("data", "import", tmp_path / "bare", "--out", tmp_path / "b.lance")
    assert (code, "no images with a caption NAME.txt; for images of one subject give its name (--subject)" in said.err) == (
        2,
        True,
    )


def test_masks_uses_and_repeats_come_back_from_a_dataset_and_an_export(tmp_path, call_phantom):
    counted(tmp_path, 5)
    counted(tmp_path, 5, "a.mask")
    out, export = tmp_path / "s.lance", tmp_path / "export"
    code, said = call_phantom("data", "import", tmp_path, "--out", out, "--num-repeats", 4, "--regularization")
    assert code == 0, said.err
    assert "kept: a.mp4: 5 frames at 16 fps, 48x32, 0 references, masked" in said.err
    assert "s.sheet.png shows 1 of 1 triplets" in said.err
    with Image.open(tmp_path / "s.sheet.png") as sheet:
        assert sheet.size[1] == 128 + 16
    assert call_phantom("data", "export", out, "--out", export)[0] == 0
    assert call_phantom("data", "import", export, "--out", tmp_path / "again.lance")[0] == 0
    one, again = (next(iter(TripletStore(path))) for path in (out, tmp_path / "again.lance"))
    assert one == again
    assert (one.repeats, one.regularization, one.id == replace(one, mask=b"").id) == (4, True, False)
    counted(tmp_path, 4, "a.mask")
    code, said = call_phantom("data", "import", tmp_path, "--out", tmp_path / "b.lance")
    assert (code, "its mask must have the shape of the clip, 48x32, and one frame or 5" in said.err) == (3, True)


def test_a_subject_moves_in_composed_clips(tmp_path):
    """On plain backgrounds; an image whose subject cannot be cut out is named and does not move."""
    for number in range(3):
        image = np.full((60, 50, 3), (0, 0, 255), np.uint8)
        image[20:40, 15:35] = (255, 200, 0)
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    picture(tmp_path / "noise.png")
    said: list[str] = []
    rows = list(read_subject(tmp_path, "red mug", Reading(Rights(), pytest.fail, said.append, fps=16.0), 4))
    clips, stills = rows[:4], rows[4:]
    assert [(row.frames, row.fps) for row in rows] == [(25, 16.0)] * 4 + [(1, 8.0)] * 4
    assert all("red mug" in row.caption and "subject" not in row.caption for row in clips)
    for row in clips:
        video = decode(row).video.astype(int)
        yellow = (np.abs(video - (255, 200, 0)).max(-1) < 60).reshape(25, -1).sum(1)
        assert (yellow > 50).all()
        assert np.abs(video[0] - video[-1]).mean() > 1
    assert [line.partition(":")[0] for line in said] == ["noise.png"]
    assert len(stills) == 4
