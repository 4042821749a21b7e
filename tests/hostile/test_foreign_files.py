"""Files of others: links, pipes, tars, names and SQL reach nothing that they do not name; what is accepted is decoded."""

import io
import json
import os
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data.formats.exchange import export_folder, export_webdataset, from_files, read_export, to_files
from phantom_s2v.data.formats.folders import read_captioned
from phantom_s2v.data.formats.intake import accepted, check_contents
from phantom_s2v.data.formats.items import Reading
from phantom_s2v.data.pipeline import probe
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference, TripletStore
from phantom_s2v.errors import DataError, InputError
from phantom_s2v.evaluation.suites.own import read_opens2v, read_own
from phantom_s2v.media import images

OWN = Rights("source_video", "MIT", "")


def png(size=(16, 12), mode="RGB"):
    target = io.BytesIO()
    Image.new(mode, size).save(target, "PNG")
    return target.getvalue()


@pytest.fixture(scope="module")
def clip():
    return images.encode_video(np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), dtype=np.uint8), 8)


@pytest.fixture
def one(clip):
    reference = TripletReference(png(), "dog", "cross-pair", (0.1, 0.2, 0.9, 0.8), png(mode="L"), 0.7, OWN)
    return Triplet(clip, "A dog.", (reference,), 8.0, 5, 32, 32, {"sharpness": 0.5}, OWN)


def read(folder):
    """What is taken in of a folder, and what is said of the rest."""
    said = []
    return list(accepted(read_export(folder, said.append), False, said.append)), said


@pytest.mark.parametrize("rest", ["json", "mp4", "reference-1.png", "mask-1.png"])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_links_and_pipes_of_a_folder_are_not_read(one, tmp_path, rest, kind):
    export_folder([one, replace(one, caption="Another.")], tmp_path / "in")
    target = tmp_path / "in" / f"{one.id}.{rest}"
    content = target.read_bytes()
    target.unlink()
    if kind == "link":
        (tmp_path / "secret").write_bytes(content)
        target.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        target.mkdir()
    found, said = read(tmp_path / "in")
    assert [t.caption for t in found] == ["Another."]
    assert len(said) == 1
    assert one.id in said[0]


