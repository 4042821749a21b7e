"""The self-check on a user's own videos: what it plants in them, and that a clip without a fault does not hold its reference."""

import json
from functools import partial

import numpy as np
import pytest
import skimage.data
from PIL import Image

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation import footage_check
from phantom_s2v.evaluation.footage_check import Person, pairs, people, planted
from phantom_s2v.evaluation.instruments import LIMITS, Faces, Instruments
from phantom_s2v.media import images
from phantom_s2v.vision import fetched
from phantom_s2v.vision.faces import Face

FACE = (60, 60, 120, 120)  # where the stand-in for a face lies, to the left of the middle


def red(image):
    """Boxes of a red square: what these tests take for a face."""
    found = (image[..., 0] > 150) & (image[..., 1] < 100)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    return [(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)] if len(rows) else []


TOOLS = Instruments(
    "none",
    lambda images: np.ones((len(images), 1)),
    LIMITS["efficientnet-lite0"],
    faces=Faces("red", lambda image: [Face(box, np.ones(1)) for box in red(image)], lambda one, other: 1.0),
)


def video_of(path, shade, face=True):
    """A video of 12 frames that are brighter from left to right, with a red square."""
    frame = np.repeat(np.linspace(0, shade, 400)[None, :, None], 300, 0).repeat(3, 2).astype(np.uint8)
    if face:
        left, top, right, bottom = FACE
        frame[top:bottom, left:right] = (220, 20, 20)
    images.write_video(path, np.repeat(frame[None], 12, 0), 12)
    return path


@pytest.fixture
def phantom(call_phantom):
    return partial(call_phantom, "evaluate")


def test_a_reference_is_mirrored_where_there_is_no_image_of_another_take(tmp_path):
    (person,) = people([video_of(tmp_path / "one.mp4", 120)], TOOLS)
    (left, *_), width = red(person.reference)[0], person.reference.shape[1]
    assert 0 < left < width / 2 < width < 200  # head and shoulders, not the frame
    assert person.reference[:, :9].mean() > person.reference[:, -9:].mean()
    assert person.frames[0, :, :9].mean() < person.frames[0, :, -9:].mean()


def test_an_image_of_the_videos_name_is_its_reference(tmp_path):
    video = video_of(tmp_path / "one.mp4", 120)
    image = np.full((200, 160, 3), 90, np.uint8)
    image[50:100, 40:90] = (220, 20, 20)
    Image.fromarray(image).save(tmp_path / "one.png")
    (person,) = people([video], TOOLS)
    assert (person.reference == image).all()
    Image.fromarray(image[:40]).save(tmp_path / "one.png")
    with pytest.raises(InputError, match=r"one.png is the reference of one.mp4 and shows no face that can be compared"):
        list(people([video], TOOLS))


def test_swapped_people_keep_their_heads():
    tall = np.full((8, 400, 200, 3), 90, np.uint8)
    tall[:, 10:60, 80:120] = (220, 20, 20)
    one, other = (Person(name, tall[0], tall) for name in "ab")
    made = planted("swapped", 0, one, other, TOOLS)
    assert made
    assert len(made.references) == 2
    height, width = made.video.shape[1:3]
    assert width == 2 * height
    assert red(made.video[0][:, : width // 2])
    assert red(made.video[0][:, width // 2 :])


def test_each_person_is_beside_the_next_and_videos_without_a_face_are_left_out(tmp_path):
    files = [video_of(tmp_path / f"{name}.mp4", 40 * i, name != "none") for i, name in enumerate(("a", "none", "b", "c"), 1)]
    assert [(one.name, other.name) for one, other in pairs(files, TOOLS)] == [("a", "b"), ("b", "c"), ("c", "a")]
    with pytest.raises(InputError, match=r"two or more that show a face \(got 1 of 2\)"):
        list(pairs(files[:2], TOOLS))


def films(folder):
    """A person and another one who move, and their film files."""
    folder.mkdir()
    person, cat = skimage.data.astronaut(), skimage.data.chelsea()
    for name, face in (("one", person), ("two", np.ascontiguousarray(person[:, ::-1, ::-1]))):
        frames = [np.roll(np.asarray(Image.fromarray(cat).resize((640, 400))), 3 * i, 1) for i in range(14)]
        for i, frame in enumerate(frames):
            frame[10:390, 40 + 5 * i : 420 + 5 * i] = np.asarray(Image.fromarray(face).resize((380, 380)))
        images.write_video(folder / f"{name}.mp4", np.stack(frames), 12)
    return folder


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not fetched.fetched(), reason="phantom models fetch brings the files")
def test_faults_planted_in_films_are_seen(phantom, tmp_path):
    pytest.importorskip("dlib")
    page = tmp_path / "page.html"
    code, said = phantom("self-check", films(tmp_path / "films"), "--out", page)
    assert code == 0, said.err
    assert "planted" in page.read_text()
    rates = json.loads(said.out.splitlines()[-1])
    assert set(rates) == set(footage_check.PLANTED)
    assert rates["blurred"] == {"detection": 1.0, "false_alarm": 0.0}
    assert rates["flashed"] == rates["pasted"] == {"detection": 1.0, "false_alarm": 0.0}
    code, said = phantom("self-check", tmp_path)
    assert code == 2
