"""Certificates and C2PA: what is intact, expired, changed and unknown is told apart, and nothing is fetched."""

import io
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from phantom_s2v.errors import InputError
from phantom_s2v.media.videos import encode
from phantom_s2v.studio import certificates, credentials
from phantom_s2v.studio.credentials import State
from phantom_s2v.studio.schema import now


@pytest.fixture(scope="module")
def plain():
    target = io.BytesIO()
    encode(target, [np.full((64, 96, 3), 8 * i, np.uint8) for i in range(9)], 12, 23)
    return target.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("studio") / "certificate"
    certificates.make(made, "A company")
    return made


def signed(video, certificate, origin=None, stamps=None):
    target = io.BytesIO()
    credentials.sign(io.BytesIO(video), target, credentials.manifest("phantom-mini", origin or {}), certificate, stamps)
    return target.getvalue()


def read(content, trusted=""):
    return credentials.read(io.BytesIO(content), "video/mp4", trusted)


def test_what_was_signed_is_read(plain, folder):
    origin = {"export": "e" * 32, "references": [credentials.keyed_hash(b"key", "0" * 64)]}
    video = signed(plain, certificates.load(folder), origin)
    found = read(video, certificates.anchors(folder))
    assert (found.state, found.made_by_ai, found.signer) == (State.TRUSTED, True, "A company")
    assert found.origin == {**origin, "model": "phantom-mini"}
    assert found.generator.startswith("phantom-s2v ")
    assert read(video).state == State.UNTRUSTED
    assert read(plain).state == State.NONE
    assert read(b"no video at all").state == State.NONE


def test_changed_expired_and_damaged_are_told_apart(plain, tmp_path):
    made = certificates.make(tmp_path, "x", now=now() - timedelta(days=certificates.SIGNER_DAYS) + timedelta(seconds=2))
    trusted = certificates.anchors(tmp_path)
    video = signed(plain, made)
    assert read(video, trusted).state == State.TRUSTED
    changed = video[:-40] + bytes([video[-40] ^ 1]) + video[-39:]
    assert read(changed, trusted).state == State.CHANGED
    time.sleep(max(0.0, (made.valid_until - now()).total_seconds()) + 1.1)
    assert read(video, trusted).state == State.EXPIRED
    assert read(changed, trusted).state == State.CHANGED
    with pytest.raises(InputError, match=r"expired on .* phantom studio certificate make"):
        signed(plain, made)
    box, claim = video.index(b"uuid"), video.index(b"phantom-mini")  # C2PA does not see a changed name of an inner box
    assert read(video[:claim] + b"x" + video[claim + 1 :], trusted).state == State.CHANGED
    assert read(video[: box + 5] + b"x" + video[box + 6 :], trusted).state == State.DAMAGED


def test_only_the_owner_reads_the_keys(folder):
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == dict.fromkeys(
        ("root.pem", "root.key", "chain.pem", "key.pem"), 0o600
    )
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_new_certificate_has_the_same_authority(plain, tmp_path):
    before = signed(plain, certificates.make(tmp_path, "x"))
    after = signed(plain, certificates.make(tmp_path, "x"))
    assert {read(each, certificates.anchors(tmp_path)).state for each in (before, after)} == {State.TRUSTED}


def test_certificates_from_outside(plain, folder, tmp_path):
    chain, key = folder / "chain.pem", folder / "key.pem"
    certificates.import_(tmp_path / "own", chain, key, credentials.try_out)
    assert read(signed(plain, certificates.load(tmp_path / "own")), certificates.anchors(folder)).state == State.TRUSTED
    certificates.make(tmp_path / "other", "y")
    for wrong, words in [
        ((chain, tmp_path / "other" / "key.pem"), "is not the private key"),
        ((key, key), "must hold certificates"),
        ((chain, chain), "must be a private key"),
        ((folder / "root.pem", folder / "root.key"), "cannot sign"),
        ((tmp_path / "none", key), "is not a file"),
    ]:
        with pytest.raises(InputError, match=words):
            certificates.import_(tmp_path / "wrong", *wrong, credentials.try_out)
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(InputError, match="phantom studio certificate make"):
        certificates.load(tmp_path / "wrong")


