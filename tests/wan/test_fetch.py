"""From a hub to a converted folder: sizes first, interrupted and gone on with, damaged files refused."""

import json
import os
import shutil
import subprocess
import sys

import hub
import native
import pytest
import torch
from huggingface_hub import constants, hf_hub_download

from phantom_s2v.errors import CheckpointError, InputError
from phantom_s2v.models.registry import load_preset, model_folder
from phantom_s2v.models.wan import fetch as module
from phantom_s2v.models.wan.fetch import PHANTOM, WAN, fetch, look_up

T5, DIT = "models_t5_umt5-xxl-enc-bf16.pth", "Phantom-Wan-1.3B.pth"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Both repositories, tiny."""
    folder = tmp_path_factory.mktemp("published")
    wan, _ = native.write(folder)
    torch.save(native.transformer(dim=128), folder / DIT)
    shards = native.write_shards(native.transformer(dim=128), folder / "shards", 6)
    names = ["Wan2.1_VAE.pth", T5, *(f"google/umt5-xxl/{p.name}" for p in (wan / "google" / "umt5-xxl").iterdir())]
    phantom = {DIT: (folder / DIT).read_bytes(), "README.md": b"x"} | {p.name: p.read_bytes() for p in shards.iterdir()}
    return {WAN: {name: (wan / name).read_bytes() for name in names} | {"assets/logo.png": b"png"}, PHANTOM: phantom}


@pytest.fixture
def served(files, tmp_path, monkeypatch):
    """A hub, and caches of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    one = hub.Hub({name: dict(each) for name, each in files.items()})
    with hub.running(one) as address:
        one.address = address
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        yield one


def quiet(*_):
    pass


def test_a_model_is_fetched_converted_and_found_by_its_name(served, tmp_path):
    with pytest.raises(CheckpointError, match="run phantom models fetch phantom-wan"):
        model_folder("phantom-wan-1.3b")
    said, done = [], {}
    out = fetch("phantom-wan-1.3b", None, said.append, lambda part, now, total: done.update({part: (now, total)}))
    assert out == tmp_path / "cache" / "phantom-s2v" / "models" / "phantom-wan-1.3b" == model_folder("phantom-wan-1.3b")
    wan, phantom, places, kept = said
    assert "can be removed" in kept
    assert wan.startswith(f"{WAN} at 0123456789ab: ")
    assert phantom.endswith("MB, license apache-2.0")
    assert str(tmp_path / "cache" / "phantom-s2v" / "downloads") in places
    assert str(out) in places
    assert all(now == total for now, total in done.values())
    assert {T5, DIT, "transformer", "vae", "text_encoder"} <= set(done)
    facts = json.loads((out / "facts.json").read_text())
    assert facts["commits"] == {WAN: hub.COMMIT, PHANTOM: hub.COMMIT}
    assert load_preset(out).name == "phantom-wan-128"
    assert not [path for _, path, _ in served.asked if "shards" in path or "README" in path or "logo" in path]
    count = len(served.asked)
    assert fetch("phantom-wan-1.3b", None, said.append, quiet) == out
    assert "there already" in said[-1]
    assert len(served.asked) == count


def starts(served, name, since=0):
    """First bytes of the downloads of a file."""
    return [start for method, path, start in served.asked[since:] if method == "GET" and path.endswith(f"/{name}")]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)


def test_an_interrupted_fetch_goes_on_where_it_stopped(served, tmp_path, small_parts):
    def interrupt(part, done, total):
        if part == DIT and done > 500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("phantom-wan-1.3b", tmp_path / "model", quiet, interrupt)
    assert not (tmp_path / "model").exists()
    before = len(served.asked)
    fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet)
    assert starts(served, DIT, before) == [500_000]
    assert sum(method == "GET" and "/resolve/" in path for method, path, _ in served.asked[before:]) == 1  # the rest is there
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_an_interrupted_fetch_goes_on_with_the_commit_that_it_began_with(served, tmp_path, small_parts, monkeypatch):
    """Though `main` is another one by now."""

    def interrupt(part, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch("phantom-wan-1.3b", None, quiet, interrupt)
    asked = []
    monkeypatch.setattr(module, "look_up", lambda repo, revision, files: asked.append(revision) or look_up(repo, revision, files))
    fetch("phantom-wan-1.3b", None, quiet, quiet)
    assert asked == [hub.COMMIT, hub.COMMIT]
    with pytest.raises(InputError, match=f"is of commit {hub.COMMIT} of {PHANTOM}, not of v2; give another folder by --out"):
        fetch("phantom-wan-1.3b", None, quiet, quiet, revision="v2")
    assert fetch("phantom-wan-1.3b", None, quiet, quiet, hub.COMMIT, hub.COMMIT) == model_folder("phantom-wan-1.3b")
    assert not list((tmp_path / "cache" / "phantom-s2v" / "downloads").glob("*.json"))
    asked.clear()
    fetch("phantom-wan-1.3b", tmp_path / "again", quiet, quiet)  # a fetch that is not begun asks for main
    assert asked == ["main", "main"]


def test_a_fetch_goes_on_with_its_commit_only_for_the_revision_that_it_began_with(served, tmp_path, small_parts, monkeypatch):
    served.revisions += ("v1", "v2")

    def interrupt(part, done, total):
        raise KeyboardInterrupt

    asked = []
    monkeypatch.setattr(module, "look_up", lambda repo, revision, files: asked.append(revision) or look_up(repo, revision, files))
    for revision in ("v1", "v1", "v2", "main"):
        with pytest.raises(KeyboardInterrupt):
            fetch("phantom-wan-1.3b", tmp_path / "model", quiet, interrupt, revision=revision)
    assert asked == ["v1", "main", hub.COMMIT, hub.COMMIT, "v2", hub.COMMIT, "main", hub.COMMIT]
    (tmp_path / "cache" / "phantom-s2v" / "downloads" / "phantom-wan-1.3b.json").write_text('{"a": 3}')  # of no use: asked anew
    fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet, revision="v1")
    assert asked[-2:] == ["v1", "main"]
    assert json.loads((tmp_path / "model" / "facts.json").read_text())["commits"] == {WAN: hub.COMMIT, PHANTOM: hub.COMMIT}


