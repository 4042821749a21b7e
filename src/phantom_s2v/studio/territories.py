"""Where a video is shown: the world, the European Union or a country, and what a right for one of them covers."""

from collections.abc import Collection, Iterable

WORLD, EU = "WORLD", "EU"
EU_MEMBERS = (
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT", "LT", "LU", "LV", "MT", "NL",
    "PL", "PT", "RO", "SE", "SI", "SK",
)  # fmt: skip
COUNTRIES = (  # beside those of the Union
    "JP", "US", "GB", "CA", "AU", "NZ", "KR", "CN", "TW", "HK", "SG", "TH", "VN", "ID", "MY", "PH", "IN", "AE", "SA", "IL", "TR",
    "ZA", "BR", "MX", "AR", "CL", "CH", "NO", "IS", "UA",
)  # fmt: skip
TERRITORIES = (WORLD, EU, *COUNTRIES, *EU_MEMBERS)


def uncovered(wanted: Iterable[str], granted: Collection[str]) -> list[str]:
    """Territories that are wanted and not granted. The Union is covered by itself, by the world, or by all of its members."""
    return [each for each in wanted if not _covers(granted, each)]


def _covers(granted: Collection[str], territory: str) -> bool:
    if WORLD in granted or territory in granted:
        return True
    if territory == EU:
        return set(granted) >= set(EU_MEMBERS)
    return territory in EU_MEMBERS and EU in granted
