import pytest

from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.training.latents import TripletEncoder


@pytest.fixture(scope="module")
def sprites() -> Sprites:
    return Sprites(evaluated(held_out()), held_out().pixels)


@pytest.fixture(scope="module")
def encoder(tiny_models, sprites) -> TripletEncoder:
    return TripletEncoder(sprites.pixels, tiny_models.vae, tiny_models.image_encoder, tiny_models.reader)