def test_a_hub_that_gives_another_commit_than_the_asked_one_is_refused(served, tmp_path):
    other = "f" * 40
    served.revisions += (other,)
    with pytest.raises(CheckpointError, match=f"gives commit {hub.COMMIT} for {other} of {PHANTOM}"):
        fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet, revision=other)
    assert not [path for _, path, _ in served.asked if "/resolve/" in path]


def test_a_connection_that_breaks_is_taken_up_again(served, tmp_path, small_parts):
    served.break_after = {DIT: 700_000}
    fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet)
    assert starts(served, DIT) == [0, 700_000, 1_400_000]


def test_what_the_hubs_own_cache_has_is_not_fetched_again(served, tmp_path):
    hf_hub_download(WAN, T5)
    count = len(served.asked)
    fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet)
    assert not [path for _, path, _ in served.asked[count:] if path.endswith(T5)]


def test_the_14b_comes_in_shards(served, tmp_path):
    out = fetch("phantom-wan-14b", tmp_path / "model", quiet, quiet, revision=hub.COMMIT)
    assert (out / "transformer" / "config.json").is_file()
    assert sum("Phantom_Wan_14B-" in path for method, path, _ in served.asked if method == "GET") == 6


@pytest.mark.parametrize("name", [T5, "google/umt5-xxl/tokenizer.json"])
def test_a_damaged_file_is_removed(served, tmp_path, name):
    served.damaged = {name}
    with pytest.raises(CheckpointError, match=f"{name} of {WAN} came damaged and was removed"):
        fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet)
    served.damaged = set()
    assert fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet).is_dir()


def test_what_cannot_be_fetched_is_one_sentence(served, tmp_path, monkeypatch):
    def refused(said, kind=CheckpointError, name="phantom-wan-1.3b", **options):
        count = len([path for _, path, _ in served.asked if "/resolve/" in path])
        with pytest.raises(kind, match=said) as error:
            fetch(name, tmp_path / "model", quiet, quiet, **options)
        assert "\n" not in str(error.value)
        assert len([path for _, path, _ in served.asked if "/resolve/" in path]) == count  # before anything is fetched
        assert not (tmp_path / "model").exists()

    refused("there is no model 'wan'", InputError, "wan")
    refused("cannot be had from .*404", revision="v9")
    free = shutil.disk_usage(tmp_path)._replace(free=2_000_000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: free)
    refused("MB free, and .* are needed; make room", InputError)
    del served.files[WAN][T5]
    refused(f"has no {T5} at main")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        fetch("phantom-wan-1.3b", tmp_path / "model", quiet, quiet)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="cannot be had from http://127"):
        fetch("phantom-wan-1.3b", tmp_path / "other", quiet, quiet)


@pytest.mark.long
def test_the_command_line_fetches_through_hf_endpoint(served, tmp_path):
    env = os.environ | {"HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    run = [sys.executable, "-m", "phantom_s2v"]
    done = subprocess.run([*run, "models", "fetch", "phantom-wan-1.3b"], env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"phantom: {WAN} at 0123456789ab")
    assert done.stdout.strip() == str(tmp_path / "cache" / "phantom-s2v" / "models" / "phantom-wan-1.3b")
    asked = [
        "--prompt",
        "A dog.",
        "--size",
        "32x32",
        "--num-frames",
        "1",
        "--num-inference-steps",
        "1",
        "--out",
        str(tmp_path / "a.mp4"),
        "--untrained-size",
    ]
    made = subprocess.run(
        [*run, "generate", "--model", "phantom-wan-1.3b", *asked], env=env, capture_output=True, text=True, timeout=280
    )
    assert made.returncode == 0, made.stderr
