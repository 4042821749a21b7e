"""phantom train."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from phantom_s2v.cli.app import MAX_MINUTES, MAX_PROCESSES, MAX_ROW, MAX_SEED, MAX_STEPS, real, say, train, whole
from phantom_s2v.cli.options import AllowChange, EmojiRoot, Threads
from phantom_s2v.errors import InputError
from phantom_s2v.geometry import MAX_SUBJECTS, SPACE_STRIDE, VideoSize
from phantom_s2v.pipeline.request import MAX_SIDE
from phantom_s2v.training.config import Bucket

NUMBER = r"\d*\.?\d+"


@train.command("autoencoder")
def train_autoencoder(
    out: Annotated[Path, typer.Option(help="Output folder of the run.")],
    steps: Annotated[int, whole(1, MAX_STEPS, "Number of optimizer steps, after those of the linear path.")] = 2_150,
    decoder_only: Annotated[bool, typer.Option(help="Train the decoder only; latents do not change.")] = False,
    size: Annotated[int, whole(SPACE_STRIDE, MAX_SIDE, "Side of the clips in pixels.")] = 64,
    init_from: Annotated[Path | None, typer.Option(help="Initial weights: autoencoder folder.")] = None,
    seed: Annotated[
        int | None,
        whole(0, MAX_SEED, "Random seed of the clips; use another one with --init-from."),
    ] = None,
    threads: Threads = 1,
    allow_change: AllowChange = None,
    root: EmojiRoot = None,
) -> None:
    """Train the autoencoder: first its linear path, then all of it."""
    from phantom_s2v.data.synthetic.emoji import default_root, load_store
    from phantom_s2v.training import recipes
    from phantom_s2v.training.autoencoder import joint

    config = (recipes.mini_decoder if decoder_only else recipes.mini_autoencoder)(steps)
    free = tuple(allow_change or ())
    linear = config.linear and replace(config.linear, threads=threads, may_change=free)
    run = replace(config.train, threads=threads, may_change=free, seed=config.train.seed if seed is None else seed)
    config = replace(config, train=run, linear=linear, side=VideoSize(1, size, size).height)
    joint.train_autoencoder(config, load_store(root or default_root()), out, init_from)


@train.command("image-encoder")
def train_image_encoder(
    out: Annotated[Path, typer.Option(help="Output folder of the run.")],
    steps: Annotated[int, whole(1, MAX_STEPS, "Number of optimizer steps.")] = 800,
    init_from: Annotated[Path | None, typer.Option(help="Initial weights: image encoder folder.")] = None,
    threads: Threads = 1,
    allow_change: AllowChange = None,
    root: EmojiRoot = None,
) -> None:
    """Train the image encoder with captions of subject appearance."""
    from phantom_s2v.data.synthetic.emoji import default_root, load_store
    from phantom_s2v.training import image_encoder, recipes

    config = recipes.mini_image_encoder(steps)
    config = replace(config, train=replace(config.train, threads=threads, may_change=tuple(allow_change or ())))
    image_encoder.train_image_encoder(config, load_store(root or default_root()), out, init_from)


@train.command("transformer")
def train_transformer(
    out: Annotated[Path, typer.Option(help="Output folder of the run.")],
    steps: Annotated[int, whole(1, MAX_STEPS, "Number of optimizer steps.")] = 1_000_000,
    minutes: Annotated[float, real(0, MAX_MINUTES, "Time limit in minutes; 0: none (stop after --steps).")] = 0.0,
    model: Annotated[str, typer.Option(help="Model that provides the autoencoder and image encoder.")] = "phantom-mini",
    init_from: Annotated[Path | None, typer.Option(help="Initial weights of the transformer (warmup is applied).")] = None,
    distill_guidance: Annotated[
        Path | None,
        typer.Option(
            help="Distill the guidance of this teacher transformer into one forward per step. "
            "Also the initial weights without --init-from."
        ),
    ] = None,
    network: Annotated[str, typer.Option(help="Size of a new transformer (without --init-from): DEPTHxDIMxHEADS.")] = "8x192x3",
    buckets: Annotated[
        str,
        typer.Option(
            help="Training buckets SIDExFRAMESxBATCH:WEIGHT,... : side in pixels, frames (4n+1), batch size, sampling weight "
            "(START-END: changes linearly over --ramp-steps)."
        ),
    ] = "96x1x16:0.3,128x1x12:0.5,96x25x2:0.2",
    ramp_steps: Annotated[int, whole(1, MAX_STEPS, "Steps over which sampling weights of buckets go from START to END.")] = 5_000,
    references: Annotated[
        str, typer.Option(help="Number of reference images per sample, NUMBER:WEIGHT,... , 0 to 4.")
    ] = "0:0.04,1:0.66,2:0.24,4:0.06",
    lr: Annotated[float, real(0, 1, "Muon learning rate (matrices).")] = 0.01,
    adam_lr: Annotated[float, real(0, 1, "AdamW learning rate (all other parameters).")] = 5e-4,
    decay_fraction: Annotated[float, real(0, 1, "Fraction of steps, at the end, for linear learning rate decay.")] = 0.0,
    decay_minutes: Annotated[float, real(0, MAX_MINUTES, "Minutes, of --minutes, for linear learning rate decay.")] = 0.0,
    ema_decay: Annotated[float, real(0, 1, "Decay of the exponential moving average of the weights.")] = 0.9995,
    plain: Annotated[float, real(0, 1, "Fraction of samples with large subjects on a uniform background, 0 to 1.")] = 0.6,
    clean_first_frame: Annotated[
        float, real(0, 1, "Fraction of clips whose first frame is given without noise: the model learns to continue it.")
    ] = 0.08,
    seed: Annotated[int, whole(0, MAX_SEED, "Random seed.")] = 0,
    validate_minutes: Annotated[float, real(0, MAX_MINUTES, "Minutes between validations.")] = 15.0,
    save_minutes: Annotated[float, real(0, MAX_MINUTES, "Minutes between checkpoints.")] = 5.0,
    workers: Annotated[int, whole(0, MAX_PROCESSES, "Number of data loader processes; 0: load in the main process.")] = 0,
    threads: Threads = 1,
    precision: Annotated[str, typer.Option(help="float32, bfloat16, or auto (bfloat16 if measured to be faster).")] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    allow_change: AllowChange = None,
    parts: Annotated[
        Path | None, typer.Option(help="Also save the weights of each checkpoint here, as float16 files of 15 MiB.")
    ] = None,
    root: EmojiRoot = None,
) -> None:
    """Train the transformer on synthetic triplets, from given or random weights. Resumes from the last checkpoint."""
    from phantom_s2v.models.registry import model_folder
    from phantom_s2v.training.config import TrainConfig, TransformerConfig, distilling
    from phantom_s2v.training.run import transformer_run

    config = TransformerConfig(
        TrainConfig(
            steps, lr=lr, adam_lr=adam_lr, decay_share=decay_fraction, ema_decay=ema_decay, seed=seed, threads=threads,
            precision=precision, workers=workers, minutes=minutes, decay_minutes=decay_minutes, save_minutes=save_minutes,
            validate_minutes=validate_minutes, warmup=50, may_change=tuple(allow_change or ()),
        ),
        buckets=parse_buckets(buckets),
        ramp_steps=ramp_steps,
        references=parse_references(references),
        plain=plain,
        first_frame=clean_first_frame,
    )  # fmt: skip
    config = distilling(config) if distill_guidance else config
    folder, sizes = model_folder(model), parse_network(network)
    transformer_run(config, folder, out, init_from, sizes, device, root, parts, distill_guidance)


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Buckets of SIDExFRAMESxBATCH:WEIGHT,... or :START-END. Raises InputError for anything else."""
    one = rf"\d+x\d+x\d+:{NUMBER}(-{NUMBER})?"
    if not re.fullmatch(f"{one}(,{one})*", text):
        raise InputError(f"buckets must be SIDExFRAMESxBATCH:WEIGHT,... such as 128x1x12:0.8,96x25x2:0.2 (got {text!r})")
    buckets = []
    for part in text.split(","):
        shape, share = part.split(":")
        side, frames, batch = map(int, shape.split("x"))
        VideoSize(frames, side, side)
        buckets.append(Bucket(side, frames, batch, *map(float, share.split("-"))))
    sums = [sum(bucket.share_at(progress) for bucket in buckets) for progress in (0, 1)]
    if not all(bucket.batch for bucket in buckets) or not all(0 < total < math.inf for total in sums):
        raise InputError(f"batch sizes must be at least 1 and the sum of weights positive and finite (got {text!r})")
    return tuple(buckets)


