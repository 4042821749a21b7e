"""What people do wrong: every mistake is a sentence beside its field in their language, and nothing typed is lost."""

import html
import json
import re

import pytest

from phantom_s2v.studio import kpis, policies, sign_in, texts, waiting
from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.schema import Job, JobState, Project, User
from phantom_s2v.studio.web import forms
from phantom_s2v.studio.web.view import SESSION
from studio.conftest import PASSWORD

WRONG = re.compile(r'<p class="wrong" id="([\w-]+)-wrong">([^<]+)</p>')


def wrong(answer) -> dict[str, str]:
    """Field -> sentence beside it."""
    return dict(WRONG.findall(answer.text))


def kept_in(answer) -> str:
    """What the page to sign in keeps of a form."""
    return html.unescape(re.search(r'name="kept" value="([^"]*)"', answer.text)[1])


@pytest.mark.parametrize(("typed", "number"), [("7", 7), ("７", 7), (" 1,000 ", 1000), ("１，０００", 1000)])
def test_whole_numbers_as_people_type_them(typed, number):
    assert texts.whole(typed, "x", 1, 1000) == number


@pytest.mark.parametrize(("typed", "cents"), [("12.50", 1250), ("12,5", 1250), ("１２．５", 1250), ("1,200", 120_000), ("0", 0)])
def test_amounts_as_people_type_them(typed, cents):
    assert forms.amount(typed, "x", "EUR") == cents
    assert forms.amount("３，６００", "x", "JPY") == 3600
    assert forms.begin_of("２０２７－０３－３１", "x", forms.ZoneInfo("UTC")).month == 3


@pytest.mark.parametrize("typed", ["-3", "1e400", "1.200", "12,50,0", "x", "", "1,23,456", "٣"])
def test_what_is_no_amount_is_refused(typed):
    with pytest.raises(Problem):
        forms.amount(typed, "x", "EUR")
    with pytest.raises(Problem):
        texts.whole(typed, "x", 0, 10**9)


def test_settings_say_all_that_is_wrong_at_once(studio, browser):
    client, here = browser("admin", "ja"), f"/projects/{studio.project_id}/settings"
    typed = {"name": "", "model": "phantom-mini", "currency": "EUR", "price_per_hour": "-3", "budget": "1e400"}
    typed |= {"kpi-similarity": "7", "kpi-seen": "2", "kpi-seen-reason": "x", "kpi-flicker-reason": "y"}
    answer = client.submit(here, {**typed, "kpis": ""})
    assert set(wrong(answer)) == {"price_per_hour", "budget", "kpi-similarity", "kpi-seen", "kpi-flicker", "name"}
    assert wrong(answer)["kpi-seen"] == "0から1までの数値を入力してください。"
    assert 'value="1e400"' in answer.text
    with studio.reading() as session:
        assert session.get_one(Project, studio.project_id).name == "Autumn campaign"
    client.submit(here, {"name": "秋", "currency": "JPY", "model": "phantom-mini", "price_per_hour": "３，６００", "kpis": ""})
    with studio.reading() as session:
        assert session.get_one(Project, studio.project_id).price_per_hour == 3600


@pytest.mark.parametrize(("file", "says"), [
    ("[x", "TOMLとして読み込めません"), ("[x]\nmin = 1", "未知の指標「x」"), ("[seen]\nmin = 1", "reason がありません"),
    ('[seen]\nmin = 1\nreason = " "', "理由（reason）を記入"), ('[seen]\nreason = "x"', "min と max"),
])  # fmt: skip
def test_a_kpi_file_is_refused_in_the_language_of_the_person(studio, browser, file, says):
    typed = {"name": "a", "currency": "EUR", "model": "phantom-mini", "price_per_hour": "", "budget": "", "kpis": file}
    assert says in wrong(browser("admin", "ja").submit(f"/projects/{studio.project_id}/settings", typed))["kpis"]


def test_sentences_of_kpi_files_are_those_of_the_evaluation():
    with pytest.raises(Problem) as caught:
        kpis.check("[seen]\nmin = 'x'\nreason = 'y'")
    assert caught.value.field == "kpis"  # a sentence that has no template is said as it is


def test_a_policy_says_all_that_is_wrong_at_once(studio, browser):
    answer = browser("admin").submit(f"/projects/{studio.project_id}/policy", {"signatures": "x", "retention_days": "0"})
    assert {"signatures", "retention_days", "kinds", "purposes", "territories", "checklist"} <= set(wrong(answer))


