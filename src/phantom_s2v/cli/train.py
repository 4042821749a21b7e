"""phantom train."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from phantom_s2v.cli.app import say, train
from phantom_s2v.errors import InputError

AllowChange = Annotated[
    list[str] | None,
    typer.Option(help="Part of the run (a config field, code, subjects) that may differ from the checkpoint's. Repeat for more."),
]


@train.command("autoencoder")
def train_autoencoder(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps, after those of the linear path.")] = 2_150,
    decoder_only: Annotated[bool, typer.Option(help="Keep the latents, train the decoder alone.")] = False,
    init_from: Annotated[Path | None, typer.Option(help="Folder of an autoencoder to start from.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the clips: another one where training goes on from weights.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    allow_change: AllowChange = None,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Train the autoencoder: its linear path, then the whole."""
    from phantom_s2v import presets
    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.training import autoencoder

    config = (presets.mini_decoder if decoder_only else presets.mini_autoencoder)(steps)
    free = tuple(allow_change or ())
    linear = config.linear and replace(config.linear, threads=threads, may_change=free)
    run = replace(config.train, threads=threads, may_change=free, seed=config.train.seed if seed is None else seed)
    config = replace(config, train=run, linear=linear)
    autoencoder.train_autoencoder(config, load_store(root or default_root()), out, init_from)


