"""What alternating window borders do to the velocity at the seams of a long clip.

A held-out clip of 97 frames (25 latent frames) is noised to t = 0.7; the packaged transformer, trained on clips that fit
one window, gives its velocity with the borders fixed and with the borders alternating. Printed is the mean absolute step of the
predicted clean latent between neighboring latent frames at the fixed borders, over the same elsewhere: 1 is no seam.
The true clip's own ratio is the control. The last line is one JSON object.
"""

import json
from dataclasses import replace

import torch

from phantom_s2v.data.synthetic.compose import compose
from phantom_s2v.data.synthetic.heldout import held_out
from phantom_s2v.evaluation.suites.emoji import emoji_cases
from phantom_s2v.geometry import windows
from phantom_s2v.models.autoencoder import encode, to_pixels
from phantom_s2v.models.flow_matching import clean, interpolate
from phantom_s2v.models.phantom.conditioning import Conditions
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.registry import model_folder
from phantom_s2v.pipeline.loading import load_models

CLIPS, FRAMES, T = 12, 97, 0.7


def seam_ratio(latents: torch.Tensor, borders: list[int]) -> float:
    """Mean step over the borders, over the mean step elsewhere; latents are [1, C, T, h, w]."""
    steps = (latents[:, :, 1:] - latents[:, :, :-1]).abs().mean((0, 1, 3, 4))
    at = torch.zeros(len(steps), dtype=torch.bool)
    at[[b - 1 for b in borders]] = True
    inside = ~at
    inside[0] = False  # the first latent frame is a still and stands apart
    return float(steps[at].mean() / steps[inside].mean())


def main() -> None:
    """Measure and print."""
    pipe, sprites = load_models(model_folder("phantom-mini")), held_out()
    ratios: dict[str, list[float]] = {"true": [], "fixed": [], "alternating": []}
    networks = {}
    for name in ("fixed", "alternating"):
        networks[name] = PhantomTransformer.from_config({**pipe.transformer.config, "shift_windows": name == "alternating"})
        networks[name].load_state_dict(pipe.transformer.state_dict())
        networks[name].eval()
    for index, case in enumerate([c for c in emoji_cases(sprites, CLIPS) if c.kind == "unnamed"]):
        clip = compose(replace(case.spec, frames=FRAMES), sprites)
        with torch.no_grad():
            x = encode(pipe.vae, to_pixels(clip.video)[None])
            text, mask = pipe.reader([clip.caption])
            seen = pipe.encode_references([list(clip.references)], [list(clip.references)], [[0]])
            one = torch.ones(1, 1, dtype=torch.bool)
            conditions = Conditions(text, mask, seen.latents, seen.tokens, one, seen.subjects)
            noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(index))
            x_t, t = interpolate(x, noise, torch.tensor(T)), torch.full((1,), T)
            borders = [start for start, _ in windows(x.shape[2], pipe.transformer.config.window_size, 1, False)][1:]
            ratios["true"].append(seam_ratio(x, borders))
            for name, network in networks.items():
                ratios[name].append(seam_ratio(clean(x_t, network(x_t, t, **conditions.arguments()), T), borders))
    print(json.dumps({name: round(sum(values) / len(values), 3) for name, values in ratios.items()}))


if __name__ == "__main__":
    main()
