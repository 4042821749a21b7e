"""The certificate that signs exports: made by an authority of the studio's own, or brought from outside.

The first administrator founds the authority with the name of their organization; other programs call what it signs unknown until
its root.pem is given to them. Files of the folder, each readable by its owner alone:

    root.pem, root.key     the studio's own authority, which signs the next certificate
    chain.pem, key.pem     the certificate that signs exports, with those above it, and its private key
    trusted.pem            roots of others whose files Verify calls trusted
"""

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy.orm import Session

from phantom_s2v.errors import InputError
from phantom_s2v.files.io import naming
from phantom_s2v.studio import audit
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.context import studio_of
from phantom_s2v.studio.texts import line

ROOT_DAYS, SIGNER_DAYS = 3650, 398
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
MAX_PEM = 1 << 20  # bytes
LONGEST_NAME = 64  # characters of an organization (X.520, ub-organization-name)


@dataclass(frozen=True)
class Certificate:
    """What signs exports."""

    chain: str  # PEM, the signing certificate first
    key: str  # PEM, PKCS8
    algorithm: str  # C2PA's name
    subject: str  # all that it says of the signer
    organization: str  # "" where it names none
    valid_until: datetime

    @property
    def expired(self) -> bool:
        """Whether it signs nothing any more."""
        return self.valid_until <= datetime.now(UTC)


def establish(session: Session, actor: Actor, organization: str, days: int = SIGNER_DAYS, replace: bool = True) -> Certificate:
    """A new certificate for an organization, as an administrator of the studio; unless `replace`, one that is there stays.

    Raises Problem for a name that no certificate can have.
    """
    actor.must_be_admin()
    organization, folder = line(organization, "organization", LONGEST_NAME), studio_of(session).settings.certificates
    if not replace and is_there(folder):
        return load(folder)
    made = make(folder, organization, days)
    audit.append(session, actor.id, "certificate made", valid_until=made.valid_until.date().isoformat())
    return made


def bring_in(session: Session, actor: Actor, chain: Path, key: Path, fit: Callable[[Certificate], object]) -> Certificate:
    """Sign with a certificate from outside from now on, as an administrator of the studio; see `import_`."""
    actor.must_be_admin()
    made = import_(studio_of(session).settings.certificates, chain, key, fit)
    audit.append(session, actor.id, "certificate imported", valid_until=made.valid_until.date().isoformat())
    return made


def accept(session: Session, actor: Actor, root: Path) -> str:
    """Trust another authority from now on, as an administrator of the studio; see `trust`."""
    actor.must_be_admin()
    subject = trust(studio_of(session).settings.certificates, root)
    audit.append(session, actor.id, "authority trusted")
    return subject


