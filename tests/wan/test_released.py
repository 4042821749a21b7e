"""The pipeline against the released algorithm written once more (released.py), and each of its behaviors by name."""

import json

import native
import numpy as np
import pytest
import released
import torch
from PIL import Image

from phantom_s2v.errors import InputError
from phantom_s2v.geometry import VideoSize
from phantom_s2v.media.images import letterbox, read_image
from phantom_s2v.models.wan.spec import NEGATIVE, WanModel
from phantom_s2v.models.wan.text import prompt_tokens
from phantom_s2v.models.wan.transformer import Sinusoid, clean_text, pad_text
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.generate import request_images
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler, set_timesteps

pytestmark = pytest.mark.threads

STATE = native.transformer()


def tensors(references, seed=0, size=(4, 4)):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(16, references, *size, generator=generator),
        torch.randn(7, native.TEXT, generator=generator),
        torch.randn(5, native.TEXT, generator=generator),
    )


def ours(pipe, references, text, negative, frames, seed, **more):
    return pipe(
        reference_latents=references[None], prompt_embeds=text[None], negative_prompt_embeds=negative[None],
        generator=torch.Generator().manual_seed(seed), height=32, width=32, num_frames=frames, num_inference_steps=6,
        output_type="latent", released_behavior=True, **more,
    ).frames[0]  # fmt: skip


@pytest.mark.parametrize("references", [1, 2, 4])
@pytest.mark.parametrize("frames", [5, 17])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_final_latents_are_those_of_the_released_algorithm(pipe, references, frames, seed):
    inputs = tensors(references, seed)
    theirs = released.sample(STATE, native.HEADS, *inputs, frames, seed)
    assert theirs.shape == (16, (frames - 1) // 4 + 1, 4, 4)
    assert (ours(pipe, *inputs, frames, seed) - theirs).abs().max() <= 1e-4


def test_the_velocity_is_not_hidden_by_a_small_head():
    refs, text, _ = tensors(2)
    out = released.forward(STATE, native.HEADS, refs, 800, text, [0, 1])
    assert 0.5 < out.std() < 2


@pytest.mark.parametrize(
    "behavior",
    [
        "one draw of noise", "padding seen", "shift", "integer timesteps", "next time indices", "zero latents", "overwritten",
        "what the third sees", "guidance", "tail dropped",
    ],
)  # fmt: skip
def test_each_behavior_broken_moves_the_result(pipe, behavior):
    inputs = tensors(2)
    broken = released.sample(STATE, native.HEADS, *inputs, 5, 3, break_=behavior)
    assert (ours(pipe, *inputs, 5, 3) - broken).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(37, 91), (91, 37), (40, 40), (7, 50), (333, 200)])
