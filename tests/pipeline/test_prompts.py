"""The checker on written cases; the rephraser against a real HTTP server and a real, random vision-language model."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.pipeline import prompts

TWO = ["subject 1", "subject 2"]


@pytest.mark.parametrize(
    ("prompt", "names", "said"),
    [
        ("A red fox and a gray owl sit in the snow.", TWO, []),
        ("A red fox sits.", TWO, ["reference 2 is not described"]),
        ("It is snowing.", ["subject 1"], ["reference 1 is not described"]),
        ("A man walks with a small white dog.", TWO, ["only says 'man'"]),
        ("A tall woman greets a tall woman.", TWO, ["reference 2 is not described", "same description ('tall woman')"]),
        ("A tall woman greets a short woman.", TWO, []),
        ("The red cup stands on a table.", ["cup", "kettle"], ["does not mention 'kettle'"]),
        ("犬が公園を走る。", ["犬"], []),
        ("犬が公園を走る。", ["犬", "猫"], ["does not mention '猫'"]),
        ("一只狗在跑", ["subject 1"], []),
    ],
)
def test_what_the_checker_says(prompt, names, said):
    found = prompts.check_prompt(prompt, names)
    assert len(found) == len(said), found
    for sentence, part in zip(found, said, strict=True):
        assert part in sentence


def test_noun_phrases():
    found = prompts.noun_phrases("The red fox in a blue coat meets an old gray owl.")
    assert found == [("red", "fox"), ("blue", "coat"), ("old", "gray", "owl")]


@pytest.fixture
def server():
    """An endpoint that keeps what it was asked, and answers as it is told."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state["asked"].append((self.path, dict(self.headers), json.loads(body)))
            self.send_response(state["status"])
            self.end_headers()
            self.wfile.write(state["answer"].encode())

        def log_message(self, *_):
            pass

    state = {"asked": [], "status": 200, "answer": ""}
    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    state["url"] = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def answer(text):
    return json.dumps({"choices": [{"message": {"content": text}}]})


def test_an_endpoint_sees_images_and_prompt(server, monkeypatch):
    monkeypatch.setenv(prompts.KEY, "secret")
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    server["answer"] = answer(' "赤い狐が\n 雪の中を走る。" ')
    assert prompts.rephrase("狐が走る", [image], f"{server['url']}#some-model") == "赤い狐が 雪の中を走る。"
    path, headers, body = server["asked"][0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body["model"] == "some-model"
    sent_image, text = body["messages"][1]["content"]
    assert text["text"] == "狐が走る"
    sent = Image.open(io.BytesIO(base64.b64decode(sent_image["image_url"]["url"].split(",")[1])))
    assert np.array_equal(np.asarray(sent), image)


@pytest.mark.parametrize(
    ("status", "text", "said"),
    [
        (401, "{}", "returned status 401"),
        (200, "nonsense", "invalid response"),
        (200, "{}", "invalid response"),
        (200, answer("  "), "returned no prompt"),
    ],
)
def test_endpoints_that_fail(server, status, text, said):
    server["status"], server["answer"] = status, text
    with pytest.raises(InputError, match=said):
        prompts.rephrase("a", [], f"{server['url']}#m")


def test_endpoints_that_are_not_there():
    for where, said in (
        ("http://127.0.0.1:9/v1#m", "invalid response"), ("http://127.0.0.1:9/v1", "must be URL#MODEL"),
        ("ftp://x#m", "must be URL#MODEL"), ("no/such/folder", "must be URL#MODEL"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            prompts.rephrase("a", [], where)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A random LLaVA of some thousand parameters, with a byte tokenizer and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )  # fmt: skip

    folder = tmp_path_factory.mktemp("llava")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, "</s>": 1, "<image>": 2, **{c: i + 3 for i, c in enumerate(letters)}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", additional_special_tokens=["<image>"]
    )
    template = (
        "{% for m in messages %}{% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    side = {"shortest_edge": 28}
    processor = LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size={"height": 28, "width": 28}), tokenizer, patch_size=14,
        vision_feature_select_strategy="default", image_token="<image>", num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=2)).save_pretrained(
        folder
    )
    processor.save_pretrained(folder)
    return folder


def test_a_local_model_sees_the_images(llava, monkeypatch):
    monkeypatch.setattr(prompts, "ANSWER_TOKENS", 8)
    image = np.zeros((20, 30, 3), np.uint8)
    text = prompts.rephrase("A dog runs.", [image], str(llava))
    assert isinstance(text, str)
    assert text


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(CheckpointError, match="is not a valid vision-language model"):
        prompts.rephrase("a", [], str(tmp_path))


def test_the_command_rewrites_and_remembers(server, tiny, image, tmp_path, monkeypatch, capsys):
    from phantom_s2v import cli

    server["answer"] = answer("A gray square moves.")
    out = tmp_path / "v.mp4"
    arguments = [
        "--model",
        tiny,
        "--reference",
        image,
        "--prompt",
        "It moves.",
        "--num-frames",
        "1",
        "--num-inference-steps",
        "1",
        "--out",
        out,
    ]
    monkeypatch.setattr("sys.argv", ["phantom", "generate", *map(str, arguments), "--rephrase", f"{server['url']}#m"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0, capsys.readouterr().err
    request = json.loads(out.with_suffix(".metadata.json").read_text())["request"]
    assert (request["prompt"], request["asked_prompt"]) == ("A gray square moves.", "It moves.")
