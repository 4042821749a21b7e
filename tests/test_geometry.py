import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import VideoSize, covered, fit_inside, latent_frames, parse_size, squares, windows


@given(st.integers(1, 60), st.integers(3, 14), st.integers(0, 8), st.booleans())
def test_windows_cut_time_into_a_partition(length, window, references, shifted):
    if window - references < 2:
        with pytest.raises(InputError, match=f"window_size {window} with {references} reference"):
            windows(length, window, references, shifted)
        return
    ranges = windows(length, window, references, shifted)
    assert [t for start, stop in ranges for t in range(start, stop)] == list(range(length))
    assert all(0 < stop - start <= window - references for start, stop in ranges)
    if length <= window - references:
        assert ranges == [(0, length)]


def test_figure_5_single_subject():
    """Window 9 with one reference: 0..7 | 8..15 | ..., the displaced ninth position starts the next window."""
    assert windows(20, 9, 1, shifted=False) == [(0, 8), (8, 16), (16, 20)]
    assert windows(20, 9, 1, shifted=True) == [(0, 4), (4, 12), (12, 20)]


def test_illegal_lengths_name_the_nearest():
    with pytest.raises(InputError, match="such as 21 or 25"):
        VideoSize(24, 64, 64)
    with pytest.raises(InputError, match="height must be a positive multiple"):
        VideoSize(25, 60, 64)
    assert latent_frames(81) == 21
    assert VideoSize(81, 480, 832).latent == (21, 60, 104)


@pytest.mark.parametrize("text", ["64", "64x", "ax64", "64x64x3", "-8x8"])
def test_size_refuses(text):
    with pytest.raises(InputError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_size_reads_both_writings():
    assert parse_size("832x480") == parse_size("832*480") == (480, 832)


def test_fit_inside_truncates_as_released():
    """1000 x 333 into 832 x 480: 832 / (1000 / 333) = 277.056 -> 277."""
    assert fit_inside(1000, 333, 832, 480) == (832, 277)
    assert fit_inside(333, 1000, 832, 480) == (159, 480)
    assert fit_inside(1, 5000, 64, 64) == (1, 64)


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 60), st.integers(1, 60))
def test_squares_cover_a_image_and_lie_a_step_apart(width, height, side, step):
    side = min(side, width, height)
    step = min(step, side)
    seen = np.zeros((height, width), bool)
    boxes = squares(width, height, side, step)
    for left, top, right, bottom in boxes:
        assert right - left == bottom - top == side
        assert min(left, top) >= 0
        assert right <= width
        assert bottom <= height
        seen[top:bottom, left:right] = True
    assert seen.all()
    lefts = sorted({box[0] for box in boxes})
    assert all(b - a <= step for a, b in itertools.pairwise(lefts))


def test_covered_is_a_share_of_the_smaller_box():
    assert covered((0, 0, 10, 10), (5, 5, 7, 9)) == 1
    assert covered((0, 0, 4, 4), (2, 2, 6, 6)) == 0.25
    assert covered((0, 0, 4, 4), (4, 0, 6, 6)) == 0
