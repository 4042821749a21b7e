"""Languages: texts from the .po files of `locale/`, and dates, numbers and money as a language writes them.

The English text is the key. Every part of the studio has a .po file of its own in each language's folder; they are read as they
are, so there is nothing to compile.
"""

import gettext
import io
import re
from collections.abc import Iterable, Sequence
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

from babel import Locale
from babel.dates import format_date, format_datetime
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from babel.numbers import format_currency, format_decimal, get_currency_precision
from babel.support import Translations
from babel.units import format_unit
from markupsafe import Markup

from phantom_s2v.studio.problems import N_, Problem
from phantom_s2v.studio.territories import TERRITORIES, WORLD

LOCALE = Path(__file__).parent / "locale"
PLACE = re.compile(r"%\((\w+)\)s")
LANGUAGES = {"en": "English", "ja": "日本語"}


@cache
def translations(language: str) -> gettext.NullTranslations:
    """Texts of a language, of all .po files in its folder; English ones are their own."""
    if language == "en":
        return gettext.NullTranslations()
    whole = Catalog(locale=language)
    for file in sorted((LOCALE / language).glob("*.po")):
        with file.open("rb") as opened:
            for message in read_po(opened, locale=language):
                if message.id and message.string:
                    whole[message.id] = message
    compiled = io.BytesIO()
    write_mo(compiled, whole)
    compiled.seek(0)
    return Translations(compiled)


def translate(language: str, message: str, **values: Any) -> str:
    """A text in a language, with its values."""
    text = translations(language).gettext(message)
    return text % values if values else text


def matched(language: str, templates: Sequence[str], text: str) -> str:
    """An English sentence in a language, by the template that it was made of; itself where none fits."""
    found = fitting(templates, text)
    return translate(language, found[0], **found[1]) if found else text


def fitting(templates: Iterable[str], text: str) -> tuple[str, dict[str, str]] | None:
    """The template that a sentence was made of, and its values; None where none fits."""
    for template in templates:
        fixed = PLACE.split(template)[::2]
        if found := re.fullmatch("(.*)".join(map(re.escape, fixed)), text, re.DOTALL):
            return template, dict(zip(PLACE.findall(template), found.groups(), strict=True))
    return None


def sentence(language: str, problem: Problem) -> str:
    """What a problem says, in a language."""
    values = {name: listed(language, value) if isinstance(value, list) else value for name, value in problem.values.items()}
    return translate(language, problem.message, **values)


def listed(language: str, codes: Sequence[str]) -> str:
    """Codes by their names, in a row."""
    return ("、" if language == "ja" else ", ").join(name(language, code) for code in codes)


def name(language: str, code: str) -> str:
    """What a code of ours, such as a territory, a purpose or a kind, is called."""
    if code in TERRITORIES:
        called = Locale(language).territories[{WORLD: "001"}.get(code, code)]
        return called[0].upper() + called[1:]
    return translate(language, code)


def person(language: str, name: str) -> str:
    """What a person is called, also one who was erased."""
    return name or translate(language, N_("a person who was erased"))


def duration(language: str, seconds: float) -> str:
    """A time that something takes, in the unit that fits."""
    for size, unit in ((3600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return format_unit(round(seconds / size, 1), unit, "short", locale=Locale(language))
    return format_unit(round(seconds) if seconds >= 10 else round(seconds, 1), "second", "short", locale=Locale(language))


def bytes_(language: str, value: float) -> str:
    """An amount of memory."""
    unit, size = ("gigabyte", 1e9) if value >= 1e9 else ("megabyte", 1e6)
    return format_unit(round(value / size, 1), f"digital-{unit}", "short", locale=Locale(language))


def preferred(accepted: str) -> str:
    """The language of ours that a browser's Accept-Language ranks first."""
    ranked = []
    for part in accepted.split(",")[:20]:
        name, _, quality = part.partition(";q=")
        try:
            ranked.append((-float(quality or 1), name.strip().lower().split("-")[0]))
        except ValueError:
            continue
    return next((name for _, name in sorted(ranked, key=lambda each: each[0]) if name in LANGUAGES), "en")


def moment(language: str, value: datetime | None) -> Markup | str:
    """A time, in UTC, which the page's script turns into the reader's own."""
    if value is None:
        return ""
    written = value.isoformat(timespec="seconds")
    return Markup('<time datetime="{}" data-local>{} UTC</time>').format(written, clock(language, value))


def clock(language: str, value: datetime) -> str:
    """A time as a language writes it, in the zone that it has."""
    return format_datetime(value, "medium", locale=Locale(language))


def day(language: str, value: datetime | date | None) -> str:
    """A day."""
    return format_date(value, "medium", locale=Locale(language)) if value else ""


def money(language: str, value: int | None, currency: str) -> str:
    """An amount in the smallest unit of its currency."""
    return format_currency((value or 0) / 10 ** get_currency_precision(currency), currency, locale=Locale(language))


def number(language: str, value: float) -> str:
    """A number with at most three places."""
    return format_decimal(value, locale=Locale(language))


def named(language: str, codes: Sequence[str]) -> list[tuple[str, str]]:
    """Codes with their names, as choices of a form."""
    return [(code, name(language, code)) for code in codes]