def test_a_record_that_the_policy_makes_useless_is_not_taken(studio, browser, actor_of):
    with studio.writing() as session:
        policies.put(session, actor_of("admin"), studio.project_id, policies.TEMPLATES["standard"])
    client = browser("maker")
    made = client.submit(f"/projects/{studio.project_id}/subjects", {"name": "Ann", "kind": "person"}).url.path
    typed = {"shown": "Ann", "owner": "", "basis": "own", "uses": "website", "territories": "JP", "valid_from": "2026-01-01"}
    assert set(wrong(client.submit(f"{made}/rights", typed))) == {"owner", "basis", "document"}


def test_a_new_person_has_a_role(studio, browser):
    client, here = browser("boss"), f"/projects/{studio.project_id}/members"
    assert "roles" in wrong(client.submit(here, {"email": "new@example.com", "name": "New"}))
    assert wrong(client.submit(here, {"email": "", "name": ""}))["email"] == "Please fill this in."
    assert client.submit(here, {"email": "ｎｅｗ＠example.com", "name": "New", "roles": "maker"}).text.count("new@example.com")


def test_a_new_person_goes_on_in_the_language_of_the_link_s_page(studio, browser, actor_of):
    with studio.writing() as session:
        token = sign_in.make_link(session, actor_of("boss"), session.get_one(User, studio.people["maker"]))
    page = browser(None, "ja").submit(f"/link/{token}", {"password": PASSWORD, "again": PASSWORD})
    assert "プロジェクト" in page.text


def test_a_session_that_ends_loses_nothing_typed(studio, browser):
    client, here = browser("admin"), f"/projects/{studio.project_id}"
    session = client.cookies[SESSION]
    client.cookies.delete(SESSION)
    typed = {"note": "A long\ntext & more", "signatures": "９", "kinds": ["logo", "person"], "password": "secret word"}
    door = client.submit(f"{here}/policy", typed, headers={"Referer": f"http://127.0.0.1:8765{here}/policy/new"})
    assert door.status_code == 401
    assert "what you typed is kept" in door.text
    assert "secret word" not in door.text
    form = {"kept": kept_in(door), "next": f"{here}/policy/new", "email": "admin@example.com"}
    assert kept_in(client.post("/sign-in", data={**form, "password": "wrong"})) == form["kept"]
    page = client.post("/sign-in", data={**form, "password": PASSWORD})
    assert client.cookies[SESSION] != session
    assert f'action="{here}/policy"' in page.text
    assert 'value="A long\ntext &amp; more"' in page.text
    token = re.search(r'name="csrf" value="(\w+)"', page.text)[1]
    answer = client.post(f"{here}/policy", data={**typed, "csrf": token})
    assert set(wrong(answer)) >= {"signatures"}
    assert "A long\ntext &amp; more" in answer.text


def test_what_another_site_sends_is_not_kept_over_a_sign_in(studio, browser):
    answer = browser(None).post(
        f"/projects/{studio.project_id}/policy", data={"note": "evil"}, headers={"Origin": "http://evil.example"}
    )
    assert "evil" not in answer.text
    kept = json.dumps({"to": "//evil.example/", "fields": [["a", "b"]]})
    page = browser(None).post("/sign-in", data={"kept": kept, "email": "admin@example.com", "password": PASSWORD})
    assert "evil" not in page.text


def test_a_part_of_a_page_is_no_place_to_sign_in(studio, browser):
    address = f"/projects/{studio.project_id}/jobs/{'0' * 32}/progress"
    answer = browser(None).get(address, headers={"HX-Request": "true"}, follow_redirects=False)
    assert answer.status_code == 401


@pytest.mark.parametrize(("address", "page"), [
    ("/projects", "/"), ("/account/tokens", "/account"), (f"/people/{'0' * 32}/link", "/people"),
    ("/projects/{0}/subjects/x/images", "/projects/{0}/subjects/x"), ("/projects/{0}/generate/x/run", "/projects/{0}/generate/x"),
    ("/projects/{0}/videos/x/override", "/projects/{0}"),
])  # fmt: skip
def test_reloading_what_only_takes_forms_leads_to_their_page(studio, browser, address, page):
    answer = browser("admin").get(address.format(studio.project_id), follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, page.format(studio.project_id))


def test_time_left_is_never_nothing_while_steps_are_to_be_done():
    job = Job(state=JobState.RUNNING, candidate=0, candidates=1, progress=1, steps=16, estimated_seconds=12.0, seconds=16.0)
    assert waiting.left(job) == pytest.approx(16 * 15)
    job.progress, job.seconds = 0, 30.0
    assert waiting.left(job) == 12.0
    job.seconds = 2.0
    assert waiting.left(job) == 10.0
