"""What users of diffusers expect of a pipeline, of both of ours: the checks of diffusers' own PipelineTesterMixin, and more."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import diffusers
import native
import numpy as np
import pytest
import torch
from diffusers import (
    DiffusionPipeline,
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.callbacks import SDCFGCutoffCallback
from diffusers.utils import export_to_video
from peft import LoraConfig
from PIL import Image
from safetensors.torch import load_file, save_file

from phantom_s2v import PhantomPipeline, PhantomWanPipeline
from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.media.videos import Video
from phantom_s2v.models.memory import Placement
from phantom_s2v.pipeline.loading import load_models
from phantom_s2v.pipeline.sampling.schedulers import build_scheduler, shift_of

KINDS = ("wan", "mmdit")
ASK = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 3, "untrained_size": True}


@pytest.fixture(scope="session")
def folders(tiny, tmp_path_factory):
    from phantom_s2v.models.wan.convert import convert

    out = tmp_path_factory.mktemp("diffusers") / "wan"
    convert(*native.write(tmp_path_factory.mktemp("native-diffusers")), out, lambda *_: None)
    return {"wan": out, "mmdit": tiny}


@pytest.fixture(scope="session", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def pipe(folders, kind):
    """Fresh, since tests change it."""
    loaded = PhantomPipeline.from_pretrained(folders[kind])
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture
def cat():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (40, 30, 3), dtype=np.uint8))


def write_gguf(file):
    """The tiny transformer, with its blocks in Q4_0."""
    import gguf

    writer = gguf.GGUFWriter(file, "wan")
    for name, value in native.transformer().items():
        whole = name.startswith("blocks") and value.ndim == 2 and value.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q4_0
        data = gguf.quants.quantize(value.float().numpy(), kind) if whole else value.float().numpy()
        writer.add_tensor(name, data, raw_dtype=kind if whole else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make(pipe, prompt="A cat moves.", seed=0, **changes):
    generator = changes.pop("generator", None) or torch.Generator().manual_seed(seed)
    return pipe(prompt, **{**ASK, **changes}, generator=generator).frames


def test_a_batch_equals_its_singles(pipe, cat):
    prompts, images = ["A cat moves.", "A dog with a red collar jumps high."], [[cat], [cat.rotate(90)]]
    batch = make(pipe, prompts, reference_images=images, generator=[torch.Generator().manual_seed(i) for i in range(2)])
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        np.testing.assert_allclose(batch[i], make(pipe, prompt, i, reference_images=image)[0], atol=1e-4)
    assert np.abs(batch[0] - batch[1]).max() > 1e-2


def test_several_videos_of_a_prompt_share_it_and_differ(pipe, cat):
    two = make(pipe, reference_images=cat, num_videos_per_prompt=2)
    assert two.shape == (2, 5, 32, 32, 3)
    generator = torch.Generator().manual_seed(0)
    first, second = (make(pipe, reference_images=cat, generator=generator) for _ in range(2))
    np.testing.assert_allclose(two, np.concatenate([first, second]), atol=1e-4)


def test_references_are_the_same_in_every_form(pipe, cat, tmp_path):
    cat.save(tmp_path / "猫.png")
    array = np.asarray(cat)
    forms = [
        tmp_path / "猫.png", str(tmp_path / "猫.png"), [cat], cat, array, array.astype(np.float32) / 255,
        torch.from_numpy(array.copy()).movedim(-1, 0).float() / 255, torch.from_numpy(array.copy()).movedim(-1, 0), {"cat": cat},
        torch.from_numpy(array.copy()), [[cat]],
    ]  # fmt: skip
    videos = [make(pipe, reference_images=form) for form in forms]
    assert all(np.array_equal(video, videos[0]) for video in videos[1:])
    assert not np.array_equal(videos[0], make(pipe))


def test_views_and_background(pipe, kind, cat):
    views = {"cat": [cat, cat.rotate(90)]}
    if kind == "wan":
        with pytest.raises(InputError, match="takes one image per subject"):
            make(pipe, reference_images=views)
    assert make(pipe, reference_images=views, several_views=True, background=cat).shape == (1, 5, 32, 32, 3)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # lance, of other tests, warns where imageio forks
@pytest.mark.filterwarnings("ignore:lance is not fork-safe")
def test_output_types_hold_the_same_video(pipe, cat, tmp_path):
    array = make(pipe, reference_images=cat)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    tensor = make(pipe, reference_images=cat, output_type="pt")
    assert np.array_equal(tensor.movedim(2, -1).numpy(), array)
    images = make(pipe, reference_images=cat, output_type="pil")
    assert np.array_equal(np.asarray(images[0][2]), (array[0, 2] * 255).round().astype(np.uint8))
    latents = make(pipe, reference_images=cat, output_type="latent")
    assert torch.allclose(pipe.decode(latents) / 2 + 0.5, tensor.movedim(1, 2), atol=1e-6)
    assert pipe("A cat.", **ASK, return_dict=False)[0].shape == array.shape
    export_to_video(list(array[0]), str(tmp_path / "v.mp4"), fps=8)
    assert sum(1 for _ in Video(tmp_path / "v.mp4").frames()) == 5


def test_prompt_embeds_are_what_encode_prompt_gives(pipe, cat):
    embeds, negative = pipe.encode_prompt("A cat moves.", "blurry")
    asked = make(pipe, negative_prompt="blurry", reference_images=cat)
    given = make(pipe, None, reference_images=cat, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert np.array_equal(asked, given)


def test_latents_stand_for_the_noise(pipe):
    seen = []
    make(pipe, callback_on_step_end=lambda p, i, t, k: seen.append(k["latents"]) or k)
    shape = seen[0].shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    first, second = (make(pipe, latents=noise, seed=seed, output_type="latent") for seed in (1, 2))
    assert torch.equal(first, second)
    with pytest.raises(InputError, match="latents must have shape"):
        make(pipe, latents=noise[:, :, :1])


def test_callbacks_see_change_and_interrupt(pipe):
    steps = []

    def zero(pipe, step, timestep, given):
        steps.append(step)
        given["latents"] = torch.zeros_like(given["latents"]) if step == pipe.num_timesteps - 1 else given["latents"]
        return given

    assert not make(pipe, callback_on_step_end=zero, output_type="latent").any()
    assert steps == [0, 1, 2]

    def stop(pipe, step, timestep, given):
        steps.append(step)
        pipe._interrupt = True
        return given

    make(pipe, callback_on_step_end=stop, output_type="latent")
    assert steps == [0, 1, 2, 0]
    names = list(pipe._callback_tensor_inputs)
    make(pipe, callback_on_step_end=lambda p, i, t, k: steps.append(sorted(k)) or k, callback_on_step_end_tensor_inputs=names)
    assert steps[-1] == sorted(names)
    with pytest.raises(InputError, match="must be a list of latents"):
        make(pipe, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=["noise"])


def test_a_changed_prompt_counts_from_the_next_step_on(pipe, kind):
    other = pipe.encode_prompt("A red fox sleeps." if kind == "mmdit" else "B")[0]

    def change(pipe, step, timestep, given):
        return {"prompt_embeds": other} if step == 0 else {}

    changed = make(pipe, callback_on_step_end=change, output_type="latent")
    assert not torch.equal(changed, make(pipe, output_type="latent"))


@pytest.mark.parametrize("stop", [1, 2])
def test_a_video_goes_on_from_its_state_with_the_same_bits(pipe, cat, tmp_path, stop):
    whole = make(pipe, reference_images=cat, output_type="latent")

    def keep(pipe, step, timestep, given):
        if step + 1 == stop:
            save_file(given["resume_state"], tmp_path / "state.safetensors")
            pipe._interrupt = True
        return {}

    asked = {"reference_images": cat, "output_type": "latent"}
    make(pipe, **asked, callback_on_step_end=keep, callback_on_step_end_tensor_inputs=["resume_state"])
    state = load_file(tmp_path / "state.safetensors")
    assert torch.equal(make(pipe, **asked, resume_state=state), whole)
    latents = state["latents"]
    last = {"last_sample": torch.zeros(2, 2)} if "last_sample" in state else {"model_outputs.0": latents}
    for changed, said, more in (
        (state, "must be of latents", {"num_frames": 9}),
        (state, "the same 6 steps and shift .got 3 steps", {"num_inference_steps": 6}),
        (state, "must be a dict .got 'state'", {"resume_state": "state"}),
        ({**state, "latents": [1]}, "a dict of tensors .got list for latents", {}),
        ({**state, "step": torch.tensor(1.5)}, "between 0 and 3 .got 1.5", {}),
        ({**state, "step": torch.tensor([1, 2])}, "between 0 and 3", {}),
        ({"latents": latents, "step": state["step"]}, "got no sigmas", {}),
        ({**state, **last}, "must be of", {}),
    ):
        with pytest.raises(InputError, match=f"resume_state .*{said}"):
            make(pipe, **asked, **{"resume_state": changed, **more})
    pipe.scheduler = build_scheduler("euler" if "last_sample" in state else "unipc", shift_of(pipe.scheduler))
    with pytest.raises(InputError, match="resume_state must be of the same scheduler"):
        make(pipe, **asked, resume_state=state)


def test_it_saves_loads_and_shares_its_components(pipe, cat, tmp_path):
    before = make(pipe, reference_images=cat)
    pipe.save_pretrained(tmp_path / "copy")
    assert np.array_equal(make(PhantomPipeline.from_pretrained(tmp_path / "copy"), reference_images=cat), before)
    extra = {"preset": pipe.config.preset} if "preset" in pipe.config else {}
    again = type(pipe)(**pipe.components, **extra)
    assert again.transformer is pipe.transformer
    assert np.array_equal(make(again, reference_images=cat), before)
    assert np.array_equal(make(type(pipe).from_pipe(pipe), reference_images=cat), before)


def test_the_base_class_finds_the_class_of_a_pipeline(pipe, cat, folders, kind):
    again = PhantomPipeline.from_pipe(pipe)
    assert type(again) is type(pipe)
    assert np.array_equal(make(again, reference_images=cat), make(pipe, reference_images=cat))
    if kind == "wan":
        theirs = WanPipeline.from_pretrained(folders["wan"], tokenizer=pipe.tokenizer)
        ours = PhantomPipeline.from_pipe(theirs)
        assert type(ours) is type(pipe)
        assert np.array_equal(make(ours, reference_images=cat), make(pipe, reference_images=cat))
        assert type(theirs.transformer) is WanTransformer3DModel
    with pytest.raises(InputError, match="no pipeline for a transformer of class Linear"):
        PhantomPipeline.from_pipe(SimpleNamespace(transformer=torch.nn.Linear(1, 1)))


def test_a_pipeline_without_a_vae_gives_latents(folders, kind, cat):
    pipe, whole = PhantomPipeline.from_pretrained(folders[kind], vae=None), PhantomPipeline.from_pretrained(folders[kind])
    assert torch.equal(make(pipe, output_type="latent"), make(whole, output_type="latent"))
    for asked in ({}, {"output_type": "latent", "reference_images": cat}):
        with pytest.raises(CheckpointError, match="this pipeline has no vae; without it output_type must be latent"):
            make(pipe, **asked)
    pipe.transformer = None
    with pytest.raises(CheckpointError, match="this pipeline has no transformer"):
        make(pipe, output_type="latent")


def test_dtypes_and_devices_move(pipe, cat):
    before = make(pipe, reference_images=cat)
    pipe.to(torch.bfloat16)
    assert pipe.transformer.dtype is torch.bfloat16
    half = make(pipe, reference_images=cat)
    assert np.isfinite(half).all()
    assert 0 < np.abs(half - before).mean() < 0.1
    with pytest.raises((RuntimeError, AssertionError), match=r"CUDA|cuda|NVIDIA"):
        pipe.to("cuda") if not torch.cuda.is_available() else pytest.skip("there is a GPU")


def test_offloading_changes_no_bit(pipe, cat):
    before = make(pipe, reference_images=cat)
    pipe.enable_model_cpu_offload(device="cpu")
    assert np.array_equal(make(pipe, reference_images=cat), before)
    assert np.array_equal(make(pipe, reference_images=cat), before)


def test_group_offloading_changes_no_bit(pipe, cat):
    before = make(pipe, reference_images=cat)
    pipe.enable_group_offload(torch.device("cpu"), torch.device("cpu"), "leaf_level")
    assert np.array_equal(make(pipe, reference_images=cat), before)


def test_a_cache_that_skips_nothing_changes_no_bit(folders, cat):
    pipe = PhantomPipeline.from_pretrained(folders["wan"])
    before = make(pipe, reference_images=cat)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert np.array_equal(make(pipe, reference_images=cat), before)
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=10.0))
    assert not np.array_equal(make(pipe, reference_images=cat), before)


def test_a_lora_loads_scales_fuses_and_unloads(folders, cat, tmp_path):
    pipe = PhantomPipeline.from_pretrained(folders["wan"])
    before = make(pipe, reference_images=cat)
    pipe.load_lora_weights(str(lora_file(tmp_path)), adapter_name="style")
    with_lora = make(pipe, reference_images=cat)
    assert np.abs(with_lora - before).max() > 1e-3
    pipe.set_adapters("style", 0.0)
    np.testing.assert_allclose(make(pipe, reference_images=cat), before, atol=1e-5)
    pipe.set_adapters("style", 1.0)
    pipe.fuse_lora()
    np.testing.assert_allclose(make(pipe, reference_images=cat), with_lora, atol=1e-3)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    np.testing.assert_allclose(make(pipe, reference_images=cat), before, atol=1e-4)


def lora_file(folder, name="lora.safetensors"):
    key, generator = "transformer.blocks.0.attn1.to_q", torch.Generator().manual_seed(0)
    shapes = {"A": (3, native.DIM), "B": (native.DIM, 3)}
    folder.mkdir(exist_ok=True)
    save_file({f"{key}.lora_{p}.weight": torch.randn(s, generator=generator) for p, s in shapes.items()}, folder / name)
    return folder / name


def test_what_is_saved_loads_again_with_loras_and_the_text_cache(folders, cat, tmp_path):
    pipe = load_models(folders["wan"], Placement(cache_text=True, device="cpu"))
    pipe.load_lora_weights(lora_file(tmp_path), adapter_name="style")
    with pytest.raises(InputError, match=r"no part of saved weights \(on: style\); call fuse_lora or"):
        pipe.save_pretrained(tmp_path / "active")
    assert not (tmp_path / "active").exists()
    pipe.fuse_lora()
    pipe.save_pretrained(tmp_path / "fused")
    fused = make(pipe, reference_images=cat)
    assert np.array_equal(make(PhantomPipeline.from_pretrained(tmp_path / "fused"), reference_images=cat), fused)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "plain")
    plain = make(PhantomPipeline.from_pretrained(tmp_path / "plain"), reference_images=cat)
    np.testing.assert_allclose(plain, make(PhantomPipeline.from_pretrained(folders["wan"]), reference_images=cat), atol=1e-4)
    assert np.abs(plain - fused).max() > 1e-3


@pytest.mark.parametrize("changes", [{"safe_serialization": False}, {"variant": "fp16"}])
def test_a_folder_that_would_not_load_is_not_saved(pipe, tmp_path, changes):
    with pytest.raises(InputError, match="saved as safetensors and without a variant"):
        pipe.save_pretrained(tmp_path / "model", **changes)
    assert not (tmp_path / "model").exists()


def test_a_pipeline_of_the_papers_model_is_saved_without_adapters(folders, cat, tmp_path):
    pipe = PhantomPipeline.from_pretrained(folders["mmdit"])
    plain = make(pipe, reference_images=cat)
    pipe.transformer.add_adapter(LoraConfig(target_modules=["q"]), "style")
    with pytest.raises(InputError, match=r"no part of saved weights .on: style"):
        pipe.save_pretrained(tmp_path / "model")
    pipe.transformer.disable_adapters()
    pipe.save_pretrained(tmp_path / "model")
    assert np.array_equal(make(PhantomPipeline.from_pretrained(tmp_path / "model"), reference_images=cat), plain)


def test_layerwise_casting_is_near(pipe, cat):
    before = make(pipe, reference_images=cat, num_inference_steps=1, output_type="latent")
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    after = make(pipe, reference_images=cat, num_inference_steps=1, output_type="latent")
    assert 0 < (after - before).std() < 0.5 * before.std()


def test_the_callers_transformer_stays_as_it_is(folders, tmp_path):
    """Through fused LoRAs, through differences of norms, and in its type and place."""
    given = WanTransformer3DModel.from_pretrained(folders["wan"] / "transformer")
    before = {name: value.clone() for name, value in given.state_dict().items()}
    pipe = PhantomPipeline.from_pretrained(folders["wan"], transformer=given)
    own = {each.data_ptr() for each in given.parameters()}
    assert own == {each.data_ptr() for each in pipe.transformer.parameters()}  # no second set of weights
    pipe.load_lora_weights(lora_file(tmp_path))
    pipe.fuse_lora()
    save_file({"blocks.0.norm3.diff": torch.full((native.DIM,), 0.3)}, tmp_path / "norms.safetensors")
    pipe.load_lora_weights(tmp_path / "norms.safetensors")
    pipe.to(torch.bfloat16)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


def test_a_lora_comes_from_a_file_a_folder_or_a_dict(folders, cat, tmp_path):
    file = lora_file(tmp_path / "lora", "pytorch_lora_weights.safetensors")
    lora_file(tmp_path / "lora", "other.safetensors")
    sources = [(file, {}), (str(file), {}), (str(tmp_path / "lora"), {}), (load_file(file), {})]
    sources += [(tmp_path / "lora", {"weight_name": "other.safetensors"})]
    videos = []
    for source, options in sources:
        pipe = PhantomPipeline.from_pretrained(folders["wan"])
        pipe.load_lora_weights(source, **options)
        videos.append(make(pipe, reference_images=cat))
    assert all(np.array_equal(video, videos[0]) for video in videos[1:])


@pytest.mark.parametrize(("source", "options", "said"), [
    ("nope.safetensors", {}, "nope.safetensors is not a readable LoRA"),
    (Path("a/b"), {}, "a/b is not a readable LoRA"),
    (str(Path(__file__).parent), {}, "has no LoRA; it must hold pytorch_lora_weights.safetensors or adapter_model.safetensors"),
    (str(Path(__file__).parent), {"weight_name": "x.safetensors"}, "it must hold x.safetensors"),
    (None, {}, "a LoRA must be a file, .* .got None"),
    ({}, {}, "a LoRA must be a file, .* .got {}"),
    ({"a": torch.zeros(1)}, {}, "the state dict cannot be loaded as a LoRA: "),
    ("nope.safetensors", {"adapter_name": "a.b"}, "adapter_name must be a text without dots .got 'a.b'"),
    ("nope.safetensors", {"adapter_name": 3}, "adapter_name must be .* .got 3"),
])  # fmt: skip
def test_what_is_no_lora_is_one_sentence(folders, source, options, said):
    pipe = PhantomPipeline.from_pretrained(folders["wan"])
    with pytest.raises((InputError, CheckpointError), match=said) as error:
        pipe.load_lora_weights(source, **options)
    assert len(str(error.value).splitlines()) == 1


def test_weights_of_adapters_are_finite(folders, tmp_path):
    pipe = PhantomPipeline.from_pretrained(folders["wan"])
    pipe.load_lora_weights(lora_file(tmp_path), adapter_name="style")
    with pytest.raises(InputError, match=r"weights of adapters must be finite .got nan"):
        pipe.set_adapters("style", float("nan"))


def test_caches_with_one_state_get_the_branches_as_one_batch(folders, cat):
    """Else the attention of one branch would be used for the next."""
    pipe = PhantomPipeline.from_pretrained(folders["wan"])
    before = make(pipe, reference_images=cat)
    own = {"current_timestep_callback": lambda: pipe.current_timestep, "spatial_attention_timestep_skip_range": (-1, 0)}
    rows = []
    pipe.transformer.register_forward_hook(lambda module, args, out: rows.append(len(out[0])))
    for config in (PyramidAttentionBroadcastConfig, FasterCacheConfig):
        distilled = (
            {"is_guidance_distilled": True, "attention_weight_callback": lambda _: 0.5} if config is FasterCacheConfig else {}
        )
        pipe.transformer.enable_cache(config(spatial_attention_block_skip_range=2, **own, **distilled))
        np.testing.assert_allclose(make(pipe, reference_images=cat), before, atol=1e-4)  # no timestep is skipped
        assert rows == [3, 3, 3]
        rows.clear()
        pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(
        FasterCacheConfig(spatial_attention_block_skip_range=2, **own, attention_weight_callback=lambda _: 0.5)
    )
    with pytest.raises(InputError, match="must have is_guidance_distilled=True"):
        make(pipe, reference_images=cat)


def test_a_pipeline_without_a_text_encoder_takes_embeds(folders):
    whole = PhantomPipeline.from_pretrained(folders["wan"])
    pipe = PhantomPipeline.from_pretrained(folders["wan"], text_encoder=None, tokenizer=None)
    embeds, negative = whole.encode_prompt("A cat moves.", whole.preset.negative_prompt)
    given = make(pipe, None, prompt_embeds=embeds, negative_prompt_embeds=negative)
    assert np.array_equal(given, make(whole))
    with pytest.raises(CheckpointError, match="no text encoder; give prompt_embeds"):
        make(pipe)


def test_diffusers_own_loading_finds_it_by_custom_pipeline(folders, cat):
    folder = str(folders["wan"])
    ours = PhantomPipeline.from_pretrained(folder)
    own = {"tokenizer": ours.tokenizer, "torch_dtype": torch.float32}  # the tiny tokenizer is not T5's
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True, **own)
    assert type(pipe) is type(ours)
    expected = make(ours, reference_images=cat)
    np.testing.assert_allclose(make(pipe, reference_images=cat), expected, atol=1e-5)


def scripts(page):
    return re.findall(r"```python\n(.*?)```", (Path(__file__).parents[2] / page).read_text(), re.S)


SCRIPTS = [script for page in ("README.md", "docs/phantom-wan.md") for script in scripts(page)]


@pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # export_to_video starts ffmpeg by a fork; other tests import lance
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.splitlines()[0])
def test_the_scripts_of_the_docs_run(folders, cat, tmp_path, monkeypatch, script):
    """As they are, but for a tiny model, a small video and no GPU."""
    for name in ("torchao", "gguf"):
        pytest.importorskip(name) if name in script else None
    for name in ("woman.png", "bag.png", "fox.webp"):
        cat.save(tmp_path / name)
    if "gguf" in script:
        write_gguf(tmp_path / "phantom-wan-14b-Q4_0.gguf")
    (tmp_path / "phantom-wan-1.3b").symlink_to(folders["wan"])
    (tmp_path / "phantom-wan-14b").symlink_to(folders["wan"])
    monkeypatch.chdir(tmp_path)
    offload = DiffusionPipeline.enable_model_cpu_offload
    monkeypatch.setattr(
        DiffusionPipeline, "enable_model_cpu_offload", lambda pipe, **own: offload(pipe, **{"device": "cpu", **own})
    )
    small = f"num_frames=5, {', '.join(f'{k}={v}' for k, v in ASK.items() if k != 'num_frames')}"
    script = (
        re.sub(r"num_frames=\d+", small, script) if "num_frames" in script else script.replace(").frames", f", {small}).frames")
    )
    known = {}
    exec(script, known)
    if "video" in known:
        assert known["video"].shape == (5, 32, 32, 3)
    else:
        assert make(known["pipe"], output_type="latent").isfinite().all()


@pytest.mark.parametrize("cls", [WanPipeline, PhantomPipeline])
def test_a_script_for_wan_runs_with_the_class_and_the_references_changed(folders, cat, cls):
    tokenizer = PhantomPipeline.from_pretrained(folders["wan"]).tokenizer  # the tiny one is not T5's, as the index says
    pipe = cls.from_pretrained(folders["wan"], torch_dtype=torch.float32, tokenizer=tokenizer)
    pipe.set_progress_bar_config(disable=True)
    own = {"reference_images": [cat], "untrained_size": True} if cls is PhantomPipeline else {}
    video = pipe(
        prompt="A cat moves.", negative_prompt="blurry", height=32, width=32, num_frames=5, num_inference_steps=2,
        guidance_scale=5.0, generator=torch.Generator().manual_seed(0), **own,
    ).frames[0]  # fmt: skip
    assert video.shape == (5, 32, 32, 3)


@pytest.mark.parametrize(("changes", "said"), [
    ({"reference_images": 3}, "must be images"),
    ({"reference_images": np.zeros((4, 4, 7), np.uint8)}, r"got \(4, 4, 7\)"),
    ({"reference_images": np.full((4, 4, 3), np.nan, np.float32)}, "finite values"),
    ({"reference_images": np.full((4, 4, 3), 255.0, np.float32)}, "values from 0 to 1"),
    ({"reference_images": np.zeros((4, 4, 3), np.int32)}, "must be uint8"),
    ({"reference_images": [np.zeros((4, 4, 3), np.uint8)] * 5}, "at most 4"),
    ({"prompt_embeds": torch.zeros(1, 2, 3)}, "got both"),
    ({"prompt": None}, "got neither"),
    ({"prompt": 7}, "must be a string"),
    ({"output_type": "mp4"}, "output_type must be"),
    ({"num_frames": 6}, "must be 4n"),
    ({"height": 33}, "multiple"),
    ({"num_inference_steps": 0}, "num_inference_steps must be between"),
    ({"guidance_scale": float("nan")}, "guidance_scale"),
    ({"latents": torch.full((1, 16, 2, 4, 4), float("nan"))}, "latents is not finite|must have shape .1, 8"),
    ({"generator": [torch.Generator(), torch.Generator()]}, "got 2 for"),
    ({"prompt": ["a", "b"], "reference_images": [[], [np.zeros((4, 4, 3), np.uint8)]]}, "same number of reference images"),
    ({"reference_images": {"cat": []}}, "an image of each name .got none of cat"),
    ({"reference_images": "https://example.org/a.png"}, "download it first"),
    ({"reference_images": {"background": np.zeros((4, 4, 3), np.uint8)}}, "use background for an image of the place"),
    ({"reference_images": [np.zeros((4, 4, 3), np.uint8)] * 4, "background": "a.png"}, "with the background|at most 4"),
    ({"background": [np.zeros((4, 4, 3), np.uint8)]}, "the image of background must be a path, .* .got list"),
    ({"image": 3}, "not support a first frame|the first frame must be a path, .* .got int"),
    ({"image": [np.zeros((4, 4, 3), np.uint8)] * 2}, "image must be one, or one per prompt .got 2|not support a first frame"),
    ({"prompt": ["a", ""]}, "a prompt or a reference image is required"),
    ({"prompt": ["a", 3]}, "prompt must be a string or a list of strings .got list"),
    ({"negative_prompt": 3}, "negative_prompt must be a string or a list of strings .got 3"),
    ({"negative_prompt": []}, "negative_prompt must be one, or one per prompt .got 0"),
    ({"negative_prompt": ["a", "b"]}, "one per prompt .got 2 for 1"),
    ({"negative_prompt": "a", "negative_prompt_embeds": torch.zeros(1, 2, 3)}, "either negative_prompt or .* .got both"),
    ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be a whole number between 1 and 1000 .got 0"),
    ({"num_videos_per_prompt": "2"}, "got '2'"),
    ({"num_videos_per_prompt": 1.5}, "got 1.5"),
    ({"max_sequence_length": None}, "max_sequence_length must be a whole number between 2 and 512 .got None"),
    ({"max_sequence_length": 513}, "got 513"),
    ({"generator": 5}, "generator must be a torch.Generator, or a list of one per video .got 5"),
    ({"generator": [5]}, "got 5"),
    ({"generator": (torch.Generator(),)}, "got tuple"),
    ({"guidance_scale_2": 3.0}, "guidance_scale_2 is of Wan2.2, which has two transformers"),
    ({"released_behavior": 3}, "released_behavior must be true or false"),
    ({"segmenter": "sam"}, "^segmenter has an effect with cutout only"),
    ({"untrained_size": False, "width": 2048, "height": 2048}, "use untrained_size to override"),
    ({"attention_kwargs": 3}, "attention_kwargs must be a dict .got 3"),
    ({"callback_on_step_end": 3}, "callback_on_step_end must be a function .got 3"),
    ({"callback_on_step_end_tensor_inputs": "latents"}, "must be a list of .* .got 'latents'"),
    ({"callback_on_step_end_tensor_inputs": None}, "must be a list of .* .got None"),
    ({"callback_on_step_end": lambda *_: 3}, "must return a dict or None .got int"),
    ({"callback_on_step_end": lambda *_: {"latents": torch.zeros(1)}}, "must return latents of shape"),
    ({"callback_on_step_end": lambda *_: {"prompt_embeds": None}}, "must return prompt_embeds as a tensor .got NoneType"),
    ({"latents": np.zeros((1, 16, 2, 4, 4))}, "latents must be a floating point tensor .got float64"),
    ({"latents": torch.zeros(16, 2, 4, 4)}, "latents must have 5 dimensions"),
    ({"latents": torch.zeros(1, 1, 2, 4, 4)}, r"latents must have shape \[1, (16|8), 2, 4, 4\] .got \[1, 1, 2, 4, 4"),
    ({"prompt": None, "prompt_embeds": [torch.zeros(1, 2, 3)]}, "prompt_embeds must be a floating point tensor .got list"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 2, 3)}, r"prompt_embeds must have shape \[1, 1 to \d+, (24|384)\]"),
    ({"prompt": None, "prompt_embeds": torch.zeros(1, 0, 24)}, "prompt_embeds must have shape"),
    ({"negative_prompt_embeds": torch.zeros(3, 2, 24)}, "negative_prompt_embeds must have shape"),
    ({"reference_latents": torch.zeros(1, 3, 1, 4, 4)}, r"must have shape \[1, 16, 0 to 4, 4, 4\]|for Phantom-Wan only"),
    ({"reference_latents": torch.zeros(3, 16, 1, 4, 4)}, r"must have shape \[1, 16|for Phantom-Wan only"),
    ({"reference_latents": torch.zeros(1, 16, 5, 4, 4)}, r"must have shape \[1, 16|for Phantom-Wan only"),
    ({"reference_latents": torch.zeros(1, 16, 1, 4, 4), "background": "a.png"}, "got both|for Phantom-Wan only"),
    ({"prompt": ["a", "b"], "reference_images": [{"x": "a.png"}, {"background": "a.png"}]}, "use background for an image"),
])  # fmt: skip
def test_what_cannot_be_made_is_one_sentence(pipe, changes, said):
    asked = {"prompt": "A cat.", **ASK, **changes}
    with pytest.raises(InputError, match=said) as error:
        pipe(**asked)
    assert len(str(error.value).splitlines()) == 1


SCHEDULERS = {
    "DPMSolverMultistepScheduler": {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
    "FlowMatchHeunDiscreteScheduler": {}, "DDIMScheduler": {}, "UniPCMultistepScheduler": {},
    "FlowMatchEulerDiscreteScheduler": {"use_dynamic_shifting": True}, "EulerDiscreteScheduler": {},
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_that_follow_no_flow_on_our_grid_are_refused(pipe, name):
    pipe.scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    with pytest.raises(InputError, match=f"scheduler must be FlowMatchEulerDiscreteScheduler, or .* .got {name}"):
        make(pipe)


def test_a_callback_that_sets_the_guidance_is_heard_from_the_next_step_on(pipe, cat):
    def cut(pipe, step, timestep, given):
        pipe._guidance_scale = pipe._image_guidance_scale = 1.0
        return given

    calls = []
    pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, out: calls.append(len(out[0] if isinstance(out, tuple) else out)), with_kwargs=True
    )
    cutoff = make(pipe, reference_images=cat, callback_on_step_end=cut, output_type="latent")
    assert sum(calls) == 3 + 1 + 1  # rows of the branches
    assert not torch.equal(cutoff, make(pipe, reference_images=cat, output_type="latent"))
    make(pipe, reference_images=cat, callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1))
    assert pipe.guidance_scale == 0.0


def test_the_first_arguments_are_wan_pipelines(pipe, cat):
    ours, wan = (list(inspect.signature(each.__call__).parameters.values()) for each in (type(pipe), WanPipeline))
    positional = [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert len(positional) == 8  # with self
    assert positional == [p.name for p in wan[: len(positional)]]
    ours, wan = (list(inspect.signature(each.encode_prompt).parameters)[1:] for each in (type(pipe), WanPipeline))
    assert ours == wan
    embeds, none = pipe.encode_prompt("A cat.", do_classifier_free_guidance=False, dtype=torch.bfloat16)
    assert (embeds.dtype, none) == (torch.bfloat16, None)


def test_latents_of_references_go_with_their_prompts(folders):
    pipe = PhantomPipeline.from_pretrained(folders["wan"])
    references = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(4))
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    four = make(
        pipe, ["a", "b"], reference_latents=references, num_videos_per_prompt=2, generator=generators, output_type="latent"
    )
    for i, prompt in enumerate("aabb"):
        one = make(pipe, prompt, i, reference_latents=references[i // 2 : i // 2 + 1], output_type="latent")
        torch.testing.assert_close(four[i : i + 1], one, atol=1e-4, rtol=1e-4)


def test_first_frames_go_with_their_prompts(folders, cat):
    pipe = PhantomPipeline.from_pretrained(folders["mmdit"])
    frames = [cat, cat.rotate(90)]
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    both = make(pipe, ["a", "b"], image=frames, generator=generators, output_type="latent")
    for i, prompt in enumerate("ab"):
        torch.testing.assert_close(
            both[i : i + 1], make(pipe, prompt, i, image=frames[i], output_type="latent"), atol=1e-4, rtol=1e-4
        )


def test_loading_with_what_only_wan22_has_is_one_sentence(folders):
    for folder in folders.values() if isinstance(folders, dict) else folders:
        with pytest.raises(InputError, match=r"boundary_ratio is of Wan2\.2"):
            PhantomPipeline.from_pretrained(folder, boundary_ratio=0.9)


def test_the_docs_compare_all_of_wan_pipeline_with_ours():
    """Every argument of its call, every component and every public name that it defines stands in a row that is not empty."""
    text = (Path(__file__).parents[2] / "docs" / "phantom-wan.md").read_text()
    table = text.split("| WanPipeline | PhantomWanPipeline |\n")[1].split("\n\n")[0].splitlines()[1:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    assert all(len(row) == 2 and all(row) for row in rows), rows
    documented = set(re.findall(r"[a-z_0-9]+", " ".join(name for row in rows for name in re.findall(r"`([^`]+)`", row[0]))))
    call, init = (set(inspect.signature(f).parameters) - {"self"} for f in (WanPipeline.__call__, WanPipeline.__init__))
    public = {name for name in vars(WanPipeline) if not name.startswith("_")} - {"model_cpu_offload_seq"}
    assert not (call | init | public) - documented
    ours = set(inspect.signature(PhantomWanPipeline.__call__).parameters)
    for name in call - {"self"} - (ours - {"guidance_scale_2"}):
        row = next(row for row in rows if f"`{name}`" in row[0])
        assert row[1].startswith("none"), f"{name} is not an argument of ours, and the docs say: {row[1]}"
    for name in public:
        assert hasattr(PhantomWanPipeline, name) or next(row for row in rows if f"`{name}`" in row[0])[1].startswith("none")
