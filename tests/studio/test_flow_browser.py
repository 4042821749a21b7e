"""From the first start to a signed, exported and verified video, by four people in four browsers on real jobs of phantom-mini.

Every page they come to is looked at (`visitor.Visitor.look`): by axe-core in light and dark, at the width of a phone, in one
language, without an error of a script.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import phantom_s2v
from studio.visitor import CHROMIUM, Visitor

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not CHROMIUM.is_file(), reason="needs Debian's Chromium"),
]
STILL = Path(phantom_s2v.__file__).parent / "assets" / "held-out" / "stills" / "1f984.webp"
PASSWORD = "correct horse battery staple"
WORDS = {  # what people type
    "en": {
        "admin": "Ada Admin", "maker": "Mia Maker", "reviewer": "Rob Reviewer", "approver": "Ann Approver",
        "project": "Autumn campaign", "company": "A company", "subject": "Our unicorn", "shown": "The unicorn of our brand",
        "reason": "It is a trial; the shape is right.", "prompt": "The subject moves to the right on a yellow background.",
        "comment": "The horn is blurred here.", "back": "Please make the horn sharper.",
        "revoked": "The license was withdrawn by letter.", "because": "below it nobody knew it",
    },
    "ja": {
        "admin": "管理 花子", "maker": "制作 太郎", "reviewer": "確認 次郎", "approver": "承認 三郎",
        "project": "秋のキャンペーン", "company": "株式会社サンプル", "subject": "ユニコーン", "shown": "自社のユニコーン",
        "reason": "試作のため。形は正しい。", "prompt": "The subject moves to the right.",
        "comment": "ここで角がぼやけています。",
        "back": "角をもっとはっきりさせてください。", "revoked": "書面により許諾が取り下げられました。",
        "because": "これより低いと別物に見えたため",
    },
}  # fmt: skip
TEMPLATE = {  # of the policy
    "en": "Regular use: web, social media and online advertising",
    "ja": "Japan: likeness and publicity rights, similarity search, two signatures",
}


@pytest.fixture
def running(tmp_path) -> Iterator[tuple[str, str]]:
    """The studio as `phantom studio` runs it, pages and worker: its address, and the one-time link of its first start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "phantom_s2v", "studio", "--folder", str(tmp_path / "studio"), "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        assert process.stdout
        link = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+/link/\S+", line)))
        try:
            yield f"http://127.0.0.1:{port}", link
        finally:
            process.send_signal(signal.SIGTERM)


class Team:
    """Four people, each with a browser, and what they know of the project."""

    def __init__(self, browser, root: str, language: str, manner: str, folder: Path) -> None:
        self.words, self.folder, self.language = WORDS[language], folder, language
        self.people = {name: Visitor(browser, root, language, manner) for name in ("admin", "maker", "reviewer", "approver")}
        self.admin, self.maker, self.reviewer, self.approver = self.people.values()
        self.project = self.subject = self.video = ""

    def told(self, words: str, *paths: str, **values) -> None:
        """Pages say this, to one person after the other."""
        for number, path in enumerate(paths):
            each = list(self.people.values())[number % 4]
            each.open(path)
            each.sees(words, **values)


@pytest.mark.parametrize(
    ("language", "manner"), [(language, manner) for manner in ("mouse", "keyboard", "phone") for language in ("en", "ja")]
)
def test_from_the_first_start_to_a_verified_video(running, tmp_path, language, manner):
    from playwright.sync_api import sync_playwright

    root, link = running
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        team = Team(browser, root, language, manner, tmp_path)
        found(team, link.removeprefix(root))
        accounts(team)
        policy_and_settings(team)
        subject_and_rights(team)
        failing = made(team, kpi="0.999")
        overridden(team, failing)
        team.video = made(team, kpi="0.01", again=failing)
        reviewed(team)
        exported = signed_and_exported(team)
        verified(team, exported)
        revoked(team, exported)
        other_pages(team)
        wrong = [line for each in team.people.values() for line in (*each.errors, *each.findings)]
        assert not wrong, "\n".join(wrong)
        browser.close()


