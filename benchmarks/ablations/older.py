"""The older ways to a subject, from one base: a learned token, LoRA, and an adapter with cross-attention over image tokens.

The base is the packaged model without references: text to video.
Legend: B batch, n references, N video tokens, k image tokens, H heads, E width of a head, D width.
"""

import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from phantom_s2v.data.synthetic.appearance import PLAIN_APPEARANCE
from phantom_s2v.data.synthetic.compose import ClipSpec, Shot, caption, compose, plain_spec, scene_tensors
from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.data.synthetic.heldout import evaluated, held_out
from phantom_s2v.models.flow_matching import interpolate, sample_t, shift_mean, velocity_loss, velocity_target
from phantom_s2v.models.phantom.conditioning import Conditions, without_image_tokens, without_latents
from phantom_s2v.models.phantom.encoders import TextEncoder
from phantom_s2v.models.phantom.transformer import PhantomTransformer
from phantom_s2v.models.wan.lora import add_lora
from phantom_s2v.models.weights import load_part
from phantom_s2v.training import recipes
from phantom_s2v.training.latents import conditions_of

from .arms import PACKAGED, SEEDS, SIDE, Arm
from .judge import Judge, single, without_references
from .results import chosen
from .world import PROBE_STEPS, Velocity, World, exact, train_arm, velocity_of

PHOTOS, CASES = 10, 8  # images that a way learns a subject from; samples that it is judged by
SUBJECTS = 4  # of a seed
TOKEN_STEPS, TOKEN_RATE = 300, 5e-3  # steps of all photos, as the preset mini-lora has; textual inversion's rate (Gal 2022)
ADAPTER = Arm("adapter", PACKAGED)
WAYS = ("prompt", "reference", "token", "lora", "adapter")
WORD = "subject"  # stands for the subject in captions; its embedding is what textual inversion learns


def base_of(world: World) -> PhantomTransformer:
    """The packaged transformer, frozen."""
    return load_part(PhantomTransformer, world.folder / "transformer")


def held_world(world: World) -> World:
    """The same networks, and the held-out subjects, which no weights have seen."""
    store = held_out()
    subjects = evaluated(store)
    shown = Sprites(subjects, store.pixels)
    return replace(world, store=shown, shown=subjects, candidates=subjects, encoder=replace(world.encoder, pixels=store.pixels))


def photos_of(subject: Subject) -> list[ClipSpec]:
    """Different images of a subject: places, sizes and backgrounds."""
    specs = []
    for place in range(PHOTOS):
        spec = plain_spec(np.random.default_rng([3, place]), (subject,), 1, SIDE)
        cast = replace(spec.casts[0], appearance=PLAIN_APPEARANCE)
        specs.append(replace(spec, casts=(cast,), shots=((Shot(),),), named=False))
    return specs


