import pytest
import torch
from safetensors.torch import load_file, save_file

from phantom_s2v.errors import InputError
from phantom_s2v.models.phantom.conditioning import Conditions, null, stack, without_text
from phantom_s2v.pipeline.request import SOLVERS
from phantom_s2v.pipeline.sampling.guidance import combine, is_distilled, weights
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler, restore_state, set_timesteps, state_of

pytestmark = pytest.mark.threads


def branches():
    torch.manual_seed(0)
    return {name: torch.randn(3, 4) for name in ("null", "image", "both")}


@pytest.mark.parametrize(("pair", "branch"), [((0, 0), "null"), ((1, 0), "image"), ((1, 1), "both")])
def test_guidance_at_its_corners_is_one_branch_bit_for_bit_and_one_forward(pair, branch):
    parts, shares = branches(), weights(*pair, references=True)
    assert list(shares) == [branch]
    assert torch.equal(combine(parts, shares), parts[branch])


def test_guidance_is_the_released_formula():
    parts = branches()
    none, image, both = parts.values()
    expected = none + 5 * (image - none) + 7.5 * (both - image)
    torch.testing.assert_close(combine(parts, weights(5.0, 7.5, references=True)), expected)


def test_without_references_guidance_has_two_branches():
    parts = branches()
    parts["image"] = parts["null"]
    expected = parts["null"] + 7.5 * (parts["both"] - parts["null"])
    torch.testing.assert_close(combine(parts, weights(5.0, 7.5, references=False)), expected)
    assert set(weights(5.0, 7.5, references=False)) == {"null", "both"}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_solver_is_exact_on_a_point_mass(solver, steps):
    x, noise = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    scheduler = build_scheduler(solver, 3.0)
    timesteps = set_timesteps(scheduler, steps, torch.device("cpu"))
    t = float(scheduler.sigmas[0])
    x_t = (1 - t) * x + t * noise
    for step in range(steps):
        x_t = scheduler.step((x_t - x) / scheduler.sigmas[step], timesteps[step], x_t, return_dict=False)[0]
    torch.testing.assert_close(x_t, x, rtol=1e-5, atol=1e-5)


def test_shift_is_sd3_equation_23():
    plain, shifted = build_scheduler("euler", 1.0), build_scheduler("euler", 5.0)
    for scheduler in (plain, shifted):
        set_timesteps(scheduler, 2, torch.device("cpu"))
    assert plain.sigmas.tolist() == [1, 0.5, 0]
    torch.testing.assert_close(shifted.sigmas, torch.tensor([1, 2.5 / 3, 0]))


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_scheduler_goes_on_from_its_state_bit_for_bit(solver, tmp_path):
    torch.manual_seed(0)
    weight, x, cpu = torch.randn(8, 8) * 0.3, torch.randn(1, 3, 8), torch.device("cpu")

    def run(scheduler, x, begin, end):
        for step in range(begin, end):
            velocity = torch.tanh(x @ weight) * (1 + scheduler.sigmas[step]) + x / 2
            x = scheduler.step(velocity, scheduler.timesteps[step], x, return_dict=False)[0]
        return x

    first, second = (build_scheduler(solver, 5.0) for _ in range(2))
    set_timesteps(first, 7, cpu), set_timesteps(second, 7, cpu)
    half = run(first, x, 0, 3)
    save_file(state_of(first, half, 3), tmp_path / "state.safetensors")
    latents, step = restore_state(second, load_file(tmp_path / "state.safetensors"), torch.zeros_like(x))
    assert step == 3
    assert torch.equal(run(second, latents, 3, 7), run(first, half, 3, 7))
    with pytest.raises(InputError, match="resume_state must be of a step between 0 and 7"):
        restore_state(second, {"latents": half}, torch.zeros_like(x))


def conditions(length=5, n=2) -> Conditions:
    torch.manual_seed(1)
    return Conditions(
        torch.randn(1, length, 6), torch.ones(1, length, dtype=torch.bool), torch.randn(1, n, 4, 2, 2),
        torch.randn(1, n, 3, 5), torch.ones(1, n, dtype=torch.bool), torch.arange(n)[None],
    )  # fmt: skip


EMPTY = (torch.full((1, 2, 6), 7.0), torch.ones(1, 2, dtype=torch.bool))


def test_branches_see_what_the_facts_say():
    c = conditions()
    image, none = without_text(c, EMPTY), null(c, EMPTY)
    assert torch.equal(image.text[:, :2], EMPTY[0])
    assert not image.text_mask[:, 2:].any()
    assert torch.equal(image.references, c.references)
    assert none.references.shape == c.references.shape
    assert not none.references.any(), "zero in normalized space, and the places stay"
    assert not none.image_seen.any()


def test_null_rows_leave_other_rows_alone():
    c = stack([conditions(), conditions()])
    half = null(c, EMPTY, torch.tensor([True, False]))
    assert torch.equal(half.references[1], c.references[1])
    assert torch.equal(half.text[1], c.text[1])
    assert not half.references[0].any()


@pytest.mark.parametrize(("request_", "expected"), [
    (((1.0, 7.0), 3.5, 4.0, False), True),
    (([1.0, 7.0], 1.0, 7.0, False), True),
    (((1.0, 7.0), 3.5, 7.5, False), False),  # weights that it did not learn
    (((1.0, 7.0), 0.0, 4.0, False), False),
    (((1.0, 7.0), 3.5, 4.0, True), False),  # another null branch than the one that it learned
    ((None, 3.5, 4.0, False), False),
])  # fmt: skip
def test_one_forward_serves_weights_that_were_learned(request_, expected):
    assert is_distilled(*request_) is expected
