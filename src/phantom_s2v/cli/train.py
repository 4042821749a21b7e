"""phantom data and phantom train."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from phantom_s2v.cli.app import data, err, progress, train
from phantom_s2v.errors import InputError


@data.command("emoji")
def data_emoji(root: Annotated[Path | None, typer.Option(help="Where to keep the store.")] = None) -> None:
    """Fetch the Fluent Emoji packages with npm (750 MB) and store the training subjects."""
    from phantom_s2v.data.emoji import default_root, fetch, load_store
    from phantom_s2v.data.heldout import held_out_families

    target = root or default_root()
    fetch(target, held_out_families(), lambda line: err.print(line))
    print(json.dumps({"subjects": len(load_store(target).subjects), "root": str(target)}))


@data.command("encode")
def data_encode(
    out: Annotated[Path, typer.Option(help="Folder of the shards.")],
    model: Annotated[str, typer.Option(help="Model whose autoencoder and image encoder are used.")] = "phantom-mini",
    shards: Annotated[int, typer.Option(help="How many, of 64 triplets each.")] = 600,
    start: Annotated[int, typer.Option(help="Number of the first; two processes can share the work.")] = 0,
    stride: Annotated[int, typer.Option(help="Take every so many.")] = 1,
    seed: Annotated[int, typer.Option(help="Another seed composes other triplets.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Compose triplets and encode them to latents; what is there already is kept."""
    import torch

    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.generate import load_models
    from phantom_s2v.presets import model_folder
    from phantom_s2v.training.encode import encode_shards
    from phantom_s2v.training.loop import pick_dtype

    torch.set_num_threads(threads)
    models = load_models(model_folder(model))
    if models.image_encoder is None:
        raise InputError(f"{model} has no image encoder; latents are encoded with phantom-mini or a model like it")
    numbers = range(start, shards, stride)
    with progress() as bar:
        task = bar.add_task("shards", total=len(numbers))
        encode_shards(
            out,
            load_store(root or default_root()),
            models.autoencoder,
            models.image_encoder,
            seed,
            numbers,
            pick_dtype("auto"),
            lambda name: bar.advance(task),
        )


@data.command("show")
def data_show(
    store: Annotated[Path, typer.Argument(help="A dataset of triplets, NAME.lance.")],
    start: Annotated[int, typer.Option(help="First row.")] = 0,
    limit: Annotated[int, typer.Option(help="How many rows.")] = 10,
    version: Annotated[int | None, typer.Option(help="An older version; the newest by default.")] = None,
) -> None:
    """Page through a dataset of triplets; the last line is one JSON object."""
    from phantom_s2v.data.triplets import TripletStore

    triplets = TripletStore(store, version)
    for triplet in triplets.take(list(range(start, min(start + limit, len(triplets))))):
        print(f"{triplet.id}  {triplet.width}x{triplet.height}, {triplet.frames} frames at {triplet.fps:g}  {triplet.caption}")
        for reference in triplet.references:
            licence = reference.rights.licence or "no licence"
            print(f"    {reference.pairing} of {reference.subject}, similarity {reference.score:.2f}, {licence}")
    print(json.dumps({"triplets": len(triplets), "versions": [n for n, _ in triplets.versions()]}))


