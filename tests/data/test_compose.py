from dataclasses import replace

import numpy as np
import pytest
import slow_compose
from hypothesis import given, settings
from hypothesis import strategies as st

from phantom_s2v.data.synthetic.appearance import COLORS, PATTERNS, Appearance, Background, color_word, nearest_color
from phantom_s2v.data.synthetic.compose import (
    MOTIONS,
    Cast,
    ClipSpec,
    Shot,
    compose,
    plain_spec,
    random_shot,
    random_spec,
    scene_tensors,
    trajectory,
)
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.data.synthetic.render import apply_appearance, background_tensors, paint, render
from phantom_s2v.evaluation.metrics.measures import background, direction
from phantom_s2v.evaluation.metrics.regions import regions


def spec(motion="right", **changes):
    subject = evaluated(held_out())[0]
    cast = Cast(subject, motion=motion, **changes)
    return ClipSpec((cast,), ((Shot(),),), Background("plain", "teal"), True)


@pytest.mark.parametrize("motion", ["left", "right", "up", "down"])
def test_subjects_move_as_the_caption_says(motion):
    clip = compose(spec(motion), held_out())
    assert direction(clip.video) == motion
    assert MOTIONS[motion] in clip.caption
    assert background(clip.video) == "teal"


def test_still_subjects_have_no_direction():
    assert direction(compose(spec("still"), held_out()).video) is None


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_shorter_clip_is_the_start_of_a_longer(motion):
    """Training cuts latents to a prefix; the motion must not depend on the length."""
    cast = spec(motion).casts[0]
    np.testing.assert_allclose(trajectory(cast, 9), trajectory(cast, 25)[:9])


def slow_images(clip):
    return clip.video, clip.masks, np.stack(clip.references)


@pytest.mark.parametrize("seed", range(12))
def test_clips_are_those_of_the_slow_oracle(seed):
    """Every kind of subject, background and reference, each pixel within one level of 255."""
    pool = evaluated(held_out())
    draw = plain_spec if seed % 3 == 0 else random_spec
    spec = draw(np.random.default_rng(seed), pool, (1, 5)[seed % 2], images=1 + seed % 3)
    for ours, theirs in zip(
        slow_images(compose(spec, held_out())), slow_images(slow_compose.compose(spec, held_out())), strict=True
    ):
        assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("kind", ["plain", "graded", "stripes", "dots", "checks", "noise"])
def test_backgrounds_are_those_of_the_slow_oracle(kind):
    backgrounds = [Background(kind, "blue", "yellow", (5, -5, 0), seed) for seed in range(4)]
    for ours, each in zip(paint(background_tensors(backgrounds), 64).numpy(), backgrounds, strict=True):
        np.testing.assert_allclose(ours, slow_compose.paint(each, 64, 64), atol=2e-5)


def test_a_batch_is_its_clips_one_by_one():
    """Clips with fewer subjects get invisible ones in a batch, which change nothing."""
    pool, rngs = evaluated(held_out()), [np.random.default_rng(seed) for seed in range(6)]
    specs = [random_spec(rng, pool, 5, 96, images=3) for rng in rngs]
    assert len({len(spec.casts) for spec in specs}) > 1
    together = render(scene_tensors(specs, held_out()), held_out().pixels, 96)
    for index, spec in enumerate(specs):
        alone = compose(spec, held_out())
        assert np.abs(together.video[index].numpy().astype(int) - alone.video).max() <= 1
        assert np.abs(together.references[index].numpy().astype(int) - np.stack(alone.references)).max() <= 1
        masks = together.masks[index].numpy().astype(int)
        assert np.abs(masks[: len(alone.masks)] - alone.masks).max() <= 1
        assert not masks[len(alone.masks) :].any()


def test_a_larger_clip_shows_the_same_world():
    """128 pixels, averaged by twos, are 64: subjects, backgrounds and references keep their sizes and periods."""
    for seed in range(6):
        spec = random_spec(np.random.default_rng(seed), evaluated(held_out()), 1, images=1)
        spec = replace(spec, shots=((replace(random_shot(np.random.default_rng(seed)), in_pair=False),),))
        small, large = compose(spec, held_out()), compose(replace(spec, side=128), held_out())
        for a, b in ((small.video[0], large.video[0]), (small.references[0], large.references[0])):
            halved = b.reshape(64, 2, 64, 2, 3).mean((1, 3))
            assert np.abs(halved - a).mean() < 4


@given(st.integers(0, 10_000), st.integers(0, 8), st.sampled_from([1, 9, 25]))
@settings(max_examples=25)
def test_a_seed_gives_the_same_triplet(seed, images, frames):
    sprites = held_out()
    pool = evaluated(sprites)
    first, second = (compose(random_spec(np.random.default_rng(seed), pool, frames, images=images), sprites) for _ in range(2))
    assert np.array_equal(first.video, second.video)
    assert first.caption == second.caption
    assert first.video.shape == (frames, 64, 64, 3)
    assert len(first.references) == len(first.subject_of) == images
    assert len(set(first.subject_of)) <= 4
    assert list(first.subject_of) == sorted(first.subject_of)


