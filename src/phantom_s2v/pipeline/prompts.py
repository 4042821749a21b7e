"""Prompts: the check that every subject has a distinct description, and the rephraser.

Phantom was trained on captions that describe every subject distinctly (Phantom 4, "confusing subjects"), and its authors
rewrite user prompts in that manner at inference; they ship no rephraser.
"""

import base64
import io
import json
import os
import queue
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from PIL import Image

from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import parse_json, without_credentials

INSTRUCTION = (
    "You rewrite prompts for a video model that sees the attached reference images, in their order. Rewrite the prompt so that "
    "every pictured subject is described by how it looks in its image, each by other features than the rest, and keep what the "
    "prompt says about action, place, camera and style. Do not describe the background of an image. Keep the prompt's language. "
    "Answer with the rewritten prompt alone."
)
KEY = "PHANTOM_REPHRASE_KEY"  # environment variable with the endpoint's key
PATIENCE = 120  # seconds until an endpoint must have answered in full
MAX_ANSWER_BYTES = 1 << 20  # bytes of an answer
LONGEST_PROMPT = 10_000  # characters of a rewritten prompt; 400 tokens are some 2,000
ANSWER_TOKENS = 400
ARTICLES = r"a|an|the|one|another|this|that|his|her|its|their|my|our|two|three|four"
STOP = re.compile(  # what ends a noun phrase: verbs of being and doing that are common in prompts, prepositions, conjunctions
    "is|are|was|were|be|and|or|but|while|as|to|in|on|at|of|with|without|by|from|into|onto|over|under|near|beside|behind|before|"
    "after|who|which|that|where|when|then|for|through|across|along|around|up|down|walks?|runs?|moves?|sits?|stands?|holds?|wears?|"
    "looks?|plays?|jumps?|dances?|turns?|goe?s?|drinks?|eats?|rides?|drives?|fl(?:y|ies)|lies?|smiles?|has|have|"
    f"{ARTICLES}"
)
NOT_MENTIONED = "the prompt does not mention %(name)s; describe its appearance"
NOT_DESCRIBED = "the prompt describes %(things)s things for %(references)s references; reference %(left)s is not described"
ONLY_SAYS = "the prompt only says %(word)s; describe its appearance"
ALIKE = "two subjects have the same description (%(words)s); describe the appearance of each"
VAGUE = re.compile("subject|person|man|woman|boy|girl|child|people|animal|object|thing|character|product|item")


def check_prompt(prompt: str, names: list[str]) -> list[str]:
    """What the prompt leaves open about the references, one sentence each; `names` are the subjects' in their order."""
    return [template % values for template, values in open_points(prompt, names)]


def open_points(prompt: str, names: list[str]) -> list[tuple[str, dict[str, str]]]:
    """The same as sentences with places for values, and the values: for pages that translate them.

    It reads English noun phrases by a rule and no more; of other languages it checks that given names occur.
    """
    found = [
        (NOT_MENTIONED, {"name": repr(name)})
        for name in names
        if not _numbered(name) and name.casefold() not in prompt.casefold()
    ]
    if re.search(r"[^\x00-\u024f\u2000-\u206f]", prompt):
        return found
    phrases = noun_phrases(prompt)
    open_ = sum(_numbered(name) for name in names)
    if open_ and len(set(phrases)) < len(names):
        first = len(set(phrases)) + 1
        left = ", ".join(str(i) for i in range(first, len(names) + 1))
        found.append((NOT_DESCRIBED, {"things": str(len(set(phrases))), "references": str(len(names)), "left": left}))
    for phrase in dict.fromkeys(phrases):
        *look, head = phrase
        if VAGUE.fullmatch(head) and not look:
            found.append((ONLY_SAYS, {"word": repr(head)}))
    for i, first in enumerate(phrases):
        for second in phrases[i + 1 :]:
            if first[-1] == second[-1] and len(names) > 1 and set(first) == set(second) and phrases.count(first) > 1:
                found.append((ALIKE, {"words": repr(" ".join(first))}))
    return [each for i, each in enumerate(found) if each not in found[:i]]


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


