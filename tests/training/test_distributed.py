"""Several processes learn as one does, in whatever way they share the work, and go on in any number at the same place."""

import json
import re
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Held, held, in_processes
from torch import nn
from torch.distributed.tensor import DTensor

from phantom_s2v.errors import InputError
from phantom_s2v.models import distributed
from phantom_s2v.models.distributed import everyone, join, shard, weight_mesh, whole_tensors, world
from phantom_s2v.models.memory import Placement
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.training import cost, encoded, own, recipes
from phantom_s2v.training.checkpoint import saved
from phantom_s2v.training.config import Lora, TrainConfig
from phantom_s2v.training.guard import encoder_hashes
from phantom_s2v.training.learner import Learner, average_of, spread
from phantom_s2v.training.log import Log
from phantom_s2v.training.loop import train
from phantom_s2v.training.optim import Muon, update_ema

CPU = torch.device("cpu")
STEPS = 4
SIZES = [(32, 32, 9)] * 9 + [(32, 48, 5)] * 6 + [(16, 32, 1)] * 2


@pytest.fixture(scope="module")
def triplets() -> Held:
    return held(8, (6, 384), (16, 32), SIZES)


def fine_tune(folder, store, out, steps, losses=None, **changes) -> tuple[dict[int, dict[str, float]], list[list[str]]]:
    """Rows of the log, unrounded, by step, and the ids of each step's batches in this process."""
    rows, ids = {}, []
    (lora, compiled), model = (changes.pop("lora", None), changes.pop("compile", False)), load_models(folder)
    settings = {"steps": steps, "adam_lr": 2e-3, "warmup": 2, "precision": "float32", "log_steps": 1, "decay_share": 0.0}
    config = recipes.own_mini()
    config = replace(config, train=replace(config.train, **{**settings, **changes}), lora=lora, compile=compiled)
    config = replace(config, batch_size=1, validation=0.2, drop_tokens=0.2)

    class Listening(Held):
        def take(self, numbers):
            ids.append([self.sizes()[number][0] for number in numbers])
            return super().take(numbers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "write", lambda log, step, row: rows.setdefault(step + 1, {}).update(row))
        listening = Listening(store.rows, store.shapes)
        own.fine_tune(config, model, listening, out, {}, CPU)
    return rows, ids


def losses(rows, name="loss") -> torch.Tensor:
    return torch.tensor([rows[step][name] for step in sorted(rows)], dtype=torch.float64)


def equal(one, other, name="loss") -> None:
    torch.testing.assert_close(losses(one, name), losses(other, name), atol=1e-5, rtol=1e-6)  # losses begin near 300


@pytest.fixture(scope="module")
def alone(tiny, triplets, tmp_path_factory):
    """The run of one process, on four batches a step."""
    return fine_tune(tiny, triplets, tmp_path_factory.mktemp("alone"), STEPS, gradient_accumulation_steps=4)


@pytest.mark.parametrize(("count", "parallel"), [(2, "ddp"), (2, "fsdp"), (4, "fsdp"),
    pytest.param(4, "ddp", marks=pytest.mark.long), pytest.param(4, "hsdp", marks=pytest.mark.long)])  # fmt: skip
