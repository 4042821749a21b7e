"""What all arms share: subjects, frozen networks, and the trial of an arm of the paper's own way."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from phantom_s2v.data.synthetic.emoji import Sprites, Subject, default_root, load_store
from phantom_s2v.data.synthetic.render import Tensors
from phantom_s2v.models.phantom.conditioning import Conditions
from phantom_s2v.models.phantom.encoders import TextEncoder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.registry import model_folder
from phantom_s2v.models.weights import load_part
from phantom_s2v.training.config import TransformerConfig
from phantom_s2v.training.latents import TripletEncoder, validation_families
from phantom_s2v.training.learner import pick_dtype
from phantom_s2v.training.loop import train
from phantom_s2v.training.run import load_encoder
from phantom_s2v.training.transformer import ADAM, loss_of

from .arms import Arm, ArmTriplets

PROBE_STEPS = 2  # of a training in a probe
CANDIDATES = 100  # subjects among which the shown one is sought
Velocity = Callable[[torch.Tensor, torch.Tensor, Conditions], torch.Tensor]  # x, t, conditions


@dataclass(frozen=True)
class World:
    """Subjects and frozen networks on the CPU."""

    folder: Path  # of the model whose parts these are
    store: Sprites
    learned: Sprites  # what arms may learn from
    shown: tuple[Subject, ...]  # what they are judged on
    candidates: tuple[Subject, ...]  # among which the shown one is sought
    encoder: TripletEncoder
    text: TextEncoder
    empty: tuple[torch.Tensor, torch.Tensor]  # features and mask of the empty prompt
    dtype: torch.dtype


def load_world(store: Sprites | None = None, folder: Path | None = None, precision: str = "auto") -> World:
    """The emoji that were fetched, and phantom-mini's networks, unless others are given."""
    store, folder = store or load_store(default_root()), folder or model_folder("phantom-mini")
    text, dtype = TextEncoder(), pick_dtype(precision)
    apart = validation_families(store.subjects)
    learned = tuple(s for s in store.subjects if s.family not in apart)
    shown = tuple(s for s in store.subjects if s.family in apart and s.animated)
    candidates = (*shown, *[s for s in learned if s.animated][: CANDIDATES - len(shown)])
    encoder = load_encoder(folder, store, torch.device("cpu"), text, dtype)
    return World(folder, store, replace(store, subjects=learned), shown, candidates, encoder, text, text([""]), dtype)


def exact(world: World) -> World:
    """The same with everything in float32."""
    dtype = torch.float32
    encoder = load_encoder(world.folder, world.store, torch.device("cpu"), world.text, dtype)
    return replace(world, encoder=encoder, dtype=dtype)


def network_of(arm: Arm, world: World, seed: int) -> PhantomTransformer:
    """Random weights of a small network, which are the same for all arms of a recipe and a seed."""
    packaged: Any = load_part(PhantomTransformer, world.folder / "transformer").config
    given = {**dict(packaged), **(arm.recipe.sizes or {}), **arm.network}
    torch.manual_seed(seed)
    return PhantomTransformer(**{name: value for name, value in given.items() if not name.startswith("_")})


def train_arm(arm: Arm, config: TransformerConfig, world: World, out: Path, network: nn.Module | None = None) -> nn.Module:
    """Train an arm to its end, from its last checkpoint in `out` where there is one; returns the averaged weights.

    It starts from random weights, or trains `network`.
    """
    network = network or network_of(arm, world, config.train.seed)
    triplets = ArmTriplets(world.learned, config, world.text, False, arm.pairing)

    def prepare(batch: Tensors) -> Tensors:
        encoded = world.encoder(batch)
        return {**encoded, "subjects": torch.zeros_like(encoded["subjects"])} if arm.one_index else encoded

    loss = lambda m: loss_of(config, world.empty, m)  # noqa: E731
    return train(config.train, network, triplets, loss, out, {"arm": arm.name}, prepare=prepare, exclude=ADAM)


def velocity_of(network: nn.Module, arm: Arm, dtype: torch.dtype) -> Velocity:
    """An arm's network as the judge calls it, with matrix products in `dtype`."""

    @torch.no_grad()
    def velocity(x: torch.Tensor, t: torch.Tensor, c: Conditions) -> torch.Tensor:
        c = replace(c, subjects=torch.zeros_like(c.subjects)) if arm.one_index else c
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return network(x, t, **c.arguments()).float()

    return velocity


def losses(out: Path) -> list[float]:
    """The losses that a training logged."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]
