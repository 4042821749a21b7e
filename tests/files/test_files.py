"""Writing whole or not at all, never over what is not ours; text in any Unicode encoding."""

import errno
import json
import os
import resource
import stat

import pytest

from phantom_s2v.errors import InputError, OutputError
from phantom_s2v.files import io


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
@pytest.mark.parametrize("before", [None, b"old"])
def test_nothing_half_written_is_left(tmp_path, error, before):
    path = tmp_path / "out.bin"
    if before:
        path.write_bytes(before)
    with pytest.raises(error), io.writing(path) as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])
    with pytest.raises(error), io.writing_folder(tmp_path / "folder") as folder:  # noqa: PT012
        (folder / "a").mkdir()
        raise error
    assert not (tmp_path / "folder").exists()
    assert len(list(tmp_path.iterdir())) == bool(before)


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "rows.jsonl"
    io.append(path, "one\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
    try:
        with pytest.raises(OutputError, match=r"rows\.jsonl cannot be written: it is larger than this system lets a file be"):
            io.append(path, "two\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "one\n"


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        io.write_text(tmp_path / "a.html", "x", sealed=True)
        with io.writing_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.html").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask


def test_the_scratch_file_follows_no_link_and_cannot_be_foreseen(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("mine")
    names = set()
    for _ in range(3):
        with io.writing(tmp_path / "out.bin"):
            names |= {p.name for p in tmp_path.iterdir()}
    assert len(names) >= 4
    monkeypatch.setattr(io.secrets, "token_hex", lambda _: "known")
    (tmp_path / ".known.partial").symlink_to(tmp_path / "victim")
    with (
        pytest.raises(OutputError, match=r"out\.bin cannot be written: File exists"),
        io.writing(tmp_path / "out.bin") as file,
    ):
        file.write(b"through the link")
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize(("code", "said"), [
    (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "quota"), (errno.EFBIG, "larger than this system"), (errno.EIO, "Input"),
])  # fmt: skip
def test_a_full_disk_is_one_sentence_with_the_name(tmp_path, monkeypatch, code, said):
    def full(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=rf"a\.json cannot be written: .*{said}.*partial files were removed"):
        io.write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(InputError, match=f"{tmp_path.name} is not writable: .*{said}"):
        io.check_outputs([tmp_path / "a.json"])
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_said_before_work(tmp_path):
    with pytest.raises(InputError, match=r"1000000000000\.0 MB of free space"):
        io.check_folder(tmp_path, 10**18)


def test_an_error_of_another_file_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), io.writing(tmp_path / "out.bin"):
        (tmp_path / "nowhere" / "x").chmod(0o600)


def test_long_names_are_told_before_work_and_the_longest_can_be_written(tmp_path):
    longest = tmp_path / ("x" * 250 + ".toml")
    io.check_outputs([longest])
    io.write_text(longest, "a = 1", sealed=True)
    assert io.ours(longest)
    with pytest.raises(InputError, match="its name is too long"):
        io.check_outputs([tmp_path / ("x" * 256)])
    with pytest.raises(OutputError, match="its name is too long"):
        io.write_text(tmp_path / ("x" * 256), "a")


CONTENTS = {
    "a.html": "<!doctype html><p>x", "a.toml": "[similarity]\nmin = 0.5\n", "a.json": '{"a": {"b": 1}}',
    "a.jsonl": '{"a": 1}\n{"a": {"b": 2}}\n', "a.png": "x" * 500, "a.mp4": "y" * 500, "a.tar": "", "a.MP4": "y" * 500,
    "a.JSON": '{"a": 1}',
}  # fmt: skip


@pytest.mark.parametrize("name", CONTENTS)
def test_our_own_is_known_by_its_seal_and_only_unchanged(tmp_path, name):
    path = tmp_path / name
    io.write_text(path, CONTENTS[name], sealed=True)
    assert io.ours(path)
    whole = path.read_bytes()
    assert io.SEALS.keys() >= {path.suffix.lower()}
    for place in {0, len(whole) // 2, len(whole) - 70, len(whole) - 1}:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not io.ours(path)
        with pytest.raises(OutputError, match="was not written by phantom, or was modified"):
            io.write_text(path, CONTENTS[name], sealed=True)
    for changed in (whole + b"\n", whole[:-1], b"", b"x" * 40):
        path.write_bytes(changed)
        assert not io.ours(path)
    path.write_bytes(whole)
    io.write_text(path, CONTENTS[name], sealed=True)  # ours is replaced
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert not io.ours(path)


def test_sealed_text_still_says_what_it_said(tmp_path):
    for name, text in CONTENTS.items():
        io.write_text(tmp_path / name, text, sealed=True)
    assert io.read_json(tmp_path / "a.json")["a"] == {"b": 1}
    rows = [json.loads(line) for line in io.text_lines(tmp_path / "a.jsonl")]
    assert rows[0] == {"a": 1}
    assert rows[1].pop("seal").startswith("phantom-s2v sha256 ")
    assert rows[1] == {"a": {"b": 2}}
    import tomllib

    assert tomllib.loads(io.read_text(tmp_path / "a.toml")) == {"similarity": {"min": 0.5}}


def test_outputs_are_refused_before_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "a.html"

    def refused(said, *outputs, **more):
        with pytest.raises(InputError, match=said):
            io.check_outputs(outputs, **more)

    refused("output folder .*nowhere does not exist", tmp_path / "nowhere" / "a.html")
    refused("two outputs have the same name", here, tmp_path / "b.html", tmp_path / ".." / tmp_path.name / "a.html")
    io.check_outputs([here], [tmp_path / "none"])
    here.write_text("mine")
    refused("not written by phantom", here)
    refused("not written by phantom", here, force=True)
    here.unlink()
    io.write_text(here, "ours", sealed=True)
    refused("already exists; .* --force", here)
    io.check_outputs([here], force=True)
    (tmp_path / "link").symlink_to(here)
    refused("is also an input", here, inputs=[tmp_path / "link"], force=True)
    refused("not written by phantom", tmp_path / "link", force=True)
    refused("got the folder", tmp_path)
    (tmp_path / "dangling.html").symlink_to("nothing")
    refused("not written by phantom", tmp_path / "dangling.html", force=True)
    with pytest.raises(OutputError, match="was not written by phantom"):
        io.write_text(tmp_path / "dangling.html", "x", sealed=True)


TEXT = 'Grüße, 狐 \u2028 "\u0085" \U0001f98a\nzweite Zeile\n'


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_text_of_any_unicode_encoding(tmp_path, encoding, end):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.replace("\n", end).encode(encoding))
    assert list(io.text_lines(path)) == TEXT.split("\n")[:2]
    assert io.read_text(path) == TEXT.strip("\n")
    mark = "" if encoding in ("utf-16", "utf-32", "utf-8-sig") else "\ufeff"  # those write one themselves
    path.write_bytes(f'{mark}{{"a": "狐"}}'.encode(encoding))
    assert io.read_json(path) == {"a": "狐"}


@pytest.mark.parametrize("content", ["Grüße".encode("latin-1"), "狐".encode("shift-jis"), b"\xff\xfe\x00", b"ab\x80"])
def test_other_text_is_one_sentence(tmp_path, content):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.txt must be UTF-8 text \(byte 0x.. in line 1\)"):
        io.read_text(path)


@pytest.mark.parametrize("before", [0, 6, 5000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_the_line_of_what_is_no_text_is_named(tmp_path, before, end):
    path = tmp_path / "a.txt"
    path.write_bytes(("狐" * 5).encode().join([b"", end]) * before + b"ab\x80" + end + b"c")
    with pytest.raises(InputError, match=rf"byte 0x80 in line {before + 1}\)"):
        io.read_text(path)


def test_what_is_no_text_or_json_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        io.read_text(tmp_path / "none")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        io.read_text(tmp_path)
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="is not valid JSON"):
        io.read_json(tmp_path / "a.json")
    assert io.read_text(tmp_path / "a.json")


def test_a_name_that_is_not_utf_8_can_be_written_down(tmp_path):
    io.write_json(tmp_path / "a.json", {"path": os.fsdecode(b"a\xff.png")}, sealed=True)
    assert os.fsencode(io.read_json(tmp_path / "a.json")["path"]) == b"a\xff.png"


def test_a_text_that_is_too_large_to_be_read_at_once_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "MAX_TEXT_FILE_BYTES", 1 << 20)
    with (tmp_path / "big.json").open("wb") as file:
        file.truncate((1 << 20) + (1 << 20))
    with pytest.raises(InputError, match=r"big.json must have at most 1 MiB .got 2 MiB"):
        io.read_json(tmp_path / "big.json")
