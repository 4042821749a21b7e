"""A person in front of a browser: by mouse, by keyboard alone, or with a phone; each page they come to is looked at."""

import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Error, Locator, Page

from phantom_s2v.studio import i18n

CHROMIUM = Path("/usr/bin/chromium")
SHOTS = os.environ.get("PHANTOM_STUDIO_SHOTS", "")  # a folder that gets an image of every page, to be looked at
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
AXE = """async (rules) => {
  const words = (node) => [node.html, ...node.any.map((one) => one.message)].join(" ");
  const found = (await axe.run(document, rules)).violations.filter((each) => ["serious", "critical"].includes(each.impact));
  return found.map((each) => [each.id, each.help, ...each.nodes.slice(0, 3).map(words)]);
}"""
WORDS = """(out) => {
  const copy = document.body.cloneNode(true), names = ["aria-label", "title", "placeholder", "alt"];
  for (const each of copy.querySelectorAll(out)) each.remove();
  const said = [...copy.querySelectorAll("*")].flatMap((each) => names.map((name) => each.getAttribute(name)));
  return [copy.textContent, ...said.filter((each) => each)].join("\\n");
}"""
WIDE = """() => {
  const far = (each) => each.getBoundingClientRect().right > innerWidth + 1;
  const inside = (each) => each.closest(".tabs, .top nav, .skip, .visually-hidden, table.stack thead");
  const seen = [...document.querySelectorAll("a, button, input, select, textarea, summary, img, video, td, dd")];
  const wide = seen.filter((each) => far(each) && !inside(each)).map((each) => each.outerHTML.slice(0, 160));
  return document.documentElement.scrollWidth > innerWidth ? ["scrolls sideways", ...wide] : wide;
}"""
# What the keyboard has reached: whether it is the goal (or a radio of its group), and whether one sees where one is.
FOCUS = """(goal) => {
  const now = document.activeElement, style = getComputedStyle(now), box = now.getBoundingClientRect();
  const ring = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  const label = now.closest("label"), around = label && getComputedStyle(label).outlineStyle !== "none";
  const inView = box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth && box.width > 0;
  const seen = now === document.body || ((ring || around) && inView);
  const radio = now.type === "radio" && goal.type === "radio" && now.name === goal.name;
  return { there: now === goal || radio, seen, what: now.outerHTML.slice(0, 120) };
}"""
PLAIN = re.compile(r"[A-Za-z']{2,}(?: [A-Za-z']{2,}){2,}")  # three words of English in a row
COMMAND = re.compile(r"phantom(?: [a-z]+)+")