@train.command("image-encoder")
def train_image_encoder(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 800,
    init_from: Annotated[Path | None, typer.Option(help="Folder of an image encoder to start from.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    allow_change: AllowChange = None,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Train the image encoder against captions of looks."""
    from phantom_s2v import presets
    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.training import image_encoder

    config = presets.mini_image_encoder(steps)
    config = replace(config, train=replace(config.train, threads=threads, may_change=tuple(allow_change or ())))
    image_encoder.train_image_encoder(config, load_store(root or default_root()), out, init_from)


@train.command("transformer")
def train_transformer(
    latents: Annotated[Path, typer.Option(help="Folder of shards (phantom data encode).")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1_000_000,
    model: Annotated[str, typer.Option(help="Model whose other parts draw the sample sheets.")] = "phantom-mini",
    init_from: Annotated[Path | None, typer.Option(help="Folder of a transformer to start from, with a warm-up.")] = None,
    clips: Annotated[int, typer.Option(help="Clips a batch, of each process under torchrun.")] = 8,
    stills: Annotated[int, typer.Option(help="Stills a batch, of each process under torchrun.")] = 24,
    lengths: Annotated[
        str, typer.Option(help="LATENT_FRAMES:SHARE of the batches, 1 latent frame (stills) to 7 (whole clips).")
    ] = "1:0.4,3:0.3,7:0.3",
    fall: Annotated[float, typer.Option(help="Share of the run, at its end, over which the rates fall to zero, 0 to 1.")] = 0.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    allow_change: AllowChange = None,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Train the transformer on encoded triplets, with a sheet of held-out subjects every quarter of an hour."""
    import torch

    from phantom_s2v import presets
    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.evaluation.emoji import sample_sheet
    from phantom_s2v.generate import load_models
    from phantom_s2v.model.tensors import align
    from phantom_s2v.model.transformer import PhantomTransformer
    from phantom_s2v.training import transformer
    from phantom_s2v.training.encode import ROWS
    from phantom_s2v.training.guard import facts_of

    if not 0 <= fall <= 1:
        raise InputError(f"fall is {fall}; it can be 0 to 1")
    if not (1 <= clips <= ROWS and 1 <= stills <= ROWS):
        raise InputError(f"a batch of {clips} clips or {stills} stills; it can be 1 to {ROWS}, which a shard holds")
    config = presets.mini_transformer(str(latents), steps)
    run = replace(config.train, threads=threads, decay_share=fall, may_change=tuple(allow_change or ()))
    config = replace(config, clips=clips, stills=stills, lengths=parse_lengths(lengths), train=run)
    torch.manual_seed(config.train.seed)
    network = (
        align(PhantomTransformer.from_pretrained(init_from, local_files_only=True, use_safetensors=True))
        if init_from
        else PhantomTransformer()
    )
    models = load_models(presets.model_folder(model))
    facts = facts_of("training.transformer", load_store(root or default_root()), init_from)
    transformer.train_transformer(
        config,
        network,
        out,
        facts,
        lambda average, step: sample_sheet(replace(models, transformer=average), out / f"sheet-{step:07d}.png"),
    )


def parse_lengths(text: str) -> tuple[tuple[int, float], ...]:
    """(latent frames, share of batches) of LATENT_FRAMES:SHARE,... Raises InputError for anything else."""
    found = re.fullmatch(r"[1-7]:\d*\.?\d+(,[1-7]:\d*\.?\d+)*", text)
    pairs = [pair.split(":") for pair in text.split(",")] if found else []
    lengths = tuple((int(length), float(share)) for length, share in pairs)
    if not sum(share for _, share in lengths):
        raise InputError(f"lengths is {text!r}; it can be pairs such as 1:0.4,3:0.3,7:0.3, of 1 to 7 latent frames and a share")
    return lengths


@train.command("move")
def train_move(
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    autoencoder: Annotated[Path, typer.Option(help="Folder of the autoencoder to move to.")],
    model: Annotated[str, typer.Option(help="Model whose transformer is moved.")] = "phantom-mini",
    clips: Annotated[int, typer.Option(help="Composed clips that the two autoencoders' latents are compared on.")] = 160,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Fit a trained transformer to another autoencoder's latents, from which its training goes on."""
    import tempfile

    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.model.autoencoder import load_autoencoder
    from phantom_s2v.model.tensors import save_part
    from phantom_s2v.model.transformer import PhantomTransformer
    from phantom_s2v.model.weights import load_part, pack
    from phantom_s2v.presets import model_folder
    from phantom_s2v.training.autoencoder import composed
    from phantom_s2v.training.move import move_transformer

    folder = model_folder(model)
    preset, facts = (json.loads((folder / name).read_text()) for name in ("preset.json", "facts.json"))
    parts = {name: folder / name for name in ("transformer", "image_encoder")}
    network, old = load_part(PhantomTransformer, parts["transformer"]), load_autoencoder(folder / "autoencoder")
    pixels = composed(load_store(root or default_root()), 0, clips)
    moved, shares = move_transformer(network, old, load_autoencoder(autoencoder), pixels)
    with tempfile.TemporaryDirectory() as scratch:
        save_part(moved, Path(scratch))
        pack({**parts, "transformer": Path(scratch), "autoencoder": autoencoder}, preset, facts, out)
    say(json.dumps(shares))


@train.command("pack")
def train_pack(
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
    autoencoder: Annotated[Path, typer.Option(help="Folder of the autoencoder.")],
    image_encoder: Annotated[Path, typer.Option(help="Folder of the image encoder.")],
    transformer: Annotated[Path | None, typer.Option(help="Folder of the transformer; without it, a random one.")] = None,
    samples: Annotated[int, typer.Option(help="Samples that the transformer has learned from, for the record.")] = 0,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Put trained parts together as a model folder in float16."""
    from phantom_s2v.data.emoji import default_root, load_store, subjects_hash
    from phantom_s2v.model.tensors import save_part
    from phantom_s2v.model.transformer import PhantomTransformer
    from phantom_s2v.model.weights import pack
    from phantom_s2v.presets import MINI

    if transformer is None:
        transformer = out / "transformer"
        save_part(PhantomTransformer(), transformer)
    seen = load_store(root or default_root()).subjects
    facts = {"subjects": subjects_hash(seen), "subject_count": len(seen), "transformer_samples": samples}
    pack({"autoencoder": autoencoder, "image_encoder": image_encoder, "transformer": transformer}, MINI, facts, out)
    say(json.dumps(facts))
