"""The store, its exchange formats and its loader, on triplets made of noise."""

import io
import json
import subprocess
import sys
import time
from dataclasses import replace

import lance
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from phantom_s2v.data import triplets as module
from phantom_s2v.data.formats.exchange import export_folder, export_webdataset, read_export, to_files
from phantom_s2v.data.formats.folders import read_captioned
from phantom_s2v.data.formats.items import Reading
from phantom_s2v.data.loader import decode
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference, TripletStore, check_triplet
from phantom_s2v.errors import DataError, InputError, OutputError
from phantom_s2v.media import images

OWN = Rights("source video 7", "CC-BY-4.0", "letter 12")


def image(seed, form="PNG", channels=(3,)):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (12, 16, *channels), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "a.mp4"
    images.write_video(path, np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8), 8)
    return path.read_bytes()


def triplets(clip, count=7):
    return [
        Triplet(
            clip, f"Ein Hund, 犬, number {i}.",
            (
                TripletReference(image(i), "dog", "cross-pair", (0.1, 0.2, 0.9, 0.8), image(99, channels=()), 0.7, OWN),
                TripletReference(image(i + 100, "WEBP"), "cat", "in-pair", rights=OWN),
            ),
            8.0, 5, 32, 32, {"sharpness": 0.5}, OWN,
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture
def store(clip, tmp_path):
    store = TripletStore.create(tmp_path / "triplets.lance")
    assert store.write(triplets(clip)) == 7
    return store


def test_what_is_read_is_what_was_written(store, clip):
    assert list(store) == triplets(clip)
    assert store.take([5, 0]) == [triplets(clip)[5], triplets(clip)[0]]


def test_a_retry_changes_nothing_and_versions_can_be_read_back(store, clip, tmp_path):
    assert store.write(triplets(clip)) == 0
    assert store.write(triplets(clip, 9)) == 2
    assert sorted(store.ids()) == sorted(t.id for t in triplets(clip, 9))
    first = [n for n, _ in store.versions() if len(TripletStore(tmp_path / "triplets.lance", n)) == 7]
    assert first
    with pytest.raises(DataError, match="no version 99"):
        TripletStore(tmp_path / "triplets.lance", 99)


def test_the_id_is_of_the_content_alone(clip):
    one = triplets(clip)[0]
    assert replace(one, scores={}, rights=Rights()).id == one.id
    assert replace(one, caption="another").id != one.id
    assert replace(one, references=one.references[:1]).id != one.id


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"video": b""}, "has no video"),
        ({"references": (TripletReference(b"x", "a", "pasted"),)}, "must be in-pair, cross-pair or same-shot"),
        ({"references": (TripletReference(b"x", "a", "in-pair", (0.5, 0, 0.4, 1)),)}, "must be fractions"),
        ({"references": tuple(TripletReference(b"x", str(i), "in-pair") for i in range(5))}, "5 references of 5 subjects"),
    ],
)
def test_what_no_training_could_use_is_refused(clip, change, said):
    with pytest.raises(DataError, match=said):
        check_triplet(replace(triplets(clip)[0], **change))


def test_a_license_is_required_of_clip_and_images_where_that_is_asked(store, clip):
    bare = replace(triplets(clip)[0], caption="new", rights=Rights("web"))
    check_triplet(bare)
    with pytest.raises(DataError, match="has no license for the clip"):
        store.write([bare], require_license=True)
    bare = replace(triplets(clip)[0], references=(replace(triplets(clip)[0].references[0], rights=Rights()),))
    with pytest.raises(DataError, match="has no license for reference 1"):
        check_triplet(bare, require_license=True)
    assert len(store) == 7


def export_tars(store, folder, force=False):
    return export_webdataset(store, len(store), folder, force)


@pytest.mark.parametrize("export", [export_folder, export_tars])
def test_out_and_in_again(store, clip, tmp_path, export, monkeypatch):
    monkeypatch.setattr("phantom_s2v.data.formats.exchange.SHARD", 3)
    assert export(store, tmp_path / "out") == 7
    assert not list((tmp_path / "out").glob(".*"))
    again = list(read_export(tmp_path / "out", pytest.fail))
    assert sorted(again, key=lambda t: t.id) == sorted(triplets(clip), key=lambda t: t.id)
    if export is export_tars:
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.tar", "000001.tar", "000002.tar"]