class Visitor:
    """One person with a browser of their own. Texts are given in English and looked for in the person's language."""

    def __init__(self, browser: Browser, root: str, language: str, manner: str) -> None:
        self.root, self.language, self.manner = root, language, manner
        size = PHONE if manner == "phone" else DESKTOP
        more: dict[str, Any] = {"is_mobile": True, "has_touch": True} if manner == "phone" else {}
        context = browser.new_context(viewport=size, locale={"en": "en-US", "ja": "ja-JP"}[language], **more)  # type: ignore
        self.page: Page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []  # of scripts
        self.known: set[str] = set()  # pages that were looked at, but for their numbers
        self.findings: list[str] = []  # what is wrong with pages
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self._hear(said.type, said.text))
        self.say: Callable[..., str] = partial(i18n.translate, language)

    def _hear(self, kind: str, text: str) -> None:
        """Chromium says "error" of every answer that refuses something, as forms that are sent back do."""
        if kind == "error" and not re.search("status of (401|404|422)", text):
            self.errors.append(text)

    # Going somewhere

    def open(self, path: str) -> None:
        """Go to an address."""
        self.page.goto(self.root + path)
        self.look()

    def press(
        self, words: str, role: Any = "button", inside: str = "main", number: int = 0, look: bool = True, **values: Any
    ) -> None:
        """A button or link of this text, which leads to another page, unless there is nothing to `look` at."""
        target = self.named(words, role, inside, **values).nth(number)
        if not look:
            return self._hit(target, "Enter")
        self.page.evaluate("window.before = true")  # a script that writes its state into the address is no other page
        self._hit(target, "Enter")
        self.wait(self._arrived)
        return self.look()

    def _arrived(self) -> bool:
        """Whether another page has come."""
        try:
            self.page.wait_for_load_state()
            return not self.page.evaluate("window.before")
        except Error:  # between two pages
            return False

    def named(self, words: str, role: Any = "button", inside: str = "main", **values: Any) -> Locator:
        """What is called so; a name may go on after the words."""
        name = re.compile("^" + re.escape(self.say(words, **values)))
        return self.page.locator(inside).get_by_role(role, name=name)

    def _hit(self, target: Locator, key: str) -> None:
        if self.manner == "keyboard":
            self.reach(target)
            self.page.keyboard.press(key)
        elif self.manner == "phone":
            target.tap()
        else:
            target.click()

    def reach(self, target: Locator) -> None:
        """Tab until the target has the focus; every stop on the way has to be seen."""
        goal = target.element_handle()
        for _ in range(250):
            found = self.page.evaluate(FOCUS, goal)
            assert found["seen"], f"no visible focus on {found['what']} of {self.page.url}"
            if found["there"]:
                break
            self.page.keyboard.press("Tab")
        else:
            raise AssertionError(f"the keyboard does not reach {target} on {self.page.url}")
        for _ in range(20):  # a radio is reached by its group
            if self.page.evaluate("(goal) => document.activeElement === goal", goal):
                return
            self.page.keyboard.press("ArrowDown")
        raise AssertionError(f"arrows do not reach {target}")

    # Forms

    def labelled(self, words: str) -> Locator:
        """The field of a label, or of an id."""
        if words.startswith("#"):
            return self.page.locator(words)
        labelled = self.page.locator("main").get_by_label(re.compile("^\\s*" + re.escape(self.say(words))))
        return labelled.and_(self.page.locator("input, textarea, select"))

    def fill(self, words: str, text: str, number: int = 0) -> None:
        """Type into a field, in place of what is there."""
        field = self.labelled(words).nth(number)
        if self.manner == "keyboard":
            self.reach(field)
            self.page.keyboard.press("Control+a")
            self.page.keyboard.type(text)
        else:
            field.fill(text)

    def tick(self, words: str, role: Any = "checkbox") -> None:
        """Tick a box, or choose among radio buttons."""
        box = self.page.locator("main").get_by_role(role, name=re.compile(re.escape(i18n.name(self.language, words)))).first
        if not box.is_checked():
            self._hit(box, "Space")
        assert box.is_checked()

    def unfold(self, words: str) -> None:
        """What stands behind a fold."""
        summary = self.page.locator("main summary", has_text=self.say(words))
        if not summary.evaluate("(each) => each.parentElement.open"):
            self._hit(summary, "Enter")

    def choose(self, words: str, value: str) -> None:
        """An option of a list, by its value."""
        field = self.labelled(words).first
        if self.manner == "keyboard":
            self.reach(field)
            self.page.keyboard.press("Home")
            while field.input_value() != value:
                self.page.keyboard.press("ArrowDown")
        else:
            field.select_option(value)

    def attach(self, field: str, *files: Path) -> None:
        """Choose files for the field of an id: dropped by mouse, else by the browser's dialog."""
        place = self.page.locator(field)
        if self.manner == "mouse" and self.page.locator("form.drop").count():
            self._drop(place, files)
            return
        with self.page.expect_file_chooser() as chooser:
            self._hit(place, "Enter")
        chooser.value.set_files(files)

    def _drop(self, place: Locator, files: tuple[Path, ...]) -> None:
        kinds = {".png": "image/png", ".webp": "image/webp", ".mp4": "video/mp4"}
        data = self.page.evaluate_handle(
            """(files) => { const data = new DataTransfer();
              for (const [name, bytes, type] of files) data.items.add(new File([new Uint8Array(bytes)], name, { type }));
              return data; }""",
            [[file.name, list(file.read_bytes()), kinds[file.suffix]] for file in files],
        )
        for event in ("dragover", "drop"):
            place.dispatch_event(event, {"dataTransfer": data})

    # Looking

    def text(self) -> str:
        """What the page says."""
        return self.page.inner_text("main")

    def sees(self, words: str, **values: Any) -> None:
        """The page says this."""
        assert self.say(words, **values) in self.text(), f"{self.page.url} does not say: {words}\n{self.text()}"

    def wait(self, done: Callable[[], object], seconds: float = 30) -> None:
        """Until something is so; the page's policy forbids what Playwright's own waiting evaluates."""
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, f"{self.page.url}\n{self.text()}"
            time.sleep(0.1)

    def look(self) -> None:
        """Note what is wrong with the page: accessibility in light and dark, the width of a phone, another language."""
        kind = re.sub(r"[0-9a-f]{8,}|[\w-]{40,}|\d", "", self.page.evaluate("document.documentElement.outerHTML"))
        if kind in self.known:
            return
        self.known.add(kind)
        self.page.evaluate(AXE_SCRIPT)
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)  # type: ignore
            rules = {} if scheme == "light" else {"runOnly": ["color-contrast"]}
            self._note(f"axe-core, {scheme}", self.page.evaluate(AXE, rules))
        self._shoot("dark")
        self.page.emulate_media(color_scheme="light")
        self._shoot("light")
        if self.manner != "phone":
            self.page.set_viewport_size(PHONE)  # type: ignore
        self._note("390 pixels", self.page.evaluate(WIDE))
        self._shoot("phone")
        if self.manner != "phone":
            self.page.set_viewport_size(DESKTOP)  # type: ignore
        if self.language == "ja":
            self._note("English", PLAIN.findall(self._own_words()))

    def _note(self, what: str, found: list[Any]) -> None:
        if found:
            self.findings.append(f"{self.page.url.removeprefix(self.root)}: {what}: {found}")
            if SHOTS:
                with (Path(SHOTS) / "findings.txt").open("a") as file:
                    file.write(f"{self.language} {self.manner} {self.findings[-1]}\n")

    def _own_words(self) -> str:
        """The page's words, without code, hashes and what people typed in Latin letters."""
        return COMMAND.sub("", self.page.evaluate(WORDS, "code, .hash, textarea, [lang], .typed"))

    def _shoot(self, how: str) -> None:
        if not SHOTS:
            return
        folder = Path(SHOTS) / f"{self.language}-{self.manner}"
        folder.mkdir(parents=True, exist_ok=True)
        path = re.sub(r"[0-9a-f]{32}|[\w-]{40,}", "ID", self.page.url[len(self.root) :]).replace("/", "_")[:80] or "home"
        count = len([file for file in folder.iterdir() if file.name.endswith(f"-{how}.png")])
        self.page.screenshot(path=folder / f"{count:03d}{path.split('?')[0]}-{how}.png", full_page=True)
