"""SAM2's real loading code on small random weights."""

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.errors import CheckpointError
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.generate import request_images
from phantom_s2v.vision.segment import subject_mask


@pytest.fixture(scope="module")
def sam(network):
    return network("sam2")


def test_a_mask_has_the_images_size_and_follows_the_image(sam):
    first, second = (np.random.default_rng(i).integers(0, 255, (50, 70, 3), dtype=np.uint8) for i in range(2))
    masks = [subject_mask(sam, p) for p in (first, first, second)]
    assert masks[0].shape == (50, 70)
    assert masks[0].dtype == bool
    assert np.array_equal(masks[0], masks[1])


def test_a_busy_background_is_cut_out_by_it(sam, tiny, tmp_path):
    from phantom_s2v.models.registry import load_preset

    image = np.random.default_rng(0).integers(0, 254, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "busy.png")
    options = {"prompt": "a", "reference": [str(tmp_path / "busy.png")], "cutout": True, "segmenter": str(sam)}
    (cut,), said = request_images(build_request(options, load_preset(tiny)))
    mask = subject_mask(sam, image)
    assert np.array_equal(cut[mask], image[mask])
    assert (cut[~mask] == 255).all()
    assert said == ["busy.png: cut out by SAM2"]


def test_a_folder_without_sam2(tmp_path):
    with pytest.raises(CheckpointError, match="is not a valid Sam2Model"):
        subject_mask(tmp_path, np.zeros((8, 8, 3), np.uint8))