def parse_references(text: str) -> tuple[tuple[int, float], ...]:
    """Numbers of reference images and how often, of NUMBER:WEIGHT,... Raises InputError for anything else."""
    one = rf"[0-{MAX_SUBJECTS}]:{NUMBER}"
    if not re.fullmatch(f"{one}(,{one})*", text):
        raise InputError(
            f"references must be NUMBER:WEIGHT,... with 0 to {MAX_SUBJECTS} images, such as 1:0.7,2:0.3 (got {text!r})"
        )
    pairs = [part.split(":") for part in text.split(",")]
    references = tuple((int(count), float(weight)) for count, weight in pairs)
    if not 0 < sum(weight for _, weight in references) < math.inf:
        raise InputError(f"the sum of weights of references must be positive and finite (got {text!r})")
    return references


def parse_network(text: str) -> dict[str, int]:
    """Sizes of a new transformer from DEPTHxDIMxHEADS. Raises InputError where they do not fit each other."""
    if not re.fullmatch(r"\d+x\d+x\d+", text):
        raise InputError(f"network must be DEPTHxDIMxHEADS such as 8x192x3 (got {text!r})")
    depth, dim, heads = map(int, text.split("x"))
    if not depth or not heads or dim % (2 * heads):
        raise InputError(
            f"network must have depth and heads of at least 1 and a dim that is a multiple of 2 x heads (got {text!r})"
        )
    return {"depth": depth, "dim": dim, "heads": heads}