def rephrase(prompt: str, images: list[np.ndarray], where: str) -> str:
    """The prompt rewritten by a model that sees the images.

    `where` is URL#MODEL of an endpoint that speaks OpenAI's chat completions (its key in PHANTOM_REPHRASE_KEY), or the folder
    of a transformers model for images and text. Nothing is sent anywhere else. Raises InputError where no prompt comes back.
    """
    reply = _ask_endpoint(prompt, images, where) if "://" in where else _ask_model(prompt, images, Path(where))
    text = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", reply).strip().strip('"')
    if not text or len(text) > LONGEST_PROMPT:
        shown = f"a prompt of {len(text):,} characters" if text else "no prompt"
        raise InputError(f"{without_credentials(where)} returned {shown}; use the prompt as it is, or another rephraser")
    return text


def _ask_endpoint(prompt: str, images: list[np.ndarray], where: str) -> str:
    url, _, model = where.partition("#")
    place = _shown(url)
    if place is None or not model:
        raise InputError(
            f"rephrase must be URL#MODEL of an OpenAI-compatible endpoint, or a model folder (got {without_credentials(where)!r})"
        )
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": _data_url(p)}} for p in images]
    content.append({"type": "text", "text": prompt})
    messages = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]
    body = json.dumps({"model": model, "messages": messages, "max_tokens": ANSWER_TOKENS}).encode()
    headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
    if key := os.environ.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    answer = _post(url, body, headers, place)
    try:
        text = parse_json(answer)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputError(f"the endpoint {place} returned an invalid response ({type(error).__name__})") from error
    if text is not None and not isinstance(text, str):
        raise InputError(f"the endpoint {place} returned an invalid response (no text)")
    return text or ""


def _shown(url: str) -> str | None:
    """An endpoint's address as errors show it: without user, password, query and fragment. None where it is no address."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return None
    return (
        f"{parts.scheme}://{parts.hostname}{port}{parts.path}" if parts.scheme in ("http", "https") and parts.hostname else None
    )


def _post(url: str, body: bytes, headers: dict[str, str], place: str) -> bytes:
    """What a server answers, within `PATIENCE` seconds from its name to the last byte, and at most `MAX_ANSWER_BYTES` bytes.

    Redirects are not followed: the key belongs to the host that was named. Raises InputError, which calls the server `place`.
    """
    answers: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_exchange(client, url, body, headers, place))
        except Exception as error:  # re-raised in the waiting thread
            answers.put(error)

    with httpx.Client(timeout=PATIENCE, follow_redirects=False) as client:  # its end closes what still waits
        threading.Thread(target=ask, daemon=True).start()
        try:
            answer = answers.get(timeout=PATIENCE)
        except queue.Empty as error:
            answer = httpx.TimeoutException(str(error))
    if isinstance(answer, httpx.TimeoutException):
        raise InputError(f"the endpoint {place} did not respond within {PATIENCE} s") from answer
    if isinstance(answer, InputError):
        raise answer
    if isinstance(answer, Exception):  # httpx's own, and what sockets and odd addresses raise
        raise InputError(f"the endpoint {place} returned an invalid response ({type(answer).__name__})") from answer
    return answer


def _exchange(client: httpx.Client, url: str, body: bytes, headers: dict[str, str], place: str) -> bytes:
    """One request; the answer is read as it comes, so that a large one is not held. Raises InputError."""
    address = httpx.URL(url)
    address = address.copy_with(path=f"{address.path.rstrip('/')}/chat/completions")
    if "Authorization" in headers:
        address = address.copy_with(userinfo=b"")  # which httpx would send instead
    with client.stream("POST", address, content=body, headers=headers) as response:
        if response.is_redirect:
            raise InputError(f"the endpoint {place} redirects (status {response.status_code}); use the final address")
        if response.status_code != 200:
            raise InputError(
                f"the endpoint {place} returned status {response.status_code}; check its address, the model and {KEY}"
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise InputError(f"the endpoint {place} returned an invalid response (unrequested compression)")
        answer = bytearray()
        for part in response.iter_raw():
            answer += part
            if len(answer) > MAX_ANSWER_BYTES:
                raise InputError(f"the endpoint {place} returned more than {MAX_ANSWER_BYTES >> 20} MB")
    return bytes(answer)


def _data_url(image: np.ndarray) -> str:
    thumbnail = Image.fromarray(image)
    thumbnail.thumbnail((768, 768))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _ask_model(prompt: str, images: list[np.ndarray], folder: Path) -> str:
    from phantom_s2v.vision.vlm import VisionLanguageModel

    if not folder.is_dir():
        raise InputError(f"rephrase must be URL#MODEL of an OpenAI-compatible endpoint, or a model folder (got {str(folder)!r})")
    return VisionLanguageModel(folder).ask(images, f"{INSTRUCTION}\n\n{prompt}", ANSWER_TOKENS)