def test_webdataset_reads_an_export(store, tmp_path, monkeypatch):
    monkeypatch.setattr("phantom_s2v.data.formats.exchange.SHARD", 4)
    export_tars(store, tmp_path / "out")
    found = {}
    for shard in (tmp_path / "out").glob("*.tar"):
        with shard.open("rb") as file:
            samples = group_by_keys(tar_file_expander([{"url": shard.name, "stream": file}]))
            found |= {sample["__key__"]: sample for sample in samples}
    for triplet in store:
        files = to_files(triplet)
        assert {name: found[triplet.id][name] for name in files} == files
    assert len(found) == 7


def test_an_export_has_the_same_bytes_again(store, tmp_path):
    for name in ("one", "other"):
        export_tars(store, tmp_path / name)
    assert (tmp_path / "one" / "000000.tar").read_bytes() == (tmp_path / "other" / "000000.tar").read_bytes()


def test_an_export_replaces_nothing_of_others_and_leaves_nothing_half_written(store, tmp_path, monkeypatch):
    monkeypatch.setattr("phantom_s2v.data.formats.exchange.SHARD", 3)
    out = tmp_path / "out"
    export_tars(store, out)
    with pytest.raises(InputError, match=r"000000\.tar already exists; .* --force"):
        export_tars(store, out)
    assert export_tars(store, out, force=True) == 7
    (out / "000003.tar").touch()
    with pytest.raises(InputError, match=r"already contains 000003\.tar"):
        export_tars(store, out, force=True)
    (out / "000003.tar").replace(out / "000001.tar")
    with pytest.raises(InputError, match=r"000001\.tar exists and was not written by phantom"):
        export_tars(store, out, force=True)
    assert not (out / "000001.tar").stat().st_size

    def stopped():
        yield from list(store)[:4]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_webdataset(stopped(), 7, tmp_path / "stopped")
    assert [p.name for p in (tmp_path / "stopped").iterdir()] == ["000000.tar"]
    export_folder(store, tmp_path / "files")
    before = {p: p.stat().st_ino for p in (tmp_path / "files").iterdir()}
    assert export_folder(store, tmp_path / "files") == 7
    assert {p: p.stat().st_ino for p in (tmp_path / "files").iterdir()} == before
    next((tmp_path / "files").glob("*.mp4")).write_bytes(b"mine")
    with pytest.raises(DataError, match="exists with other contents"):
        export_folder(store, tmp_path / "files")


def test_what_is_not_whole_is_named_and_passed_over(store, tmp_path):
    export_folder(store, tmp_path / "out")
    ids = sorted(store.ids())
    (tmp_path / "out" / f"{ids[0]}.mp4").unlink()
    (tmp_path / "out" / f"{ids[1]}.reference-1.png").unlink()
    (tmp_path / "out" / f"{ids[2]}.json").write_text("{")
    said = []
    assert len(list(read_export(tmp_path / "out", said.append))) == 4
    assert [line.split()[0] for line in said] == ids[:3]


def test_a_captioned_folder(clip, tmp_path):
    (tmp_path / "犬 one.mp4").write_bytes(clip)
    (tmp_path / "犬 one.txt").write_text("A dog.", encoding="utf-8")
    (tmp_path / "犬 one.dog.png").write_bytes(image(1))
    (tmp_path / "two.mp4").write_bytes(clip)
    (tmp_path / "three.mp4").write_text("no video")
    (tmp_path / "three.txt").write_text("x")
    said = []
    (found,) = read_captioned(tmp_path, Reading(OWN, said.append, said.append))
    assert (found.caption, found.frames, found.references[0].subject, found.rights) == ("A dog.", 5, "dog", OWN)
    assert [line.split(":")[0] for line in said] == ["three.mp4", "two.mp4"]


