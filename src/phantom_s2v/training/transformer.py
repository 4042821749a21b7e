"""Training of the transformer: rectified flow on composed triplets, with the null branches of guidance."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from phantom_s2v.data.synthetic.render import Tensors
from phantom_s2v.geometry import MAX_SUBJECTS, SPACE_STRIDE, TIME_STRIDE
from phantom_s2v.models.distributed import is_main
from phantom_s2v.models.flow_matching import interpolate, sample_t, shift_mean, velocity_loss, velocity_target
from phantom_s2v.models.phantom.conditioning import Conditions, null, without_image_tokens, without_latents, without_text
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.tensors import save_part
from phantom_s2v.training.config import TransformerConfig
from phantom_s2v.training.latents import TEXT_PLACES, TripletEncoder, Triplets, conditions_of
from phantom_s2v.training.learner import Loss
from phantom_s2v.training.log import Work
from phantom_s2v.training.loop import train
from phantom_s2v.training.travel import write_parts
from phantom_s2v.training.validation import Validation

ADAM = ("patch_in", "text_in", "image_in", "image_position", "subject", "time", "head")  # not for Muon


def drop(
    c: Conditions, config: TransformerConfig, empty: tuple[torch.Tensor, torch.Tensor], guided: torch.Tensor | None = None
) -> Conditions:
    """Turn random rows into the null branches, and drop one kind of reference feature in others.

    Rows that are `guided` (bool [B]) keep their references: guidance sees no others.
    """
    draw = torch.rand(4, len(c), device=c.text.device)
    kept = draw if guided is None else draw + guided.float()  # 1 and more is below no rate
    c = without_latents(without_image_tokens(c, kept[0] < config.drop_image), kept[1] < config.drop_vae)
    c = without_text(c, empty, draw[2] < config.drop_text)
    return null(c, empty, kept[3] < config.drop_all)


def permute_subjects(subjects: torch.Tensor) -> torch.Tensor:
    """Rename subject indices at random in every row: an index says which images belong together, not which comes first."""
    names = torch.rand(len(subjects), MAX_SUBJECTS, device=subjects.device).argsort(1)
    return names.gather(1, subjects)


def loss_of(config: TransformerConfig, empty: tuple[torch.Tensor, torch.Tensor], model: nn.Module) -> Loss:
    """Velocity's squared error, heavier on subjects; clean first frames and reference places do not take part (Phantom 3.3)."""

    def loss(batch: Tensors, step: int) -> Tensors:
        x = batch["latents"]
        conditions = drop(permuted(batch), config, empty)
        x_t, t, noise = noised(x, config)
        velocity = model(x_t, t, **conditions.arguments())
        value = velocity_loss(velocity, velocity_target(x, noise), t > 0, position_weight(batch, config))
        return {"loss": value, f"loss_{size_of(x)}": value.detach()}

    return loss


def permuted(batch: Tensors) -> Conditions:
    """The conditions of an encoded batch, with subject indices renamed."""
    conditions = conditions_of(batch)
    return replace(conditions, subjects=permute_subjects(conditions.subjects))


def noised(x: torch.Tensor, config: TransformerConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, t [B, T] and the noise of latents; first frames are clean (t = 0) in the config's share of clips."""
    mean = shift_mean(config.t_mean, x[0, 0].numel(), config.t_tokens)
    t = sample_t(len(x), mean, config.t_scale, device=x.device)[:, None].repeat(1, x.shape[2])
    if x.shape[2] > 1:
        t[:, 0] = torch.where(torch.rand(len(x), device=x.device) < config.first_frame, 0, t[:, 0])
    noise = torch.randn(x.shape, device=x.device)
    return interpolate(x, noise, t[:, None, :, None, None]), t, noise


def position_weight(batch: Tensors, config: TransformerConfig) -> torch.Tensor:
    """Weight of each latent position in the loss, [B, T, h, w]."""
    return 1 + config.subject_weight * batch["subject_share"]


def size_of(x: torch.Tensor) -> str:
    """Side in pixels and frames of latents, as the log names them."""
    return f"{SPACE_STRIDE * x.shape[3]}px_{TIME_STRIDE * (x.shape[2] - 1) + 1}f"


TransformerLoss = Callable[[TransformerConfig, tuple[torch.Tensor, torch.Tensor], nn.Module], Loss]


def train_transformer(
    config: TransformerConfig,
    model: PhantomTransformer,
    triplets: Triplets,
    encoder: TripletEncoder,
    out: Path,
    facts: dict,
    validations: tuple[Validation, ...],
    parts: Path | None = None,
    work: Work | None = None,
    loss: TransformerLoss = loss_of,
) -> PhantomTransformer:
    """Train to the end of the config; the average is saved in `out`/transformer, the weights before any decay in `out`/raw.

    `loss(config, features and mask of the empty prompt, model)` is the loss of a batch. With `parts`, both are written there too
    with every state, in float16, in files for a small transfer. `facts` carry the subjects' hash. `encoder`'s networks are on the
    model's device.
    """
    device = next(model.parameters()).device
    empty = _empty_text(encoder, triplets.pad_text, device)

    def validate(raw: nn.Module, average: nn.Module, steps: int) -> dict[str, float]:
        networks = (("raw_", raw), ("average_", average))
        if not is_main():
            return {}
        return {name: value for v in validations for prefix, network in networks for name, value in v(network, prefix).items()}

    def save(raw: nn.Module, average: nn.Module, steps: int, decaying: bool) -> None:
        if not is_main():
            return
        if not decaying:  # what training goes on from has the constant rate behind it
            save_part(raw, out / "raw")
        save_part(average, out / "transformer")
        if parts:
            write_parts(out, parts)

    ema = train(
        config.train,
        model,
        triplets,
        lambda m: loss(config, empty, m),
        out,
        {**facts, "config": asdict(config)},
        prepare=encoder,
        on_validate=validate if validations else None,
        on_save=save,
        work=work,
        exclude=ADAM,
    )
    assert isinstance(ema, PhantomTransformer)
    return ema


def _empty_text(encoder: TripletEncoder, padded: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and mask of the empty prompt, as long as batches' prompts where those are padded."""
    tokens, mask = (part.to(device) for part in encoder.text.tokens([""], TEXT_PLACES if padded else None))
    return encoder.text.features(tokens, mask), mask
