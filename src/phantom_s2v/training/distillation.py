"""Guidance distillation (Meng 2023, arXiv 2210.03142, stage one): one forward learns what guidance makes of three.

The student takes the weights of image and text guidance as inputs and is taught the teacher's guided velocity at them. It starts
as the teacher's conditional branch. At weights 1 and 1 it also learns the teacher's null branches, so that it stays an ordinary
model.
"""

import torch
from torch import nn

from phantom_s2v.data.synthetic.render import Tensors
from phantom_s2v.errors import InputError
from phantom_s2v.models.flow_matching import velocity_loss
from phantom_s2v.models.phantom.conditioning import Conditions, null, stack, without_text
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.training.config import TransformerConfig
from phantom_s2v.training.learner import Loss
from phantom_s2v.training.transformer import drop, noised, permuted, position_weight, size_of


def student_of(network: PhantomTransformer, guidance_range: tuple[float, float]) -> PhantomTransformer:
    """A transformer with the same weights that takes the weights of guidance as inputs, without effect as yet.

    A student of this range is returned as it is. Raises InputError for one of another range.
    """
    own = network.config.guidance_range
    if own is not None:
        if tuple(own) != guidance_range:
            raise InputError(f"the student's guidance_range must be {guidance_range}, as in this run (got {tuple(own)})")
        return network
    own_config = {name: value for name, value in network.config.items() if not name.startswith("_")}  # diffusers' notes
    student = PhantomTransformer(**{**own_config, "guidance_range": guidance_range})
    fresh = {name: value for name, value in student.state_dict().items() if name.startswith("guidance.")}
    student.load_state_dict({**network.state_dict(), **fresh})
    return student


@torch.no_grad()
def teach(
    teacher: nn.Module,
    x_t: torch.Tensor,
    t: torch.Tensor,
    conditions: Conditions,
    empty: tuple[torch.Tensor, torch.Tensor],
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's velocity at `weights` [B, 2] of guidance, and without guidance: three branches in one forward."""
    branches = stack([null(conditions, empty), without_text(conditions, empty), conditions])
    none, image, both = teacher(x_t.repeat(3, 1, 1, 1, 1), t.repeat(3, 1), **branches.arguments()).float().chunk(3)
    of_image, of_text = weights[:, :, None, None, None, None].unbind(1)
    return (1 - of_image) * none + (of_image - of_text) * image + of_text * both, both


def draw_weights(count: int, config: TransformerConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of image and text guidance [B, 2], each uniform in the config's range, and which samples are guided, bool [B]."""
    assert config.guidance_range is not None
    min_weight, max_weight = config.guidance_range
    guided = torch.rand(count, device=device) >= config.unguided
    weights = min_weight + (max_weight - min_weight) * torch.rand(count, 2, device=device)
    return torch.where(guided[:, None], weights, 1.0), guided


def distillation_loss(
    config: TransformerConfig, empty: tuple[torch.Tensor, torch.Tensor], student: nn.Module, teacher: nn.Module
) -> Loss:
    """Squared error between the student's velocity and the teacher's guided one, weighted as in ordinary training.

    `loss_of_start` is the same error of the teacher's conditional branch, with which the student started.
    """

    def loss(batch: Tensors, step: int) -> Tensors:
        x = batch["latents"]
        weights, guided = draw_weights(len(x), config, x.device)
        conditions = drop(permuted(batch), config, empty, guided)
        x_t, t, _ = noised(x, config)
        target, plain = teach(teacher, x_t, t, conditions, empty, weights)
        velocity = student(x_t, t, **conditions.arguments(), guidance=weights)
        counted = (t > 0, position_weight(batch, config))
        value, start = velocity_loss(velocity, target, *counted), velocity_loss(plain, target, *counted)
        size = size_of(x)
        return {"loss": value, f"loss_{size}": value.detach(), "loss_of_start": start, f"loss_of_start_{size}": start}

    return loss
