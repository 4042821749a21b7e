"""Guidance distillation: the start is the teacher, the target is guidance as sampling computes it, and the student learns it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from phantom_s2v.data.synthetic.emoji import write_store
from phantom_s2v.errors import InputError
from phantom_s2v.models.phantom.conditioning import null, stack, without_text
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.weights import load_part
from phantom_s2v.pipeline.sampling.guidance import combine
from phantom_s2v.pipeline.sampling.guidance import weights as shares_of
from phantom_s2v.training.config import Bucket, TrainConfig, TransformerConfig, distilling
from phantom_s2v.training.distillation import distillation_loss, draw_weights, student_of, teach
from phantom_s2v.training.latents import Triplets, conditions_of
from phantom_s2v.training.optim import Muon
from phantom_s2v.training.run import transformer_run

CONFIG = distilling(
    TransformerConfig(TrainConfig(10, precision="float32", workers=0), buckets=(Bucket(32, 1, 4, 0.5), Bucket(32, 5, 2, 0.5)))
)
RANGE = CONFIG.guidance_range


@pytest.fixture(scope="module")
def empty(tiny_models):
    return tiny_models.reader([""])


@pytest.fixture
def batch(sprites, encoder):
    return encoder(Triplets(sprites, CONFIG, encoder.text, pad_text=False)(1))


@pytest.fixture
def student(tiny_models) -> PhantomTransformer:
    return student_of(tiny_models.transformer, RANGE)


def given(batch):
    torch.manual_seed(1)
    t = torch.rand(batch["latents"].shape[::2][:2]) * 0.9 + 0.1
    return torch.randn(batch["latents"].shape), t


@pytest.mark.threads
def test_a_student_starts_as_the_teachers_conditional_branch_whatever_the_weights(tiny_models, student, batch):
    """Bit for bit, so the comparison is with the same tensors: addresses change last bits on some CPUs."""
    same = {name: value for name, value in student.state_dict().items() if not name.startswith("guidance.")}
    teacher = tiny_models.transformer.state_dict()
    assert list(same) == list(teacher)
    assert all(torch.equal(same[name], teacher[name]) for name in same)
    plain = PhantomTransformer.from_config({**student.config, "guidance_range": None})
    plain.load_state_dict(same, assign=True)
    x_t, t = given(batch)
    arguments = conditions_of(batch).arguments()
    with torch.no_grad():
        expected = plain(x_t, t, **arguments)
        for weights in (None, torch.ones(len(x_t), 2), torch.rand(len(x_t), 2) * 6 + 1):
            assert torch.equal(student(x_t, t, **arguments, guidance=weights), expected)


def test_a_student_goes_on_with_its_own_range_alone(student, tiny_models):
    assert student_of(student, RANGE) is student
    with pytest.raises(InputError, match=r"guidance_range must be \(1.0, 5.0\), as in this run \(got \(1.0, 7.0\)\)"):
        student_of(student, (1.0, 5.0))
    assert tiny_models.transformer.config.guidance_range is None


@pytest.mark.threads
def test_the_target_is_the_velocity_that_sampling_guides_to(tiny_models, batch, empty):
    x_t, t = given(batch)
    weights, conditions = torch.rand(len(x_t), 2) * 6 + 1, conditions_of(batch)
    target, plain = teach(tiny_models.transformer, x_t, t, conditions, empty, weights)
    for row in range(len(x_t)):
        one = replace(conditions, **{name: value[row : row + 1] for name, value in conditions.arguments().items()})
        branches = stack([null(one, empty), without_text(one, empty), one])
        parts = tiny_models.transformer(x_t[row].expand(3, *x_t[row].shape), t[row].expand(3, -1), **branches.arguments())
        named = dict(zip(("null", "image", "both"), parts.split(1), strict=True))
        velocity = combine(named, shares_of(*weights[row].tolist(), references=True))
        torch.testing.assert_close(target[row : row + 1], velocity, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(plain, tiny_models.transformer(x_t, t, **conditions.arguments()), rtol=1e-4, atol=1e-4)


def test_weights_are_of_the_range_and_a_share_is_unguided():
    torch.manual_seed(0)
    weights, guided_rows = draw_weights(4000, CONFIG, torch.device("cpu"))
    assert guided_rows.float().mean() == pytest.approx(0.75, abs=0.03)
    assert (weights[~guided_rows] == 1).all()
    assert weights[guided_rows].mean(0).tolist() == pytest.approx([4, 4], abs=0.15)
    assert 1 <= weights.min() < 1.1
    assert 6.9 < weights.max() <= 7


def test_only_unguided_samples_have_null_references(tiny_models, batch, empty):
    """Guidance sees whole references, and the null branch is asked for at weights 1 and 1."""
    seen = {"guided": [], "unguided": []}

    def student(x_t, t, guidance, **arguments):
        for row, weights in enumerate(guidance):
            whole = bool(arguments["image_seen"][row].all() and arguments["references"][row].any())
            seen["guided" if (weights != 1).any() else "unguided"].append(whole)
        return x_t

    torch.manual_seed(0)
    loss = distillation_loss(replace(CONFIG, unguided=0.5, drop_all=0.5), empty, student, lambda x_t, t, **_: x_t)
    for step in range(30):
        loss(batch, step)
    assert all(seen["guided"])
    assert 0.25 < np.mean(seen["unguided"]) < 0.6


def test_a_student_comes_closer_to_guidance(tiny_models, student, batch, empty):
    student.train().requires_grad_(True)
    loss = distillation_loss(CONFIG, empty, student, tiny_models.transformer)
    optimizer = Muon(list(student.named_parameters()), 0.01, 3e-3, exclude=("patch_in", "head"))
    torch.manual_seed(0)
    losses, starts = [], []
    for step in range(60):
        torch.manual_seed(step % 6)
        parts = loss(batch, step)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        losses.append(parts["loss"].item())
        starts.append(parts["loss_of_start"].item())
    assert losses[0] == pytest.approx(starts[0], rel=1e-3)
    assert starts[-6:] == pytest.approx(starts[:6], rel=1e-4)
    assert sum(losses[-6:]) < 0.6 * sum(starts[-6:])


def test_a_run_distils_and_its_state_names_the_teacher(tiny, sprites, tmp_path, capsys, monkeypatch):
    """The teacher is a checkpoint of before the field guidance_range, as the packaged one is."""
    monkeypatch.setattr("phantom_s2v.training.run.sample_flop", lambda *_: 1e12)
    shutil.copytree(tiny / "transformer", tmp_path / "teacher")
    file = tmp_path / "teacher" / "config.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "guidance_range"}))
    write_store(tmp_path / "store", ((s.key, sprites.still(s), sprites.clip(s)[:2]) for s in sprites.subjects[:60]))

    def call(steps, teacher=tmp_path / "teacher", init_from=None, out="run"):
        run = replace(CONFIG, train=replace(CONFIG.train, steps=steps, log_steps=1))
        return transformer_run(run, tiny, tmp_path / out, init_from, {}, "cpu", tmp_path / "store", None, teacher)

    average = call(2)
    assert tuple(average.config.guidance_range) == RANGE
    stated, row, *_ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert stated["tflop_of_a_32px_1f_sample"] == 2.0  # the teacher's three forwards and the student's step
    assert row["loss"] == pytest.approx(row["loss_of_start"], rel=0.01)
    saved = load_part(PhantomTransformer, tmp_path / "run" / "transformer")
    assert tuple(saved.config.guidance_range) == RANGE
    with pytest.raises(InputError, match="is already distilled; a teacher must not have a guidance_range"):
        call(2, teacher=tmp_path / "run" / "transformer", out="other")
    call(1, init_from=tmp_path / "run" / "transformer", out="further")  # a student learns on