def test_plain_clips_show_large_subjects_mostly_on_a_plain_background():
    sprites = held_out()
    specs = [plain_spec(np.random.default_rng(i), sprites.subjects) for i in range(400)]
    assert all(len(s.casts) == len(s.shots) == len(s.shots[0]) == 1 for s in specs)
    assert all(0.66 <= s.casts[0].size <= 0.8 for s in specs)
    assert 0.85 < np.mean([s.background.kind == "plain" for s in specs]) < 0.95  # 0.8 and half of the rest
    assert 0.66 < np.mean([not (s.casts[0].appearance.hue or s.casts[0].appearance.tint) for s in specs]) < 0.9
    assert compose(specs[0], sprites).video.shape == (25, 64, 64, 3)
    pairs = [plain_spec(np.random.default_rng(i), sprites.subjects, images=2) for i in range(100)]
    assert all(sum(map(len, s.shots)) == 2 for s in pairs)
    assert all(0.45 <= c.size <= 0.52 for s in pairs for c in s.casts if len(s.casts) == 2)
    assert 0.7 < np.mean([len(s.casts) == 2 for s in pairs]) < 0.9


def test_half_of_the_captions_say_only_the_subject():
    pool = evaluated(held_out())
    named = [random_spec(np.random.default_rng(i), pool, 1, images=1).named for i in range(400)]
    assert 0.42 < np.mean(named) < 0.58
    unnamed = compose(replace(spec(), named=False), held_out()).caption
    assert unnamed == "The subject moves to the right on a teal background."


def test_an_in_pair_reference_is_the_clip_itself():
    clip = compose(replace(spec("still", size=0.9), shots=((Shot(in_pair=True),),)), held_out())
    difference = np.abs(clip.references[0].astype(int) - clip.video[0]).mean()
    cross = compose(spec("still", size=0.9), held_out())
    assert difference < np.abs(cross.references[0].astype(int) - cross.video[0]).mean() / 2


def test_masks_are_where_the_subject_is():
    clip = compose(spec("still", size=0.7), held_out())
    found = regions(clip.video[0], 1)[0].mask
    truth = clip.masks[0, 0] > 100
    assert (found & truth).sum() / (found | truth).sum() > 0.9


def test_position_is_exact_to_a_fraction_of_a_pixel():
    centers = [compose(spec("still", center=(0.5, x)), held_out()).masks[0, 0].astype(float) for x in (0.5, 0.5 + 0.25 / 64)]
    columns = [(mask * np.arange(64)).sum() / mask.sum() for mask in centers]
    assert columns[1] - columns[0] == pytest.approx(0.25, abs=0.02)


SPRITE = np.zeros((96, 96, 4), np.float32)
SPRITE[20:80, 20:60] = [0.8, 0.2, 0.1, 1.0]


def test_appearances_keep_the_outline_and_mirror_it():
    for appearance in (
        Appearance(hue=2.0),
        Appearance(tint="blue"),
        Appearance(pattern="striped"),
        Appearance(hue=1.0, pattern="dotted"),
    ):
        out = apply_appearance(SPRITE, appearance)
        assert np.array_equal(out[..., 3], SPRITE[..., 3])
        assert (out[..., :3] <= out[..., 3:] + 1e-6).all()
        assert np.abs(out - SPRITE).max() > 0.1
    assert np.array_equal(apply_appearance(SPRITE, Appearance(mirrored=True)), SPRITE[:, ::-1])
    assert np.array_equal(apply_appearance(SPRITE, Appearance()), SPRITE)


def test_hue_turns_around_gray():
    gray = np.full((4, 4, 4), 0.5, np.float32)
    np.testing.assert_allclose(apply_appearance(gray, Appearance(hue=1.3)), gray, atol=1e-6)
    third = apply_appearance(SPRITE, Appearance(hue=2 * np.pi / 3))[30, 30, :3]
    np.testing.assert_allclose(third, [0.1, 0.8, 0.2], atol=1e-5)


def test_colors_are_named():
    assert color_word(SPRITE) == "red"
    assert all(nearest_color(np.array(rgb)) == name for name, rgb in COLORS.items())
    assert color_word(apply_appearance(SPRITE, Appearance(tint="green"))) == "green"


@pytest.mark.parametrize("kind", ["plain", "graded", "stripes", "dots", "checks", "noise"])
def test_backgrounds_are_within_range_and_of_their_colors(kind):
    drawn = Background(kind, "blue", "yellow", (5, -5, 0), seed=3)
    image = paint(background_tensors([drawn]), 40)[0].numpy()
    assert image.shape == (40, 40, 3)
    assert image.min() >= 0
    assert image.max() <= 1
    assert (np.ptp(image, (0, 1)).max() < 1e-6) == (kind == "plain")
    assert "blue" in drawn.words


def test_patterns_differ():
    images = [apply_appearance(SPRITE, Appearance(pattern=p)) for p in PATTERNS]
    assert all(np.abs(a - b).mean() > 0.01 for i, a in enumerate(images) for b in images[:i])
