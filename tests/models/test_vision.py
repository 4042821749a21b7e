"""Larger vision models: transformers' own, tiny and random, through the same calls as the large ones."""

import numpy as np
import pytest
import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
)

from phantom_s2v.data.detectors.phrases import detect_phrases
from phantom_s2v.data.pipeline.networks import packaged_models
from phantom_s2v.errors import CheckpointError
from phantom_s2v.vision import detect
from phantom_s2v.vision.detect import OpenVocabularyDetector
from phantom_s2v.vision.embed import Embedder
from phantom_s2v.vision.vlm import VisionLanguageModel

IMAGES = list(np.random.default_rng(0).integers(0, 255, (3, 40, 60, 3)).astype(np.uint8))
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_dinov2_embeds_by_its_class_token(tmp_path):
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14))
    model.save_pretrained(tmp_path)
    BitImageProcessor(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}).save_pretrained(tmp_path)
    embed = Embedder(tmp_path)
    found = embed(IMAGES)
    pixels = embed.prepare(images=IMAGES, return_tensors="pt")["pixel_values"]
    token = model.eval()(pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(found, torch.nn.functional.normalize(token, dim=-1).detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def tokenizer():
    signs = [chr(c) for c in range(33, 127)]
    words = [*signs, *[sign + "</w>" for sign in signs], "<|startoftext|>", "<|endoftext|>"]  # OWLv2 pools at the highest id
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16), len(words)


def test_clip_embeds_by_its_projection(tmp_path):
    torch.manual_seed(0)
    config = CLIPConfig(text_config=SMALL, vision_config={**SMALL, "image_size": 32, "patch_size": 16}, projection_dim=24)
    CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert Embedder(tmp_path)(IMAGES).shape == (3, 24)


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    torch.manual_seed(0)
    folder, (words, count) = tmp_path_factory.mktemp("owl"), tokenizer()
    marks = {"bos_token_id": count - 2, "eos_token_id": count - 1, "pad_token_id": count - 1}
    text = {**SMALL, "vocab_size": count, "max_position_embeddings": 16, **marks}
    config = Owlv2Config(text_config=text, vision_config={**SMALL, "image_size": 64, "patch_size": 16}, projection_dim=32)
    Owlv2ForObjectDetection(config).save_pretrained(folder)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 64, "width": 64}), words).save_pretrained(folder)
    return folder


def test_phrases_that_fit_one_place_get_a_box(owl, monkeypatch):
    phrases = ["red dog", "cat"]
    every = OpenVocabularyDetector(owl, 0.0)
    monkeypatch.setattr(detect, "ONE_PLACE", 0.0)  # all boxes of a phrase are one place: the surest of each is left
    best = every(IMAGES[0], phrases)
    assert len({phrase for _, phrase, _ in best}) == len(best) >= 1
    assert all(0 <= b[0] < b[2] <= 60 and 0 <= b[1] < b[3] <= 40 for b, _, _ in best)
    assert every(IMAGES[0], []) == []
    found = detect_phrases(every, None, vlm("Yes."), IMAGES[:1], phrases)[0]
    assert all(d.has_logo for d in found)
    assert not any(d.has_logo for d in detect_phrases(every, None, None, IMAGES[:1], phrases)[0])
    for detection, (box, phrase, _) in zip(found, best, strict=True):
        assert (detection.box, detection.name) == (box, phrase)
        assert detection.mask.sum() == (box[2] - box[0]) * (box[3] - box[1])


def test_a_phrase_that_fits_several_places_names_none():
    rows = [
        ((1, 1, 20, 20), "red dog", 0.9), ((2, 1, 21, 20), "red dog", 0.8), ((30, 5, 50, 30), "cat", 0.7),
        ((1, 1, 20, 20), "cat", 0.6), ((70, 5, 90, 9), "bird", 0.5),
    ]  # fmt: skip

    class Fixed(Echo):
        def __call__(self, **_):
            return self

        def post_process_grounded_object_detection(self, *_, **__):
            boxes, labels, scores = zip(*rows, strict=True)
            return [{"boxes": torch.tensor(boxes, dtype=torch.float), "text_labels": labels, "scores": torch.tensor(scores)}]

        def to(self, device):
            return {}

    detector = OpenVocabularyDetector.__new__(OpenVocabularyDetector)
    detector.prepare = detector.model = Fixed("")
    detector.threshold = 0.3
    found = detector(IMAGES[0], ["red dog", "cat", "bird"])
    assert [(box, phrase) for box, phrase, _ in found] == [((1, 1, 20, 20), "red dog")]  # two cats; the bird is off the image


class Echo:
    """A processor and a model in one: remembers the chat, and answers with fixed tokens."""

    device = "cpu"

    def __init__(self, answer):
        self.answer, self.chat = answer, None

    def apply_chat_template(self, chat, **options):
        assert options["add_generation_prompt"]
        self.chat = chat
        return self

    def to(self, device):
        return {"input_ids": torch.zeros(1, 3, dtype=torch.long)}

    def generate(self, input_ids, **options):
        assert not options["do_sample"]
        return torch.cat([input_ids, torch.tensor([[7, 8]])], 1)

    def batch_decode(self, tokens, **_):
        assert tokens.tolist() == [[7, 8]]  # the question is not part of the answer
        return [f" {self.answer} "]


def vlm(answer):
    speaks = VisionLanguageModel.__new__(VisionLanguageModel)
    speaks.prepare = speaks.model = Echo(answer)
    return speaks


def test_a_vlm_captions_lists_and_compares():
    speaks = vlm("A red dog runs.")
    assert speaks.caption(IMAGES) == "A red dog runs."
    kinds = [part["type"] for part in speaks.model.chat[0]["content"]]
    assert kinds == ["image"] * 3 + ["text"]
    assert vlm("1. red dog\n2. old man\n\n- red dog").phrases("x") == ["red dog", "old man"]
    assert vlm("Yes, both.").same(*IMAGES[:2])
    assert not vlm("No.").same(*IMAGES[:2])


def test_larger_models_take_the_place_of_packaged_ones(owl, tmp_path):
    larger = {"captioner": None, "object_detector": owl, "segmenter": None, "embedder": None}
    models = packaged_models(larger=larger)
    assert models.detect.func is detect_phrases
    with pytest.raises(CheckpointError, match="not a valid AutoModel"):
        packaged_models(larger={**larger, "embedder": tmp_path})
