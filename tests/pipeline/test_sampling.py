import pytest
import torch
from diffusers import UniPCMultistepScheduler

from phantom_s2v.models.phantom.conditioning import Conditions, null, stack, without_text
from phantom_s2v.pipeline.sampling.guidance import combine, distilled, guided, guided_by, is_distilled, weights
from phantom_s2v.pipeline.sampling.schedules import uniform
from phantom_s2v.pipeline.sampling.solvers import SOLVERS, euler, unipc

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


def test_only_branches_that_count_are_asked_for():
    called = []

    def velocities(x, t, names):
        called.append(list(names))
        return dict.fromkeys(names, x)

    x = torch.randn(2)
    assert torch.equal(guided_by(velocities, 1.0, 1.0, references=True)(x, torch.tensor(0.5)), x)
    assert called == [["both"]]


def test_euler_on_a_point_mass_lands_in_one_step():
    x, noise = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(euler(lambda x_t, t: (x_t - x) / t, noise, uniform(1)), x)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_solver_is_exact_on_a_point_mass(solver, steps):
    x, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    times = uniform(steps, 3.0, 0.999)
    start = (1 - times[0]) * x + times[0] * noise
    out = SOLVERS[solver](lambda x_t, t: (x_t - x) / t, start, times)
    torch.testing.assert_close(out, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_unipc_is_that_of_diffusers_on_the_same_grid(steps):
    torch.manual_seed(0)
    weight = torch.randn(8, 8, dtype=torch.float64) * 0.3

    def velocity(x, t):
        return torch.tanh(x @ weight) * (1 + t) + x / 2

    times, x = uniform(steps, 5.0, 0.999), torch.randn(3, 8, dtype=torch.float64)
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2)
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps = times, times[:-1] * 1000
    theirs = x
    for index, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(velocity(theirs, times[index]), t, theirs, return_dict=False)[0]
    torch.testing.assert_close(unipc(velocity, x, times), theirs, rtol=1e-6, atol=1e-6)


def test_unipc_says_where_it_cannot_start():
    with pytest.raises(ValueError, match="starts at t = 1"):
        unipc(lambda x, t: x, torch.zeros(1), uniform(2))


def test_solvers_report_the_clean_prediction():
    seen = []
    euler(lambda x_t, t: (x_t - 3) / t, torch.zeros(2), uniform(4), lambda done, clean: seen.append((done, clean)))
    assert [done for done, _ in seen] == [1, 2, 3, 4]
    torch.testing.assert_close(seen[0][1], torch.full((2,), 3.0))


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
    assert not none.references.any(), "zero in normalised space, and the places stay"
    assert not none.image_seen.any()


def test_null_rows_leave_other_rows_alone():
    c = stack([conditions(), conditions()])
    half = null(c, EMPTY, torch.tensor([True, False]))
    assert torch.equal(half.references[1], c.references[1])
    assert torch.equal(half.text[1], c.text[1])
    assert not half.references[0].any()


@pytest.mark.parametrize(("n", "calls"), [(2, 3), (0, 2)])
def test_guided_runs_the_branches_that_differ(n, calls):
    seen = {}

    def model(x, t, **arguments):
        seen.update(arguments, batch=len(x))
        return x * torch.arange(1.0, len(x) + 1)[:, None, None, None, None]

    x = torch.ones(1, 4, 3, 2, 2)
    velocity = guided(model, conditions(n=n), EMPTY, 2.0, 3.0)
    value = velocity(x, torch.ones(3))
    assert seen["batch"] == calls
    none, image, both = (1.0, 2.0, 3.0) if n else (1.0, 1.0, 2.0)
    assert value.flatten()[0] == pytest.approx(none + 2 * (image - none) + 3 * (both - image))


@pytest.mark.parametrize("n", [2, 0])
def test_a_distilled_model_is_asked_once_with_its_weights(n):
    seen = []

    def model(x, t, guidance, **arguments):
        seen.append((len(x), t.shape, guidance.tolist(), arguments["subjects"].shape))
        return -x

    x = torch.ones(1, 4, 3, 2, 2)
    assert torch.equal(distilled(model, conditions(n=n), 2.5, 4.0)(x, torch.ones(3)), -x)
    assert seen == [(1, (1, 3), [[2.5, 4.0]], (1, n))]


@pytest.mark.parametrize(("request_", "expected"), [
    (((1.0, 7.0), 3.5, 4.0, ""), True),
    (([1.0, 7.0], 1.0, 7.0, ""), True),
    (((1.0, 7.0), 3.5, 7.5, ""), False),  # weights that it did not learn
    (((1.0, 7.0), 0.0, 4.0, ""), False),
    (((1.0, 7.0), 3.5, 4.0, "blurry"), False),  # another null branch than the one that it learned
    ((None, 3.5, 4.0, ""), False),
])  # fmt: skip
def test_one_forward_serves_weights_that_were_learned(request_, expected):
    assert is_distilled(*request_) is expected
