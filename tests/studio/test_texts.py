"""Every text of pages and refusals has its Japanese, with the same values, and no translation is left over."""

import re
from functools import cache
from pathlib import Path

import pytest
from babel.messages.extract import extract_from_dir
from babel.messages.pofile import read_po

import phantom_s2v.studio
from phantom_s2v.studio import gate, i18n
from phantom_s2v.studio.schema import JobState, VideoState

STUDIO = Path(phantom_s2v.studio.__file__).parent
FIRST_ARGUMENT = ("Problem", "Forbidden", "NotFound", "NotSignedIn", "Conflict", "TooLarge", "TooMany", "say")
KEYWORDS = {"_": None, "N_": None, "gettext": None, "append": (3,), "ngettext": (1, 2)} | dict.fromkeys(FIRST_ARGUMENT, (1,))
STATES = {state.value for kind in (JobState, VideoState) for state in kind}
FAULTS = {"other subject", "drifting", "missing", "doubled", "swapped", "pasted", "flashed", "frozen", "blurred", "other clothes"}
PROMPT = ("the prompt ", "two subjects ")  # how sentences of the prompt check begin
VALUE = re.compile(r"%\((\w+)\)")


@cache
def written() -> dict:
    """Text, or (one, many) -> the file that it stands in."""
    methods = [("**/migrations/**", "ignore"), ("**.py", "python"), ("**.html", "jinja2")]
    return {
        text: file
        for file, _, text, _, _ in extract_from_dir(STUDIO, methods, keywords=KEYWORDS)
        if isinstance(text, tuple | str)
    }


@cache
def translated(language: str) -> dict:
    found = {}
    for file in (i18n.LOCALE / language).glob("*.po"):
        with file.open("rb") as opened:
            for message in read_po(opened, locale=language):
                if message.id:
                    assert message.id not in found, f"{message.id} is translated twice"
                    found[message.id] = message.string
    return found


@pytest.mark.filterwarnings("ignore")  # Babel's, of f-strings in calls that have nothing to do with texts
def test_every_text_is_translated_and_no_translation_is_left_over():
    assert {text: file for text, file in written().items() if not translated("ja").get(text)} == {}
    left = set(translated("ja")) - set(written()) - STATES - FAULTS  # the evaluation's words
    assert [text for text in left if not str(text).startswith(PROMPT)] == []


def test_translations_have_the_same_values():
    for text, string in translated("ja").items():
        one = text if isinstance(text, str) else text[1]
        for each in [string] if isinstance(string, str) else string:
            assert set(VALUE.findall(each)) == set(VALUE.findall(one)), text


def test_a_page_says_it_in_the_language_of_the_person(browser, studio):
    client = browser("maker", "ja")
    assert "プロジェクト" in client.get("/").text
    answer = client.submit(f"/projects/{studio.project_id}/subjects", {"name": "", "kind": "product"})
    assert "入力してください。" in answer.text
    answer = client.submit(f"/projects/{studio.project_id}/subjects", {"name": "名" * 201, "kind": "product"})
    assert "200文字以内で入力してください（現在201文字）。" in answer.text
    assert '<html lang="ja">' in answer.text
    assert "サインイン" in browser(None, "ja,en;q=0.5").get("/sign-in").text
    page = browser(None).submit("/language", {"language": "ja", "next": "/sign-in"})
    assert "サインイン" in page.text


def test_notes_of_a_measurement_are_translated_as_the_evaluation_writes_them():
    from phantom_s2v.evaluation import footage, score

    source = Path(score.__file__).read_text() + Path(footage.__file__).read_text()
    for note in gate.NOTES:
        assert all(piece in source for piece in i18n.PLACE.split(note)[::2]), note
    said = i18n.matched("ja", gate.NOTES, "no subject was segmented in the reference of 50% (x); whole frames are compared")
    assert said == "「50% (x)」の参照画像から被写体を切り出せなかったため、フレーム全体を比較しています。"
    assert i18n.matched("ja", gate.NOTES, "something else") == "something else"
