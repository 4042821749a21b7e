"""Content Credentials (C2PA 2.4, c2pa-python) of exported videos: signing, and reading of any file.

What is signed names the program, that the video was made by AI, and opaque ids and keyed hashes; no person.
"""

import enum
import hashlib
import hmac
import io
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import c2pa
from PIL import Image

from phantom_s2v import __version__
from phantom_s2v.errors import InputError
from phantom_s2v.studio.certificates import Certificate

ORIGIN = "org.phantom-s2v.origin"  # our own assertion: ids and keyed hashes
MADE_BY_AI = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOURCE_TYPE = "digitalSourceType"
EXPIRED = {"signingCredential.expired", "claimSignature.outsideValidity"}
NOT_CHANGES = EXPIRED | {"signingCredential.untrusted"}


class State(enum.StrEnum):
    """Of the credentials of a file, by C2PA alone, which does not see every change: see verify."""

    NONE = "none"  # no credentials, or no format that has them
    TRUSTED = "trusted"  # intact, signed by the studio's authority or one that it trusts
    UNTRUSTED = "untrusted"  # intact, signed by an authority that is unknown here
    EXPIRED = "expired"  # intact, its certificate has expired and no authority stamped the time of signing
    CHANGED = "changed"  # what was signed is not what is there
    DAMAGED = "damaged"  # credentials are there and cannot be read


@dataclass(frozen=True)
class Credentials:
    """What the credentials of a file say. Texts are what the file's writer wrote, and prove nothing while it is not trusted."""

    state: State
    failures: tuple[str, ...] = ()  # C2PA's codes
    generator: str = ""
    signer: str = ""
    made_by_ai: bool = False
    origin: dict[str, Any] = field(default_factory=dict)  # our own assertion


def keyed_hash(key: bytes, sha256: str) -> str:
    """HMAC-SHA-256 of the hash of a file: who has the file and the studio's key can confirm it, nobody else can guess it."""
    return hmac.new(key, sha256.encode(), hashlib.sha256).hexdigest()


def manifest(model: str, origin: dict[str, Any]) -> dict[str, Any]:
    """What is signed of an export: the generator, that AI made it, and `origin`, our ids and keyed hashes."""
    agent = {"name": "phantom-s2v", "version": __version__}
    made = {"action": "c2pa.created", SOURCE_TYPE: MADE_BY_AI, "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "title": f"{origin.get('export', 'video')}.mp4",
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [made]}},
            {"label": ORIGIN, "data": {**origin, "model": model}},
        ],
    }


def sign(
    source: BinaryIO,
    target: BinaryIO,
    claims: dict[str, Any],
    certificate: Certificate,
    stamps: str | None = None,
    media_type: str = "video/mp4",
) -> None:
    """Write the file `source` to `target` (open for reading and writing) with `claims` (see `manifest`) signed into it.

    `stamps` is the address of a time-stamping authority (RFC 3161): with its stamp credentials stay valid after the certificate
    has expired. Raises InputError where the certificate has expired or the authority does not answer.
    """
    if certificate.expired:
        until = f"{certificate.valid_until:%Y-%m-%d}"
        raise InputError(f"the signing certificate expired on {until}; make a new one: phantom studio certificate make")
    try:
        with _signer(certificate, stamps) as signer, c2pa.Builder(claims, c2pa.Context(_settings(""))) as builder:
            builder.sign(signer, media_type, source, target)
    except c2pa.C2paError as error:
        raise InputError(f"{certificate.subject} cannot sign ({error})") from error


def try_out(certificate: Certificate) -> None:
    """Sign an image of eight pixels. Raises InputError where C2PA does not take the certificate."""
    sample = io.BytesIO()
    Image.new("L", (8, 8)).save(sample, "PNG")
    sample.seek(0)
    sign(sample, io.BytesIO(), manifest("", {}), certificate, media_type="image/png")


def read(source: BinaryIO, media_type: str, trusted: str) -> Credentials:
    """The credentials of a file; `trusted` are PEM roots. Nothing is fetched, whatever the file names."""
    try:
        with c2pa.Context(_settings(trusted)) as context, c2pa.Reader(media_type, source, context=context) as reader:
            found, results = reader.get_active_manifest() or {}, reader.get_validation_results() or {}
            state = reader.get_validation_state()
    except c2pa.C2paError as error:
        return Credentials(State.DAMAGED, (str(error).split(":")[0],)) if _traces(source) else Credentials(State.NONE)
    failures = tuple(sorted({each["code"] for each in results.get("activeManifest", {}).get("failure", ())}))
    failures += tuple(each["code"] for delta in results.get("ingredientDeltas") or () for each in _failures(delta))
    return Credentials(_state(state, set(failures)), failures, *_said(found))


def _traces(source: BinaryIO) -> bool:
    """Whether a file has the name of a C2PA box anywhere: a damaged one is no longer found as a box."""
    source.seek(0)
    last = b""
    while part := source.read(1 << 20):
        if b"c2pa.claim" in last + part or b"c2pa.assertions" in last + part:
            return True
        last = part[-16:]
    return False


def _failures(delta: dict[str, Any]) -> list[dict[str, Any]]:
    return delta.get("validationDeltas", {}).get("failure", [])


def _state(given: str | None, failures: set[str]) -> State:
    if failures - NOT_CHANGES:
        return State.CHANGED
    if failures & EXPIRED:
        return State.EXPIRED
    return {"Trusted": State.TRUSTED, "Valid": State.UNTRUSTED}.get(given or "", State.CHANGED)


def _said(found: dict[str, Any]) -> tuple[str, str, bool, dict[str, Any]]:
    """Generator, signer, whether AI made it, and our own assertion, of a manifest that others may have written."""
    agents = [each for each in found.get("claim_generator_info") or () if isinstance(each, dict)]
    generator = " ".join(str(agents[0].get(key, "")) for key in ("name", "version")).strip() if agents else ""
    signed = found.get("signature_info") or {}
    said = {each.get("label"): each.get("data") for each in found.get("assertions") or () if isinstance(each, dict)}
    steps = [_actions(name, data) for name, data in said.items()]
    actions = [action for each in steps for action in each if isinstance(action, dict)]
    made = any(str(action.get(SOURCE_TYPE, "")).endswith("rainedAlgorithmicMedia") for action in actions)
    origin = said.get(ORIGIN)
    return generator, str(signed.get("issuer") or ""), made, origin if isinstance(origin, dict) else {}


def _actions(name: Any, data: Any) -> list[Any]:
    """Actions of an assertion, of which others' have any shape."""
    found = data.get("actions") if str(name).startswith("c2pa.actions") and isinstance(data, dict) else None
    return found if isinstance(found, list) else []


def _settings(trusted: str) -> c2pa.Settings:
    """Settings of one context: those of the process are shared by all threads (c2pa-rs#1380)."""
    verify = {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True, "verify_after_sign": True}
    made = {"verify": verify, "builder": {"thumbnail": {"enabled": False}}}
    return c2pa.Settings.from_dict(made | ({"trust": {"user_anchors": trusted}} if trusted else {}))


def _signer(made: Certificate, stamps: str | None) -> c2pa.Signer:
    info = c2pa.C2paSignerInfo(
        made.algorithm.encode(), made.chain.encode(), made.key.encode(), stamps.encode() if stamps else None
    )
    return c2pa.Signer.from_info(info)