def found(team: Team, link: str) -> None:
    """The first start's link: the administrator says who they are, and founds the project."""
    admin, words = team.admin, team.words
    admin.open(link)
    admin.fill("Name", words["admin"])
    admin.press("Save and sign in")
    assert admin.labelled("Name").input_value() == words["admin"]  # nothing typed is lost
    admin.fill("E-mail address", "admin@example.com")
    admin.fill("Company or organization", words["company"])
    admin.fill("Password", PASSWORD)
    admin.fill("Repeat the password", PASSWORD)
    admin.press("Save and sign in")
    admin.press("New project", "link")
    admin.fill("Name", words["project"])
    admin.press("Create the project")
    team.project = re.sub(r"^.*(/projects/\w+).*$", r"\1", admin.page.url)


def accounts(team: Team) -> None:
    """Accounts by one-time links, and roles in the project."""
    admin = team.admin
    admin.open("/people")
    for name in ("maker", "reviewer", "approver"):
        admin.fill("Name", team.words[name])
        admin.fill("E-mail address", f"{name}@example.com")
        admin.press("Add and make a link")
        link = admin.page.input_value("#link")
        visitor = team.people[name]
        visitor.open(link.removeprefix(visitor.root))
        visitor.fill("Password", PASSWORD)
        visitor.fill("Repeat the password", PASSWORD)
        visitor.press("Save and sign in")
    admin.open(f"{team.project}/members")
    for name, roles in (
        ("maker", ["Maker"]),
        ("reviewer", ["Reviewer"]),
        ("approver", ["Approver"]),
        ("admin", ["Approver", "Administrator"]),
    ):
        admin.fill("E-mail address", f"{name}@example.com")
        for role in roles:
            admin.tick(role)
        admin.press("Save")
    admin.open(team.project)
    for visitor in (team.maker, team.reviewer, team.approver):
        visitor.open("/")
        visitor.press(team.words["project"], "link")


def policy_and_settings(team: Team) -> None:
    """A policy from a template, with two signatures; a price and a budget."""
    admin = team.admin
    admin.press("Choose a policy", "link")
    admin.press(TEMPLATE[team.language], "link")
    admin.fill("How many approvers sign", "9")
    admin.press("Put the policy in force")
    admin.sees("Please enter a whole number from %(low)d to %(high)d.", low=1, high=3)
    admin.fill("How many approvers sign", "2")
    admin.press("Put the policy in force")
    admin.press("Settings", "link", inside=".tabs")
    admin.choose("Currency", "JPY")
    admin.fill("Price of an hour of computing", "3600")
    admin.fill("Budget of the project", "100000")
    admin.press("Save")


def subject_and_rights(team: Team) -> None:
    """A subject with an image, and a rights record that another person checks."""
    maker, words = team.maker, team.words
    maker.open(team.project)
    maker.press("Add a subject", "link")
    maker.press("New subject", "link")
    maker.fill("Name", words["subject"])
    maker.choose("What is it?", "character")
    maker.press("Create and add images")
    team.subject = maker.page.url.removeprefix(maker.root).split("#")[0].split("?")[0]
    image = team.folder / "unicorn.png"
    Image.open(STILL).convert("RGBA").resize((512, 512)).save(image)
    maker.attach("#images-file", image)
    maker.wait(lambda: maker.page.locator(".previews img").count() == 1)
    maker.press("Add images")
    maker.press("Add a rights record", "link")
    document = team.folder / "license.pdf"
    document.write_bytes(b"%PDF-1.4\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n")
    maker.fill("Who or what is shown", words["shown"])
    maker.attach("#document", document)
    maker.press("Save the record")  # what is missing is said, and the document is kept
    assert maker.labelled("Who or what is shown").input_value() == words["shown"]
    maker.sees("Your document was kept. Choose another only to replace it.")
    maker.fill("Who owns the rights", words["company"])
    maker.tick("website")
    maker.tick("social media")
    maker.tick("WORLD")
    maker.press("Save the record")
    maker.sees("A reviewer, an approver or an administrator of the project checks it next.")
    reviewer = team.reviewer
    reviewer.open(team.project)
    reviewer.press("To the subjects", "link")
    reviewer.press(words["subject"], "link")
    reviewer.press("I have checked it: it is true")
    reviewer.sees("rights valid")


