"""The HTML report of an export, which opens anywhere: what the file is, who answered for it by id, and what was measured.

It is in the language of who exports the video.
"""

from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader

from phantom_s2v import __version__
from phantom_s2v.media import pages
from phantom_s2v.media.pages import Headline
from phantom_s2v.studio import i18n
from phantom_s2v.studio.gate import WORDS
from phantom_s2v.studio.problems import N_
from phantom_s2v.studio.reviews import SignOff
from phantom_s2v.studio.schema import Video, now

FOLDER = Path(__file__).parent / "reports"


@dataclass(frozen=True)
class Facts:
    """What a report says."""

    export_id: str
    model: str
    origin: dict[str, Any]  # ids and keyed hashes, as the credentials have them
    video: Video
    stand: SignOff
    label: str  # as it is drawn; "" for none
    sha256: str  # of the exported file
    poster: np.ndarray  # uint8 [H, W, 3]
    signer: str


@cache
def _environment(language: str) -> Environment:
    """The one of all reports with the texts of a language."""
    common = pages.environment()
    jinja = common.overlay(loader=FileSystemLoader([pages.TEMPLATES, FOLDER]), extensions=["jinja2.ext.i18n"])
    texts: Any = i18n.translations(language)
    jinja.install_gettext_translations(texts, newstyle=True)  # type: ignore[attr-defined]
    jinja.filters = {**common.filters, "name": partial(i18n.name, language), "at": partial(_at, language)}
    return jinja


def _at(language: str, value: Any) -> str:
    """A time in UTC."""
    return f"{i18n.clock(language, value)} UTC"


def render(facts: Facts, language: str) -> str:
    """The report as HTML."""
    stand = facts.stand
    answers = stand.signatures[-1].checklist if stand.signatures else {}
    return (
        _environment(language)
        .get_template("export.html")
        .render(
            facts=facts, video=facts.video, stand=stand, headline=_headline(facts, partial(i18n.translate, language)),
            verdicts=(facts.video.score or {}).get("verdicts", []), words=WORDS, version=__version__, at=now(), language=language,
            title=i18n.translate(language, N_("Export %(export)s"), export=facts.export_id), poster=facts.poster,
            checked=[(item, each["answer"]) for item, each in answers.items()],
        )
    )  # fmt: skip


def _headline(facts: Facts, say: Any) -> Headline:
    """How the video stands: signatures, label and KPIs."""
    overridden, needed = bool(facts.video.override_by), facts.stand.rules.signatures if facts.stand.rules else 1
    met = N_("all met") if (facts.video.score or {}).get("verdicts") else N_("none were set")
    met = N_("not all met; a reviewer let it pass, the reason is on record") if overridden else met
    return Headline(
        "mixed" if overridden or not facts.label else "good",
        say(N_("Signed by %(count)d of %(needed)d"), count=len(facts.stand.signatures), needed=needed),
        say(N_("People other than the maker have signed this video under the policy in force.")),
        [
            (say(N_("Label")), say(N_("“%(text)s” in every frame"), text=facts.label) if facts.label
             else say(N_("left out; the reason is on record"))),
            (say(N_("KPIs")), say(met)),
            (say(N_("File")), f"SHA-256 {facts.sha256}"),
        ],
        say(N_("Approval")),
    )  # fmt: skip