def test_processes_have_the_losses_of_one(tiny, triplets, alone, tmp_path, count, parallel):
    """Loss, gradient norm and validation, whose three triplets the processes cannot share evenly, to 1e-5 in float32."""
    given = {"parallel": parallel, "shard_size": 2 * (parallel == "hsdp"), "gradient_accumulation_steps": 4 // count}
    made = in_processes(tmp_path, count, lambda: fine_tune(tiny, triplets, tmp_path / "out", STEPS, **given))
    rows, _ = made[0]
    equal(rows, alone[0])
    equal(rows, alone[0], "grad_norm")
    validated = [name for name in alone[0][STEPS] if name.startswith("with")]
    assert len(validated) == 8
    for name in validated:
        assert rows[STEPS][name] == pytest.approx(alone[0][STEPS][name], abs=1e-5, rel=1e-6)
    assert len(losses(rows)) == STEPS
    assert losses(rows).std() > 1e-2


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_processes_have_the_losses_of_one(tiny, triplets, alone, tmp_path, parallel):
    given = {"parallel": parallel, "gradient_accumulation_steps": 2, "compile": True}
    made = in_processes(tmp_path, 2, lambda: fine_tune(tiny, triplets, tmp_path / "out", STEPS, **given), seconds=900)
    equal(made[0][0], alone[0])
    assert made[0][0][STEPS]["with_0.5"] == pytest.approx(alone[0][STEPS]["with_0.5"], abs=1e-5, rel=1e-6)


def test_a_whole_training_of_two_processes_checks_its_data_and_writes_a_model(tiny, triplets, tmp_path):
    """What the command does, of which Lance alone is left out; in bfloat16, which FSDP gathers weights in."""
    store = Held([dict(row) for row in triplets.rows], triplets.shapes)
    store.origin = encoder_hashes(tiny)
    store.rows[3]["latents"] = store.rows[3]["latents"] * float("nan")

    def whole(precision: str) -> dict:
        config = recipes.own_mini()
        train = replace(config.train, steps=2, warmup=1, precision=precision, log_steps=1, parallel="fsdp")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoded, "EncodedStore", lambda path: store)
            return own.run(
                replace(config, train=train, bad_data="skip", validation=0.2),
                tiny,
                {tmp_path: 0},
                tmp_path / precision,
                Placement("cpu"),
            )

    losses = []
    for precision in ("float32", "bfloat16"):
        made = in_processes(tmp_path, 2, whole, precision)
        assert made[0] == made[1] == {"written": str(tmp_path / precision / "model"), "steps": 2, "triplets": len(SIZES)}
        (noted,) = json.loads((tmp_path / precision / "data.json").read_text())["datasets"].values()
        assert list(noted["bad"]) == ["clip-03"]
        load_models(tmp_path / precision / "model")
        rows = [json.loads(line) for line in (tmp_path / precision / "log.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows if "loss" in row])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert losses[1] != losses[0]


def test_a_checkpoint_of_two_processes_goes_on_in_one_and_in_four(tiny, triplets, alone, tmp_path, capfd):
    """At the same place in the data, with as many batches a step, and with the losses of the unbroken run."""
    in_processes(
        tmp_path, 2, lambda: fine_tune(tiny, triplets, tmp_path / "out", 2, parallel="fsdp", gradient_accumulation_steps=2)
    )
    files = sorted(path.name for path in saved(tmp_path / "out" / "checkpoints")[0].iterdir())
    assert len(files) == 3  # of each process one, and the facts

    def go_on(name, count, parallel):
        subprocess.run(["cp", "-r", tmp_path / "out", tmp_path / name], check=True)
        given = {"parallel": parallel, "gradient_accumulation_steps": 2}
        return in_processes(tmp_path, count, lambda: fine_tune(tiny, triplets, tmp_path / name, STEPS, **given))

    expected = {step: row for step, row in alone[0].items() if step > 2}
    for made in (go_on("four", 4, "fsdp"), [fine_tune(tiny, triplets, tmp_path / "out", STEPS, gradient_accumulation_steps=2)]):
        equal(made[0][0], expected)
        trained = [batch for _, ids in made for batch in ids[: 8 // len(made)]]
        assert sorted(trained) == sorted(alone[1][8:16])
    said = capfd.readouterr().err
    assert "a step still has 4 batches, 1 a process" in said
    assert "a step still has 4 batches, 4 a process" in said


def test_another_number_of_processes_that_cannot_share_a_step_says_so(tiny, triplets, tmp_path, capfd):
    # both in processes of their own: a training leaves threads behind, with which forking may hang
    in_processes(tmp_path, 1, lambda: fine_tune(tiny, triplets, tmp_path / "out", 1))
    in_processes(tmp_path, 2, lambda: fine_tune(tiny, triplets, tmp_path / "out", 2))
    assert "a step had 1 batches and has 2 from here on" in capfd.readouterr().err


@pytest.mark.parametrize("parallel", ["fsdp", pytest.param("ddp", marks=pytest.mark.long)])
def test_adapters_are_trained_by_processes_as_by_one(tiny, triplets, tmp_path, parallel):
    lora = Lora(4, 4.0, targets=recipes.MINI_TARGETS)
    two = in_processes(tmp_path, 2, lambda: fine_tune(tiny, triplets, tmp_path / "two", 4, parallel=parallel, lora=lora))
    one, _ = fine_tune(tiny, triplets, tmp_path / "one", 4, gradient_accumulation_steps=2, lora=lora)
    equal(two[0][0], one)


def learning_bytes(folder, store, parallel) -> tuple[int, int]:
    """What this process holds of parameters, gradients, averages and moments, and how many parameters the model has."""
    pipe = load_models(folder)
    count = sum(p.numel() for p in pipe.transformer.parameters())
    config = recipes.own_mini()
    config = replace(config, train=replace(config.train, parallel=parallel, precision="float32"))
    trained = own.trainable(pipe.transformer, config, CPU)
    learner = Learner(config.train, trained, trained, own.loss_of(pipe, config, pipe.encode_texts([""], 512)), exclude=("",))
    learner.accumulate([(0, own.split(store, config)[0](0))], 1, 0, lambda batch: batch)
    learner.update(1.0, 0)
    parameters = list(trained.parameters())
    moments = [
        value for state in learner.optimizer.state.values() for value in state.values() if torch.is_tensor(value) and value.ndim
    ]
    held = [*parameters, *(p.grad for p in parameters if p.grad is not None), *learner.ema.parameters(), *moments]
    return sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in held), count


def test_what_processes_hold_is_what_the_estimate_says(tiny, triplets, tmp_path):
    """20 bytes a parameter, which FSDP shares out."""
    two = in_processes(tmp_path, 2, learning_bytes, tiny, triplets, "fsdp")  # before threads of a training are here
    one, count = learning_bytes(tiny, triplets, "ddp")
    assert 0.9 < one / (cost.LEARNED * count) <= 1  # the last block's text branch gets no gradient
    assert sum(bytes_ for bytes_, _ in two) == pytest.approx(cost.LEARNED * count, rel=0.1)
    assert max(bytes_ for bytes_, _ in two) < 0.6 * one


class Net(nn.Module):
    """With a convolution and sizes that two and four processes cannot share evenly."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(18, 30), nn.Linear(30, 17, bias=False)])
        self.conv = nn.Conv1d(17, 19, 3)
        self.head = nn.Linear(19, 18)

    def forward(self, x):
        x = self.blocks[1](self.blocks[0](x).relu())
        return self.head(self.conv(x[:, :, None].expand(-1, -1, 4)).mean(2))


def steps_of_muon(parallel: str) -> dict[str, torch.Tensor]:
    """Weights after five steps by the same gradients in all processes."""
    torch.manual_seed(0)
    join(CPU)
    net = Net()
    grads = [{name: torch.randn(p.shape) for name, p in net.named_parameters()} for _ in range(5)]
    if parallel != "none":
        shard(net, weight_mesh(CPU, world() if parallel == "fsdp" else 2))
    average = average_of(net)
    muon = Muon(list(net.named_parameters()), 0.02, 0.01)
    for step, grad in enumerate(grads):
        for name, p in net.named_parameters():
            p.grad = (
                distributed.distribute_tensor(grad[name], p.device_mesh, p.placements) if isinstance(p, DTensor) else grad[name]
            )
        muon.step()
        update_ema(average, net, 0.9, step)
    state = {**dict(net.named_parameters()), **{f"ema.{n.replace('/', '.')}": p for n, p in average.named_parameters()}}
    return whole_tensors(state)


@pytest.mark.parametrize(("count", "parallel"), [(2, "none"), (2, "fsdp"), (4, "hsdp")])
def test_muon_of_split_weights_is_exact(tmp_path, count, parallel):
    """From the same gradients, the very bits of one process: matrices are orthogonalized whole, in float32."""
    many, one = in_processes(tmp_path, count, steps_of_muon, parallel)[0], steps_of_muon("none")
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def learn(out, lr, breaks=None) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and weights of a model of which half of a step's batches take a branch, trained with Muon (lr) and AdamW."""
    torch.manual_seed(0)
    model, seen = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 16)), []
    config = TrainConfig(
        8, lr=lr, warmup=2, log_steps=1, precision="float32", workers=0, gradient_accumulation_steps=2 // world()
    )

    def batch(number, together):
        x = torch.from_numpy(np.random.default_rng(number).normal(size=(4, 16)).astype(np.float32))
        x = x * float("nan") if number == breaks else x
        return {"x": x, "branch": torch.tensor(number % 2), "ids": [f"clip-{number}"]}

    def loss(b, step):
        got = model[:2](b["x"])
        return {"loss": ((model[2](got) if b["branch"] else got) - b["x"].roll(1, 1)).square().mean()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "write", lambda log, step, row: seen.append(row["loss"]))
        ema = train(config, model, batch, lambda m: loss, out, {}, exclude=() if lr else ("",))
    return seen, {name: value.detach() for name, value in ema.named_parameters()}


@pytest.mark.parametrize("lr", [0.0, 0.02])
def test_a_parameter_that_some_batches_do_not_touch_is_learned_by_all(tmp_path, lr):
    (two, other), one = in_processes(tmp_path, 2, learn, tmp_path / "two", lr), learn(tmp_path / "one", lr)
    torch.testing.assert_close(torch.tensor(two[0]), torch.tensor(one[0]), atol=1e-5, rtol=0)
    assert all(torch.allclose(two[1][name], one[1][name], atol=1e-5) for name in one[1])
    assert all(torch.equal(two[1][name], other[1][name]) for name in one[1])


def test_a_batch_that_is_not_finite_in_one_process_ends_all_and_is_named(tmp_path):
    for said in in_processes(tmp_path, 2, learn, tmp_path / "out", 0.02, 5, fails=True):
        assert re.search(r"NotFiniteError: step 3: .*grad_norm became NaN or infinite on clip-5; there is no checkpoint", said)


@pytest.mark.parametrize("bad", ["parallel", "shard_size", "ring_degree", "model"])
def test_what_cannot_be_is_refused_in_one_sentence(tiny, triplets, tmp_path, bad):
    if bad == "parallel":
        with pytest.raises(InputError, match=r"parallel must be ddp, fsdp or hsdp \(got 'zero3'\)"):
            TrainConfig(1, parallel="zero3")
        with pytest.raises(InputError, match=r"parallel fsdp .* needs several processes; start with torchrun"):
            spread(TrainConfig(1, parallel="fsdp"), Net(), CPU)
        return
    if bad == "shard_size":
        said = in_processes(tmp_path, 2, spread, TrainConfig(1, parallel="hsdp", shard_size=3), Net(), CPU, fails=True)
        assert said[0] == "InputError: the number of processes that share the weights must divide 2 (got 3)"
        return
    degree = {"ring_degree": 2} if bad == "ring_degree" else {"ulysses_degree": 2}
    said = in_processes(tmp_path, 2, spread, TrainConfig(1, **degree), load_models(tiny).transformer, CPU, fails=True)
    assert (
        said[0] == "InputError: PhantomTransformer has no plan for context parallelism; ring_degree and ulysses_degree must be 1"
    )


def test_it_is_the_largest_value_that_is_agreed_on(tmp_path):
    def ask() -> tuple:
        join(CPU)
        rank = distributed.rank()
        return distributed.agreed([float(rank == 0), float(rank), 0.1 * (rank == 0)]), everyone(rank)

    assert in_processes(tmp_path, 2, ask) == [([1.0, 1.0, 0.1], [0, 1])] * 2
    assert distributed.agreed([3.0]) == [3.0]


@pytest.mark.long
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_torchrun_trains_from_the_command_line_and_the_model_generates(tiny, tmp_path, parallel):
    """From a Lance dataset, and again with another number of processes."""
    from test_own import TARGET, encode, triplet

    from phantom_s2v.data.triplets import TripletStore

    store = TripletStore.create(tmp_path / "t.lance")
    store.write(triplet(tmp_path, number) for number in range(6))
    encode(store, load_models(tiny), tiny, tmp_path / "l.lance")
    assert TARGET
    toml = tmp_path / "run.toml"
    toml.write_text('validation = 0.2\n[train]\nwarmup = 1\nprecision = "float32"\n')
    for count, steps in ((2, 2), (1, 3), (4, 4)):
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "phantom_s2v"]
        command = [*start, "train", "--preset", "mini", "--model", tiny, "--latents", tmp_path / "l.lance", "--config", toml]
        given = ["--out", tmp_path / "out", "--steps", str(steps), "--parallel", parallel if count > 1 else "ddp"]
        done = subprocess.run([sys.executable, *map(str, [*command, *given])], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout.splitlines()[-1])["steps"] == steps
    image = np.zeros((20, 20, 3), np.uint8)
    pipe = load_models(tmp_path / "out" / "model")
    assert np.isfinite(pipe("a fox", reference_images=image, generator=torch.Generator().manual_seed(0)).frames[0]).all()
    assert deepcopy(Path(tmp_path / "out" / "log.jsonl")).read_text().count("with_0.5") >= 3
