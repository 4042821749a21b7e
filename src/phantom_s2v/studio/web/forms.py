"""Fields of forms as Python has them: days and amounts of money. Each raises Problem beside its field."""

from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from babel.numbers import get_currency_precision

from phantom_s2v.studio.problems import Problem
from phantom_s2v.studio.texts import plain

LARGEST = 10**12


def begin_of(text: str, field: str, zone: ZoneInfo) -> datetime:
    """The beginning of a day, 2026-11-27, in a time zone."""
    return datetime.combine(_day(text, field), time(), zone)


def end_of(text: str, field: str, zone: ZoneInfo) -> datetime:
    """The end of a day, which is the beginning of the next."""
    return datetime.combine(_day(text, field) + timedelta(days=1), time(), zone)


def last_day(value: datetime | None, zone: ZoneInfo) -> date | None:
    """The last day before a moment: what `end_of` was given."""
    return (value - timedelta(microseconds=1)).astimezone(zone).date() if value else None


def _day(text: str, field: str) -> date:
    try:
        day = date.fromisoformat(plain(text))
    except ValueError:
        day = date.min
    if not 1900 <= day.year <= 2200:
        raise Problem("Please enter a date as year-month-day, such as 2027-03-31.", field)
    return day


def amount(text: str, field: str, currency: str) -> int:
    """An amount of money, 12.50, in the smallest unit of its currency."""
    places = get_currency_precision(currency)
    units, _, rest = plain(text).replace(",", ".").partition(".")
    if not (
        units.isascii()
        and units.isdigit()
        and len(units) < 12
        and (not rest or (rest.isascii() and rest.isdigit() and len(rest) <= places))
    ):
        raise Problem("Please enter an amount such as 1200 or, with cents, 12.50.", field)
    return int(units) * 10**places + int(rest.ljust(places, "0") or "0")


def typed_amount(value: int | None, currency: str) -> str:
    """An amount as `amount` reads it; "" for none."""
    places = get_currency_precision(currency)
    return "" if value is None else f"{value / 10**places:.{places}f}"
