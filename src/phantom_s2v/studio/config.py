"""Settings of the studio, from the environment, and its secret, which is made on the first start."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import without_credentials

PREFIX = "PHANTOM_STUDIO_"
SECRET_FILE = "secret"
BESIDE = PREFIX + "BESIDE"  # set for the worker beside a web process, which ends with it
SHORTEST_SECRET = 32  # characters of a secret from the environment


@dataclass(frozen=True)
class Settings:
    """Where the studio lies and how it is reached. Everything that belongs to it is below `folder`, save another database."""

    folder: Path
    secret: bytes  # every key is derived from it
    host: str = "127.0.0.1"
    port: int = 8765
    public_url: str = ""  # what browsers see behind a proxy, such as https://studio.example.com
    proxies: str = ""  # addresses of proxies whose X-Forwarded-For is believed, comma-separated
    database: str = ""  # a URL of SQLAlchemy's; "": SQLite in the folder
    max_upload_bytes: int = 64 << 20  # of one request
    session_hours: int = 12  # without a visit
    link_hours: int = 72  # one-time links
    private_webhooks: bool = False  # whether webhooks may go to this machine and to private networks
    timestamps: str = ""  # address of a time-stamping authority (RFC 3161) for exports
    label_font: str = ""  # a font file with the letters of labels, where the built-in one lacks them
    time_zone: str = "UTC"  # in which the days of rights begin and end, such as Asia/Tokyo
    rephrase: str = ""  # URL#MODEL of an endpoint that proposes prompts; "": none

    @property
    def database_url(self) -> str:
        """URL of the database."""
        return self.database or f"sqlite:///{self.folder / 'studio.sqlite'}"

    @property
    def certificates(self) -> Path:
        """The folder of the certificate that signs exports, and of the authorities that Verify trusts."""
        return self.folder / "certificate"

    @property
    def secure(self) -> bool:
        """Whether browsers come by HTTPS, so that cookies are sent by it alone."""
        return self.public_url.startswith("https://")

    @property
    def address(self) -> str:
        """The studio's address for people, without a slash at its end."""
        return self.public_url.rstrip("/") or f"http://{self.host}:{self.port}"

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.time_zone)

    def key(self, purpose: str) -> bytes:
        """The key of a purpose, 32 bytes: who learns one learns no other."""
        return hmac.digest(self.secret, purpose.encode(), "sha256")

    def keyed_hash(self, purpose: str, text: str | bytes) -> str:
        """What may stand in public files and in the log in place of a name, an address or a file's hash."""
        content = text.encode() if isinstance(text, str) else text
        return hmac.new(self.key(purpose), content, hashlib.sha256).hexdigest()


def load_settings(folder: Path, environment: Mapping[str, str] = os.environ, **given: object) -> Settings:
    """Settings of the studio in a folder, which is made where there is none: `given` before the environment's PHANTOM_STUDIO_*.

    Raises InputError for a value that cannot be used.
    """
    folder = folder.expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    values: dict[str, object] = {}
    for name, kind in (
        ("host", str), ("port", int), ("public_url", str), ("proxies", str), ("database", str), ("max_upload_bytes", int),
        ("session_hours", int), ("link_hours", int), ("private_webhooks", bool), ("timestamps", str), ("label_font", str),
        ("time_zone", str), ("rephrase", str),
    ):  # fmt: skip
        text = environment.get(PREFIX + name.upper())
        if text:
            values[name] = text if kind is str else text == "1" if kind is bool else _whole(name, text)
    values |= {name: value for name, value in given.items() if value is not None}
    url = str(values.get("public_url", ""))
    if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
        raise InputError(f"{PREFIX}PUBLIC_URL must be an address like https://studio.example.com (got {url})")
    zone = str(values.get("time_zone", "UTC"))
    if zone not in available_timezones():
        raise InputError(f"{PREFIX}TIME_ZONE must be a name like Asia/Tokyo or Europe/Berlin (got {zone})")
    rephrase = str(values.get("rephrase", ""))
    if rephrase and ("://" not in rephrase or "#" not in rephrase):
        raise InputError(
            f"{PREFIX}REPHRASE must be URL#MODEL of an OpenAI-compatible endpoint (got {without_credentials(rephrase)})"
        )
    return Settings(folder, _secret(folder, environment), **values)  # type: ignore[arg-type]


def _whole(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 2**40:
        raise InputError(f"{PREFIX}{name.upper()} must be a whole number above 0 (got {text})")
    return int(text)


def _secret(folder: Path, environment: Mapping[str, str]) -> bytes:
    """The secret of the environment, or of a file that only its owner can read, made where there is none."""
    given = environment.get(PREFIX + "SECRET")
    if given:
        if len(given) < SHORTEST_SECRET:
            raise InputError(f"{PREFIX}SECRET must have at least {SHORTEST_SECRET} characters (got {len(given)})")
        return given.encode()
    file = folder / SECRET_FILE
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if file.stat().st_mode & 0o077:
            raise InputError(f"{file} can be read by others; make it yours alone: chmod 600 {file}") from None
    else:
        with os.fdopen(descriptor, "w") as made:
            made.write(secrets.token_hex(32))
            made.flush()
            os.fsync(made.fileno())
    secret = file.read_bytes().strip()
    if len(secret) < SHORTEST_SECRET:
        raise InputError(f"{file} is damaged: it must hold at least {SHORTEST_SECRET} characters; take it from a backup")
    return secret