def make(folder: Path, organization: str, days: int = SIGNER_DAYS, now: datetime | None = None) -> Certificate:
    """A new signing certificate of the studio's own authority, which is founded where there is none. Replaces the one before."""
    now = now or datetime.now(UTC)
    _private_folder(folder)
    if not (folder / "root.pem").is_file():
        key = ec.generate_private_key(ec.SECP256R1())
        root = _certificate(organization, "authority", key.public_key(), None, key, now, timedelta(ROOT_DAYS))
        _write(folder / "root.key", _private_pem(key))
        _write(folder / "root.pem", _pem(root))
    root = x509.load_pem_x509_certificate((folder / "root.pem").read_bytes())
    authority = serialization.load_pem_private_key((folder / "root.key").read_bytes(), None)
    assert isinstance(authority, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    signer = _certificate(organization, "exports", key.public_key(), root, authority, now, timedelta(days))
    _write(folder / "key.pem", _private_pem(key))
    _write(folder / "chain.pem", _pem(signer) + _pem(root))
    return load(folder)


def _certificate(
    organization: str,
    name: str,
    public: ec.EllipticCurvePublicKey,
    issuer: x509.Certificate | None,
    authority: ec.EllipticCurvePrivateKey,
    now: datetime,
    length: timedelta,
    purpose: x509.ObjectIdentifier = ExtendedKeyUsageOID.EMAIL_PROTECTION,
) -> x509.Certificate:
    """A certificate of X.509 version 3 with what C2PA asks for (specification, 14.5.1); without an issuer a root."""
    own = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization),
            x509.NameAttribute(NameOID.COMMON_NAME, f"phantom studio {name}"),
        ]
    )
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
    )
    root = issuer is None
    builder = (
        x509.CertificateBuilder(own if issuer is None else issuer.subject, own, public, x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks differ
        .not_valid_after(now + length)
        .add_extension(x509.BasicConstraints(root, 0 if root else None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=not root, key_cert_sign=root, crl_sign=root, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
    )
    if not root:
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=purpose == ExtendedKeyUsageOID.TIME_STAMPING)
    return builder.sign(authority, hashes.SHA256())


def import_(folder: Path, chain: Path, key: Path, fit: Callable[[Certificate], object]) -> Certificate:
    """Take in a certificate from outside: its chain, the signing one first, and its private key, both PEM.

    Raises InputError where they are none, do not belong together or have expired, or where `fit` (credentials.try_out) does.
    """
    made = _checked(_read(chain), _read(key), chain.name, key.name)
    fit(made)
    _private_folder(folder)
    _write(folder / "key.pem", made.key.encode())
    _write(folder / "chain.pem", made.chain.encode())
    return made


def trust(folder: Path, root: Path) -> str:
    """Call files trusted that were signed under this root certificate (PEM); gives its subject. Raises InputError."""
    content = _read(root)
    found = _certificates(content, root.name)
    if not _authority(found[0]):
        raise InputError(f"{root.name} is not the certificate of an authority (basic constraints without CA)")
    _private_folder(folder)
    file = folder / "trusted.pem"
    known = file.read_bytes() if file.is_file() else b""
    new = b"".join(_pem(each) for each in found if _pem(each) not in known)
    _write(file, known + new)
    return found[0].subject.rfc4514_string()


def is_there(folder: Path) -> bool:
    """Whether exports can be signed."""
    return (folder / "chain.pem").is_file()


def present(folder: Path) -> Certificate | None:
    """The certificate that signs exports; None where nothing can be exported yet."""
    return load(folder) if is_there(folder) else None


def load(folder: Path) -> Certificate:
    """The certificate that signs exports. Raises InputError where there is none."""
    if not is_there(folder):
        raise InputError("there is no certificate to sign exports with; make one: phantom studio certificate make")
    return _checked((folder / "chain.pem").read_bytes(), (folder / "key.pem").read_bytes(), "chain.pem", "key.pem", expired=True)


def anchors(folder: Path) -> str:
    """PEM of all roots that are trusted: the studio's own, the last one of an imported chain, and those of `trust`."""
    names = ("root.pem", "trusted.pem")
    parts = [(folder / name).read_text() for name in names if (folder / name).is_file()]
    if (folder / "chain.pem").is_file():
        parts.append(_pem(_certificates((folder / "chain.pem").read_bytes(), "chain.pem")[-1]).decode())
    return "".join(dict.fromkeys(parts))


def _checked(chain: bytes, key: bytes, chain_name: str, key_name: str, expired: bool = False) -> Certificate:
    """A chain and its key, which belong together. Raises InputError."""
    found = _certificates(chain, chain_name)
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError) as error:
        raise InputError(f"{key_name} must be a private key in PEM without a password") from error
    public = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*public) != found[0].public_key().public_bytes(*public):
        raise InputError(f"{key_name} is not the private key of the first certificate of {chain_name}")
    for lower, upper in itertools.pairwise(found):
        try:
            lower.verify_directly_issued_by(upper)
        except (ValueError, TypeError, InvalidSignature) as error:
            raise InputError(
                f"{chain_name}: a certificate was not issued by the one after it (order: signer, then up)"
            ) from error
    ends = min(each.not_valid_after_utc for each in found)
    if not expired and ends <= datetime.now(UTC):
        raise InputError(f"{chain_name} expired on {ends:%Y-%m-%d}")
    text = b"".join(map(_pem, found)).decode()
    subject = found[0].subject
    named = subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    organization = str(named[0].value) if named else ""
    return Certificate(text, _private_pem(private).decode(), _algorithm(private), subject.rfc4514_string(), organization, ends)


def _algorithm(key: PrivateKeyTypes) -> str:
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return CURVES[key.curve.name]
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    raise InputError("the key must be elliptic (P-256, P-384 or P-521), Ed25519, or RSA of at least 2048 bits")


def _certificates(content: bytes, name: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError as error:
        raise InputError(f"{name} must hold certificates in PEM") from error


def _authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise InputError(f"{path} is not a file")
    if path.stat().st_size > MAX_PEM:
        raise InputError(f"{path} must have at most {MAX_PEM:,} bytes")
    return path.read_bytes()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _private_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _private_folder(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _write(path: Path, content: bytes) -> None:
    """A file that only its owner can read, whole or not at all."""
    scratch = path.with_name(f".{path.name}.partial")
    with naming(path, scratch):
        scratch.unlink(missing_ok=True)
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