@pytest.mark.parametrize("name", ["a.mp4", "a.txt", "a.dog.png"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_links_and_pipes_beside_captioned_videos(clip, tmp_path, name, kind):
    folder = tmp_path / "in"
    folder.mkdir()
    for stem in "ab":
        (folder / f"{stem}.mp4").write_bytes(clip)
        (folder / f"{stem}.txt").write_text("A dog.")
        (folder / f"{stem}.dog.png").write_bytes(png())
    (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to(tmp_path / "secret") if kind == "link" else os.mkfifo(folder / name)
    said = []
    assert len(list(read_captioned(folder, Reading(OWN, said.append, said.append)))) == 1
    assert len(said) == 1


def test_videos_and_captions_of_a_build_follow_no_link(clip, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret.mp4").write_bytes(clip)
    (tmp_path / "secret.txt").write_text("a password")
    (folder / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    (folder / "b.mp4").write_bytes(clip)
    (folder / "b.txt").symlink_to(tmp_path / "secret.txt")
    os.mkfifo(folder / "c.mp4")
    (folder / "d.mp4").write_bytes(clip)
    os.mkfifo(folder / "d.json")
    records = list(probe.run(({"path": str(path)} for path in probe.find(folder)), None, None))  # type: ignore[arg-type]
    assert [r["drop"] for r in records] == [
        "a symbolic link (not followed)", "b.txt is a symbolic link (not followed)", "not a file", "d.json is not a regular file",
    ]  # fmt: skip
    assert "password" not in str(records)


def tar_of(path, members, mode="w"):
    """A tar of (name, content or TarInfo)."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            entry = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(content, tarfile.TarInfo):
                entry.size = len(content)
            tar.addfile(entry, None if isinstance(content, tarfile.TarInfo) else io.BytesIO(content))


def members_of(triplet):
    return [(f"{triplet.id}.{rest}", content) for rest, content in to_files(triplet).items()]


def special(name, kind, target="/etc/passwd"):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, target
    return name, entry


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_special_members_of_a_tar(one, tmp_path, kind):
    other = replace(one, caption="Another.")
    odd = [special(name, kind) if name.endswith(".mp4") else (name, content) for name, content in members_of(one)]
    tar_of(tmp_path / "a.tar", [*odd, *members_of(other)])
    found, said = read(tmp_path)
    assert [t.caption for t in found] == ["Another."]
    assert len(said) == 1


def test_a_tar_with_ways_out_of_its_folder_writes_nothing(one, tmp_path):
    (tmp_path / "in").mkdir()
    tar_of(tmp_path / "in" / "a.tar", [(f"../../{name}", content) for name, content in members_of(one)])
    assert len(read(tmp_path / "in")[0]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in"]


def test_damaged_tars_give_what_lies_before_the_damage(one, tmp_path):
    others = [replace(one, caption=f"Number {i}.") for i in range(4)]
    export_webdataset(others, 4, tmp_path / "whole")
    content = (tmp_path / "whole" / "000000.tar").read_bytes()
    with tarfile.open(tmp_path / "whole" / "000000.tar") as tar:
        *_, last = tar
    end = last.offset_data + last.size
    for number, share in enumerate((0.1, 0.55, 0.6, 0.99)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "a.tar").write_bytes(content[: int(share * end)])
        export_webdataset([replace(one, caption="In another tar.")], 1, tmp_path / f"more-{number}")
        (tmp_path / f"more-{number}" / "000000.tar").rename(folder / "b.tar")
        found, said = read(folder)
        assert found[-1].caption == "In another tar."
        assert len(found) - 1 == int(share * 4)
        assert any("a.tar is truncated" in line for line in said)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.tar").symlink_to(tmp_path / "whole" / "000000.tar")
    with pytest.raises(DataError, match="contains no triplet"):
        read(tmp_path / "linked")


CHANGES = {
    "caption": [5, None, ["a"], {"a": 1}, "\ud800"],
    "fps": ["8", None, True, [8], 1e400, -1e30],
    "frames": [8.5, "5", None, 10**30, [], 4, 6, -1],
    "height": ["32", 33, None, 1e9],
    "scores": [5, {"a": "b"}, [1], {"a": []}],
    "rights": [5, {"license": 5}, {"other": "a"}, ["a"]],
    "references": [5, {}, [5], [[]], [{}], ["a"], [{"subject": "a"}], [{"subject": 5, "pairing": "in-pair"}], [None] * 100],
    "unknown": [1],
}


@pytest.mark.parametrize("field", CHANGES)
def test_facts_of_wrong_types_are_one_sentence(one, tmp_path, field):
    files = to_files(one)
    for number, value in enumerate(CHANGES[field]):
        facts = {**json.loads(files["json"]), field: value}
        tar_of(
            tmp_path / f"{number:02d}.tar",
            [(f"{number}.{rest}", c) for rest, c in {**files, "json": json.dumps(facts).encode()}.items()],
        )
    found, said = read(tmp_path)
    assert found == []
    assert len(said) == len(CHANGES[field])
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b"NaN", b"1e999", b"9" * 10_000]
)
def test_json_that_is_none(one, text):
    with pytest.raises(DataError, match="is not a complete triplet"):
        from_files("a", {**to_files(one), "json": text})


def changed(one, **changes):
    reference = replace(one.references[0], **{k: v for k, v in changes.items() if k in ("image", "mask")})
    return replace(one, references=(reference,), **{k: v for k, v in changes.items() if k not in ("image", "mask")})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"video": b"junk"}, "its video is not a readable video"), ({"video": png()}, "its video is not a readable video"),
        ({"image": b"junk"}, "reference 1 must be PNG"), ({"image": png()[:45]}, "reference 1 is (damaged|no PNG)"),
        ({"mask": b"junk"}, "mask 1 must be PNG"), ({"mask": png()}, "mask 1 must have one channel"),
        ({"mask": png((4, 4), "L")}, "the size of its image"), ({"frames": 4}, "its video has more frames"),
        ({"frames": 6}, "its video has 5 frames"), ({"height": 64}, "of 32x32, but its metadata says"),
    ],
)  # fmt: skip
def test_what_an_import_accepts_is_decoded(one, tmp_path, change, said):
    check_contents(one)
    with pytest.raises(DataError, match=said):
        check_contents(changed(one, **change))


def test_junk_is_left_out_with_exit_code_3(call_phantom, one, tmp_path):
    export_folder([one, changed(one, video=b"junk")], tmp_path / "in")
    export_folder([changed(one, mask=png(), caption="c")], tmp_path / "in")
    code, said = call_phantom("data", "import", tmp_path / "in", "--out", tmp_path / "s.lance")
    assert code == 3
    assert json.loads(said.out.splitlines()[-1]) == {"new": 1, "triplets": 1, "left_out": 2}


def test_one_without_a_license_does_not_end_an_import(call_phantom, one, tmp_path):
    export_folder([one, replace(one, caption="b", rights=Rights())], tmp_path / "in")
    code, said = call_phantom("data", "import", tmp_path / "in", "--out", tmp_path / "s.lance", "--require-license")
    assert code == 3
    assert json.loads(said.out.splitlines()[-1])["new"] == 1


def test_ids_are_no_sql(one, tmp_path):
    store = TripletStore.create(tmp_path / "s.lance")
    store.write([one, replace(one, caption="b")])
    for odd in ("x' OR '1'='1", "", "a" * 31, one.id.upper(), f"{one.id}'", 5 * "0" + "\n" + 26 * "0"):
        with pytest.raises(DataError, match="a triplet id must have"):
            store.remove([odd])
    assert len(store) == 2
    store.remove([one.id])
    assert len(store) == 1


def test_a_dataset_of_other_types_is_refused(tmp_path):
    import lance
    import pyarrow as pa

    from phantom_s2v.data.triplets import SCHEMA

    lance.write_dataset(pa.table({name: [1] for name in SCHEMA.names}), str(tmp_path / "s.lance"))
    with pytest.raises(DataError, match="of another type"):
        TripletStore(tmp_path / "s.lance")


@pytest.fixture
def suite(tmp_path):
    folder = tmp_path / "suite"
    folder.mkdir()
    for path in (folder / "a.png", tmp_path / "secret.png"):
        path.write_bytes(png())
    (folder / "linked.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.mark.parametrize("option", ["reference", "first_frame", "background", "segmenter"])
@pytest.mark.parametrize("path", ["../secret.png", "linked.png", "/etc/passwd", "a\0b"])
def test_a_suite_names_files_of_its_own_folder_alone(suite, option, path):
    case = {"id": "a", "prompt": "b", "reference": ["a.png"], option: [path] if option == "reference" else path}
    (suite / "cases.jsonl").write_text(json.dumps(case) + "\n")
    with pytest.raises(InputError, match="not inside suite"):
        read_own(suite)
    (suite / "cases.json").write_text(json.dumps({"a_1": {"prompt": "b", "img_paths": [path]}}))
    with pytest.raises(InputError, match="not inside suite"):
        read_opens2v(suite / "cases.json")


def test_a_suites_names_are_taken_as_they_are(suite):
    """A label with = or / would otherwise be split into another path."""
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.batch import build_request

    rows = {"a_1": {"prompt": "b", "img_paths": ["a.png"], "class_label": ["x=/etc/passwd"]}}
    (suite / "cases.json").write_text(json.dumps(rows))
    (case,), _ = read_opens2v(suite / "cases.json")
    request = build_request(case.request, load_preset(model_folder("phantom-mini")))
    assert [(r.subject, r.path) for r in request.references] == [("x=/etc/passwd", str(suite / "a.png"))]
