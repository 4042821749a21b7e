"""Solvers of dx/dt = velocity(x, t): plain functions that know nothing else."""

from collections.abc import Callable

import torch

from phantom_s2v.models.flow_matching import clean

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
OnStep = Callable[[int, torch.Tensor], None]  # steps done, the clean latent as predicted now


def euler(velocity: Velocity, x: torch.Tensor, times: torch.Tensor, on_step: OnStep | None = None) -> torch.Tensor:
    """Euler's method along `times` [steps + 1], descending (Phantom 4.1 uses 50 steps)."""
    for index, (now, after) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
        v = velocity(x, torch.tensor(now, dtype=torch.float64, device=x.device))
        if on_step:
            on_step(index + 1, clean(x, v, now))
        x = x + (after - now) * v
    return x


def unipc(velocity: Velocity, x: torch.Tensor, times: torch.Tensor, on_step: OnStep | None = None) -> torch.Tensor:
    """UniPC of order 2, B(h) = e^h - 1, predicting the clean latent (Zhao 2023, arXiv 2302.04867; "bh2").

    In the flow's terms alpha = 1 - t, sigma = t, lambda = log(alpha / sigma). `times` must start below 1. The first step
    and the last are of order 1.
    """
    if not 0 < float(times[0]) < 1:
        raise ValueError(f"UniPC starts at t = {float(times[0])}; it needs 0 < t < 1, where log((1 - t) / t) is finite")
    steps = len(times) - 1
    lambdas = torch.log((1 - times) / times)
    history: list[torch.Tensor] = []  # clean predictions at times[index - 1], times[index]
    before = x
    for index in range(steps):
        now = float(times[index])
        prediction = clean(x, velocity(x, torch.tensor(now, dtype=torch.float64, device=x.device)), now)
        if index:
            x = _correct(before, history, prediction, times, lambdas, index)
        history = [*history[-1:], prediction]
        if on_step:
            on_step(index + 1, prediction)
        before = x
        x = _predict(x, history, times, lambdas, index, 1 if index + 1 == steps or index == 0 else 2)
    return x


def _first_order(
    x: torch.Tensor, at: torch.Tensor, times: torch.Tensor, lambdas: torch.Tensor, index: int
) -> tuple[torch.Tensor, float]:
    """Step of order 1 from times[index] to times[index + 1], and alpha (e^-h - 1)."""
    factor = float(torch.expm1(lambdas[index] - lambdas[index + 1]))  # at t = 0 lambda is infinite and this is -1
    alpha, ratio = float(1 - times[index + 1]), float(times[index + 1] / times[index])
    return ratio * x - alpha * factor * at, alpha * factor


def _predict(
    x: torch.Tensor, history: list[torch.Tensor], times: torch.Tensor, lambdas: torch.Tensor, index: int, order: int
) -> torch.Tensor:
    step, weight = _first_order(x, history[-1], times, lambdas, index)
    if order == 1:
        return step
    r = float((lambdas[index - 1] - lambdas[index]) / (lambdas[index + 1] - lambdas[index]))
    return step - weight * 0.5 * (history[-2] - history[-1]) / r


def _correct(
    x: torch.Tensor,
    history: list[torch.Tensor],
    prediction: torch.Tensor,
    times: torch.Tensor,
    lambdas: torch.Tensor,
    index: int,
) -> torch.Tensor:
    """The step to times[index] once more, with the prediction made there."""
    step, weight = _first_order(x, history[-1], times, lambdas, index - 1)
    change = prediction - history[-1]
    if len(history) == 1:
        return step - weight * 0.5 * change
    h = float(lambdas[index] - lambdas[index - 1])
    r = float((lambdas[index - 2] - lambdas[index - 1]) / h)
    b_h = float(torch.expm1(torch.tensor(-h, dtype=torch.float64)))
    phi1 = b_h / -h - 1
    phi2 = phi1 / -h - 0.5
    matrix = torch.tensor([[1.0, 1.0], [r, 1.0]], dtype=torch.float64)
    rho = torch.linalg.solve(matrix, torch.tensor([phi1 / b_h, 2 * phi2 / b_h], dtype=torch.float64)).tolist()
    return step - weight * (rho[0] * (history[-2] - history[-1]) / r + rho[1] * change)


SOLVERS = {"euler": euler, "unipc": unipc}