def made(team: Team, kpi: str, again: str = "") -> str:
    """A video, under a KPI that the administrator sets; its address."""
    admin, maker = team.admin, team.maker
    admin.open(f"{team.project}/settings")
    admin.fill("#kpi-similarity", kpi)
    admin.fill("#kpi-similarity-reason", team.words["because"])
    admin.press("Save")
    if again:
        maker.open(f"{again}/gate")
        maker.press("Make again")
    else:
        draft(team)
    maker.wait(lambda: maker.page.locator("#look .costs").count() == 1)
    maker.look()
    maker.sees("Every subject is described and distinguishable.") if not again else None
    maker.press("Run")
    maker.wait(lambda: maker.page.locator("#progress progress").count() == 0, 600)
    maker.look()
    maker.press("See its measurements" if again else "See why", "link")
    return re.sub(r"^.*(/projects/\w+/videos/\w+).*$", r"\1", maker.page.url)


def draft(team: Team) -> None:
    """A draft is written; it is checked and estimated meanwhile, and still there after the page was closed."""
    maker, words = team.maker, team.words
    maker.open(team.project)
    maker.press("Make a video", "link")
    maker.press("New video")
    maker.wait(lambda: worker_is_there(maker), 300)
    maker.press("Run")
    maker.sees("Describe what happens in the video.")
    maker.tick(words["subject"])
    maker.fill("What happens in the video", words["prompt"])
    maker.choose("What it is for", "website")
    maker.tick({"en": "WORLD", "ja": "JP"}[team.language])
    maker.choose("Length", "9")
    maker.unfold("More options")
    maker.fill("Steps", "4")
    maker.wait(
        lambda: (
            "JP" in maker.page.inner_text("#look")
            or "¥" in maker.page.inner_text("#look")
            or "￥" in maker.page.inner_text("#look")
        )
    )
    maker.page.wait_for_timeout(1500)
    maker.open(team.project + "/generate")
    assert maker.labelled("What happens in the video").input_value() == words["prompt"]
    assert maker.labelled("Steps").input_value() == "4"


def worker_is_there(maker: Visitor) -> bool:
    """Whether the worker has started that `phantom studio` runs beside the pages."""
    maker.page.reload()
    maker.wait(lambda: maker.page.locator("#look h2").count() == 1)
    return "phantom studio worker" not in maker.page.inner_text("#look")


def overridden(team: Team, video: str) -> None:
    """A video that misses a KPI cannot be submitted, until a reviewer lets it pass with a reason."""
    team.maker.sees("It misses KPIs")
    team.maker.open(f"{video}/review")
    team.maker.sees("It misses KPIs and cannot be submitted.")
    assert team.maker.named("Submit for review").count() == 0
    team.reviewer.open(f"{video}/gate")
    team.reviewer.press("Let this video pass")
    team.reviewer.sees("Please fill this in.")
    team.reviewer.fill("Reason", team.words["reason"])
    team.reviewer.press("Let this video pass")
    team.reviewer.sees("It misses KPIs and was let pass")
    team.maker.open(f"{video}/review")
    team.maker.press("Submit for review")
    team.approver.open(f"{video}/sign-off")
    team.approver.press("Send back")
    team.approver.fill("Note", team.words["back"])
    team.approver.press("Send back")
    team.maker.open("/notices")
    team.maker.press("%(name)s sent your video back.", "link", name=team.words["approver"])
    team.maker.press("Why?", "link")
    team.maker.sees(team.words["back"])


def reviewed(team: Team) -> None:
    """The other meets its KPI; it is handed in, and the reviewer pins a comment to a frame and a place."""
    maker, reviewer = team.maker, team.reviewer
    maker.sees("It meets every KPI")
    maker.press("To the review", "link")
    maker.press("Submit for review")
    reviewer.open(team.project)
    reviewer.press("To the videos", "link")
    reviewer.open(f"{team.video}/review")
    reviewer.wait(lambda: reviewer.page.evaluate("document.querySelector('.screen video').readyState") >= 2)
    for _ in range(3):
        reviewer.press("One frame on", look=False)
    if reviewer.manner == "mouse":
        reviewer.page.locator("[data-screen=this]").click(position={"x": 40, "y": 60})
    else:
        reviewer.tick("A place in this frame: click it in the video, or move the sliders", "radio")
    reviewer.fill("Comment", team.words["comment"])
    reviewer.press("Add the comment")
    reviewer.wait(lambda: reviewer.page.inner_text("#frame") == "3" and reviewer.page.locator(".pin").count() >= 1)
    reviewer.sees("Frame %(number)d", number=3)
    maker.open(f"{team.video}/review")
    maker.sees(team.words["comment"])
    maker.press("Mark as done")


