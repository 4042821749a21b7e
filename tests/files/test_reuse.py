"""Hashes are of contents, origins name what differs, and the code version follows from the imports."""

import json
import os

import pytest

from phantom_s2v.errors import DataError
from phantom_s2v.files import hashes, reuse


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of our own, which remembers large files at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED", -1e9)
    monkeypatch.setattr(hashes, "LARGE", 10)
    return tmp_path / "cache"


def test_the_cache_is_where_the_desktop_says(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert hashes.cache_folder() == tmp_path / ".cache" / "phantom-s2v"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hashes.cache_folder() == tmp_path / ".cache" / "phantom-s2v"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert hashes.cache_folder() == tmp_path / "other" / "phantom-s2v"


def test_a_hash_is_remembered_by_path_size_times_and_inode(cache, tmp_path, monkeypatch):
    read, whole = [], hashes._read_hash
    monkeypatch.setattr(hashes, "_read_hash", lambda path: read.append(path) or whole(path))
    file = tmp_path / "重み.safetensors"
    file.write_bytes(b"a" * 20)
    first = hashes.content_hash(file)
    assert hashes.content_hash(file) == first
    assert len(read) == 1
    before = file.stat()
    file.write_bytes(b"b" * 20)  # in place, as long, and with its old time put back
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    second = hashes.content_hash(file)
    assert second != first
    other = tmp_path / "other"
    other.write_bytes(b"c" * 20)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)  # another inode
    assert hashes.content_hash(file) not in (first, second)
    assert len(read) == 3


def test_a_file_that_changed_just_now_is_not_remembered(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "SETTLED", 2.0)
    file = tmp_path / "new"
    file.write_bytes(b"a" * 20)
    hashes.content_hash(file)
    assert not (cache / "phantom-s2v" / "hashes.sqlite").exists()


@pytest.mark.parametrize("harm", ["junk", "folder", "read-only"])
def test_without_a_cache_hashes_are_computed(cache, tmp_path, harm):
    file, known = tmp_path / "weights", cache / "phantom-s2v" / "hashes.sqlite"
    file.write_bytes(b"a" * 20)
    if harm == "read-only":
        cache.write_text("a file where the folder should be")
    else:
        known.parent.mkdir(parents=True)
        known.mkdir() if harm == "folder" else known.write_bytes(b"junk" * 99)
    assert hashes.content_hash(file) == hashes.content_hash(file) == hashes._read_hash(file)


def test_a_folder_hash_is_of_names_and_contents(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text("{}")
    first = hashes.folder_hash(tmp_path, (".json",))
    (tmp_path / "notes.md").write_text("left out")
    assert hashes.folder_hash(tmp_path, (".json",)) == first
    (tmp_path / "a" / "config.json").write_text("[]")
    second = hashes.folder_hash(tmp_path, (".json",))
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, hashes.folder_hash(tmp_path, (".json",))}) == 3


def test_differences_name_the_part_and_both_values():
    before, now = (
        {"config": {"seed": 0, "lengths": [[1, 0.5]]}, "old": 1},
        {"config": {"seed": 7, "lengths": ((1, 0.5),)}, "new": "x"},
    )
    found = reuse.differences(before, reuse.as_json(now))
    assert found == [("config.seed", 0, 7), ("old", 1, reuse.MISSING), ("new", reuse.MISSING, "x")]
    assert reuse.spelled(found[:1]) == "config.seed was 0 and is 7"
    assert reuse.differences(before, before) == []
    assert (
        reuse.origin_hash({"a": (1, 2), "b": 1})
        == reuse.origin_hash({"b": 1, "a": [1, 2]})
        != reuse.origin_hash({"a": [2, 1], "b": 1})
    )


def test_a_result_stands_for_its_own_origin_alone(tmp_path):
    file, origin = tmp_path / "v.mp4", {"seed": 1, "weights": "a" * 64}
    file.write_bytes(b"video")
    noted = json.loads(json.dumps(reuse.note(file, origin)))
    assert reuse.why_not(file, noted, origin) == ""
    assert reuse.why_not(file, noted, {**origin, "seed": 2}) == "seed was 1 and is 2"
    assert reuse.why_not(file, noted, {**origin, "weights": "b" * 64}) == f"weights was {'a' * 12} and is {'b' * 12}"
    for damaged in (None, {}, [], {"made_by": 3}):
        assert "not recorded" in reuse.why_not(file, damaged, origin)
    file.write_bytes(b"other")
    assert "changed since" in reuse.why_not(file, noted, origin)