def test_trusting_another_authority(plain, folder, tmp_path):
    video = signed(plain, certificates.load(folder))
    certificates.make(tmp_path, "mine")
    assert read(video, certificates.anchors(tmp_path)).state == State.UNTRUSTED
    assert "A company" in certificates.trust(tmp_path, folder / "root.pem")
    certificates.trust(tmp_path, folder / "root.pem")
    assert (tmp_path / "trusted.pem").read_bytes() == (folder / "root.pem").read_bytes()
    assert read(video, certificates.anchors(tmp_path)).state == State.TRUSTED
    with pytest.raises(InputError, match="not the certificate of an authority"):
        certificates.trust(tmp_path, folder / "chain.pem")


@contextmanager
def server(answer):
    """A server on this machine; `answer` takes the body and gives (type, content). Yields its address and what was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(self.path)
            kind, content = answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}", asked
    finally:
        running.shutdown()
        running.server_close()


def test_a_remote_manifest_is_not_fetched(plain, folder):
    with server(lambda _: ("application/c2pa", b"")) as (address, asked):
        made, target = certificates.load(folder), io.BytesIO()
        with credentials._signer(made, None) as signer, c2pa.Builder(credentials.manifest("", {}), c2pa.Context()) as builder:
            builder.set_remote_url(f"{address}/x.c2pa")
            builder.set_no_embed()
            builder.sign(signer, "video/mp4", io.BytesIO(plain), target)
        assert address.encode() in target.getvalue()
        assert read(target.getvalue()).state in (State.NONE, State.DAMAGED)
        assert asked == []


TSA = """
[tsa]
default_tsa = t
[t]
serial = serial
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
accuracy = secs:1
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""


def stamping_authority(folder):
    """Write t.pem, t.key and root.pem of an authority that stamps."""
    key = ec.generate_private_key(ec.SECP256R1())
    root = certificates._certificate("stamps", "root", key.public_key(), None, key, now(), timedelta(9))
    own = ec.generate_private_key(ec.SECP256R1())
    made = certificates._certificate(
        "stamps", "t", own.public_key(), root, key, now(), timedelta(9), x509.oid.ExtendedKeyUsageOID.TIME_STAMPING
    )
    (folder / "t.pem").write_bytes(certificates._pem(made))
    (folder / "t.key").write_bytes(certificates._private_pem(own))
    (folder / "root.pem").write_bytes(certificates._pem(root))
    (folder / "tsa.cnf").write_text(TSA)
    (folder / "serial").write_text("01")


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_stamp_outlives_the_certificate(plain, tmp_path):
    """RFC 3161 by openssl ts on this machine: after the certificate's end what was stamped is valid, what was not has expired."""
    stamping_authority(tmp_path)

    def answer(question):
        (tmp_path / "q").write_bytes(question)
        made = ["-signer", "t.pem", "-inkey", "t.key", "-chain", "root.pem"]
        command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "q", *made, "-out", "a"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        return "application/timestamp-reply", (tmp_path / "a").read_bytes()

    folder = tmp_path / "studio"
    made = certificates.make(folder, "x", now=now() - timedelta(days=certificates.SIGNER_DAYS) + timedelta(seconds=3))
    with server(answer) as (address, asked):
        stamped, other = signed(plain, made, stamps=address), signed(plain, made)
    assert len(asked) == 1
    time.sleep(max(0.0, (made.valid_until - now()).total_seconds()) + 1.1)
    trusted = certificates.anchors(folder) + (tmp_path / "root.pem").read_text()
    assert read(other, trusted).state == State.EXPIRED
    found = read(stamped, trusted)
    assert found.state == State.TRUSTED, found


def test_the_commands(tmp_path, capsys, monkeypatch):
    from phantom_s2v.cli import main

    def run(*arguments):
        monkeypatch.setattr(
            "sys.argv", ["phantom", "studio", "certificate", *map(str, arguments), "--folder", str(tmp_path / "studio")]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return ended.value.code, said.out + said.err

    assert run("show") == (
        2,
        "phantom: there is no certificate to sign exports with; make one: phantom studio certificate make\n",
    )
    assert run("make", "--organization", "")[0] == 2
    code, said = run("make", "--organization", "A company")
    assert code == 0
    assert "root.pem" in said
    assert "O=A company" in run("show")[1]
    made = tmp_path / "studio" / "certificate"
    other = tmp_path / "other"
    certificates.make(other, "B")
    assert run("trust", other / "root.pem")[0] == 0
    assert run("import", other / "chain.pem", made / "key.pem")[0] == 2
    assert run("import", other / "chain.pem", other / "key.pem")[0] == 0
    assert "O=B" in run("show")[1]
