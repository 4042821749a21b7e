"""PhantomPipeline over the same path, and the packaged phantom-mini."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open

from phantom_s2v import PhantomPipeline
from phantom_s2v.data.synthetic.heldout import still_path
from phantom_s2v.errors import CheckpointError
from phantom_s2v.models.registry import model_folder
from phantom_s2v.pipeline.batch import build_request
from phantom_s2v.pipeline.generate import generate
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler

pytestmark = pytest.mark.threads


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_the_pipeline_is_the_command_lines_path(tiny_models, image):
    frames = tiny_models("A cat moves.", reference_images={"cat": image}, num_frames=5, generator=seeded(3)).frames
    options = {"prompt": "A cat moves.", "reference": [f"cat={image}"], "seed": 3, "num_frames": 5}
    video = generate(build_request(options, tiny_models.preset), tiny_models).video
    assert np.array_equal((frames[0] * 255).round(), video)


def test_saves_and_loads(tiny_models, tmp_path):
    tiny_models.save_pretrained(tmp_path / "copy")
    again = PhantomPipeline.from_pretrained(tmp_path / "copy")
    first, second = (p("A cat.", num_frames=1, generator=seeded(2)).frames for p in (tiny_models, again))
    assert np.array_equal(first, second)
    assert not list((tmp_path / "copy").rglob("*.bin"))
    assert not (tmp_path / "copy" / "text_encoder").exists()


def test_an_unknown_model_is_named():
    with pytest.raises(CheckpointError, match="must be phantom-mini"):
        PhantomPipeline.from_pretrained("phantom-maxi")


def test_callback_sees_every_step(tiny_models):
    seen = []

    def callback(pipe, step, timestep, given):
        seen.append((step, pipe.num_timesteps, sorted(given)))
        return given

    tiny_models("A cat.", num_frames=1, num_inference_steps=4, callback_on_step_end=callback)
    assert seen == [(i, 4, ["latents"]) for i in range(4)]


def test_the_first_frame_is_kept(tiny_models, image, monkeypatch):
    """Its latent is clean at every step, so the first frame is that of the still through the autoencoder alone."""
    from phantom_s2v.media.images import letterbox, read_image
    from phantom_s2v.models.autoencoder import decode, encode, to_pixels

    for solver in ("euler", "unipc"):
        monkeypatch.setattr(tiny_models, "scheduler", build_scheduler(solver, 1.0))
        video = tiny_models("A cat.", image=image, num_frames=9, generator=seeded(0)).frames[0] * 255
        still = to_pixels(letterbox(read_image(image)[0], 32, 32)[None])[None]
        with torch.no_grad():
            back = decode(tiny_models.vae, encode(tiny_models.vae, still))[0, :, 0]
        expected = ((back.permute(1, 2, 0) + 1) * 127.5).round().numpy()
        assert np.abs(video[0].astype(float) - expected).max() <= 1


def test_phantom_mini_is_small_half_precision_and_safetensors_alone():
    folder = model_folder("phantom-mini")
    files = [p for p in folder.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 45e6
    weights = [p for p in files if p.suffix not in (".json", ".md")]
    assert len(weights) == 3
    for file in weights:
        with safe_open(file, "pt") as tensors:
            assert {tensors.get_tensor(k).dtype for k in tensors.keys()} == {torch.float16}  # noqa: SIM118
    assert "Microsoft" in (folder / "README.md").read_text(), "the model card names data and license"


def test_phantom_mini_listens_to_its_reference_and_to_its_prompt():
    pipe = PhantomPipeline.from_pretrained("phantom-mini")

    def make(key, color):
        prompt = f"The large subject stays in place on a {color} background."
        settings = {"num_frames": 1, "num_inference_steps": 6, "generator": seeded(1)}
        return pipe(prompt, reference_images=still_path(key), **settings).frames[0, 0] * 255

    penguin, heart = make("1f427", "yellow"), make("1f49d", "yellow")
    middle = slice(20, 44)
    assert np.abs(penguin[middle, middle] - heart[middle, middle]).mean() > 20
    border = np.median(make("1f427", "blue")[:3].reshape(-1, 3), 0)
    assert border.argmax() == 2, "a blue background"
    assert np.median(penguin[:3].reshape(-1, 3), 0)[2] < 150, "a yellow one"


@pytest.fixture
def counted(tiny_student, monkeypatch):
    """A distilled model and the samples of each of its forwards."""
    models, forwards = load_models(tiny_student), []
    whole = type(models.transformer).forward
    monkeypatch.setattr(type(models.transformer), "forward", lambda *a, **k: forwards.append(len(a[1])) or whole(*a, **k))
    return models, forwards


@pytest.mark.parametrize("references", [True, False])
def test_a_distilled_model_makes_one_forward_a_step(counted, tiny_models, image, references):
    """Before any training it is the conditional branch, which the teacher gives at weights 1 and 1."""
    models, forwards = counted
    shared = {"reference_images": {"cat": image} if references else None, "num_frames": 5, "num_inference_steps": 3}
    out = models("A cat moves.", **shared, image_guidance_scale=2.0, guidance_scale=6.0, generator=seeded(0)).frames
    assert forwards == [1, 1, 1]
    plain = tiny_models("A cat moves.", **shared, image_guidance_scale=1.0, guidance_scale=1.0, generator=seeded(0)).frames
    assert np.array_equal(out, plain)


@pytest.mark.parametrize("asked", [{"negative_prompt": "blurry"}, {"image_guidance_scale": 0.5}, {"guidance_scale": 8.0}])
def test_a_distilled_model_gives_the_branches_for_what_it_did_not_learn(counted, tiny_models, image, asked):
    models, forwards = counted
    shared = {"reference_images": {"cat": image}, "num_frames": 5, "num_inference_steps": 2, **asked}
    out = models("A cat moves.", **shared, generator=seeded(0)).frames
    assert forwards == [3, 3]
    assert np.array_equal(out, tiny_models("A cat moves.", **shared, generator=seeded(0)).frames)


def test_a_transformer_of_an_earlier_configuration_loads(tiny, tmp_path):
    """One without the field of guidance distillation, as all checkpoints before it."""
    shutil.copytree(tiny, tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "config.json"
    config = json.loads(file.read_text())
    assert config.pop("guidance_range") is None
    file.write_text(json.dumps(config))
    assert load_models(tmp_path / "model").transformer.config.guidance_range is None
