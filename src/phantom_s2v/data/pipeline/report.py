"""The report of a run: one HTML file beside the dataset that opens anywhere."""

import html
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from phantom_s2v.data.pipeline.bank import Bank, unpng
from phantom_s2v.data.pipeline.config import Config, Record
from phantom_s2v.media import evenly_spaced
from phantom_s2v.pages import figure, write_page

SHEET = 24  # pairs on a sheet
TILE = 112  # pixels
BINS = 40


def write_report(path: Path, bank: Bank, pairs: list[Record], triplets: int, seconds: dict[str, float], config: Config) -> None:
    """Counts by stage, reasons for drops, histograms with their bounds, sheets of pairs, files left behind, seconds by stage."""
    clips = [(row["drop"], json.loads(row["facts"])) for row in bank.rows("clips", ["drop", "facts"])]
    films = list(bank.films())
    kept = [p for p in pairs if not p["drop"]]
    near = sorted((p for p in pairs if p["drop"]), key=lambda p: _beyond(p, config))
    parts = [
        _table("Counts", _counts(films, clips, pairs, triplets)),
        _table("Why clips were dropped", Counter(drop for drop, _ in clips if drop).most_common()),
        _table("Why pairs were dropped", Counter(p["drop"] for p in pairs if p["drop"]).most_common()),
        "<h2>Similarity of subjects</h2><p>Below the bound it is another subject.</p>",
        _histogram([p["similarity"] for p in pairs], config.lower),
        "<h2>Sameness of surroundings</h2><p>Above the bound it is the same picture.</p>",
        _histogram([p["sameness"] for p in pairs if p["similarity"] >= config.lower], config.upper),
        f"<h2>Pairs kept</h2>{_sheet(bank, _spread(kept))}",
        f"<h2>Pairs just rejected</h2>{_sheet(bank, near[:SHEET])}",
        _table("Files left behind", [(f["path"], f["drop"]) for f in films if f["drop"]]),
        _table("Notices", [(f["path"], "; ".join(f["notices"])) for f in films if f["notices"]]),
        _table("Seconds of CPU by stage", [(name, f"{value:.1f}") for name, value in seconds.items()]),
    ]
    write_page(path, path.stem, parts)


def _beyond(pair: Record, config: Config) -> float:
    """How far a pair lies beyond the bound that rejected it."""
    return pair["sameness"] - config.upper if pair["drop"] == "near-duplicate" else max(0.0, config.lower - pair["similarity"])


def _counts(films: list[Record], clips: list[tuple[str, Record]], pairs: list[Record], triplets: int) -> list[tuple[str, object]]:
    left = [facts for drop, facts in clips if not drop]
    return [
        ("files", len(films)),
        ("files read", sum(not f["drop"] for f in films)),
        ("clips", len(clips)),
        ("clips kept", len(left)),
        ("subjects in them", sum(len(facts["subjects"]) for facts in left)),
        ("pairs looked at", len(pairs)),
        ("pairs kept", sum(not p["drop"] for p in pairs)),
        ("subjects with a cross-pair", len({p["subject"] for p in pairs if not p["drop"]})),
        ("triplets", triplets),
    ]


def _table(title: str, rows: Iterable[tuple[object, object]]) -> str:
    lines = [f"<tr><td>{html.escape(str(a))}</td><td class=n>{html.escape(str(b))}</td></tr>" for a, b in rows]
    return f"<h2>{title}</h2><table>{''.join(lines)}</table>" if lines else f"<h2>{title}</h2><p>None.</p>"


def _histogram(values: list[float], bound: float) -> str:
    """Bars over -0.2 to 1, and the bound as a line; the bars' heights go with the square root of their counts."""
    counts, _ = np.histogram(np.clip(values, -0.2, 1), BINS, (-0.2, 1))
    width, height = 800, 160
    tallest = float(np.sqrt(max(1, counts.max())))
    bars = "".join(
        f'<rect x="{i * width / BINS:.1f}" y="{height * (1 - c**0.5 / tallest):.1f}" width="{width / BINS - 1:.1f}" '
        f'height="{height * c**0.5 / tallest:.1f}" fill="#69c"><title>{-0.2 + i * 1.2 / BINS:.2f}: {c}</title></rect>'
        for i, c in enumerate(counts.tolist())
    )
    x = (bound + 0.2) / 1.2 * width
    mark = f'<line x1="{x}" x2="{x}" y1="0" y2="{height}" stroke="#c00"/><text x="{x + 4}" y="14" fill="#c00">{bound:g}</text>'
    labels = "".join(
        f'<text x="{(v + 0.2) / 1.2 * width - 8:.0f}" y="{height + 14}">{v:g}</text>' for v in (0, 0.25, 0.5, 0.75, 1)
    )
    return f'<svg viewBox="0 0 {width} {height + 20}" width="{width}" font-size="12">{bars}{mark}{labels}</svg>'


def _spread(pairs: list[Record]) -> list[Record]:
    """As many pairs as a sheet holds, from the least alike to the most."""
    ordered = sorted(pairs, key=lambda p: p["similarity"])
    return [ordered[i] for i in evenly_spaced(len(ordered), SHEET)]


def _sheet(bank: Bank, pairs: list[Record]) -> str:
    """Pairs side by side with their numbers."""
    if not pairs:
        return "<p>None.</p>"
    views = {i: row["views"] for i, row in bank.subjects({p[side] for p in pairs for side in ("subject", "partner")}).items()}
    return "".join(
        figure(
            [_small(views[p[side]][len(views[p[side]]) // 2]["picture"]) for side in ("subject", "partner")],
            f"{p['similarity']:.2f}, {p['sameness']:.2f} {html.escape(p['drop'])}",
        )
        for p in pairs
    )


def _small(content: bytes) -> np.ndarray:
    picture = unpng(content)
    return cv2.resize(picture, (max(1, round(picture.shape[1] * TILE / picture.shape[0])), TILE), interpolation=cv2.INTER_AREA)