def test_letterbox_truncates_on_white_with_the_odd_pixel_right_and_below(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    assert np.array_equal(letterbox(image, 48, 80), released.letterbox(image, 48, 80))


@pytest.mark.parametrize("behavior", ["truncation", "lanczos", "white", "odd pixel"])
def test_each_step_of_letterboxing_matters(pipe, behavior):
    image = np.random.default_rng(0).integers(0, 255, (38, 91, 3), dtype=np.uint8)
    right, wrong = (pipe.encode_images([released.letterbox(image, 48, 80, b)]) for b in ("", behavior))
    assert (right - wrong).abs().max() > 1e-2


def test_a_reference_is_encoded_alone_by_its_normalized_mean(pipe):
    rng = np.random.default_rng(0)
    one, two = (rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(2))
    together = pipe.encode_images([one, two])
    alone = torch.cat([pipe.encode_images([p]) for p in (one, two)], 2)
    assert torch.equal(together, alone)
    vae = pipe.vae
    pixels = torch.from_numpy(one).permute(2, 0, 1)[None, :, None].float() / 255 * 2 - 1
    moments = vae.encode(pixels).latent_dist.parameters
    mean, std = (torch.tensor(v).view(1, 16, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    torch.testing.assert_close(together[:, :, :1], (moments[:, :16] - mean) / std, rtol=1e-5, atol=1e-5)
    as_video = vae.encode(
        torch.cat([pixels, torch.from_numpy(two).permute(2, 0, 1)[None, :, None] / 127.5 - 1], 2).repeat(1, 1, 3, 1, 1)[:, :, :5]
    )
    assert (as_video.latent_dist.mode()[:, :, 1] - vae.encode(pixels).latent_dist.mode()[:, :, 0]).abs().max() > 1e-2


def test_sigmas_and_integer_timesteps_are_the_released_table():
    """Diffusers' own grid differs; the table is that of a run of the released scheduler."""
    scheduler, cpu = build_scheduler("unipc", 5.0), torch.device("cpu")
    assert set_timesteps(scheduler, 6, cpu).tolist() == [999, 961, 908, 833, 713, 499]
    np.testing.assert_allclose(scheduler.sigmas.numpy(), [0.9998, 0.96132, 0.90884, 0.83306, 0.71398, 0.4997, 0], atol=1e-5)
    scheduler.set_timesteps(6)
    assert scheduler.timesteps.tolist() == [999, 961, 909, 833, 714, 501]
    for steps in range(1, 101):
        sigmas, timesteps = released.grid_of_times(steps, 5.0)
        assert set_timesteps(scheduler, steps, cpu).tolist() == timesteps.tolist()
        np.testing.assert_allclose(scheduler.sigmas.numpy(), sigmas, atol=1e-7)


def test_the_sinusoid_is_computed_in_float64():
    t = torch.tensor([999, 499, 0])
    torch.testing.assert_close(Sinusoid(256)(t), released.sinusoid(t, 256), rtol=0, atol=1e-6)


def test_text_is_padded_with_zeros_to_512_and_seen(pipe):
    features = pipe.encode_prompt("A dog runs.")[0]
    length = len("A dog runs.") + 1
    assert features.shape == (1, 512, native.TEXT)
    assert features[0, :length].any(1).all()
    assert not features[0, length:].any()
    with pytest.raises(ValueError, match="at most 512 tokens"):
        pad_text(torch.zeros(1, 513, 4))


def test_text_is_that_of_the_native_encoder(pipe, checkpoint):
    """umT5 once more in plain operations over the native state dict: every layer has its own relative positions."""
    state = {k: v.float() for k, v in torch.load(checkpoint[0] / "models_t5_umt5-xxl-enc-bf16.pth").items()}
    ids = pipe.tokenizer("Ein Hund läuft. 犬")["input_ids"]
    x = state["token_embedding.weight"][ids]

    def rms(x, weight):
        return weight * x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    distance = torch.arange(len(ids))[None] - torch.arange(len(ids))[:, None]
    far = 8 + (torch.log(distance.abs().clamp(min=1) / 8) / np.log(128 / 8) * 8).long()
    bucket = (distance > 0) * 16 + torch.where(distance.abs() < 8, distance.abs(), far.clamp(max=15))
    for n in range(2):
        b = f"blocks.{n}"
        y = rms(x, state[f"{b}.norm1.weight"])
        q, k, v = ((y @ state[f"{b}.attn.{part}.weight"].T).view(len(ids), 2, -1) for part in "qkv")
        score = torch.einsum("nhd,mhd->hnm", q, k) + state[f"{b}.pos_embedding.embedding.weight"][bucket].permute(2, 0, 1)
        y = torch.einsum("hnm,mhd->nhd", score.softmax(-1), v).flatten(1)
        x = x + y @ state[f"{b}.attn.o.weight"].T
        y = rms(x, state[f"{b}.norm2.weight"])
        gate = released.gelu(y @ state[f"{b}.ffn.gate.0.weight"].T)
        x = x + ((y @ state[f"{b}.ffn.fc1.weight"].T) * gate) @ state[f"{b}.ffn.fc2.weight"].T
    x = rms(x, state["norm.weight"])
    torch.testing.assert_close(pipe.encode_prompt("Ein Hund läuft. 犬")[0][0, : len(ids)], x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prompt", ["犬が公園を走る。", "一只狗在跑", "  two   spaces &amp;amp; an\tentity "])
def test_prompts_in_any_script_pass_unharmed(pipe, prompt):
    ids = pipe.tokenizer(clean_text(prompt))["input_ids"]
    assert pipe.tokenizer.decode(ids, skip_special_tokens=True) == clean_text(prompt)
    assert clean_text("犬が公園を走る。") == "犬が公園を走る。"
    assert clean_text("  two   spaces &amp;amp; an\tentity ") == "two spaces & an entity"


def test_a_long_prompt_is_cut_before_its_end_mark_and_said(pipe):
    kept, rest = prompt_tokens(pipe.tokenizer, "x" * 600)
    assert (len(kept), kept[-1], len(rest)) == (512, 1, 600 - 511)
    assert pipe.cut("x" * 600) == "x" * (600 - 511)
    assert pipe.cut("short") == ""


@pytest.mark.parametrize(
    ("width", "frames", "fps", "sizes"), [(12, 81, 16, [(480, 832)]), (40, 121, 24, [(480, 832), (720, 1280)])]
)
def test_presets_are_those_of_the_release(width, frames, fps, sizes):
    preset = WanModel().preset({"_class_name": "WanTransformer3DModel", "num_attention_heads": width, "attention_head_dim": 128})
    assert (preset.num_frames, preset.fps, list(preset.sizes)) == (frames, fps, sizes)
    assert (preset.num_inference_steps, preset.solver, preset.shift) == (50, "unipc", 5.0)
    assert (preset.image_guidance_scale, preset.guidance_scale) == (5.0, 7.5)
    request = build_request({"prompt": "A dog."}, preset)
    assert request.negative_prompt == NEGATIVE
    assert NEGATIVE.startswith("色调艳丽，过曝，静态")
    assert NEGATIVE.endswith("背景人很多，倒着走")
    with pytest.raises(InputError, match="for phantom-wan"):
        build_request({"prompt": "A dog.", "size": "640x480"}, preset)
    with pytest.raises(InputError, match="multiples of 16"):
        build_request({"prompt": "A dog.", "size": "840x480", "untrained_size": True}, preset)


def test_a_first_frame_and_views_are_refused_with_the_reason(pipe, image):
    preset = pipe.preset
    with pytest.raises(InputError, match="does not support a first frame"):
        build_request({"prompt": "A dog.", "first_frame": str(image)}, preset)
    views = {"prompt": "A dog.", "reference": [f"dog={image}", f"dog={image}"]}
    with pytest.raises(InputError, match="takes one image per subject"):
        build_request(views, preset)
    assert len(build_request(views | {"several_views": True}, preset).references) == 2
    with pytest.raises(InputError, match=r"must be at most 4 .got 5"):
        build_request({"prompt": "A.", "reference": [str(image)] * 4, "background": str(image)}, preset)


def test_released_behavior_drops_alpha_and_ignores_exif(tmp_path):
    image = Image.new("RGBA", (40, 30), (200, 10, 10, 0))
    image.save(tmp_path / "clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    ours_, _ = read_image(tmp_path / "clear.png")
    theirs, _ = read_image(tmp_path / "clear.png", released=True)
    assert ours_[0, 0].tolist() == [255, 255, 255]
    assert theirs[0, 0].tolist() == [200, 10, 10]
    assert read_image(tmp_path / "turned.jpg")[0].shape == (40, 30, 3)
    assert read_image(tmp_path / "turned.jpg", released=True)[0].shape == (30, 40, 3)


def test_noise_is_one_draw_over_video_and_reference_places(pipe):
    whole = torch.randn(16, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    noise = pipe.prepare_latents(1, VideoSize(5, 32, 32), 2, generator, None, torch.device("cpu"))
    assert torch.equal(noise[0], whole[:, :2])


def video_of(pipe, **changes):
    inputs = dict(
        zip(("reference_latents", "prompt_embeds", "negative_prompt_embeds"), (t[None] for t in tensors(2)), strict=True)
    )
    settings = {"height": 32, "width": 32, "num_frames": 17, "num_inference_steps": 4, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    return pipe(**{**inputs, **settings, "generator": generator, **changes}).frames


def test_every_reference_has_an_effect(pipe):
    """Wan2GP#199: one of several references was not used."""
    base, refs = video_of(pipe), tensors(2)[0]
    for place in range(2):
        other = refs.clone()
        other[:, place] = tensors(2, seed=9)[0][:, place]
        assert (video_of(pipe, reference_latents=other[None]) - base).abs().max() > 1e-2


def test_references_do_not_flash_up_in_the_video(pipe):
    """WanVideoWrapper#554, #639: the tail is gone, so no frame of the video is a reference's latent."""
    latents, refs = video_of(pipe), tensors(2)[0]
    assert latents.shape[2] == 5
    for place in range(2):
        nearest = (latents[0] - refs[:, place : place + 1]).flatten(2).abs().mean((0, 2)).min()
        assert nearest > 0.3


def test_the_metadata_says_which_behavior_was_used(pipe, image, tmp_path):
    from phantom_s2v.pipeline.generate import generate

    for released_ in (False, True):
        options = {"prompt": "A dog.", "reference": [str(image)], "size": "32x32", "num_frames": 1, "num_inference_steps": 1}
        request = build_request(options | {"released_behavior": released_}, pipe.preset)
        output = generate(request, pipe)
        assert output.metadata["request"]["released_behavior"] is released_
        assert output.video.shape == (1, 32, 32, 3)
        json.dumps(output.metadata)
    assert len(request_images(request)[0]) == 1


def test_text_to_video_has_no_reference_places_and_two_branches(pipe):
    text, negative = (t[None] for t in tensors(1)[1:])
    out = pipe(
        prompt_embeds=text, negative_prompt_embeds=negative, height=32, width=32, num_frames=5, num_inference_steps=2,
        output_type="latent", generator=torch.Generator().manual_seed(1),
    ).frames  # fmt: skip
    assert out.shape == (1, 16, 2, 4, 4)
    assert torch.isfinite(out).all()


def test_a_pipeline_of_loaded_parts_is_the_same(pipe, converted):
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from phantom_s2v import PhantomWanPipeline
    from phantom_s2v.errors import CheckpointError

    parts = WanTransformer3DModel.from_pretrained(converted / "transformer"), AutoencoderKLWan.from_pretrained(converted / "vae")
    parts[0].train(), parts[1].train()
    before = [[(name, type(module), module.training) for name, module in part.named_modules()] for part in parts]
    bare = PhantomWanPipeline(None, None, parts[1], None, parts[0])
    inputs = tensors(2)
    assert torch.equal(ours(bare, *inputs, 5, 0), ours(pipe, *inputs, 5, 0))
    with pytest.raises(CheckpointError, match="has no text encoder; give prompt_embeds"):
        bare("A dog.", height=32, width=32, num_frames=1, num_inference_steps=1)
    whole = PhantomWanPipeline(pipe.tokenizer, pipe.text_encoder, parts[1], None, parts[0])
    settings = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    first, second = (p("A dog.", **settings, generator=torch.Generator().manual_seed(1)).frames for p in (whole, pipe))
    assert np.array_equal(first, second)
    after = [[(name, type(module), module.training) for name, module in part.named_modules()] for part in parts]
    assert after == before  # the caller's own modules stay as they were
    assert all(parameter.requires_grad for part in parts for parameter in part.parameters())


def test_both_ways_load_the_same_autoencoder(pipe, converted):
    """Convolutions of first frames in two or in three dimensions add the same numbers in another order."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

    from phantom_s2v import PhantomWanPipeline

    vae = AutoencoderKLWan.from_pretrained(converted / "vae")
    transformer = WanTransformer3DModel.from_pretrained(converted / "transformer")
    parts = PhantomWanPipeline(None, None, vae, None, transformer).vae
    loaded = pipe.vae
    kinds = [[(name, type(module)) for name, module in model.named_modules()] for model in (parts, loaded)]
    assert kinds[0] == kinds[1]
    assert [type(module) for module in vae.modules()] != [kind for _, kind in kinds[0]]
    pixels = torch.rand(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert all(torch.equal(one, other) for one, other in zip(parts.parameters(), loaded.parameters(), strict=True))
    assert torch.equal(parts.encode(pixels).latent_dist.parameters, loaded.encode(pixels).latent_dist.parameters)
    shared = {p.untyped_storage().data_ptr() for p in vae.parameters() if p.data_ptr() % 64 == 0}
    assert shared <= {p.untyped_storage().data_ptr() for p in parts.parameters()}  # no second set of weights
