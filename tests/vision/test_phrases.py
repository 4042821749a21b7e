"""Subjects of phrases over a clip, by a detector, a segmenter and a model that answer what the test says."""

import numpy as np
import pytest

from phantom_s2v.data.detectors.phrases import DISAGREE, SEVERAL, detect_phrases, followed
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.segment import ClipSegmenter

LEFT, RIGHT = (10, 10, 40, 40), (60, 10, 90, 40)
STILLS = [np.zeros((50, 100, 3), np.uint8) for _ in range(3)]


def mask(box):
    out = np.zeros((50, 100), bool)
    out[box[1] : box[3], box[0] : box[2]] = True
    return out


class Follower:
    """A segmenter that finds each object again where it was, or where `moves` (frame -> box, None: not to be seen) says."""

    def __init__(self, moves=()):
        self.moves, self.frames, self.boxes = dict(moves), 0, []

    def session(self, height, width):
        assert (height, width) == (50, 100)
        return self

    def see(self, frame):
        self.frames += 1
        return self._masks()

    def add(self, boxes):
        self.boxes += boxes
        return self._masks()

    def _masks(self):
        moved = self.moves.get(self.frames - 1, 0)
        return [np.zeros((50, 100), bool) if moved is None else mask(moved or box) for box in self.boxes]


def subjects(found, segmenter=None, vlm=None, steps=()):
    each = detect_phrases(lambda stills, phrases: found, segmenter, vlm, STILLS[: len(found)], ["any"], steps=steps)
    return [[(d.box, d.name, round(d.score, 2)) for d in some if not d.unsure] for some in each]


def unsure(found, segmenter=None):
    each = detect_phrases(lambda stills, phrases: found, segmenter, None, STILLS[: len(found)], ["any"])
    return [[(d.box, d.name, d.unsure) for d in some if d.unsure] for some in each]


@pytest.mark.parametrize("segmenter", [None, Follower()])
def test_two_phrases_of_one_subject_are_one(segmenter):
    """They are not of one length nor always found together; the surer name stays for the whole clip."""
    found = [
        [(LEFT, "gray wolf", 0.9), ((11, 10, 40, 40), "wolf", 0.6)],
        [((10, 10, 40, 41), "wolf", 0.7)],
        [(LEFT, "gray wolf", 0.5), (LEFT, "wolf", 0.55), (RIGHT, "red mug", 0.4)],
    ]
    names = [[name for _, name, _ in each] for each in subjects(found, segmenter)]
    assert names == [["wolf"], ["wolf"], ["wolf", "red mug"]]  # 1.85 to 1.4


def test_names_that_were_never_found_together_are_joined_by_following():
    found = [[(LEFT, "gray wolf", 0.9)], [(LEFT, "wolf", 0.6)], []]
    assert [[name for _, name, _ in each] for each in subjects(found, Follower())] == [["gray wolf"]] * 3
    assert [[name for _, name, _ in each] for each in subjects(found)] == [["gray wolf"], ["wolf"], []]


def test_a_coat_is_not_who_wears_it_and_a_phrase_for_two_names_none():
    coat = [[((10, 10, 50, 50), "old man", 0.9), ((12, 20, 48, 42), "red coat", 0.8)]]
    assert [name for _, name, _ in subjects(coat)[0]] == ["old man", "red coat"]
    wolves = [
        [(LEFT, "gray wolf", 0.9), (RIGHT, "white wolf", 0.8), (LEFT, "wolf", 0.5)],
        [(LEFT, "gray wolf", 0.9), (RIGHT, "white wolf", 0.8), (RIGHT, "wolf", 0.5)],
    ]
    assert [[name for _, name, _ in each] for each in subjects(wolves)] == [["gray wolf", "white wolf"]] * 2
    assert unsure(wolves) == [[(box, "wolf", SEVERAL)] for box in (LEFT, RIGHT)]  # a report shows it


def test_a_phrase_of_several_places_is_said_and_is_no_subject():
    men = [[(LEFT, "man", 0.9), (RIGHT, "man", 0.8), (LEFT, "boy", 0.3)]]
    for segmenter in (lambda: None, Follower):
        assert [name for _, name, _ in subjects(men, segmenter())[0]] == ["boy"]
        assert unsure(men, segmenter()) == [[(LEFT, "man", SEVERAL), (RIGHT, "man", SEVERAL)]]
    assert unsure([men[0][:2]], Follower()) == unsure(men)


def test_a_subject_is_followed_through_frames_between_stills():
    steps = [(0, STILLS[0]), (None, STILLS[0]), (None, STILLS[0]), (1, STILLS[1]), (None, STILLS[0]), (2, STILLS[2])]
    follower = Follower({3: RIGHT, 5: None})
    found = [[(LEFT, "dog", 0.9)], [(RIGHT, "dog", 0.7)], [(LEFT, "dog", 0.6)]]
    assert subjects(found, follower, steps=steps) == [[(LEFT, "dog", 0.9)], [(RIGHT, "dog", 0.7)], []]
    assert follower.frames == 6


def test_where_detector_and_segmenter_disagree_a_still_is_left_out():
    found = [[(LEFT, "dog", 0.9)], [(RIGHT, "dog", 0.7)], []]
    assert subjects(found, Follower()) == [[(LEFT, "dog", 0.9)], [], [(LEFT, "dog", 0.0)]]
    assert unsure(found, Follower()) == [[], [(RIGHT, "dog", DISAGREE)], []]


def test_logos_are_asked_together():
    class Model:
        def have_logos(self, crops):
            self.crops = crops
            return [True, False, True]

    model = Model()
    found = [[(LEFT, "mug", 0.9), (RIGHT, "can", 0.8)], [(LEFT, "mug", 0.9)]]
    each = detect_phrases(lambda stills, phrases: found, None, model, STILLS[:2], ["any"])
    assert [[d.has_logo for d in some] for some in each] == [[True, False], [True]]
    assert [crop.shape for crop in model.crops] == [(30, 30, 3)] * 3


def test_nothing_is_followed_where_nothing_is_found():
    def steps():
        raise AssertionError("frames were read")
        yield

    assert subjects([[], []], Follower(), steps=steps()) == [[], []]


def test_the_real_networks_agree_with_themselves(network, images):
    """One box in the middle of every image, and masks as large as the stills."""
    detector, segmenter = OpenVocabularyDetector(network("owlv2"), 0.0), ClipSegmenter(network("sam2"))
    found = detector(images, ["gray wolf", "wolf"])
    assert all(len(each) == 2 for each in found)
    seen, apart = followed(segmenter, found, enumerate(images))
    assert len(seen) == len(apart) == 3
    assert all(mask.shape == (40, 60) for each in seen for mask, _ in each.values())
    each = detect_phrases(detector, None, None, images, ["gray wolf", "wolf"])
    assert [len(some) for some in each] == [1, 1, 1]
    assert len({some[0].name for some in each}) == 1