@data.command("export")
def data_export(
    store: Annotated[Path, typer.Argument(help="A dataset of triplets, NAME.lance.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    webdataset: Annotated[bool, typer.Option("--webdataset/--folder", help="Tars of a thousand, or single files.")] = False,
) -> None:
    """Write the triplets of a dataset as WebDataset tars or as files."""
    from phantom_s2v.data.exchange import export_folder, export_webdataset
    from phantom_s2v.data.triplets import TripletStore

    triplets = TripletStore(store)
    with progress() as bar:
        shown = bar.track(triplets, total=len(triplets), description="triplets")
        count = (export_webdataset if webdataset else export_folder)(shown, out)
    print(json.dumps({"triplets": count, "out": str(out)}))


@data.command("import")
def data_import(
    folder: Annotated[Path, typer.Argument(help="A folder that was exported, or one of captioned videos.")],
    out: Annotated[Path, typer.Option(help="The dataset, NAME.lance; new triplets are merged in.")],
    captioned: Annotated[
        bool, typer.Option(help="Videos NAME.mp4 with captions NAME.txt and pictures NAME.SUBJECT.png.")
    ] = False,
    source: Annotated[str, typer.Option(help="Where captioned videos come from.")] = "",
    licence: Annotated[str, typer.Option(help="Their licence.")] = "",
    consent: Annotated[str, typer.Option(help="Reference of the consent of people shown.")] = "",
    require_licence: Annotated[bool, typer.Option(help="Refuse triplets without a licence of every part.")] = False,
) -> None:
    """Merge triplets into a dataset. What is damaged is named and left out: exit code 3."""
    from phantom_s2v.data.exchange import read_captioned, read_export
    from phantom_s2v.data.triplets import Rights, TripletStore

    left: list[str] = []
    found = (
        read_captioned(folder, Rights(source, licence, consent), left.append) if captioned else read_export(folder, left.append)
    )
    store = TripletStore.create(out)
    new = store.write(found, require_licence)
    for line in left:
        err.print(f"phantom: left out: {line}", markup=False, highlight=False, soft_wrap=True)
    print(json.dumps({"new": new, "triplets": len(store), "left_out": len(left)}))
    if left:
        raise typer.Exit(3)


@train.command("autoencoder")
def train_autoencoder(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 12_000,
    decoder_only: Annotated[bool, typer.Option(help="Keep the latents, train the decoder alone.")] = False,
    init_from: Annotated[Path | None, typer.Option(help="Folder of an autoencoder to start from.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Train the autoencoder: stills, then clips."""
    from phantom_s2v import presets
    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.training import autoencoder

    config = (presets.mini_decoder if decoder_only else presets.mini_autoencoder)(steps)
    config = replace(config, train=replace(config.train, threads=threads), still_steps=0 if init_from else config.still_steps)
    autoencoder.train_autoencoder(config, load_store(root or default_root()), out, init_from)


@train.command("image-encoder")
def train_image_encoder(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 800,
    init_from: Annotated[Path | None, typer.Option(help="Folder of an image encoder to start from.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Train the image encoder against captions of looks."""
    from phantom_s2v import presets
    from phantom_s2v.data.emoji import default_root, load_store
    from phantom_s2v.training import image_encoder

    config = presets.mini_image_encoder(steps)
    config = replace(config, train=replace(config.train, threads=threads))
    image_encoder.train_image_encoder(config, load_store(root or default_root()), out, init_from)


@train.command("transformer")
def train_transformer(
    latents: Annotated[Path, typer.Option(help="Folder of shards (phantom data encode).")],
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1_000_000,
    model: Annotated[str, typer.Option(help="Model whose other parts draw the sample sheets.")] = "phantom-mini",
    init_from: Annotated[Path | None, typer.Option(help="Folder of a transformer to start from, with a warm-up.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    root: Annotated[Path | None, typer.Option(help="Where the store is.")] = None,
) -> None:
    """Train the transformer on encoded triplets, with a sheet of held-out subjects every quarter of an hour."""
    import torch

    from phantom_s2v import presets
    from phantom_s2v.data.emoji import default_root, load_store, subjects_hash
    from phantom_s2v.evaluation.suites import sample_sheet
    from phantom_s2v.generate import load_models
    from phantom_s2v.model.transformer import PhantomTransformer
    from phantom_s2v.training import transformer

    config = presets.mini_transformer(str(latents), steps)
    config = replace(config, train=replace(config.train, threads=threads))
    torch.manual_seed(config.train.seed)
    network = PhantomTransformer.from_pretrained(init_from) if init_from else PhantomTransformer()
    models = load_models(presets.model_folder(model))
    facts = {"subjects": subjects_hash(load_store(root or default_root()).subjects)}
    transformer.train_transformer(
        config,
        network,
        out,
        facts,
        lambda average, step: sample_sheet(replace(models, transformer=average), out / f"sheet-{step:07d}.png"),
    )


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
    from phantom_s2v.model.transformer import PhantomTransformer
    from phantom_s2v.model.weights import pack
    from phantom_s2v.presets import MINI

    if transformer is None:
        transformer = out / "transformer"
        PhantomTransformer().save_pretrained(transformer)
    seen = load_store(root or default_root()).subjects
    facts = {"subjects": subjects_hash(seen), "subject_count": len(seen), "transformer_samples": samples}
    pack({"autoencoder": autoencoder, "image_encoder": image_encoder, "transformer": transformer}, MINI, facts, out)
    print(json.dumps(facts))
