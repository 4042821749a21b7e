"""docs/architecture.md says how to add a base model, a condition and a detector: each of a package of its own."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from phantom_s2v import PhantomPipeline
from phantom_s2v.data.detectors.own import load_detector, load_inpainter, own_hash
from phantom_s2v.data.synthetic.compose import compose
from phantom_s2v.data.synthetic.heldout import held_out
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.networks import Wanted, instruments
from phantom_s2v.evaluation.run import Asked, score_all
from phantom_s2v.evaluation.suites.emoji import emoji_cases
from phantom_s2v.media.images import write_video
from phantom_s2v.models import registry
from phantom_s2v.models.flow_matching import interpolate, velocity_loss, velocity_target
from phantom_s2v.pipeline.batch import build_request, make
from phantom_s2v.pipeline.cost.measure import estimate
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.training.config import TrainConfig
from phantom_s2v.training.loop import train


@pytest.fixture(autouse=True)
def families(monkeypatch):
    """The toy modules can be imported; the models that they register are gone after the test."""
    known = list(registry.FAMILIES)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    for name in ("toy_model", "toy_condition"):
        sys.modules.pop(name, None)
    yield
    registry.FAMILIES[:] = known


@pytest.fixture
def toy(tiny_models, tmp_path):
    """The folder of a toy model that was written by its own pipeline."""
    import toy_model

    torch.manual_seed(0)
    toy_model.ToyPipeline(tiny_models.vae, toy_model.ToyTransformer()).save_pretrained(tmp_path / "toy")
    return tmp_path / "toy"


def test_a_base_model_of_ones_own_generates_is_estimated_and_evaluated(toy, image, tmp_path):
    pipe = load_models(toy)
    assert type(pipe).__name__ == "ToyPipeline"
    request = build_request({"prompt": "A cat.", "reference": [f"cat={image}"]}, pipe.preset)
    assert estimate(request, pipe.preset, toy, pipe.placement).flops > 0
    make(request, pipe, tmp_path / "cat.mp4", False, lambda _: None, {"a": "test"})
    tools = instruments(Wanted(features="phantom-mini"))
    found = score_all([(tmp_path / "cat.mp4", Asked([("cat", image)], "A cat.", tools))], None, lambda *_: None)
    assert any(name.startswith("similarity") and np.isfinite(value) for name, value in found.means(tools).items()), found.lines
    other = PhantomPipeline.from_pretrained(toy)
    first, second = (
        p("A cat.", reference_images=image, generator=torch.Generator().manual_seed(0)).frames for p in (pipe, other)
    )
    assert np.array_equal(first, second)


def trained(network, folder, *conditions):
    """One step of training; names of the parameters that it changed."""
    network.train().requires_grad_(True)
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def batch(step, rank):
        return torch.randn(4, 8, 2, 4, 4, generator=torch.Generator().manual_seed(step))

    def loss_of(model):
        def loss(x, step):
            noise, t = torch.randn_like(x), torch.rand(len(x))
            x_t = interpolate(x, noise, t[:, None, None, None, None])
            velocity = model(x_t, t, torch.zeros(len(x)), x[:, :, :0], *conditions)
            return {"loss": velocity_loss(velocity, velocity_target(x, noise), torch.ones(len(x), 2, dtype=torch.bool))}

        return loss

    config = TrainConfig(1, precision="float32", workers=0, warmup=1, log_steps=1)
    train(config, network, batch, loss_of, folder, {"config": {}})
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def test_a_base_model_of_ones_own_trains(toy, tmp_path):
    assert trained(load_models(toy).transformer, tmp_path / "out")


def test_a_condition_of_ones_own_generates_trains_and_changes_the_video(tiny_models, image, tmp_path):
    import toy_condition

    torch.manual_seed(0)
    toy_condition.TintedPipeline(tiny_models.vae, toy_condition.TintedTransformer()).save_pretrained(tmp_path / "tinted")
    pipe = PhantomPipeline.from_pretrained(tmp_path / "tinted")

    def latents(prompt="A cat.", images=image, **options):
        return pipe(
            prompt, reference_images=images, generator=torch.Generator().manual_seed(0), output_type="latent", **options
        ).frames

    alone = latents()
    assert latents(images=None).shape == alone.shape
    colors = [np.full((32, 32, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255))]
    noise = latents()[:1].repeat(4, 1, 1, 1, 1)
    batch = latents(["A cat."] * 2, [[each] for each in colors], num_videos_per_prompt=2, latents=noise)
    for number, each in enumerate(colors):
        single = latents(images=each, latents=noise[:1])
        torch.testing.assert_close(batch[2 * number : 2 * number + 2], single.expand(2, -1, -1, -1, -1))
    assert (latents(attention_kwargs={"tint": torch.ones(1, 3)}) - alone).abs().max() > 1e-2
    pipe.transformer.tint.weight.data.zero_()
    assert (latents() - alone).abs().max() > 1e-2
    assert {"tint.weight", "tint.bias"} <= trained(pipe.transformer, tmp_path / "out", torch.rand(4, 3))


DETECTORS = """
from pathlib import Path
import numpy as np