def test_a_captioned_folder_pairs_by_exact_names(clip, tmp_path):
    for name in ("a", "a.b", "[x]", "c[12]"):
        (tmp_path / f"{name}.mp4").write_bytes(clip)
        (tmp_path / f"{name}.txt").write_text(f"Of {name}.")
    seeds = {
        "a.dog.png": 1,
        "a.b.png": 2,
        "a.b.cat.png": 3,
        "[x].owl.png": 4,
        "c[12].hen.PNG": 5,
        "x.fox.png": 6,
        "c1.elk.png": 7,
    }
    for name, seed in seeds.items():
        (tmp_path / name).write_bytes(image(seed))
    left = []
    found = {
        t.caption: {r.subject: r.image for r in t.references}
        for t in read_captioned(tmp_path, Reading(OWN, left.append, left.append))
    }
    assert found == {
        "Of a.": {"dog": image(1)}, "Of a.b.": {"cat": image(3)},
        "Of [x].": {"owl": image(4)}, "Of c[12].": {"hen": image(5)},
    }  # fmt: skip
    assert sorted(line.split(":")[0] for line in left) == ["a.b.png", "c1.elk.png", "x.fox.png"]


def test_an_exported_folder_is_read_by_exact_names(store, tmp_path):
    """Also where a name is a pattern, or begins like another one."""
    one, other = list(store)[:2]
    (tmp_path / "out").mkdir()
    for name, triplet in (("[a]", one), ("[a].b", other)):
        for rest, content in to_files(triplet).items():
            (tmp_path / "out" / f"{name}.{rest}").write_bytes(content)
    assert sorted(t.id for t in read_export(tmp_path / "out", pytest.fail)) == sorted([one.id, other.id])


def test_a_triplet_is_decoded_with_its_references_by_subject(store):
    sample = decode(next(iter(store)))
    assert (sample.video.shape, len(sample.references), sample.subjects) == ((5, 32, 32, 3), 2, (0, 1))
    assert (sample.names, sample.identities) == (("dog", "cat"), ("", ""))


def test_large_triplets_are_written_few_at_once(clip, tmp_path, monkeypatch):
    store, merged = TripletStore.create(tmp_path / "t.lance"), []
    real = TripletStore._merge
    monkeypatch.setattr(TripletStore, "_merge", lambda self, rows: merged.append(len(rows)) or real(self, rows))
    monkeypatch.setattr("phantom_s2v.data.triplets.BYTES", 2 * len(clip))
    assert store.write(triplets(clip)) == len(store) == sum(merged)
    assert max(merged) <= 3
    assert dict(store.without_videos()).keys() == set(store.ids())


def test_a_writer_that_is_killed_loses_and_doubles_nothing(clip, tmp_path):
    """kill -9 at several moments; each time the writer starts over, and in the end every triplet is there once."""
    (tmp_path / "clip.mp4").write_bytes(clip)
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
        "import test_triplets as t\n"
        "from phantom_s2v.data.triplets import TripletStore\n"
        "store = TripletStore.create(Path(sys.argv[1]) / 's.lance')\n"
        "for one in t.triplets((Path(sys.argv[1]) / 'clip.mp4').read_bytes(), 30): store.write([one])\n"
        "print('done')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(__file__).rsplit("/", 1)[0]]
    for wait in (1.2, 1.6, 2.0):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        process.kill()
        process.communicate()
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "done", done.stderr
    ids = TripletStore(tmp_path / "s.lance").ids()
    assert sorted(ids) == sorted(t.id for t in triplets(clip, 30))


