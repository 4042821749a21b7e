"""SAM2's real loading code on small random weights."""

import numpy as np
import pytest
from PIL import Image
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from phantom_s2v.errors import CheckpointError
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.generate import request_images
from phantom_s2v.vision.segment import subject_mask


@pytest.fixture(scope="module")
def sam(tmp_path_factory):
    """A SAM2 of 300 thousand parameters, on images of 128 pixels a side."""
    hiera = Sam2HieraDetConfig(
        hidden_size=16, num_attention_heads=1, image_size=[128, 128], blocks_per_stage=[1] * 4,
        embed_dim_per_stage=[16, 32, 64, 128],
        num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8] * 4, global_attention_blocks=[],
        window_positional_embedding_background_size=[4, 4],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[128, 64, 32, 16], backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )  # fmt: skip
    config = Sam2Config(
        vision_config=vision, prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=32, image_size=128),
        mask_decoder_config=Sam2MaskDecoderConfig(hidden_size=32, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sam2")
    Sam2Model(config).save_pretrained(folder)
    return folder


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
    with pytest.raises(CheckpointError, match="is not a valid SAM2 model"):
        subject_mask(tmp_path, np.zeros((8, 8, 3), np.uint8))
