"""Control characters and rich's markup in names, captions and answers reach no terminal."""

import ast
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from phantom_s2v.cli import app
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference, TripletStore
from phantom_s2v.files.untrusted import printable
from phantom_s2v.media import images

SOURCE = Path(__file__).parents[2] / "src" / "phantom_s2v"
EVIL = "x\x1b[2J\x1b]0;title\x07\r\nphantom: all is well\x9b31m\u202e[red]"


def harmless(text):
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text), ascii(text)
    assert "\nphantom: all is well" not in text


@given(st.text(st.characters(codec=None)))
def test_any_text_is_one_line_without_commands_and_json_stays_the_same(text):
    shown = printable(text)
    harmless(shown)
    assert len(f"{shown}.".splitlines()) == 1
    whole = json.dumps({"a": text}, ensure_ascii=False)
    assert json.loads(printable(whole)) == {"a": text}


def test_plain_text_of_any_script_stays():
    for text in ("狐が走る", "Ayşe [1/2]", "🏴\U000e0067\U000e0062\U000e007f 👩\u200d🚒", "a\\b"):
        assert printable(text) == text


def test_commands_print_through_say_and_tell_alone():
    for path in (SOURCE / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "typer.echo", "err.print"):
                assert "printable(" in ast.unparse(node), f"{path.name}:{node.lineno}"


def test_a_progress_bar_shows_a_name_with_brackets(capsys, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr(app, "err", Console(stderr=True, force_terminal=True, width=100))
    with app.progress() as bar:
        bar.add_task("[x].mp4", total=2)
        bar.refresh()
    assert "[x].mp4" in capsys.readouterr().err


def test_names_of_videos_and_captions(call_phantom, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in (f"{EVIL.replace('/', '')}.mp4", "[x].mp4"):
        images.write_video(folder / name, np.full((4, 32, 32, 3), 90, np.uint8), 8)
    (folder / f"{EVIL} broken.mp4").write_text("no video")
    code, said = call_phantom("evaluate", "score", folder, "--reconstruct", "none")
    assert code == 3, said.err
    harmless(said.out)
    assert "[x].mp4: frozen" in said.out
    assert json.loads(said.out.splitlines()[-1])["videos"] == 3
    reference = TripletReference((folder / "[x].mp4").read_bytes(), EVIL, "in-pair", rights=Rights(license=EVIL))
    TripletStore.create(tmp_path / "t.lance").write([Triplet(b"mp4", EVIL, (reference,), 8, 4, 32, 32)])
    code, said = call_phantom("data", "show", tmp_path / "t.lance")
    assert code == 0
    harmless(said.out)


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "--prompt", "a", "--reference", EVIL), ("generate", "--from", EVIL), ("generate", "--model", EVIL),
        ("generate", EVIL), ("generate", f"--{EVIL}"), (EVIL,), ("evaluate", "run", EVIL), ("evaluate", "score", EVIL),
        ("data", "build", EVIL, "--out", "a.lance"), ("data", "import", EVIL, "--out", "/nowhere/a.lance"),
        ("data", "show", EVIL), ("evaluate", "votes", EVIL), ("evaluate", "compare", EVIL, EVIL),
        ("generate", "--prompt", "a", "--reference", "r.png", "--rephrase", EVIL), ("evaluate", "score", ".", "--kpi", EVIL),
    ],
)  # fmt: skip
def test_errors_are_one_harmless_line(call_phantom, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    images.write_image(tmp_path / "r.png", np.zeros((8, 8, 3), np.uint8))
    code, said = call_phantom(*arguments)
    assert code == 2
    harmless(said.err + said.out)
    assert said.err.startswith("phantom: ")
    assert len(said.err.splitlines()) == 1, said.err


def test_without_arguments_the_help_is_shown(call_phantom):
    code, said = call_phantom("data")
    assert code == 2
    assert "Usage" in said.out + said.err