def test_a_folder_is_taken_for_one_origin(tmp_path):
    folder = tmp_path / "shards"
    for _ in range(2):
        reuse.claim(folder, {"seed": 1}, "*.bin", "shards")
    assert [p.name for p in folder.iterdir()] == ["origin.json"]
    (folder / "1.bin").touch()
    with pytest.raises(DataError, match="contains shards made with other settings: seed was 1 and is 2; choose another folder"):
        reuse.claim(folder, {"seed": 2}, "*.bin", "shards")
    (folder / "origin.json").write_text("[")
    with pytest.raises(DataError, match="is damaged"):
        reuse.claim(folder, {"seed": 1}, "*.bin", "shards")
    (folder / "origin.json").unlink()
    with pytest.raises(DataError, match=r"no origin\.json"):
        reuse.claim(folder, {"seed": 1}, "*.bin", "shards")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a stage, what it imports, and a module that it does not know of. What is installed beside it stays the
    same: pip may be at work in this environment.
    """
    root = tmp_path / "package"
    monkeypatch.setattr(reuse, "packages_distributions", lambda: {"numpy": ["numpy"]})
    monkeypatch.setattr(reuse, "version", lambda name: "2.3.4")
    (root / "inner").mkdir(parents=True)
    (root / "stage.py").write_text("def run():\n    from package.inner import helper\n    return helper.work()\n")
    (root / "inner" / "helper.py").write_text('"""Helps."""\nimport numpy\n\ndef work():\n    return 1\n')
    (root / "other.py").write_text("x = 1\n")
    monkeypatch.setattr(reuse, "PACKAGE", root)

    def version():
        reuse.code_version.cache_clear()
        return reuse.code_version("stage")

    yield root, version
    reuse.code_version.cache_clear()


def test_a_code_version_follows_the_imports_and_not_the_words(package):
    root, version = package
    first = version()
    assert first["numpy"] == "2.3"
    (root / "other.py").write_text("x = 2\n")
    (root / "inner" / "helper.py").write_text('"""Helps others."""\n\nimport numpy  # for later\n\n\ndef work(): return 1\n')
    assert version() == first
    (root / "inner" / "helper.py").write_text("import numpy\ndef work():\n    return 2\n")
    assert version() != first


def test_a_package_that_pip_is_removing_does_not_break_a_code_version(package, monkeypatch):
    """Without its METADATA a distribution has no name, and no version."""
    _, version = package
    monkeypatch.setattr(reuse, "packages_distributions", lambda: {"numpy": ["numpy", None]})
    assert version()["numpy"] == "2.3"
    monkeypatch.setattr(reuse, "version", lambda name: None)
    assert "numpy" not in version()


def test_every_stage_has_a_version_that_covers_what_computes_it():
    for stage, parts in {
        "pipeline.batch": {"pipeline.generate", "pipeline.sampling.guidance", "models.phantom.transformer", "media.images"},
        "evaluation.suites.emoji": {
            "evaluation.suites.classifier",
            "evaluation.metrics.measures",
            "data.synthetic.compose",
            "pipeline.generate",
        },
        "training.latents": {
            "data.synthetic.compose",
            "data.synthetic.render",
            "models.autoencoder",
            "models.phantom.conditioning",
        },
        "data.synthetic.source_videos": {"data.synthetic.appearance", "data.synthetic.compose", "media.images"},
    }.items():
        trees, libraries = reuse._closure([stage])
        assert parts <= set(trees), stage
        assert "numpy" in libraries
    assert "torch" in reuse.code_version("pipeline.batch")
    with pytest.raises(ModuleNotFoundError, match=r"training\.autoencoder is no module"):
        reuse.code_version("training.autoencoder")  # a package: its own file computes nothing