def signed_and_exported(team: Team) -> Path:
    """Two approvers sign, and the maker exports; the file that they save."""
    for number, name in enumerate(("approver", "admin")):
        visitor = team.people[name]
        visitor.open("/notices")
        visitor.open(f"{team.video}/review")
        visitor.press("Decide", "link")
        visitor.press("Approve and sign")
        visitor.sees("Please look at the marked fields.")
        items = visitor.page.locator("fieldset.item")
        for item in range(items.count()):
            visitor._hit(items.nth(item).locator("input[type=radio]").first, "Space")
        visitor.press("Approve and sign")
        visitor.sees(("You signed. Another approver has to sign too.", "The video is approved and can be exported.")[number])
    maker = team.maker
    maker.open("/notices")
    maker.press("%(name)s approved your video. It can be exported.", "link", name=team.words["admin"])
    maker.press("Export the video")
    target = team.folder / "export.mp4"
    with maker.page.expect_download() as download:
        maker.press("Save the video", "link", look=False)
    download.value.save_as(target)
    with maker.page.expect_download() as download:
        maker.press("Report", "link", look=False)
    report = team.folder / "report.html"
    download.value.save_as(report)
    assert f'<html lang="{team.language}">' in report.read_text()
    maker.page.goto(report.as_uri())
    maker.look()
    return target


def verified(team: Team, exported: Path) -> None:
    """The file is ours and unchanged; a changed byte is seen."""
    content = exported.read_bytes()
    changed = team.folder / "changed.mp4"
    changed.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    other = team.folder / "other.png"
    Image.new("RGB", (64, 64), "teal").save(other)
    for file, words in (
        (exported, "An export of this studio, unchanged"),
        (changed, "Not the file that was exported"),
        (other, "Nothing is known of this file"),
    ):
        team.approver.open("/verify")
        team.approver.attach("#file", file)
        team.approver.press("Verify")
        team.approver.sees(words)


def revoked(team: Team, exported: Path) -> None:
    """The right is revoked, and every page says so."""
    admin = team.admin
    admin.open(team.subject)
    admin.press("Revoke", "link")
    admin.press("Revoke the right")
    admin.fill("Reason", team.words["revoked"])
    admin.press("Revoke the right")
    team.told("rights revoked", *[team.subject] * 4, *[f"{team.project}/subjects"] * 4)
    why = team.maker.say("a right behind it was revoked")
    pages = [f"{team.video}/{page}" for page in ("gate", "review", "sign-off", "export")]
    team.told("This video must not be used: %(why)s.", *pages, why=why)
    team.told("a right behind it was revoked", *[team.project] * 4)
    team.told("must not be used", *[f"{team.project}/reviews?state=all"] * 4)
    team.maker.open("/notices")
    team.maker.open(f"{team.project}/generate")
    team.approver.open("/verify")
    team.approver.attach("#file", exported)
    team.approver.press("Verify")
    team.approver.sees("A right behind it has ended since. It must not be used any more.")


def other_pages(team: Team) -> None:
    """Pages beside the way."""
    for path in ("/", "/audit", "/certificate", "/people", "/account", "/notices", f"{team.subject}/erase"):
        team.admin.open(path)
    for path in ("jobs", "rights", "policy", "policy/new", "members", "webhooks", "nothing"):
        team.admin.open(f"{team.project}/{path}")
    team.maker.open("/account")
    for path in ("drafts", "jobs", "policy", "rights", "members", "reviews"):
        team.maker.open(f"{team.project}/{path}")
    team.maker.press("Sign out", inside="header")
    team.maker.fill("E-mail address", "maker@example.com")
    team.maker.fill("Password", "wrong")
    team.maker.press("Sign in")
