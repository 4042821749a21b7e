import pytest
import torch

from phantom_s2v.errors import InputError
from phantom_s2v.models.phantom.transformer import SMALLEST_T, PhantomTransformer

pytestmark = pytest.mark.threads

SIZES = {"latent_channels": 4, "dim": 48, "depth": 3, "heads": 2, "text_dim": 16, "image_dim": 8, "image_tokens": 4}


def network(**changes) -> PhantomTransformer:
    torch.manual_seed(0)
    model = PhantomTransformer(**{**SIZES, **changes})
    for parameter in model.parameters():  # zero-initialised gates and heads would hide everything
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.eval().requires_grad_(False)


def inputs(time=5, n=2, batch=2, seed=1) -> dict:
    torch.manual_seed(seed)
    return {
        "latents": torch.randn(batch, 4, time, 2, 4),
        "t": torch.rand(batch) * 0.8 + 0.1,
        "text": torch.randn(batch, 6, 16),
        "text_mask": torch.arange(6) < torch.tensor([[6], [4]])[:batch],
        "references": torch.randn(batch, n, 4, 2, 4),
        "image_tokens": torch.randn(batch, n, 4, 8),
        "image_seen": torch.ones(batch, n, dtype=torch.bool),
        "subjects": torch.arange(n).expand(batch, n),
    }


def test_output_is_a_velocity_of_the_video_alone():
    given = inputs()
    assert network()(**given).shape == given["latents"].shape


