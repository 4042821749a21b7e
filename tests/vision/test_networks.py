"""Networks of a hub: transformers' own, tiny and random, loaded from files as a hub ships them, against transformers' calls."""

import shutil

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from phantom_s2v.errors import CheckpointError
from phantom_s2v.vision import transformers
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.embed import Embedder
from phantom_s2v.vision.factory import cut_chances
from phantom_s2v.vision.segment import ClipSegmenter, Segmenter, follow
from phantom_s2v.vision.transformers import TensorImages, load_chat, load_network, load_processor
from phantom_s2v.vision.vlm import VisionLanguageModel

EMBEDDERS = ("clip", "siglip", "dinov2", "dinov3")
TALKERS = ("qwen2.5-vl", "qwen3-vl")
PHRASES = ["gray wolf", "blue mug"]
BOX = (2, 3, 30, 40)


def unit(values):
    return torch.nn.functional.normalize(values, dim=-1).detach().numpy()


@pytest.mark.parametrize("name", EMBEDDERS)
def test_an_embedding_is_the_networks_own_of_its_processors_pixels(network, images, name):
    folder = network(name)
    found = Embedder(folder)(images * 4)  # more than one batch
    model = tf.AutoModel.from_pretrained(folder).eval()
    if name == "dinov3":  # its processor needs torchvision; Pillow's interpolation of floating point is the reference
        mean, std = (np.array(values)[:, None, None] for values in (transformers.IMAGENET_MEAN, transformers.IMAGENET_STD))
        planes = [[Image.fromarray(p[..., c].astype(np.float32) / 255) for c in range(3)] for p in images]
        resized = np.stack([[np.asarray(plane.resize((64, 64), Image.Resampling.BILINEAR)) for plane in each] for each in planes])
        pixels = torch.tensor((resized - mean) / std).float()
    else:
        pixels = load_processor("AutoImageProcessor", folder)(images=images, return_tensors="pt")["pixel_values"]
    if name in ("clip", "siglip"):
        expected = model.get_image_features(pixel_values=pixels).pooler_output
    else:
        expected = model(pixel_values=pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(found, np.tile(unit(expected), (4, 1)), atol=1e-4)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_words_lie_in_the_space_of_images(network, name):
    embed = Embedder(network(name))
    said = embed.words("a red dog " * 20)  # longer than the text encoder reads
    assert said.shape == embed([np.zeros((8, 8, 3), np.uint8)])[0].shape
    assert np.linalg.norm(said) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(said, embed.words("the blue mug"))


def test_sam2s_pixels_are_pillows_to_one_level_of_brightness(images):
    """torchvision rounds to whole levels, as Pillow does; both were held against torchvision itself (dev/LOG.md)."""
    pixels = TensorImages((128, 96))(images)
    levels = (
        pixels * torch.tensor(transformers.IMAGENET_STD).view(3, 1, 1) + torch.tensor(transformers.IMAGENET_MEAN).view(3, 1, 1)
    ) * 255
    resized = [np.asarray(Image.fromarray(p).resize((96, 128), Image.Resampling.BILINEAR), np.float32) for p in images]
    assert np.abs(levels.permute(0, 2, 3, 1).numpy() - np.stack(resized)).max() < 1.01


@pytest.mark.parametrize("name", TALKERS)
def test_a_vision_language_model_reads_its_own_template_and_images(network, images, name):
    folder = network(name)
    assert not (folder / "chat_template.json").exists()
    model = VisionLanguageModel(folder)
    inputs = load_chat(folder).apply_chat_template(
        [{"role": "user", "content": [{"type": "image", "image": images[0]}, {"type": "text", "text": "Who?"}]}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    text = model.prepare.batch_decode(inputs["input_ids"])[0]
    pads = "<|image_pad|>" * (int(inputs["image_grid_thw"].prod()) // 4)
    assert text == f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>Who?<|im_end|>\n<|im_start|>assistant\n"
    expected = load_processor("AutoImageProcessor", folder)(images=images[:1], return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], expected)


@pytest.mark.parametrize("name", TALKERS)
def test_answers_of_a_batch_are_those_of_single_questions(network, images, name):
    model = VisionLanguageModel(network(name))
    asked = [
        (images, "What happens?"),
        ([], "List the subjects"),
        (images[:1], "Is it whole?"),
        (images[1:], "Same?"),
        ([], "Go on"),
    ]
    together = model.answers(asked, 6)
    assert together == [model.ask(*each, 6) for each in asked]
    assert len(set(together)) > 1  # what is asked matters
    assert model.ask([images[0]], "Who?", 6) != model.ask([255 - images[0]], "Who?", 6)  # and what is seen


@pytest.mark.parametrize("name", ["grounding-dino", "owlv2"])
def test_a_detector_names_only_what_it_was_asked(network, images, name):
    found = OpenVocabularyDetector(network(name), 0.0)([*images] * 4, [*PHRASES, "Red dog."])
    assert len(found) == 12
    labels = {phrase for each in found for _, phrase, _ in each}
    assert labels == {*PHRASES, "Red dog."}
    for each, again in zip(found[:3], found[3:6], strict=True):
        assert [row[:2] for row in each] == [row[:2] for row in again]
        assert [row[2] for row in each] == sorted((row[2] for row in each), reverse=True)
        for (left, top, right, bottom), _, _ in each:
            assert 0 <= left < right <= 60
            assert 0 <= top < bottom <= 40


def test_grounding_dinos_scores_are_its_tokens_best(network, images):
    folder = network("grounding-dino")
    ours, boxes = OpenVocabularyDetector(folder)._scores(images[:1], PHRASES)
    processor, model = load_processor("AutoProcessor", folder), tf.GroundingDinoForObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=Image.fromarray(images[0]), text=[PHRASES], return_tensors="pt")
    words = processor.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert words == ["[CLS]", "gray", "wolf", ".", "blue", "mug", ".", "[SEP]"]
    out = model(**inputs)
    scores = out.logits.sigmoid()[0].detach().numpy()
    np.testing.assert_allclose(ours[0], np.stack([scores[:, 1:3].max(1), scores[:, 4:6].max(1)], 1), atol=1e-5)
    np.testing.assert_allclose(boxes[0], out.pred_boxes[0].detach().numpy(), atol=1e-5)
    named = processor.post_process_grounded_object_detection(out, inputs["input_ids"], threshold=0.0, text_threshold=0.0)
    assert set(named[0]["text_labels"]).isdisjoint(PHRASES)  # what it would call them is more than one phrase


def test_phrases_that_are_too_many_for_one_sentence_are_asked_in_several(network, images, monkeypatch):
    detector = OpenVocabularyDetector(network("grounding-dino"), 0.0)
    monkeypatch.setattr(detector.model.config, "max_text_len", 6)
    assert list(detector._questions(["gray wolf", "blue mug", "red dog"])) == [["gray wolf"], ["blue mug"], ["red dog"]]
    assert {phrase for _, phrase, _ in detector(images[:1], PHRASES)[0]} == set(PHRASES)


def test_a_phrase_that_matches_several_places_names_none(network, monkeypatch):
    detector = OpenVocabularyDetector(network("owlv2"), 0.25)
    boxes = np.array([[0.2, 0.2, 0.2, 0.2], [0.21, 0.2, 0.2, 0.2], [0.6, 0.5, 0.2, 0.2], [1.4, 0.5, 0.2, 0.2]])
    scores = np.array([[0.9, 0.1, 0.6], [0.8, 0.0, 0.1], [0.2, 0.0, 0.5], [0.0, 0.7, 0.0]])
    monkeypatch.setattr(detector, "_scores", lambda images, phrases: (scores[None], boxes[None]))
    found = detector([np.zeros((100, 100, 3), np.uint8)], ["red dog", "bird", "cat"])[0]
    assert found == [((10, 10, 30, 30), "red dog", 0.9)]  # two boxes of one place; the bird is off the image; two cats
    everything = detector([np.zeros((100, 100, 3), np.uint8)], ["red dog", "bird", "cat"], several=True)[0]
    assert [name for _, name, _ in everything] == ["red dog", "cat", "cat"]
    assert detector([np.zeros((9, 9, 3), np.uint8)], []) == [[]]


@pytest.mark.parametrize("name", ["sam2", "image"])
def test_sam2s_masks_are_of_boxes_in_the_whole_image(network, images, name, tmp_path):
    folder = network("sam2") if name == "sam2" else tiny_image_model(tmp_path)
    segmenter = Segmenter(folder)
    first, _ = segmenter(images[0], [BOX, (10, 10, 20, 20)])
    assert first.shape == (40, 60)
    assert np.array_equal(first, segmenter(images[0], [BOX])[0])  # boxes do not see each other
    other = images[0].copy()
    other[:, 45:] = 0  # far outside the box
    assert not np.array_equal(first, segmenter(other, [BOX])[0])  # the mask of a box sees what is around it
    model = segmenter.model
    out = model(pixel_values=segmenter.prepare(images[:1]), input_boxes=torch.tensor([[BOX]]) / torch.tensor([60, 40] * 2) * 128)
    best = out.pred_masks[:, 0, int(out.iou_scores[0, 0].argmax())][None]
    expected = torch.nn.functional.interpolate(best, (40, 60), mode="bilinear")[0, 0] > 0
    assert np.array_equal(first, expected.numpy())


def tiny_image_model(folder):
    import tiny_networks

    torch.manual_seed(0)
    return tiny_networks.sam2(folder, video=False)


def test_sam2_follows_boxes_as_transformers_does_with_the_whole_clip(network):
    """19 frames are more than its memories: transformers keeps all of them, and the frames as well."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    frames = np.random.default_rng(1).integers(0, 255, (19, 40, 60, 3)).astype(np.uint8)
    segmenter = ClipSegmenter(network("sam2"))
    boxes = [BOX, (10, 10, 20, 20)]
    session = Sam2VideoInferenceSession(segmenter.prepare(frames), 40, 60, dtype=torch.float32)
    for number, box in enumerate(boxes):
        session.obj_id_to_idx(number)
        corners = torch.tensor(box).view(1, 1, 2, 2) / torch.tensor([60, 40]) * 128
        session.add_point_inputs(
            number, 0, {"point_coords": corners, "point_labels": torch.tensor([[[2, 3]]], dtype=torch.int32)}
        )
    session.obj_with_new_inputs = [0, 1]
    segmenter.model(session, frame_idx=0)
    for found, out in zip(follow(segmenter, frames, boxes), segmenter.model.propagate_in_video_iterator(session, 0), strict=True):
        expected = torch.nn.functional.interpolate(out.pred_masks, (40, 60), mode="bilinear")[:, 0] > 0
        assert np.array_equal(np.stack(found), expected.numpy())


def test_objects_that_come_later_are_followed_and_the_first_stay(network, images):
    session = ClipSegmenter(network("sam2")).session(40, 60)
    assert session.see(images[0]) == []
    assert len(session.add([BOX])) == 1
    assert len(session.see(images[1])) == 1
    assert len(session.add([(10, 10, 20, 20)])) == 2
    assert len(session.see(images[2])) == 2


def test_transnetv2_goes_to_the_device_that_is_given():
    frames = np.random.default_rng(0).integers(0, 255, (100, 27, 48, 3)).astype(np.uint8)
    chances = cut_chances(torch.device("cpu"))(frames)
    assert chances.shape == (100,)
    assert ((chances >= 0) & (chances <= 1)).all()


# What goes wrong


def test_a_weight_that_is_missing_is_never_random(network, tmp_path):
    folder = shutil.copytree(network("dinov2"), tmp_path / "dinov2")
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    state.pop("encoder.layer.0.mlp.fc1.weight")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of Dinov2Model, such as encoder.layer.0.mlp.fc1.weight"):
        Embedder(folder)


def test_sam2s_image_model_cannot_follow(tmp_path):
    with pytest.raises(CheckpointError, match="image model, which cannot follow subjects"):
        ClipSegmenter(tiny_image_model(tmp_path))


@pytest.mark.parametrize("load", [Embedder, OpenVocabularyDetector, Segmenter, ClipSegmenter, VisionLanguageModel])
def test_a_folder_of_something_else_is_one_sentence(tmp_path, load):
    with pytest.raises(CheckpointError, match=f"{tmp_path} is not a valid .*: .") as told:
        load(tmp_path)
    assert "\n" not in str(told.value)


def test_a_detector_of_another_kind_is_refused(network):
    with pytest.raises(CheckpointError, match=r"is not a valid AutoModelForZeroShotObjectDetection|must be GroundingDINO"):
        OpenVocabularyDetector(network("clip"))


def test_what_needs_torchvision_says_which_extra_brings_it(network, tmp_path, monkeypatch):
    folder = shutil.copytree(network("dinov2"), tmp_path / "other")
    text = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(text.replace("BitImageProcessor", "Sam2ImageProcessor"))
    with pytest.raises(CheckpointError, match=r'torchvision is not installed; .* pip install "phantom-s2v\[torchvision\]"'):
        Embedder(folder)


def test_an_error_that_begins_with_an_empty_line_is_still_said(tmp_path):
    from phantom_s2v.models.bounds import loading

    with pytest.raises(CheckpointError, match="is not a valid thing: it needs a library"), loading(tmp_path, "thing"):
        raise ImportError("\n\n  it needs a library\nand more")


# Devices


def run(name, folder, images):
    """Numbers of a network, by the calls that the pipeline makes."""
    if name in EMBEDDERS:
        return Embedder(folder)(images)
    if name in ("grounding-dino", "owlv2"):
        return OpenVocabularyDetector(folder)._scores(images, PHRASES)[0]
    if name == "sam2":
        list(follow(ClipSegmenter(folder), images, [BOX]))
        return np.stack(Segmenter(folder)(images[0], [BOX])).astype(float)
    VisionLanguageModel(folder).answers([(images, "Who?"), ([], "What?")], 3)
    return np.zeros(1)


@pytest.mark.parametrize("name", [*EMBEDDERS, "grounding-dino", "owlv2", "sam2", *TALKERS])
def test_every_network_computes_in_bfloat16_where_the_device_does(network, images, name, monkeypatch):
    """On CUDA `precision` is bfloat16; the same path on the CPU, whose products are then seen to be of that type."""
    folder = network(name)
    exact = run(name, folder, images)
    monkeypatch.setattr(transformers, "precision", lambda device: torch.bfloat16)
    types = []
    real = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: types.append((out := real(*given)).dtype) or out)
    if name in TALKERS:
        model = load_network("AutoModelForImageTextToText", folder, torch.device("cpu"), torch.bfloat16)
        monkeypatch.setattr("phantom_s2v.vision.vlm.load_network", lambda *_: model)
    half = run(name, folder, images)
    assert types.count(torch.bfloat16) >= 0.8 * len(types) > 0
    if name != "sam2":  # of random weights, the best of three masks is chosen by a hair
        np.testing.assert_allclose(half, exact, atol=0.05)


def test_networks_go_to_cuda_where_it_is(network, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    moved = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where, **_: moved.append(where[0]) or self)
    load_network("AutoModel", network("dinov2"))
    assert moved == [torch.device("cuda", 0)]
    chosen = []
    for number in range(3):  # processes of one machine take its GPUs in turn
        monkeypatch.setenv("LOCAL_RANK", str(number))
        chosen.append(transformers.default_device())
    assert chosen == [torch.device("cuda", number) for number in (0, 1, 0)]
    assert transformers.precision(moved[0]) == torch.bfloat16
    assert transformers.precision(torch.device("cpu")) == torch.float32


@pytest.mark.parametrize("name", [*EMBEDDERS, "grounding-dino", "owlv2", "sam2"])
def test_no_tensor_of_a_forward_pass_stays_behind(network, images, name, monkeypatch):
    """On the meta device, which holds nothing: an input that was left on the CPU would be refused, or be seen here."""
    seen = []

    class Done(Exception):
        pass

    def look(module, given, named):
        tensors = [v for v in (*given, *named.values()) if isinstance(v, torch.Tensor)]
        seen.extend(value.device.type for value in tensors)
        raise Done

    folder = network(name)
    kinds = {"grounding-dino": OpenVocabularyDetector, "owlv2": OpenVocabularyDetector, "sam2": Segmenter}
    loaded = kinds.get(name, Embedder)(folder, device=torch.device("meta"))
    assert {p.device.type for p in loaded.model.parameters()} == {"meta"}
    inner = loaded.model.vision_model if name in ("clip", "siglip") else loaded.model
    inner.register_forward_pre_hook(look, with_kwargs=True)
    with pytest.raises(Done):
        loaded(images[0], [BOX]) if name == "sam2" else loaded(images, PHRASES) if name in kinds else loaded(images)
    assert set(seen) == {"meta"}
