"""State of a run on disk: one safetensors file, written whole or not at all, so that a kill loses minutes at most."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.tensors import read_tensors, save_tensors

FORMER = {"mean": "exp_avg", "square": "exp_avg_sq"}  # names of AdamW's moments in states of before it was torch's


def save_state(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer, facts: dict) -> None:
    """Write model, average, optimizer and `facts` (JSON: step, config, subjects' hash)."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.state_dict().items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in enumerate(parameters):
        tensors |= {f"optimizer.{index}.{k}": v for k, v in optimizer.state[p].items()}
    save_tensors(tensors, path, {"facts": json.dumps(facts)})


def state_facts(path: Path) -> dict:
    """The facts of a state, without its tensors. Raises CheckpointError where it is none."""
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a training checkpoint: {error}") from error


def load_state(path: Path, model: nn.Module, ema: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore what save_state wrote, in place; returns its facts. Raises CheckpointError where it does not fit."""
    try:
        tensors, metadata = read_tensors(path)
        facts = json.loads(metadata["facts"])
        model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        ema.load_state_dict({k[4:]: v for k, v in tensors.items() if k.startswith("ema.")})
    except Exception as error:
        raise CheckpointError(f"{path} is not a checkpoint of this run: {error}") from error
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, p in enumerate(parameters):
        prefix = f"optimizer.{index}."
        state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        # A count of steps stays on the CPU, where torch's AdamW reads it.
        optimizer.state[p] = {FORMER.get(k, k): v.to(p.device) if v.ndim else v for k, v in state.items()}
    return facts