class LearnedWord(TextEncoder):
    """A text encoder whose WORD has an embedding of its own."""

    def __init__(self, text: TextEncoder, vector: torch.Tensor) -> None:
        super().__init__(parts=(text.tokenizer, text.model))
        self.vector, self.id = vector, text.tokenizer.convert_tokens_to_ids(WORD)

    def features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As of TextEncoder; gradients reach the embedding."""
        words = self.model.get_input_embeddings()(tokens)
        words = torch.where((tokens == self.id)[..., None], self.vector, words)
        features = self.model(inputs_embeds=words, attention_mask=mask.long()).last_hidden_state.float()
        return features * mask[..., None]


def learn_token(world: World, subject: Subject, seed: int, steps: int = TOKEN_STEPS) -> torch.Tensor:
    """Textual inversion (Gal 2022, arXiv 2208.01618): one embedding that makes the frozen base predict the photos."""
    specs, network, text = photos_of(subject), base_of(world), world.text
    tokens, mask = text.tokens([caption(spec, world.store) for spec in specs])
    batch = world.encoder({**scene_tensors(specs, world.store), "tokens": tokens, "text_mask": mask, "side": torch.tensor(SIDE)})
    start = text.model.get_input_embeddings().weight[text.tokenizer.convert_tokens_to_ids(WORD)]
    vector = nn.Parameter(start.detach().clone())
    word, optimizer, x = LearnedWord(text, vector), torch.optim.AdamW([vector], TOKEN_RATE, weight_decay=0.0), batch["latents"]
    torch.manual_seed(seed)
    for _ in range(steps):
        t = sample_t(len(x), shift_mean(0.8, x[0, 0].numel(), 256), 1.0)
        noise = torch.randn(x.shape)
        c = replace(without_references(conditions_of(batch)), text=word.features(tokens, mask))
        with torch.autocast("cpu", world.dtype, enabled=world.dtype != torch.float32):
            velocity = network(interpolate(x, noise, t[:, None, None, None, None]), t, **c.arguments())
        loss = velocity_loss(velocity, velocity_target(x, noise), torch.ones(x.shape[0], x.shape[2], dtype=torch.bool))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vector.detach()


def learn_lora(world: World, subject: Subject, seed: int, folder: Path, steps: int | None = None) -> Path:
    """`phantom train --preset mini-lora` on the photos, with all references dropped; returns the file of the LoRA."""
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    for place, spec in enumerate(photos_of(subject)):
        Image.fromarray(compose(spec, world.store).video[0]).save(photos / f"{place}.png")
        (photos / f"{place}.txt").write_text(caption(spec, world.store))
    (folder / "run.toml").write_text("drop_references = 1.0\n")
    triplets, latents, run = folder / "triplets.lance", folder / "latents.lance", folder / "run"
    model = ("--model", world.folder)
    phantom("data", "import", photos, "--subject", WORD, "--out", triplets)
    phantom("encode", triplets, *model, "--out", latents)
    length = ("--steps", steps) if steps else ()
    phantom(
        "train", "--preset", "mini-lora", *model, "--latents", latents, "--out", run, "--config", folder / "run.toml",
        "--seed", seed, *length,
    )  # fmt: skip
    return run / "lora.safetensors"


def phantom(*words: Any) -> None:
    """A command of the package."""
    subprocess.run([sys.executable, "-m", "phantom_s2v", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


class Adapter(nn.Module):
    """IP-Adapter's way (Ye 2023, arXiv 2308.06721): the base is frozen and sees no references; each block's video queries attend
    to image tokens by keys and values of their own, and the result is added to what the block's attention gives.
    """

    def __init__(self, base: PhantomTransformer) -> None:
        super().__init__()
        self.base, config = base.requires_grad_(False), base.config
        self.image = nn.Sequential(
            nn.LayerNorm(config.image_dim), nn.Linear(config.image_dim, config.dim), nn.LayerNorm(config.dim)
        )
        self.null = nn.Parameter(torch.zeros(config.dim))
        self.keys, self.values = (
            nn.ModuleList(nn.Linear(config.dim, config.dim, bias=False) for _ in base.blocks) for _ in range(2)
        )
        for weight in self.values.parameters():
            nn.init.zeros_(weight)  # the base's output at first

    def forward(self, latents: torch.Tensor, t: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        """As of PhantomTransformer."""
        c = Conditions(**conditions)
        handles = self._attend_to(self._tokens(c)) if c.image_tokens.shape[1] else []
        try:
            return self.base(latents, t, **without_references(c).arguments())
        finally:
            for handle in handles:
                handle.remove()

    def _tokens(self, c: Conditions) -> torch.Tensor:
        """[B, n k, D]."""
        return torch.where(c.image_seen[..., None, None], self.image(c.image_tokens), self.null).flatten(1, 2)

    def _attend_to(self, tokens: torch.Tensor) -> list[Any]:
        """Hooks that add the attention over image tokens before each block's output layer."""
        handles = []
        for block, key, value in zip(self.base.blocks, self.keys, self.values, strict=True):
            held: dict[str, torch.Tensor] = {}
            stream: Any = block.vision

            def keep(module: nn.Module, args: Any, output: torch.Tensor, held: dict = held) -> None:
                held["q"] = output

            def add(
                module: nn.Module, args: Any, held: dict = held, key: Any = key, value: Any = value, stream: Any = stream
            ) -> Any:
                q, k, v = (rearrange(x, "b n (h e) -> b h n e", h=stream.heads) for x in (held["q"], key(tokens), value(tokens)))
                q, k = stream.norm_q(q.float()).to(v.dtype), stream.norm_k(k.float()).to(v.dtype)
                seen = scaled_dot_product_attention(q, k, v)
                return (args[0] + rearrange(seen, "b h n e -> b n (h e)").view_as(args[0]),)

            handles += [stream.q.register_forward_hook(keep), stream.out.register_forward_pre_hook(add)]
        return handles


@dataclass(frozen=True)
class Learned:
    """What a way has learned of a subject."""

    velocity: Velocity
    world: World  # whose text encoder may know the subject's word
    stored: int  # bytes


def text_only(world: World, network: nn.Module) -> Velocity:
    """The base by its prompt alone."""
    plain = velocity_of(network, Arm("text"), world.dtype)
    return lambda x, t, c: plain(x, t, without_references(c))