@pytest.mark.parametrize("time", [3, 11])
def test_permuted_references_leave_the_video_alike(time):
    """With indices permuted along; positions at the tail differ, so this holds where RoPE over time is switched off."""
    model, given = network(window_size=8), inputs(time)
    flat = model._angles(given["latents"]).clone()
    side = SIZES["dim"] // SIZES["heads"] // 6
    flat[..., : SIZES["dim"] // SIZES["heads"] // 2 - 2 * side] = 0  # angles of time
    model._angles = lambda latents: flat
    swapped = {k: (v.flip(1) if k in ("references", "image_tokens", "image_seen", "subjects") else v) for k, v in given.items()}
    torch.testing.assert_close(model(**swapped), model(**given), rtol=1e-4, atol=1e-5)


def test_subject_index_and_order_matter():
    model, given = network(), inputs()
    assert not torch.allclose(model(**given), model(**{**given, "subjects": given["subjects"].flip(1)}), atol=1e-4)


@pytest.mark.parametrize("time", [3, 9])
def test_masked_references_equal_text_to_video_over_the_same_partition(time):
    given = inputs(time)
    hidden = network(window_size=8)(**given, reference_mask=torch.zeros(2, 2, dtype=torch.bool))
    none = {k: (v[:, :0] if k in ("references", "image_tokens", "image_seen", "subjects") else v) for k, v in given.items()}
    torch.testing.assert_close(hidden, network(window_size=6)(**none), rtol=1e-4, atol=1e-5)


def test_padding_of_text_changes_nothing():
    model, given = network(), inputs()
    padded = {
        **given,
        "text": torch.nn.functional.pad(given["text"], (0, 0, 0, 5), value=9.0),
        "text_mask": torch.nn.functional.pad(given["text_mask"], (0, 5)),
    }
    torch.testing.assert_close(model(**padded), model(**given), rtol=1e-4, atol=1e-5)


def test_null_image_tokens_are_the_learned_null():
    model, given = network(), inputs()
    nothing = {**given, "image_seen": torch.zeros(2, 2, dtype=torch.bool)}
    other = {**nothing, "image_tokens": inputs(seed=2)["image_tokens"]}
    assert torch.equal(model(**nothing), model(**other))
    assert not torch.allclose(model(**nothing), model(**given), atol=1e-4)


@pytest.mark.parametrize(("field", "key"), [("use_vae_references", "references"), ("use_image_tokens", "image_tokens")])
def test_an_encoder_that_is_switched_off_has_no_effect(field, key):
    model, given = network(**{field: False}), inputs()
    other = {**given, key: inputs(seed=2)[key]}
    torch.testing.assert_close(model(**other), model(**given))
    assert not torch.allclose(network()(**other), network()(**given), atol=1e-4)


def test_every_reference_reaches_every_frame_of_a_long_clip():
    """A reference without effect on some window is the fault of Wan2GP#199 and WanVideoWrapper#639."""
    model, given = network(window_size=6), inputs(time=13)
    for place in range(2):
        moved = given["references"].clone()
        moved[:, place] += 1
        change = (model(**{**given, "references": moved}) - model(**given)).abs().amax((1, 3, 4))
        assert (change > 1e-4).all()


def test_shifted_windows_let_video_cross_the_border():
    given = inputs(time=12)
    moved = {**given, "latents": given["latents"].clone()}
    moved["latents"][:, :, 0] += 1

    def reach(**changes):
        model = network(window_size=6, use_image_tokens=False, **changes)
        bare = {"text_mask": torch.zeros_like(given["text_mask"])}
        none = {k: v[:, :0] for k, v in given.items() if k in ("references", "image_tokens", "image_seen", "subjects")}
        change = model(**{**moved, **bare, **none}) - model(**{**given, **bare, **none})
        return (change.abs().amax((0, 1, 3, 4)) > 1e-6).nonzero().max().item()

    assert reach(shift_windows=False) == 5
    assert reach(shift_windows=True) > 5


def test_a_clean_first_frame_does_not_move_and_informs_the_rest():
    model, given = network(), inputs()
    times = given["t"][:, None].repeat(1, 5)
    times[:, 0] = 0
    out = model(**{**given, "t": times})
    assert torch.equal(out[:, :, 0], torch.zeros_like(out[:, :, 0]))
    assert not torch.allclose(out[:, :, 1:], model(**given)[:, :, 1:], atol=1e-4)


def test_one_time_for_all_frames_is_the_scalar_time():
    model, given = network(), inputs()
    torch.testing.assert_close(model(**given), model(**{**given, "t": given["t"][:, None].expand(-1, 5)}))


def test_velocity_implies_the_predicted_clean_latent():
    """x_t - t v does not depend on x_t where the head is constant: here it is zero."""
    model, given = network(), inputs()
    torch.nn.init.zeros_(model.head.weight)
    t = given["t"].clamp(min=SMALLEST_T)[:, None, None, None, None]
    torch.testing.assert_close(given["latents"] - t * model(**given), torch.zeros_like(given["latents"]), atol=1e-5, rtol=0)


def test_too_small_a_window_is_refused_by_name():
    with pytest.raises(InputError, match="window_size 3 with 2 reference images leaves 1 video positions"):
        network(window_size=3)(**inputs())


def test_saves_and_loads_as_diffusers_models_do(tmp_path):
    model = network(window_size=7)
    model.save_pretrained(tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["diffusion_pytorch_model.safetensors"]
    again = PhantomTransformer.from_pretrained(tmp_path)
    assert again.config.window_size == 7
    state = again.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(again(**inputs()), model(**inputs()), rtol=1e-4, atol=1e-5)


def test_weights_of_guidance_are_inputs_where_the_config_says_so():
    student, given = network(guidance_range=(1.0, 7.0)), inputs()
    plain = student(**given)
    assert torch.equal(student(**given, guidance=torch.ones(2, 2)), plain)
    for place in range(2):  # of image and of text, in the first sample alone
        weights = torch.ones(2, 2)
        weights[0, place] = 4
        out = student(**given, guidance=weights)
        assert not torch.allclose(out[0], plain[0], atol=1e-4)
        assert torch.equal(out[1], plain[1])
    with pytest.raises(ValueError, match="takes no guidance scales"):
        network()(**given, guidance=torch.ones(2, 2))


def test_a_guidance_range_holds_one():
    with pytest.raises(InputError, match=r"guidance_range must include 1, where guidance has no effect \(got 2.0 to 7.0\)"):
        network(guidance_range=(2.0, 7.0))
