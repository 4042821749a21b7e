"""Every command of README and docs is accepted by the command line; text and names use the terms of the field."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from phantom_s2v.cli import evaluate, generate  # noqa: F401 - they register their commands
from phantom_s2v.cli.app import app
from phantom_s2v.cli.generate import requested
from phantom_s2v.cli.options import GenerateOptions
from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.models.wan.spec import WanModel

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEADS = {"phantom-wan-1.3b": 12, "phantom-wan-14b": 40}


def commands():
    """(page, arguments) of each `phantom` command in the pages' shell blocks; dots at its end stand for more options."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if "phantom_s2v" in words and "torchrun" in words[0]:
                    words = ["phantom", *words[words.index("phantom_s2v") + 1 :]]
                if words[:1] == ["phantom"]:
                    yield page.name, [word for word in words[1:] if word != "..."]


FOUND = list(commands())


def test_commands_are_found():
    assert len(FOUND) > 20
    assert {"generate", "data", "evaluate", "train", "convert", "estimate"} <= {words[0] for _, words in FOUND}


@pytest.mark.parametrize(("page", "words"), FOUND, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else value)
def test_a_command_of_the_docs_is_taken(page, words):
    command, context = typer.main.get_command(app), None
    names = list(words)
    while hasattr(command, "commands") and not (command.invoke_without_command and not (names and not names[0].startswith("--"))):
        name = names.pop(0)
        assert name in command.commands, f"{page}: phantom has no {name}"
        command = command.commands[name]
    context = command.make_context("phantom", names)
    assert not context.args, f"{page}: {context.args}"
    options = context.params
    if words[0] in ("generate", "estimate") and not (options.get("from_") or options.get("requests") or "--parallel" in words):
        model = options["model"]
        heads = HEADS.get(model)
        config = {"_class_name": "WanTransformer3DModel", "num_attention_heads": heads, "attention_head_dim": 128}
        preset = WanModel().preset(config) if heads else load_preset(model_folder(model))
        asked = GenerateOptions(**{name: options[name] for name in GenerateOptions.__dataclass_fields__})
        assert requested(asked, preset)


TERMS = {  # a word of our own, or British spelling -> the term of diffusers and PyTorch
    "pictures?": "image", "likeness(es)?": "similarity", "(?<!back)(?<!fore)grounds?(?![ -]truth|$)": "background",
    "films?": "source video", "looks(?= a batch)|apply_look|random_look": "appearance", "living": "is_person", "banks?": "index",
    "talker|grounder": "VisionLanguageModel, OpenVocabularyDetector", "judge": "classifier", "(?<!standard )deviations?": "std",
    "least_[a-z]+|[a-z]+_least|lowest_[a-z]+|[a-z]+_lowest": "min_", "most_(?!common)[a-z]+|highest_[a-z]+": "max_",
    "quantis[a-z]+": "quantization", "licen(ce|ces|ced)": "license", "(re)?colour(s|ed)?": "color", "grey": "gray",
    "behaviours?": "behavior", "centr(e|es|ed)": "center", "neighbour[a-z]*": "neighbor", "normalis[a-z]+": "normalize",
    "(summ?ar|paralle?l|orthogonal|util|initial|recogn|optim)is(e|ed|es|ing|ation)": "-ize", "told": "report, notify",
}  # fmt: skip
ALLOWED = {
    ("training/guard.py", "pictures"),  # a key in the state of trainings that go on
    ("studio/policies.py", "Likeness"),  # likeness rights are a term of law
    ("studio/policies.py", "likeness"),
}


@pytest.mark.parametrize("word", TERMS)
def test_the_terms_are_those_of_the_field(word):
    """In names (by their parts), text and docs; see CONTRIBUTING.md."""
    pattern = re.compile(rf"(?<![a-z])({word})(?![a-z])", re.IGNORECASE)
    package = ROOT / "src" / "phantom_s2v"
    files = [*PAGES, *(file for suffix in ("py", "html", "md") for file in package.rglob(f"*.{suffix}"))]
    used = [
        f"{file.name}:{number}: {match[0]}"
        for file in files
        for number, line in enumerate(file.read_text().splitlines(), 1)
        for match in pattern.finditer(line)
        if not any(str(file).endswith(end) and match[0] == allowed for end, allowed in ALLOWED)
    ]
    assert not used, f"say {TERMS[word]}: {used[:5]}"
