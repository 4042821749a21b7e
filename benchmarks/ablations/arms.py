"""The arms: what each changes of a recipe. A recipe is a control; an arm differs from it in one thing."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from phantom_s2v.data.synthetic.compose import Cast, ClipSpec, Shot
from phantom_s2v.training.config import Bucket, TrainConfig, TransformerConfig
from phantom_s2v.training.latents import Triplets

SEEDS = (0, 1, 2)
SIDE = 64  # pixels of everything that is trained and judged
MOMENT = 12  # frames from a clip's start to the frame that an in-pair reference shows
FILLED = 0.91  # of a reference's side, by a subject that is cut from its clip with a margin


@dataclass(frozen=True)
class Recipe:
    """What the arms of a group share: batches, steps, and where the weights start."""

    name: str
    frames: int  # of the clips that judge
    buckets: tuple[Bucket, ...]
    steps: int
    references: tuple[tuple[int, float], ...]  # images of a sample and how often
    sizes: dict[str, int] | None = field(
        default=None, hash=False
    )  # of a network that starts from random weights; None: the packaged weights

    @property
    def samples(self) -> float:
        """How many a training sees."""
        shares = sum(bucket.share for bucket in self.buckets)
        return self.steps * sum(bucket.batch * bucket.share for bucket in self.buckets) / shares

    def config(self, seed: int, changes: dict[str, Any]) -> TransformerConfig:
        """The training of an arm."""
        lr, adam_lr = (0.02, 1e-3) if self.sizes else (0.01, 5e-4)
        train = TrainConfig(
            self.steps, lr=lr, adam_lr=adam_lr, warmup=50, decay_share=0.5, ema_decay=0.99, seed=seed, workers=0
        )  # fmt: skip
        config = TransformerConfig(train, self.buckets, references=self.references, drop_vae=0.3)
        return replace(config, **changes)


SMALL = {"depth": 6, "dim": 128, "heads": 2}
ONE_OR_TWO = ((0, 0.1), (1, 0.6), (2, 0.3))
STILLS = Recipe("stills", 1, (Bucket(SIDE, 1, 16, 1.0),), 640, ONE_OR_TWO, SMALL)
CLIPS = Recipe("clips", 13, (Bucket(SIDE, 13, 4, 0.6), Bucket(SIDE, 1, 16, 0.4)), 720, ((0, 0.1), (1, 0.9)), SMALL)
PACKAGED = Recipe("packaged", 1, (Bucket(SIDE, 1, 16, 1.0),), 450, ((1, 1.0),))  # the adapter learns nothing without an image


@dataclass(frozen=True)
class Arm:
    """One arm. `network` and `training` override fields of PhantomTransformer's and TransformerConfig's."""

    name: str
    recipe: Recipe = STILLS
    network: dict[str, Any] = field(default_factory=dict, hash=False)
    training: dict[str, Any] = field(default_factory=dict, hash=False)
    pairing: str = (
        "cross"  # references: cross, in (another moment of the clip itself) or augmented (that, turned, moved and relit)
    )
    one_index: bool = False  # all images have one subject index, instead of one for each subject


TRUE = {"true-stills": 1, "true-clips": 13}  # nothing is trained: what the true clips, of so many frames, get
CONTROLS = {"stills": "both", "clips": "window-10"}
ARMS = (
    Arm("both"),
    Arm("clip-only", network={"use_vae_references": False}),
    Arm("vae-only", network={"use_image_tokens": False}),
    Arm("in-pair", pairing="in"),
    Arm("in-pair-augmented", pairing="augmented"),
    Arm("window-10", CLIPS),  # 13 frames are 4 latent frames: one window
    Arm("window-3", CLIPS, {"window_size": 3}),  # one place is the reference's
    Arm("window-3-tail", CLIPS, {"window_size": 3, "inject_everywhere": False}),
    Arm("dropout-0", training={"drop_vae": 0.0}),
    Arm("dropout-0.7", training={"drop_vae": 0.7}),
    Arm("one-index", one_index=True),
    Arm("window-4", CLIPS, {"window_size": 4}),
)
BY_NAME = {arm.name: arm for arm in ARMS}


@dataclass(frozen=True)
class ArmTriplets(Triplets):
    """Triplets whose references are taken as an arm has them."""

    pairing: str = "cross"

    def _spec(self, rng: np.random.Generator, frames: int, side: int, references: int) -> ClipSpec:
        spec = super()._spec(rng, frames, side, references)
        pairs = zip(spec.casts, spec.shots, strict=True) if references else ()
        shots = tuple(tuple(paired(self.pairing, rng, spec, cast, shot) for shot in of) for cast, of in pairs)
        return replace(spec, shots=shots or spec.shots)


def paired(pairing: str, rng: np.random.Generator, spec: ClipSpec, cast: Cast, shot: Shot) -> Shot:
    """A reference of the wanted pairing in place of a drawn one.

    In-pair: the clip's own subject some frames later, cut out with what is behind it (Phantom-Data trains its first arm so).
    """
    if pairing == "cross":
        return Shot() if shot.in_pair else shot
    own = Shot(
        animated=cast.subject.animated,
        phase=cast.phase + MOMENT,
        scale=FILLED,
        background=spec.background,
    )
    if pairing == "in":
        return own
    shift = (float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.1, 0.1)))
    scale, turn, gain = (float(rng.uniform(*bounds)) for bounds in ((0.6, 1.0), (-15, 15), (0.75, 1.15)))
    return replace(own, scale=scale, turn=turn, gain=gain, shift=shift)