def test_things_that_are_no_store(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        TripletStore(tmp_path / "nothing.lance")
    (tmp_path / "empty.lance").mkdir()
    with pytest.raises(DataError, match="is not a Lance dataset"):
        TripletStore(tmp_path / "empty.lance")
    with pytest.raises(DataError, match=r"^((?!\.rs).)*$"):  # no place in Lance's source
        TripletStore(tmp_path / "empty.lance")
    lance.write_dataset(pa.table({"a": [1]}), str(tmp_path / "other.lance"))
    with pytest.raises(DataError, match="missing columns: caption"):
        TripletStore(tmp_path / "other.lance")


def test_the_commands(store, clip, tmp_path, monkeypatch, capsys):
    from phantom_s2v import cli

    def phantom(*arguments):
        monkeypatch.setattr("sys.argv", ["phantom", "data", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code, capsys.readouterr()

    path = tmp_path / "triplets.lance"
    code, said = phantom("show", path, "--limit", 2)
    assert code == 0
    assert "number 0" in said.out
    assert json.loads(said.out.splitlines()[-1])["triplets"] == 7
    assert phantom("export", path, "--out", tmp_path / "tars", "--webdataset")[0] == 0
    code, said = phantom("import", tmp_path / "tars", "--out", tmp_path / "copy.lance", "--require-license")
    assert (code, json.loads(said.out)["new"]) == (0, 7)
    (tmp_path / "source_videos").mkdir()
    (tmp_path / "source_videos" / "a.mp4").write_bytes(clip)
    code, said = phantom(
        "import", tmp_path / "source_videos", "--out", tmp_path / "copy.lance", "--captioned", "--license", "CC0-1.0"
    )
    assert (code, json.loads(said.out)["left_out"]) == (3, 1)
    assert "a.mp4" in said.err
    assert phantom("show", tmp_path / "none.lance")[0] == 2


WRITER = (
    "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2])\n"
    "import test_triplets as t\n"
    "from phantom_s2v.data.triplets import TripletStore\n"
    "store = TripletStore.create(Path(sys.argv[1]) / 's.lance')\n"
    "clip, new = (Path(sys.argv[1]) / 'clip.mp4').read_bytes(), 0\n"
    "for one in t.triplets(clip, int(sys.argv[3])): new += store.write([one])\n"
    "print(new)\n"
)


def at_once(writers, count, clip, folder):
    """New triplets of each of some processes that write the same `count` triplets into one store."""
    (folder / "clip.mp4").write_bytes(clip)
    command = [sys.executable, "-c", WRITER, str(folder), str(__file__).rsplit("/", 1)[0], str(count)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(writers)]
    return [int(each.communicate(timeout=250)[0]) for each in running]


def test_two_processes_write_one_store_at_once(clip, tmp_path):
    new = at_once(2, 6, clip, tmp_path)
    assert sum(new) == 6
    store = TripletStore(tmp_path / "s.lance")
    assert sorted(store.ids()) == sorted(t.id for t in triplets(clip, 6))
    assert store.repaired == 0


@pytest.mark.long
def test_four_processes_write_one_store_at_once(clip, tmp_path):
    assert sum(at_once(4, 90, clip, tmp_path)) == 90
    store = TripletStore(tmp_path / "s.lance")
    assert sorted(store.ids()) == sorted(t.id for t in triplets(clip, 90))
    assert len(store.dataset.get_fragments()) <= 34
    assert [index.name for index in store.dataset.describe_indices()] == ["id_idx"]


def test_what_stands_twice_is_removed_at_open_and_the_first_stays(store, clip, tmp_path):
    import lance

    path = tmp_path / "triplets.lance"
    twice = store.dataset.to_table().slice(2, 3)
    for _ in range(2):  # as writers that take no turns leave it
        lance.write_dataset(twice, str(path), mode="append")
    assert lance.dataset(str(path)).count_rows() == 13
    opened = TripletStore(path)
    assert (opened.repaired, len(opened)) == (6, 7)
    assert list(opened) == list(store)
    assert TripletStore(path).repaired == 0


def test_a_store_is_put_together_and_indexed(clip, tmp_path):
    store = TripletStore.create(tmp_path / "s.lance")
    ours = triplets(clip, 12)
    for one in ours:
        store.write([one])
    assert len(store.dataset.get_fragments()) <= 9
    assert [index.name for index in store.dataset.describe_indices()] == ["id_idx"]
    assert sorted(store.ids()) == sorted(t.id for t in ours)
    assert store.write(ours) == 0  # the index finds all


def test_a_damaged_store_is_one_sentence(store, tmp_path, monkeypatch):
    for file in (tmp_path / "triplets.lance" / "data").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    for read in (lambda: list(TripletStore(tmp_path / "triplets.lance")), lambda: store.take([0])):
        with pytest.raises(DataError, match=r"triplets\.lance is damaged \(.*\)$"):
            read()


def test_a_full_disk_is_one_sentence_and_the_store_stays(store, clip, tmp_path, monkeypatch):
    import resource

    before, soft = list(store), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, soft[1]))
    try:
        with pytest.raises(OutputError, match=r"triplets\.lance cannot be written: .*the existing data is unchanged"):
            store.write(triplets(clip, 9))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, soft)
    assert list(TripletStore(tmp_path / "triplets.lance")) == before
    assert store.write(triplets(clip, 9)) == 2


