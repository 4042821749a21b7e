"""Counts against torch's own counter, budgets, and the table of cards. Times are held against runs in benchmarks/estimate.py."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.models.base import Clip
from phantom_s2v.models.memory import Placement
from phantom_s2v.models.phantom.spec import PhantomModel
from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.models.wan.spec import WanModel
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.cost import estimate, measure

WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
    "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30,
}  # fmt: skip


def counted(work):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work()
    return counter.get_total_flops()


def test_operations_of_wan_are_those_of_torchs_counter():
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(**WAN)
        real = counted(lambda: model(torch.zeros(1, 16, 6, 32, 48), torch.tensor([5]), torch.zeros(1, 512, 4096)))
    assert WanModel().flops(WAN, Clip(VideoSize(13, 256, 384), 2)) == real


@pytest.mark.parametrize(("frames", "images"), [(25, 1), (97, 2), (1, 0)])
def test_operations_of_mini_are_nearly_those_of_torchs_counter(frames, images):
    """All but the modulation, a tenth of a percent."""
    from phantom_s2v.models.phantom.transformer import PhantomTransformer

    config, clip = measure.read_configs(model_folder("phantom-mini"))[0], Clip(VideoSize(frames, 64, 64), images)
    with torch.device("meta"):
        model = PhantomTransformer(**config)
        real = counted(lambda: model(*PhantomModel().inputs(config, clip, 1, "meta", torch.float32)))
    assert PhantomModel().flops(config, clip) == pytest.approx(real, rel=0.01)


def test_tokens_are_those_of_the_facts():
    """832x480, 81 frames, two references: 1560 * 23 = 35,880, as in the released code."""
    preset = WanModel().preset({"_class_name": "WanTransformer3DModel", "num_attention_heads": 12, "attention_head_dim": 128})
    request = build_request({"prompt": "a", "reference": ["a=1.png", "b=2.png"]}, preset)
    assert WanModel().tokens(preset, measure.clip_of(request)) == 35_880
    assert measure.branch_count(request, {}) == 3
    assert measure.branch_count(replace(request, references=()), {}) == 2
    assert measure.branch_count(replace(request, image_guidance_scale=1.0, guidance_scale=1.0), {}) == 1


def test_a_distilled_model_is_counted_with_one_forward(tiny_student, image, monkeypatch):
    preset = load_preset(tiny_student)
    monkeypatch.setattr(measure, "measure", lambda *_: estimate.Speed(1e9, 1e12, "a test"))
    request = build_request({"prompt": "a", "reference": [str(image)], "num_inference_steps": 4}, preset)
    one, negative = (
        measure.estimate(replace(request, negative_prompt=text), preset, tiny_student, Placement()) for text in ("", "blurry")
    )
    assert (one.forwards, negative.forwards) == (4, 12)
    assert 3 * one.flops == negative.flops
    assert one.peak <= negative.peak


def test_the_autoencoder_counts_in_proportion(tiny):
    _, config = measure.read_configs(tiny)
    request = build_request({"prompt": "a"}, load_preset(tiny))
    small, wide, long = (
        measure.autoencoder_flops(config, replace(request, **changes))
        for changes in ({"num_frames": 1}, {"num_frames": 1, "width": 64}, {"num_frames": 9})
    )
    assert wide == pytest.approx(2 * small)
    assert long > 5 * small


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("20min", ("seconds", 1200)),
        ("90s", ("seconds", 90)),
        ("1.5h", ("seconds", 5400)),
        ("24GB", ("bytes", 24e9)),
        (" 800 MB ", ("bytes", 8e8)),
    ],
)
def test_budgets(text, expected):
    assert estimate.parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "20", "GB", "-3min", "24 apples"])
def test_bad_budgets(text):
    with pytest.raises(InputError, match="must be a time"):
        estimate.parse_budget(text)


def test_what_exceeds_a_budget_is_refused_with_what_fits(tiny, monkeypatch):
    preset = load_preset(tiny)
    request = build_request({"prompt": "a", "num_inference_steps": 40, "num_frames": 9}, preset)
    monkeypatch.setattr(measure, "measure", lambda *_: estimate.Speed(1e9, 1e12, "a test"))
    found = measure.estimate(request, preset, tiny, Placement())
    with pytest.raises(InputError, match=r"the budget of .*; --num-inference-steps \d+ would fit") as refused:
        measure.within(("seconds", found.seconds * 0.6), found, request, 1, preset, tiny, Placement())
    advised = int(re.search(r"steps (\d+) would", str(refused.value))[1])
    costs = [
        measure.estimate(replace(request, num_inference_steps=n), preset, tiny, Placement()).seconds
        for n in (advised, advised + 1)
    ]
    assert costs[0] <= found.seconds * 0.6 < costs[1]  # the most steps that fit
    with pytest.raises(InputError, match="not even --num-inference-steps 4 --num-frames 5 would fit"):
        measure.within(("bytes", 1e6), found, request, 1, preset, tiny, Placement())
    measure.within(("seconds", found.seconds * 1.01), found, request, 1, preset, tiny, Placement())
    with pytest.raises(InputError):
        measure.within(("seconds", found.seconds * 1.01), found, request, 2, preset, tiny, Placement())


@pytest.fixture
def wan_folder(tmp_path):
    """Configurations of the 1.3B model with a small text encoder; an estimate reads nothing else."""
    (tmp_path / "transformer").mkdir()
    (tmp_path / "vae").mkdir()
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": "WanTransformer3DModel", **WAN}))
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"base_dim": 96, "z_dim": 16}))
    small = {"vocab_size": 100, "d_model": 64, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 2}
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(small))
    return tmp_path


def test_memory_falls_with_every_option(wan_folder):
    preset = load_preset(wan_folder)
    request = build_request({"prompt": "a", "num_frames": 5}, preset)
    peaks = [
        measure.estimate(request, preset, wan_folder, Placement(device="cpu", **options), "rtx-4090").peak
        for options in ({}, {"offload": "model"}, {"offload": "model", "quantization": "fp8"}, {"offload": "group"})
    ]
    assert peaks == sorted(peaks, reverse=True)
    sizes = measure.weight_bytes(wan_folder, WanModel(), WAN, {"base_dim": 96, "z_dim": 16}, Placement(), 2)
    assert sizes["transformer"] == pytest.approx(2 * 1.42e9, rel=0.01)


def test_a_memory_budget_names_the_option_that_fits(wan_folder, monkeypatch):
    preset = load_preset(wan_folder)
    monkeypatch.setattr(measure, "measure", lambda *_: estimate.Speed(1e12, 1e12, "a test"))
    request = build_request({"prompt": "a", "num_frames": 5}, preset)
    placement = Placement(device="cpu", dtype="bfloat16")
    found = measure.estimate(request, preset, wan_folder, placement)
    with pytest.raises(InputError, match="--offload model would fit"):
        measure.within(("bytes", found.peak - 1e8), found, request, 1, preset, wan_folder, placement)


def test_cards_are_computed_and_unknown_ones_named():
    assert "computed" in measure.card_speed("RTX-4090").name
    with pytest.raises(InputError, match="must be one of h100"):
        estimate.card("gtx-1")


def test_spelling():
    assert [estimate.spell(s) for s in (3, 150, 9000, 259_200)] == ["3.0 s", "2.5 min", "2.5 h", "3.0 days"]
    assert [estimate.spell_bytes(size) for size in (111e3, 2.5e6, 3.14e9)] == ["111 kB", "2.5 MB", "3.14 GB"]


@pytest.mark.parametrize(("own", "width"), [(None, 24), (40, 40)])
def test_memory_of_decoding_follows_the_decoders_width(monkeypatch, own, width):
    folder = model_folder("phantom-mini")
    transformer, autoencoder = measure.read_configs(folder)
    monkeypatch.setattr(
        measure, "read_configs", lambda _: (transformer, {**autoencoder, "base_dim": 24, "decoder_base_dim": own})
    )
    monkeypatch.setattr(estimate, "autoencoder_bytes", lambda base, request: base * 1e12)  # above all else
    preset = load_preset(folder)
    found = measure.estimate(build_request({"prompt": "a"}, preset), preset, folder, Placement(), estimate.CARDS[0].name)
    assert round(found.peak / 1e12) == width