def check_new(out: Path) -> None:
    """Raise InputError, before any work, where a model folder cannot be made; folders above it are."""
    from phantom_s2v.files.io import check_new_folder

    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    check_new_folder(out)


@train.command("adapt-latents")
def train_adapt_latents(
    out: Annotated[Path, typer.Option(help="Output model folder.")],
    autoencoder: Annotated[Path, typer.Option(help="Folder of the new autoencoder.")],
    model: Annotated[str, typer.Option(help="Model whose transformer is adapted.")] = "phantom-mini",
    clips: Annotated[int, whole(1, 1_000, "Number of synthetic clips on which the latents are compared.")] = 160,
    root: EmojiRoot = None,
) -> None:
    """Adapt the input and output layers of a trained transformer to a new VAE."""
    import tempfile

    from phantom_s2v.data.synthetic.emoji import default_root, load_store
    from phantom_s2v.files.io import read_json
    from phantom_s2v.models.autoencoder import load_autoencoder
    from phantom_s2v.models.phantom.transformer import PhantomTransformer
    from phantom_s2v.models.registry import INDEX, model_folder
    from phantom_s2v.models.tensors import save_part
    from phantom_s2v.models.weights import load_part, pack
    from phantom_s2v.training.adapt_latents import move_transformer
    from phantom_s2v.training.autoencoder.joint import composed

    check_new(out)
    folder = model_folder(model)
    preset, facts = read_json(folder / INDEX)["preset"], read_json(folder / "facts.json")
    parts = {name: folder / name for name in ("transformer", "image_encoder")}
    network, old = load_part(PhantomTransformer, parts["transformer"]), load_autoencoder(folder / "vae")
    pixels = composed(load_store(root or default_root()), 0, clips)
    adapted, shares = move_transformer(network, old, load_autoencoder(autoencoder), pixels)
    with tempfile.TemporaryDirectory() as scratch:
        save_part(adapted, Path(scratch))
        pack({**parts, "transformer": Path(scratch), "vae": autoencoder}, preset, facts, out)
    say(json.dumps(shares))


@train.command("pack")
def train_pack(
    out: Annotated[Path, typer.Option(help="Output model folder.")],
    autoencoder: Annotated[Path, typer.Option(help="Autoencoder folder.")],
    image_encoder: Annotated[Path, typer.Option(help="Image encoder folder.")],
    transformer: Annotated[Path | None, typer.Option(help="Transformer folder; default: random weights.")] = None,
    samples: Annotated[int, whole(0, MAX_ROW, "Number of training samples, for the model's metadata.")] = 0,
    root: EmojiRoot = None,
) -> None:
    """Assemble trained components into a model folder in float16."""
    import tempfile

    from phantom_s2v.data.synthetic.emoji import default_root, load_store, subjects_hash
    from phantom_s2v.models.phantom.spec import MINI
    from phantom_s2v.models.phantom.transformer import PhantomTransformer
    from phantom_s2v.models.tensors import save_part
    from phantom_s2v.models.weights import pack

    check_new(out)
    seen = load_store(root or default_root()).subjects
    facts = {"subjects": subjects_hash(seen), "subject_count": len(seen), "transformer_samples": samples}
    with tempfile.TemporaryDirectory() as scratch:
        if transformer is None:
            transformer = Path(scratch)
            save_part(PhantomTransformer(), transformer)
        pack({"vae": autoencoder, "image_encoder": image_encoder, "transformer": transformer}, MINI, facts, out)
    say(json.dumps(facts))
