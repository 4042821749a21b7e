import torch
from scipy.stats import kstest, norm

from phantom_s2v.models import flow_matching


def test_path_and_target_are_one_line():
    x, noise = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    assert torch.equal(flow_matching.interpolate(x, noise, torch.tensor(0.0)), x)
    torch.testing.assert_close(flow_matching.interpolate(x, noise, torch.tensor(1.0)), noise)
    t = torch.tensor(0.3, dtype=torch.float64)
    step = (flow_matching.interpolate(x, noise, t + 0.1) - flow_matching.interpolate(x, noise, t)) / 0.1
    torch.testing.assert_close(step, flow_matching.velocity_target(x, noise))
    torch.testing.assert_close(flow_matching.clean(flow_matching.interpolate(x, noise, t), noise - x, t), x)


def test_density_is_logit_normal():
    t = flow_matching.sample_t(20_000, 0.8, 1.3, torch.Generator().manual_seed(0)).double()
    logits = torch.log(t / (1 - t)).numpy()
    assert kstest(logits, norm(0.8, 1.3).cdf).pvalue > 0.01


def test_more_positions_are_noised_more_by_sd3_equation_23():
    tokens, base, t = 1792, 256, torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    alpha = (tokens / base) ** 0.5
    shifted = alpha * t / (1 + (alpha - 1) * t)
    mean = flow_matching.shift_mean(0.8, tokens, base)
    torch.testing.assert_close(torch.sigmoid(torch.logit(t) - 0.8 + mean), shifted)
    assert flow_matching.shift_mean(0.8, base, base) == 0.8


def test_loss_leaves_out_frames():
    velocity, target = torch.zeros(2, 4, 3, 2, 2), torch.ones(2, 4, 3, 2, 2)
    target[0, :, 0] = 1000
    counted = torch.tensor([[False, True, True], [True, True, True]])
    assert flow_matching.velocity_loss(velocity, target, counted) == 1