def test_a_captioned_folder_is_known_as_one_and_shows_what_is_not_measured(call_phantom, clip, tmp_path):
    folder, out = tmp_path / "dogs", tmp_path / "s.lance"
    folder.mkdir()
    (folder / "one.mp4").write_bytes(clip)
    (folder / "one.txt").write_text("A dog.")
    (folder / "one.dog.png").write_bytes(image(1))
    code, said = call_phantom("data", "import", folder, "--out", out)
    assert code == 0, said.err
    assert call_phantom("data", "import", folder, "--out", out, "--captioned")[0] == 0
    shown = call_phantom("data", "show", out)[1].out
    assert "cross-pair of dog, similarity not measured, no license" in shown


def test_nothing_to_import_is_said_and_makes_no_store(call_phantom, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "nowhere"):
        code, said = call_phantom("data", "import", tmp_path / folder, "--out", tmp_path / "s.lance")
        assert (code, len(said.err.splitlines()), said.out) == (2, 1, "")
    assert not (tmp_path / "s.lance").exists()


def old_row(triplet):
    """A row of a dataset and its schema as earlier versions wrote them: without identities, and 0 where nothing was measured."""
    schema = module.SCHEMA
    for name in module.ADDED:
        schema = schema.remove(schema.get_field_index(name))
    row = {name: value for name, value in module._to_row(triplet).items() if name not in module.ADDED}
    return pa.Table.from_pylist([row], schema=schema)


def test_what_was_not_measured_is_null_and_a_zero_is_zero(clip, tmp_path):
    one, other = triplets(clip, 1)[0], triplets(clip, 2)[1]
    zero = replace(one.references[0], score=0.0, identity="a" * 32, scores={"blur": None, "side": 12.0})
    one = replace(one, references=(zero, one.references[1]), scores={"blur": None, "motion": 0.0})
    store = TripletStore.create(tmp_path / "t.lance")
    store.write([one])
    (row,) = store.dataset.to_table().to_pylist()
    assert [r["score"] for r in row["references"]] == [0.0, None]
    assert json.loads(row["scores"]) == {"blur": None, "motion": 0.0}
    assert row["identities"] == ["a" * 32, ""]
    assert list(store) == [one]
    export_folder(store, tmp_path / "out")
    assert list(read_export(tmp_path / "out", pytest.fail)) == [one]
    for scores in ({"scores": {"blur": float("nan")}}, {"references": (replace(one.references[0], score=float("inf")),)}):
        with pytest.raises(DataError, match="must be finite, or null where it was not measured"):
            check_triplet(replace(other, **scores))


def test_a_dataset_of_an_earlier_version_is_read_and_written_on(clip, tmp_path):
    first, second = triplets(clip, 2)
    old = replace(first, references=(first.references[0], replace(first.references[1], score=0.0)))
    lance.write_dataset(old_row(old), str(tmp_path / "t.lance"))
    store = TripletStore(tmp_path / "t.lance")
    assert list(store) == [first]  # its 0 was not measured
    zero = replace(second, references=(replace(second.references[0], score=0.0, identity="b"), second.references[1]))
    assert store.write([zero]) == 1
    assert sorted(store, key=lambda t: t.caption) == [first, zero]
    assert len(TripletStore(tmp_path / "t.lance", 1)) == 1
