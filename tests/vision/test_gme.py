"""GME's embeddings by transformers' base class, on a small random Qwen2-VL."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image
from safetensors.torch import load_file, save_file

from phantom_s2v.evaluation.suites.own import spread
from phantom_s2v.media import images as media
from phantom_s2v.media.videos import Video
from phantom_s2v.vision import gme
from phantom_s2v.vision.gme import MultimodalEmbedder


@pytest.fixture(scope="module")
def embedder(network):
    return MultimodalEmbedder(network("gme"))


def by_hand(folder, prompt, pixels=None, grid=None, count=0):
    """The hidden state of the last token of one prompt, by the parts of the model that generates, with positions of tokens."""
    model = tf.Qwen2VLForConditionalGeneration.from_pretrained(folder).model.eval()
    tokens = tf.AutoTokenizer.from_pretrained(folder)
    ids = tokens(prompt.replace("<|image_pad|>", "<|image_pad|>" * count), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        seen = model.get_input_embeddings()(ids)
        if pixels is not None:
            seen[ids == model.config.image_token_id] = model.visual(pixels, grid_thw=grid).pooler_output
        places = torch.arange(ids.shape[1]).expand(3, 1, -1)
        hidden = model.language_model(inputs_embeds=seen, position_ids=places).last_hidden_state[0, -1]
    return (hidden / hidden.norm()).numpy()


def test_texts_are_embedded_by_their_last_token(embedder, network):
    words = "A red dog runs."
    vector = embedder.words(words)
    np.testing.assert_allclose(vector, by_hand(network("gme"), gme.PROMPT.format(gme.QUERY, words)), atol=1e-5)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert np.abs(vector - embedder.words("A blue mug.")).max() > 1e-3
    assert embedder.words("x " * 3000).shape == vector.shape


def test_images_are_embedded_with_the_published_prompt_size_and_positions(embedder, network, images):
    vectors = embedder(images)
    assert vectors.shape == (3, 16)
    prepared = embedder.prepare.image_processor(images=[embedder._even(images[0])], return_tensors="pt")
    grid = prepared["image_grid_thw"]
    count = int(grid.prod()) // embedder.prepare.image_processor.merge_size**2
    assert 256 <= count <= 1280
    prompt = gme.PROMPT.format(gme.DEFAULT, gme.IMAGE)
    np.testing.assert_allclose(
        vectors[0], by_hand(network("gme"), prompt, prepared["pixel_values"], grid, count), atol=1e-5
    )  # fmt: skip
    np.testing.assert_allclose(embedder(images[:1]), vectors[:1], atol=1e-5)  # whatever it is padded beside
    wide = np.zeros((30, 200, 3), np.uint8)
    np.testing.assert_allclose(embedder([wide, images[0]])[1], vectors[0], atol=1e-5)


def test_gmescore_of_a_benchmark_is_written_under_our_name(network, tmp_path, call_phantom, embedder):
    rng = np.random.default_rng(0)
    case = {"img_paths": ["Images/cup/1.jpg"], "prompt": "A cup turns.", "class_label": ["Cup"]}
    (tmp_path / "Images" / "cup").mkdir(parents=True)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(tmp_path / "Images" / "cup" / "1.jpg")
    (tmp_path / "Eval.json").write_text(json.dumps({"singleobj_1": case}))
    video = np.stack([np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(3)])
    (tmp_path / "videos").mkdir()
    media.write_video(tmp_path / "videos" / "singleobj_1.mp4", video, 8)
    options = ("--videos", tmp_path / "videos", "--out", tmp_path / "out", "--features", "phantom-mini", "--reconstruct", "none")
    gme_folder = network("gme")
    code, said = call_phantom("evaluate", "run", "opens2v", tmp_path / "Eval.json", *options, "--gme", gme_folder)
    assert code == 0, said.err
    results = tmp_path / "out" / "videos_output_json"
    assert not (results / "gmescore.json").exists()  # the benchmark's own name
    found = json.loads((results / "gmescore_qwen2vl.json").read_text())["singleobj_1"]["gmescore_qwen2vl"]
    frames = spread(Video(tmp_path / "videos" / "singleobj_1.mp4"), 32)
    assert found == pytest.approx(float((embedder(frames) @ embedder.words("A cup turns.")).mean()), abs=1e-4)
    code, said = call_phantom("evaluate", "run", tmp_path, "--gme", gme_folder)
    assert code == 2
    assert "--gme are for the opens2v suite only" in said.err


def test_weights_in_the_layout_of_the_hub_are_the_same(embedder, network, tmp_path, images):
    """GME's repository names them as transformers did then, and has no head."""
    folder = tmp_path / "old"
    shutil.copytree(network("gme"), folder)
    state = load_file(folder / "model.safetensors")
    renamed = {}
    for name, value in state.items():
        if name.startswith("lm_head"):
            continue
        name = name.removeprefix("model.")
        inner = name.removeprefix("language_model.")
        renamed[name if name.startswith("visual.") else f"model.{inner}"] = value
    assert any(name.startswith("visual.") for name in renamed)
    assert any(name.startswith("model.layers.") for name in renamed)
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    np.testing.assert_allclose(MultimodalEmbedder(folder)(images[:1]), embedder(images[:1]), atol=1e-6)