from phantom_s2v.data.detectors.objects import detect_objects
from phantom_s2v.data.pipeline.config import Detection

def found(stills, phrases):
    with Path(__file__).with_name("calls").open("a") as file:
        file.write("x")
    return detect_objects(stills, phrases)

def nothing(stills, phrases):
    return [[] for _ in stills]

def filled(image, mask):
    return np.full_like(image, 7)

def wrong(stills, phrases):
    return [[Detection((0, 0, 10**6, 10**6), still[..., 0] > 0)] for still in stills]
"""


def test_a_detector_of_ones_own_makes_a_dataset(call_phantom, tmp_path, monkeypatch):
    package, clip, out = tmp_path / "own_detectors", tmp_path / "clip.mp4", tmp_path / "t.lance"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "colors.py").write_text(DETECTORS)
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = next(case.spec for case in emoji_cases(held_out(), 1))
    write_video(clip, compose(spec, held_out()).video, 12)

    def build(name, *more):
        code, said = call_phantom("data", "build", clip, "--out", out, "--object-detector", name, *more)
        return code, json.loads(said.out) if said.out else {}, said.err

    def calls():
        return len((package / "calls").read_text())

    code, facts, said = build("own_detectors.colors:found")
    assert (code, facts["triplets"], calls()) == (0, 1, 1), said
    assert build("own_detectors.colors:found")[1] == {**facts, "new": 0}
    assert calls() == 1  # nothing is looked at again
    code, other, said = build("own_detectors.colors:nothing")
    assert (code, other["triplets"]) == (0, 0), said
    for name, more, wanted in (
        ("no_such.package:found", (), "object_detector no_such.package:found cannot be imported (No module named 'no_such')"),
        ("own_detectors.colors:found", ("--segmenter", "sam2"), "--segmenter cannot be combined with --object-detector own"),
    ):
        code, _, said = build(name, *more)
        assert (code, wanted in said, len(said.splitlines())) == (2, True, 1), said
    before = own_hash("own_detectors.colors:found")
    (package / "weights.safetensors").write_bytes(b"weights")
    assert own_hash("own_detectors.colors:found") != before
    with pytest.raises(InputError, match=r"cannot be imported .module .* has no attribute 'none'"):
        load_detector("own_detectors.colors:none")
    with pytest.raises(InputError, match=r"must be a function of stills and phrases .got str"):
        load_detector("own_detectors.colors:__name__")
    with pytest.raises(InputError, match=r"box must lie in the still of 64x64 .got .0, 0, 1000000, 1000000"):
        load_detector("own_detectors.colors:wrong")([np.zeros((64, 64, 3), np.uint8)], [])
    image, mask = np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), bool)
    assert (load_inpainter("own_detectors.colors:filled")(image, mask) == 7).all()
    with pytest.raises(InputError, match=r"inpainter .*:nothing must give uint8 .64, 64, 3. .got float64 .64, 0."):
        load_inpainter("own_detectors.colors:nothing")(image, mask)
    code, _, said = build("own_detectors.colors:found", "--background", "--inpainter", "own_detectors.colors:none")
    assert (code, "inpainter own_detectors.colors:none cannot be imported" in said, len(said.splitlines())) == (2, True, 1), said