def null_references(world: World, network: nn.Module) -> Velocity:
    """A place for a reference that is dropped, as the LoRA was trained."""
    plain = velocity_of(network, Arm("lora"), world.dtype)
    return lambda x, t, c: plain(x, t, without_image_tokens(without_latents(c)))


def subjects_of(world: World, seed: int) -> list[Subject]:
    """SUBJECTS of the held-out ones; those of another seed are others."""
    step = len(world.shown) // (SUBJECTS * len(SEEDS))
    return [world.shown[(seed * SUBJECTS + number) * step] for number in range(SUBJECTS)]


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


class Ways:
    """The older ways, and what the base does by prompt and by reference. `run` is one way with one seed."""

    def __init__(self, world: World, scratch: Path, steps: int | None = None) -> None:
        self.training, self.world, self.scratch = world, held_world(world), scratch
        self.steps = steps  # of whatever learns; None: what each is meant to have
        self.judge = Judge(self.world, 1, [], [])
        self.probe = cache(self._probe)

    def made_by(self, way: str, seed: int) -> dict[str, Any]:
        """All that makes a way's figures but code."""
        config = {"adapter": PACKAGED.config(seed, {}), "lora": recipes.own_mini_lora()}.get(way)
        own = chosen(config) if config else [TOKEN_STEPS, TOKEN_RATE] if way == "token" else None
        return {"way": way, "seed": seed, "config": own, "cases": [PHOTOS, CASES, SUBJECTS]}

    def _probe(self, way: str) -> list[float]:
        """Errors on one subject after the first steps of a way, in float32."""
        few = Ways(exact(self.training), self.scratch / "probe", PROBE_STEPS)
        adapter = few._adapter(0) if way == "adapter" else None
        subject = subjects_of(few.world, 0)[0]
        learned = few._learned(way, subject, 0, adapter)
        errors = few.judge.with_cases(learned.world, [single(0, subject, 1)]).errors(learned.velocity)
        return [float(f"{np.mean(values):.6g}") for values in errors.values()]

    def run(self, way: str, seed: int) -> dict[str, Any]:
        """Learn each subject of a seed, if the way does, and judge it by CASES samples; seconds and bytes are of one subject."""
        before = cpu_seconds()
        adapter = self._adapter(seed) if way == "adapter" else None
        shared, costs = cpu_seconds() - before, []
        figures: dict[str, list[float]] = {}
        for subject in subjects_of(self.world, seed):
            before = cpu_seconds()
            learned = self._learned(way, subject, seed, adapter)
            costs.append((cpu_seconds() - before, learned.stored))
            judge = self.judge.with_cases(learned.world, [single(number, subject, 1) for number in range(CASES)])
            for name, values in judge.samples_seen(learned.velocity).items():
                figures.setdefault(name, []).extend(values)
        seconds, stored = np.mean(costs, 0)
        cost = {
            "seconds_of_all": round(shared),
            "seconds_of_a_subject": round(float(seconds), 1),
            "bytes_of_a_subject": int(stored),
        }
        return {"cost": cost, "figures": figures}

    def _adapter(self, seed: int) -> nn.Module:
        """Trained on the training subjects by the packaged recipe."""
        folder = self.scratch / f"adapter-{seed}"
        torch.manual_seed(seed)
        adapter = Adapter(base_of(self.training))
        config = PACKAGED.config(seed, {})
        config = replace(config, train=replace(config.train, steps=self.steps or PACKAGED.steps))
        network = train_arm(ADAPTER, config, self.training, folder, adapter)
        shutil.rmtree(folder)
        return network.eval()

    def _learned(self, way: str, subject: Subject, seed: int, adapter: nn.Module | None) -> Learned:
        base = base_of(self.world)
        if way == "prompt":
            return Learned(text_only(self.world, base), self.world, 0)
        if way == "reference":
            return Learned(velocity_of(base, ADAPTER, self.world.dtype), self.world, 0)
        if way == "adapter" and adapter:
            return Learned(velocity_of(adapter, ADAPTER, self.world.dtype), self.world, 0)
        if way == "token":
            vector = learn_token(self.world, subject, seed, self.steps or TOKEN_STEPS)
            encoder = replace(self.world.encoder, text=LearnedWord(self.world.text, vector))
            return Learned(text_only(self.world, base), replace(self.world, encoder=encoder), vector.numel() * 4)
        folder = self.scratch / f"lora-{seed}-{subject.key}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        file = learn_lora(self.world, subject, seed, folder, self.steps)
        add_lora(base, file, "subject")
        stored = file.stat().st_size
        shutil.rmtree(folder)
        return Learned(null_references(self.world, base), self.world, stored)
