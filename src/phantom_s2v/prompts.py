"""Prompts: the check that every subject is described and told apart, and the rephraser.

Phantom was trained on captions that describe every subject distinctly (Phantom 4, "confusing subjects"), and its authors
rewrite user prompts in that manner at inference; they ship no rephraser.
"""

import base64
import io
import json
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phantom_s2v.errors import CheckpointError, InputError

INSTRUCTION = (
    "You rewrite prompts for a video model that sees the attached reference pictures, in their order. Rewrite the prompt so that "
    "every pictured subject is described by how it looks in its picture, each by other features than the rest, and keep what the "
    "prompt says about action, place, camera and style. Do not describe the background of a picture. Keep the prompt's language. "
    "Answer with the rewritten prompt alone."
)
KEY = "PHANTOM_REPHRASE_KEY"  # environment variable with the endpoint's key
PATIENCE = 120  # seconds until an endpoint must have answered
ANSWER_TOKENS = 400
ARTICLES = r"a|an|the|one|another|this|that|his|her|its|their|my|our|two|three|four"
STOP = re.compile(  # what ends a noun phrase: verbs of being and doing that are common in prompts, prepositions, conjunctions
    "is|are|was|were|be|and|or|but|while|as|to|in|on|at|of|with|without|by|from|into|onto|over|under|near|beside|behind|before|"
    "after|who|which|that|where|when|then|for|through|across|along|around|up|down|walks?|runs?|moves?|sits?|stands?|holds?|wears?|"
    "looks?|plays?|jumps?|dances?|turns?|goe?s?|drinks?|eats?|rides?|drives?|fl(?:y|ies)|lies?|smiles?|has|have|"
    f"{ARTICLES}"
)
VAGUE = re.compile("subject|person|man|woman|boy|girl|child|people|animal|object|thing|character|product|item")


def check(prompt: str, names: list[str]) -> list[str]:
    """What the prompt leaves open about the references, one sentence each; `names` are the subjects' in their order.

    It reads English noun phrases by a rule and no more; of other languages it checks that given names occur.
    """
    said = [
        f"the prompt does not mention {name!r}; describe it by its looks"
        for name in names
        if not _numbered(name) and name.casefold() not in prompt.casefold()
    ]
    if re.search(r"[^\x00-\u024f\u2000-\u206f]", prompt):
        return said
    phrases = noun_phrases(prompt)
    open_ = sum(_numbered(name) for name in names)
    if open_ and len(set(phrases)) < len(names):
        first = len(set(phrases)) + 1
        left = ", ".join(str(i) for i in range(first, len(names) + 1))
        said.append(
            f"the prompt describes {len(set(phrases))} things for {len(names)} references; nothing is said of reference {left}"
        )
    for phrase in dict.fromkeys(phrases):
        *look, head = phrase
        if VAGUE.fullmatch(head) and not look:
            said.append(f"the prompt says only {head!r}; say how it looks")
    for i, first in enumerate(phrases):
        for second in phrases[i + 1 :]:
            if first[-1] == second[-1] and len(names) > 1 and set(first) == set(second) and phrases.count(first) > 1:
                said.append(f"the prompt does not tell its two {' '.join(first)!r} apart; give each a look of its own")
    return list(dict.fromkeys(said))


def _numbered(name: str) -> bool:
    """Whether a name was made up for a reference that had none."""
    return re.fullmatch(r"subject \d+", name) is not None


def noun_phrases(prompt: str) -> list[tuple[str, ...]]:
    """Adjectives and noun of everything that an article introduces, in lower case and without the article."""
    phrases = []
    for match in re.finditer(rf"\b(?:{ARTICLES})\b(?=((?:\s+[\w'-]+)+))", prompt, re.IGNORECASE):
        words, end = [], ""
        for word in match[1].lower().split():
            if STOP.fullmatch(word):
                end = word
                break
            words.append(word)
        if len(words) > 1 and re.fullmatch(ARTICLES, end):
            words.pop()  # what stands right before another article is a verb
        if words:
            phrases.append(tuple(words))
    return phrases


def rephrase(prompt: str, pictures: list[np.ndarray], where: str) -> str:
    """The prompt rewritten by a model that sees the pictures.

    `where` is URL#MODEL of an endpoint that speaks OpenAI's chat completions (its key in PHANTOM_REPHRASE_KEY), or the folder
    of a transformers model for pictures and text. Nothing is sent anywhere else. Raises InputError where no prompt comes back.
    """
    answer = _ask_endpoint(prompt, pictures, where) if "://" in where else _ask_model(prompt, pictures, Path(where))
    text = re.sub(r"\s+", " ", answer).strip().strip('"')
    if not text:
        raise InputError(f"{where} gave back no prompt; use the prompt as it is, or another rephraser")
    return text


def _ask_endpoint(prompt: str, pictures: list[np.ndarray], where: str) -> str:
    url, _, model = where.partition("#")
    if not url.startswith(("http://", "https://")) or not model:
        raise InputError(f"rephrase is {where!r}; legal are URL#MODEL of an OpenAI-compatible endpoint and a folder")
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(p)}} for p in pictures]
    content.append({"type": "text", "text": prompt})
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": ANSWER_TOKENS}).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{url.rstrip('/')}/chat/completions", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return str(json.load(response)["choices"][0]["message"]["content"] or "")
    except urllib.error.HTTPError as error:
        raise InputError(
            f"the endpoint {url} refused with status {error.code}; look at its address, its model and {KEY}"
        ) from error
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"the endpoint {url} gave no answer that could be read ({type(error).__name__})") from error


def _data_url(picture: np.ndarray) -> str:
    image = Image.fromarray(picture)
    image.thumbnail((768, 768))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _ask_model(prompt: str, pictures: list[np.ndarray], folder: Path) -> str:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from phantom_s2v.model.tensors import align

    if not folder.is_dir():
        raise InputError(f"rephrase is {str(folder)!r}; legal are URL#MODEL of an OpenAI-compatible endpoint and a folder")
    try:
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(f"{folder} is no model for pictures and text ({str(error).splitlines()[0]})") from error
    content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(p)} for p in pictures]
    content.append({"type": "text", "text": f"{INSTRUCTION}\n\n{prompt}"})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    out = align(model).generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    return processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
