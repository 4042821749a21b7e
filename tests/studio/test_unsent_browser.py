"""A draft that is written on while the session ends or the studio is away: it is said, and goes on without anything lost."""

import re

import pytest

from phantom_s2v.studio.schema import Draft
from studio.conftest import PASSWORD
from studio.visitor import CHROMIUM, Visitor

pytestmark = [pytest.mark.long, pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Debian's Chromium")]


@pytest.fixture
def maker(studio, served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        visitor = Visitor(browser, served, "en", "mouse")
        sign_in(visitor.page, f"{served}/sign-in")
        visitor.open(f"/projects/{studio.project_id}/generate")
        visitor.press("New video")
        visitor.wait(lambda: visitor.page.locator("#look .saved").count() == 1)
        yield visitor
        browser.close()


def sign_in(page, address: str) -> None:
    page.goto(address)
    page.fill("#email", "maker@example.com")
    page.fill("#password", PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile("^(?!.*sign-in)"))


def prompt(studio) -> str:
    with studio.reading() as session:
        return session.query(Draft).one().prompt


def test_a_session_that_ends_while_a_draft_is_written(studio, maker):
    page, box = maker.page, maker.page.locator("#unsent")
    page.context.clear_cookies()
    page.fill("#prompt", "The subject moves up.")
    maker.wait(box.is_visible)
    maker.sees("Your session has ended: what you type now is not saved.")
    assert not page.locator("#look .saved").is_visible()  # nothing says the opposite
    assert prompt(studio) == ""
    other = page.context.new_page()
    sign_in(other, page.url.split("/projects")[0] + "/sign-in?next=/account")
    page.bring_to_front()
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    maker.wait(lambda: prompt(studio) == "The subject moves up.")
    maker.wait(lambda: not box.is_visible())
    page.fill("#prompt", "The subject moves down.")
    maker.wait(lambda: prompt(studio) == "The subject moves down.")


def test_a_studio_that_is_away_while_a_draft_is_written(studio, maker):
    page, box = maker.page, maker.page.locator("#unsent")
    page.context.set_offline(True)
    page.fill("#prompt", "The subject moves left.")
    maker.wait(box.is_visible)
    maker.sees("The studio cannot be reached: what you type now is not saved. Leave this page open; it tries again by itself.")
    page.context.set_offline(False)
    maker.wait(lambda: prompt(studio) == "The subject moves left.")
    maker.wait(lambda: not box.is_visible())


def test_what_is_typed_stays_when_the_page_comes_in_another_language(studio, maker):
    """A password is not kept, and the page is filled once."""
    page = maker.page
    maker.open("/account")
    fields = page.locator("main :is(input:not([type=hidden]), select, textarea)[name]")
    before = fields.evaluate_all("all => all.map(each => [each.name, each.type])")
    passwords = [name for name, kind in before if kind == "password"]
    assert passwords
    page.fill("main [name=token_name]", "Mika M. <draft>")
    for name in passwords:
        page.fill(f"main [name={name}]", "secret words here")
    page.get_by_role("button", name="日本語").click()
    page.wait_for_function("document.documentElement.lang === 'ja'")
    assert page.input_value("main [name=token_name]") == "Mika M. <draft>"
    assert all(page.input_value(f"main [name={name}]") == "" for name in passwords)
    page.reload()
    assert page.input_value("main [name=token_name]") != "Mika M. <draft>"
