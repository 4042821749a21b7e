"""The smallest training of each arm differs from its control in what it should; rows count while what made them is the same."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.training.config import Bucket

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from ablations import arms, world

BY_NAME = {arm.name: arm for arm in arms.ARMS}
CHANGED = sorted(set(BY_NAME) - set(arms.CONTROLS.values()))


@pytest.fixture(scope="module")
def small(tiny) -> world.World:
    """The held-out subjects and the tiny model."""
    return world.load_world(Sprites(evaluated(held_out()), held_out().pixels), tiny, "float32")


def config_of(arm):
    """Two steps of two samples with two references, or of a clip with one."""
    config = arm.recipe.config(0, arm.training)
    short = replace(config.train, steps=2, warmup=1, log_steps=1, precision="float32")
    count = 2 if arm.recipe.frames == 1 else 1
    return replace(config, train=short, buckets=(Bucket(32, arm.recipe.frames, 2, 1.0),), references=((count, 1.0),))


@pytest.fixture(scope="module")
def trained(small, tmp_path_factory):
    made = {}

    def train(name):
        if name not in made:
            folder, arm = tmp_path_factory.mktemp(name), BY_NAME[name]
            network = world.train_arm(arm, config_of(arm), small, folder)
            made[name] = (network, world.losses(folder))
        return made[name]

    return train


@pytest.mark.parametrize("name", CHANGED)
def test_an_arm_learns_otherwise_than_its_control(trained, name):
    network, losses = trained(name)
    control, control_losses = trained(arms.CONTROLS[BY_NAME[name].recipe.name])
    assert len(losses) == 2
    assert torch.isfinite(torch.tensor(losses)).all()
    assert losses[1] != control_losses[1]
    differ = {key for key, value in network.config.items() if value != control.config[key]}
    assert differ == set(BY_NAME[name].network)
