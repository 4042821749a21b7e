"""Sharpness and exposure of images."""

import cv2
import numpy as np
import pytest

from phantom_s2v.media import quality


@pytest.fixture(scope="module")
def sharp():
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(30, 220, (60, 60, 3)).astype(np.uint8), (480, 480), interpolation=cv2.INTER_NEAREST)
    return np.clip(coarse.astype(int) + rng.integers(-20, 20, coarse.shape), 0, 255).astype(np.uint8)


def test_blur_and_sharpness_order_images(sharp):
    images = [sharp, *(cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (1, 2, 4))]
    blurs, sharpness = [quality.blur(image) for image in images], [quality.sharpness(image) for image in images]
    assert blurs == sorted(blurs)
    assert sharpness == sorted(sharpness, reverse=True)
    assert 0 <= blurs[0] < 0.5 < blurs[3] <= 1


def test_a_mask_says_which_part_is_judged(sharp):
    half, left = sharp.copy(), np.zeros((480, 480), bool)
    left[:, :240] = True
    half[:, :240] = cv2.GaussianBlur(sharp, (0, 0), 4)[:, :240]
    half[:, 240:360] = 255
    assert quality.blur(half, left) > 0.5 > quality.blur(half, ~left)
    assert quality.blur(half) == pytest.approx(quality.blur(half, ~left), abs=0.1)  # of the sharpest part
    assert quality.clipped(half, left) == 0
    assert quality.clipped(half, ~left) == 0.5
    assert quality.blur(half, np.zeros((480, 480), bool)) is None
    assert quality.blur(sharp[:150]) is None


@pytest.mark.parametrize("width", [519, 560, 599])
def test_images_of_any_shape_have_a_blur(sharp, width):
    """One more column may begin another tile of differences across than of those down (239 of 240 pixels, side 40)."""
    wide = np.tile(sharp[:240], (1, 2, 1))[:, :width]
    assert 0 <= quality.blur(wide) <= 1
    assert 0 <= quality.blur(np.ascontiguousarray(wide.transpose(1, 0, 2)), np.ones((width, 240), bool)) <= 1
