"""Where tensors lie: files that are written here have them at multiples of 64 bytes."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from phantom_s2v.models.phantom.encoders import ImageEncoder
from phantom_s2v.models.tensors import align, aligned, read_tensors, save_part, save_tensors
from phantom_s2v.training.checkpoint import Checkpoints, load_state, tensors_of

STATE = {
    "odd": torch.arange(3.0),
    "whole": torch.randn(16, 5, generator=torch.Generator().manual_seed(0)),
    "turned": torch.arange(32.0).view(4, 8).T,
    "scalar": torch.tensor(7),
    "half": torch.ones(64, dtype=torch.bfloat16),
    "seen": torch.tensor([True, False]),
    "empty": torch.zeros(0, 4),
}


def places(file):
    """(first byte, bytes) in the file of every tensor, by name."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return {name: (8 + length + v["data_offsets"][0], v["data_offsets"][1] - v["data_offsets"][0]) for name, v in header.items()}


@pytest.mark.parametrize("key", ["a", "ab", "abc", "a much longer name 狐"])
def test_what_is_written_is_what_was_given_and_lies_at_64_bytes(tmp_path, key):
    file = tmp_path / "a.safetensors"
    state = {**STATE, key: torch.ones(16)}
    save_tensors(state, file, {"facts": key})
    back = load_file(file)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], value) and back[name].dtype == value.dtype for name, value in state.items())
    assert read_tensors(file)[1] == {"facts": key}
    assert all(start % 64 == 0 for start, size in places(file).values() if size % 64 == 0)


def test_a_part_is_saved_as_its_library_does_but_for_the_places(tmp_path):
    model = ImageEncoder(width=32)
    model.save_pretrained(tmp_path / "theirs")
    save_part(model, tmp_path / "ours")
    ours, theirs = (sorted((tmp_path / name).iterdir()) for name in ("ours", "theirs"))
    assert [p.name for p in ours] == [p.name for p in theirs]
    (file,) = (tmp_path / "ours").glob("*.safetensors")
    with safe_open(file, "pt") as one, safe_open(tmp_path / "theirs" / file.name, "pt") as other:
        assert one.metadata() == other.metadata()
    assert all(torch.equal(value, load_file(file)[name]) for name, value in model.state_dict().items())
    assert all(start % 64 == 0 for start, size in places(file).values() if size % 64 == 0)


def test_tensors_of_a_foreign_file_are_moved_and_others_are_not(tmp_path, misplace):
    misplace({"a": torch.randn(8, 8), "b": torch.randn(8)}, tmp_path / "foreign.safetensors")
    mapped = load_file(tmp_path / "foreign.safetensors")
    assert {value.data_ptr() % 16 for value in mapped.values()} == {8}
    for read in ({name: aligned(value) for name, value in mapped.items()}, read_tensors(tmp_path / "foreign.safetensors")[0]):
        assert {value.data_ptr() % 64 for value in read.values()} == {0}
        assert all(torch.equal(read[name], value) for name, value in mapped.items())
    save_tensors(mapped, tmp_path / "own.safetensors")
    with safe_open(tmp_path / "own.safetensors", "pt") as file:
        value = file.get_tensor("a")
        assert aligned(value) is value


def test_a_model_is_aligned_in_its_place(tmp_path, misplace):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    misplace({k: v for k, v in model.state_dict().items() if v.ndim}, tmp_path / "foreign.safetensors")
    model.load_state_dict(load_file(tmp_path / "foreign.safetensors"), strict=False, assign=True)
    parameters, before = list(model.parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    assert any(v.data_ptr() % 64 for v in model.state_dict().values())
    assert align(model) is model
    assert not any(v.data_ptr() % 64 for v in model.state_dict().values())
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_resumed_optimizer_computes_in_memory_of_its_own(tmp_path):
    model, ema = nn.Linear(5, 3), nn.Linear(5, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(tensors_of(model, ema, optimizer), {"step": 1})
    again = torch.optim.Adam(model.parameters())
    load_state(checkpoints.whole(), model, ema, again)
    for parameter in model.parameters():
        for name, value in again.state[parameter].items():
            assert torch.equal(value, optimizer.state[parameter][name])
            assert value.data_ptr() % 64 == 0
