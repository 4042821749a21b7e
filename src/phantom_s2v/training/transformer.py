"""Training of the transformer: rectified flow on encoded shards, with the null branches of guidance."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import nn

from phantom_s2v.conditioning import Conditions, null, without_image_tokens, without_latents, without_text
from phantom_s2v.errors import DataError
from phantom_s2v.flow import interpolate, sample_t, velocity_loss, velocity_target
from phantom_s2v.geometry import MAX_SUBJECTS
from phantom_s2v.model.encoders import TextEncoder
from phantom_s2v.model.parallel import is_main
from phantom_s2v.model.tensors import save_part
from phantom_s2v.model.transformer import PhantomTransformer
from phantom_s2v.training.config import TransformerConfig
from phantom_s2v.training.encode import ROWS
from phantom_s2v.training.loop import Loss, train

ADAM = ("patch_in", "text_in", "image_in", "image_position", "subject", "time", "head")  # not for Muon


class Shards:
    """Batches out of a folder of shards, by step: the length, then a shard, then its rows, all from the seed."""

    def __init__(self, folder: Path, config: TransformerConfig) -> None:
        names = sorted(p.name for p in folder.glob("*.safetensors"))
        self.folder, self.config = folder, config
        self.stills = [n for n in names if n.startswith("1f")]
        self.clips = [n for n in names if n.startswith("25f")]
        lengths = {length for length, _ in config.lengths}
        if (1 in lengths and not self.stills) or (lengths - {1} and not self.clips):
            raise DataError(f"{folder} has {len(self.stills)} shards of stills and {len(self.clips)} of clips; both are needed")

    def __call__(self, step: int, rank: int = 0) -> dict[str, torch.Tensor]:
        """Tensors of a batch; latents are cut to the drawn length (the autoencoder is causal, so a prefix is a clip)."""
        rng = np.random.default_rng([self.config.train.seed, 6, step])
        lengths, shares = zip(*self.config.lengths, strict=True)
        length = int(rng.choice(lengths, p=np.array(shares) / sum(shares)))  # the same in every process: none waits
        rng = rng if rank == 0 else np.random.default_rng([self.config.train.seed, 6, step, rank])
        names = self.stills if length == 1 else self.clips
        count = self.config.stills if length == 1 else self.config.clips
        rows = np.sort(rng.choice(ROWS, count, replace=False)).tolist()
        with safe_open(self.folder / str(rng.choice(names)), "pt") as file:
            batch = {key: file.get_tensor(key)[rows] for key in file.keys()}  # noqa: SIM118 - not a dict
        used = int(batch["text_mask"].sum(1).max())
        batch = {k: v.float() if v.dtype == torch.float16 else v for k, v in batch.items()}
        return {
            **batch,
            "latents": batch["latents"][:, :, :length],
            "subject_share": batch["subject_share"][:, :length],
            "text": batch["text"][:, :used],
            "text_mask": batch["text_mask"][:, :used],
        }


def drop(c: Conditions, config: TransformerConfig, empty: tuple[torch.Tensor, torch.Tensor]) -> Conditions:
    """Turn random rows into the null branches, and drop one kind of reference feature in others."""
    draw = torch.rand(4, len(c))
    c = without_latents(without_image_tokens(c, draw[0] < config.drop_image), draw[1] < config.drop_vae)
    c = without_text(c, empty, draw[2] < config.drop_text)
    return null(c, empty, draw[3] < config.drop_all)


def permute_subjects(subjects: torch.Tensor) -> torch.Tensor:
    """Rename subject indices at random in every row: an index says which pictures belong together, not which comes first."""
    names = torch.rand(len(subjects), MAX_SUBJECTS).argsort(1)
    return names.gather(1, subjects)


def loss_of(config: TransformerConfig, empty: tuple[torch.Tensor, torch.Tensor], model: nn.Module) -> Loss:
    """Velocity's squared error, heavier on subjects; clean first frames and reference places do not take part (Phantom 3.3)."""

    def loss(batch: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        x = batch["latents"]
        conditions = Conditions(
            image_seen=torch.ones_like(batch["subjects"], dtype=torch.bool),
            **{k: batch[k] for k in ("text", "text_mask", "references", "image_tokens", "subjects")},
        )
        conditions = drop(replace(conditions, subjects=permute_subjects(conditions.subjects)), config, empty)
        t = sample_t(len(x), config.t_mean, config.t_scale)[:, None].repeat(1, x.shape[2])
        if x.shape[2] > 1:
            t[torch.rand(len(x)) < config.first_frame, 0] = 0
        noise = torch.randn(x.shape)
        x_t = interpolate(x, noise, t[:, None, :, None, None])
        velocity = model(x_t, t, **conditions.arguments())
        weight = 1 + config.subject_weight * batch["subject_share"]
        value = velocity_loss(velocity, velocity_target(x, noise), t > 0, weight)
        return {"loss": value, f"loss_{x.shape[2]}": value.detach()}

    return loss


def train_transformer(
    config: TransformerConfig,
    model: PhantomTransformer,
    out: Path,
    facts: dict,
    on_sample: Callable[[nn.Module, int], None] | None,
) -> PhantomTransformer:
    """Train to the end of the config; the average is saved in `out`/transformer. `facts` carry the subjects' hash."""
    empty = TextEncoder()([""])
    shards = Shards(Path(config.latents), config)
    ema = train(
        config.train,
        model,
        shards,
        lambda m: loss_of(config, empty, m),
        out,
        {**facts, "config": asdict(config)},
        on_sample,
        exclude=ADAM,
    )
    assert isinstance(ema, PhantomTransformer)
    if is_main():
        save_part(ema, out / "transformer")
    return ema
