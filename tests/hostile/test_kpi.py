"""A KPI that could not be measured is missed."""

import json

import numpy as np
import pytest

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.kpi import read_kpis
from phantom_s2v.media import images


@pytest.fixture
def empty_video(tmp_path):
    """A plain video without any subject, and a reference of one."""
    images.write_video(tmp_path / "v.mp4", np.full((5, 64, 64, 3), 255, np.uint8), 8)
    subject = np.full((64, 64, 3), 255, np.uint8)
    subject[16:48, 16:48] = (200, 30, 30)
    images.write_image(tmp_path / "r.png", subject)
    return tmp_path


@pytest.mark.parametrize(
    ("more", "code", "verdict"), [("", 1, False), ("optional = true\n", 0, None), ("optional = false\n", 1, False)]
)
def test_a_subject_in_no_frame_does_not_meet_its_similarity(call_phantom, empty_video, more, code, verdict):
    (empty_video / "kpi.toml").write_text(f"[similarity]\nmin = 0.9\nreason = 'ours'\n{more}")
    page = empty_video / "page.html"
    options = ("--reference", empty_video / "r.png", "--kpi", empty_video / "kpi.toml", "--reconstruct", "none", "--out", page)
    found, said = call_phantom("evaluate", "score", empty_video / "v.mp4", *options)
    assert found == code, said.err
    assert ("similarity missed, since it was not measured" in said.out) == bool(code)
    assert json.loads(said.out.splitlines()[-1])["kpis_missed"] == code
    assert json.loads(page.with_suffix(".jsonl").read_text().splitlines()[0])["kpis"] == {"similarity": verdict}
    assert ("missed, since it was not measured" in page.read_text()) == bool(code)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optional = 1", "optional must be true or false .got 1"), ("min = true", "min must be a number .got True"),
        ("min = nan", "min must be a number .got nan"), ("max = inf", "max must be a number .got inf"),
        ("optinal = true", "an unknown key 'optinal' .did you mean optional"), ("metric = 'flicker'", "unknown key 'metric'"),
        ("min = 1\na = " + "[" * 100_000, "not a valid TOML file"),
    ],
)  # fmt: skip
def test_what_is_not_legal_in_a_kpi_file(tmp_path, text, said):
    bound = "" if "min" in text or "max" in text else "min = 0.5\n"
    (tmp_path / "kpi.toml").write_text(f"[similarity]\nreason = 'a'\n{bound}{text}\n")
    with pytest.raises(InputError, match=said):
        read_kpis(tmp_path / "kpi.toml")
