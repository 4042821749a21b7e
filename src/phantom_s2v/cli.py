"""The command line: parsing and printing only. Heavy imports happen inside commands.

Exit codes: 0 done, 1 a threshold that was asked for is missed, 2 bad input or refused, 3 done in part, 130 interrupted.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from phantom_s2v.errors import InputError, PhantomError

if TYPE_CHECKING:
    from phantom_s2v.generate import Models
    from phantom_s2v.jobs import Job
    from phantom_s2v.model.placement import Placement
    from phantom_s2v.request import Preset

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
data = typer.Typer(no_args_is_help=True, help="Fetch and encode what training learns from.")
train = typer.Typer(no_args_is_help=True, help="Train a part of the model; each goes on from its own last state.")
evaluate = typer.Typer(no_args_is_help=True, help="Measure a model.")
app.add_typer(data, name="data")
app.add_typer(train, name="train")
app.add_typer(evaluate, name="evaluate")
err = Console(stderr=True)


def main() -> None:
    """Entry point: errors of the input become one sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)  # click turns Exit and Ctrl-C into a code
    except PhantomError as error:
        print(f"phantom: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "exit_code"):  # click's usage errors have one
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    if code == 130:
        print("phantom: interrupted; nothing half-written was left", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def progress(shown: bool = True) -> Progress:
    """A bar with time left, on stderr."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        disable=not shown,
    )


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Subject-to-video generation: one to four reference images and a prompt make a video of those subjects."""
    if show:
        from phantom_s2v import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def generate(
    prompt: Annotated[str, typer.Option(help="What happens. Describe every subject.")] = "",
    reference: Annotated[
        list[str] | None, typer.Option(help="[NAME=]PATH of a picture; the same NAME again is another view.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The video, .mp4; a sheet .png and a record .json are written beside it.")] = Path(
        "video.mp4"
    ),
    first_frame: Annotated[Path | None, typer.Option(help="A picture that the video starts from (phantom-mini).")] = None,
    background: Annotated[Path | None, typer.Option(help="A picture of the place, kept whole.")] = None,
    cutout: Annotated[bool, typer.Option(help="Remove the ground of the references: transparency, or one plain colour.")] = False,
    several_views: Annotated[bool, typer.Option(help="Let Phantom-Wan have several pictures of one subject.")] = False,
    model: Annotated[str, typer.Option(help="Name or folder of a model, or OWNER/MODEL of a hub.")] = "phantom-mini",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Length, a multiple of 4 plus 1.")] = None,
    fps: Annotated[int | None, typer.Option(help="Frames a second.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video on the same machine.")] = 0,
    seeds: Annotated[int, typer.Option(help="Make so many videos, from seed on.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Solver steps.")] = None,
    solver: Annotated[str | None, typer.Option(help="euler or unipc.")] = None,
    guidance_image: Annotated[float | None, typer.Option(help="Weight of the references.")] = None,
    guidance_text: Annotated[float | None, typer.Option(help="Weight of the prompt.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    untrained_size: Annotated[bool, typer.Option(help="Let sizes pass that the model was not trained at.")] = False,
    released_behaviour: Annotated[
        bool, typer.Option(help="Read pictures and draw noise as Phantom's released code does.")
    ] = False,
    preview: Annotated[bool, typer.Option(help="Write frames on the way to OUT.preview.png.")] = False,
    requests: Annotated[Path | None, typer.Option(help="JSON lines, one request each: the same names as these options.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Make the video of a record .json again.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1 (Phantom-Wan).")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16 (Phantom-Wan).")] = "auto",
    offload: Annotated[str, typer.Option(help="none, model or group: what waits in main memory.")] = "none",
    quantise: Annotated[str, typer.Option(help="none, fp8 or int8: how weights are stored.")] = "none",
    tiling: Annotated[bool, typer.Option(help="Decode in tiles.")] = False,
    cache: Annotated[str, typer.Option(help="none, first-block or taylorseer: skip work between steps, approximately.")] = "none",
    cache_text: Annotated[bool, typer.Option(help="Keep keys and values of the text, exactly.")] = False,
    parallel: Annotated[str, typer.Option(help="none, ulysses, ring or fsdp, under torchrun.")] = "none",
    lora: Annotated[list[str] | None, typer.Option(help="FILE[=SCALE] of a LoRA for Wan; can be given again.")] = None,
) -> None:
    """Make a video from reference images and a prompt."""
    from phantom_s2v.jobs import build_request, parse_loras
    from phantom_s2v.model import placement as memory
    from phantom_s2v.presets import model_folder
    from phantom_s2v.request import load_preset

    placement = memory.Placement(
        device, dtype, offload, quantise, tiling, cache, cache_text=cache_text, loras=parse_loras(lora or []), parallel=parallel
    )
    if from_:
        _again(from_, out, model, preview, placement)
        return
    options = {
        "prompt": prompt,
        "reference": reference or [],
        "first_frame": str(first_frame) if first_frame else None,
        "background": str(background) if background else None,
        "cutout": cutout,
        "several_views": several_views,
        "size": size,
        "frames": frames,
        "fps": fps,
        "seed": seed,
        "steps": steps,
        "solver": solver,
        "guidance_image": guidance_image,
        "guidance_text": guidance_text,
        "negative_prompt": negative_prompt,
        "untrained_size": untrained_size,
        "released_behaviour": released_behaviour,
    }
    preset = load_preset(model_folder(model))
    if preset.family != "wan" and placement != memory.Placement():
        raise InputError(f"{preset.name} runs on the CPU as it is; options of device, memory, cache and LoRA are for Phantom-Wan")
    if requests:
        _many(requests, out, model, preset, preview, placement)
        return
    if seeds < 1:
        raise InputError(f"seeds is {seeds}; it can be 1 or more")
    jobs = []
    for number in range(seeds):
        target = out if seeds == 1 else out.with_name(f"{out.stem}-{seed + number}{out.suffix}")
        jobs.append((build_request(options | {"seed": seed + number}, preset), target))
    run_jobs(jobs, model, preview, placement)


def run_jobs(jobs: list["Job"], model: str, preview: bool, placement: "Placement", loaded: "Models | None" = None) -> None:
    """Check everything, load once, make every video, and name them."""
    from phantom_s2v.generate import load_models
    from phantom_s2v.jobs import check_job, make
    from phantom_s2v.model.parallel import is_main, leave
    from phantom_s2v.presets import model_folder

    for request, target in jobs:
        check_job(request, target)
    models = loaded or load_models(model_folder(model), placement)
    main_process = is_main()  # under torchrun the others compute and stay silent
    with progress(main_process) as bar:
        for request, target in jobs:
            task = bar.add_task(target.name, total=request.steps)
            told = make(request, models, target, preview, lambda done, task=task: bar.update(task, completed=done), main_process)
            for notice in told if main_process else []:
                print(f"phantom: {notice}", file=sys.stderr)
    for _, target in jobs if main_process else []:
        print(target)
    leave()


def _many(file: Path, out: Path, model: str, preset: "Preset", preview: bool, placement: "Placement") -> None:
    """All requests of a JSON lines file; those whose video is there already are left alone. `out` names a folder.

    Lines that cannot be made are listed on stderr and left out: exit code 3, or 2 where none can be made.
    """
    from phantom_s2v.jobs import read_requests

    if not file.is_file():
        raise InputError(f"{file} is not a file; --requests takes JSON lines, one request each")
    folder = out.parent if out.suffix else out
    if not folder.is_dir():
        raise InputError(f"the folder {folder} of the output does not exist; make it first, or choose another")
    jobs, faults, count = read_requests(file, folder, preset)
    if faults and len(faults) == count:
        raise InputError(faults[0])
    if jobs:
        run_jobs(jobs, model, preview, placement)
    for fault in faults:
        print(f"phantom: not made: {fault}", file=sys.stderr)
    if faults:
        raise typer.Exit(3)


def _again(file: Path, out: Path, model: str, preview: bool, placement: "Placement") -> None:
    """Make the video of a record again, and say first what has changed since."""
    from phantom_s2v.generate import load_models
    from phantom_s2v.presets import model_folder
    from phantom_s2v.record import changes, request_from

    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no record of a video: {error}") from error
    request = request_from(record)
    models = load_models(model_folder(model), placement)
    said = changes(record, models.hash)
    for line in said or ["nothing has changed; the video will be the same"]:
        print(f"phantom: {line}", file=sys.stderr)
    run_jobs([(request, out)], model, preview, placement, models)


@app.command()
def convert(
    wan: Annotated[str, typer.Option(help="Folder of Wan2.1-T2V-1.3B (native, or diffusers'), or OWNER/MODEL of a hub.")],
    phantom: Annotated[str, typer.Option(help="Phantom-Wan-1.3B.pth, the folder of the 14B shards, or a community file.")],
    out: Annotated[Path, typer.Option(help="Model folder to write.")],
) -> None:
    """Convert the released Phantom-Wan weights to a model folder in diffusers' layout."""
    from phantom_s2v.model.convert import convert as run
    from phantom_s2v.presets import source_path

    with progress() as bar:
        tasks: dict[str, TaskID] = {}

        def report(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = bar.add_task(f"{part}, MB", total=total >> 20)
            bar.update(tasks[part], completed=done >> 20)

        facts = run(source_path(wan), source_path(phantom), out, report)
    print(json.dumps({"out": str(out), "weights": facts["weights"]}))


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


@evaluate.command("run")
def evaluate_run(
    suite: Annotated[str, typer.Argument(help="emoji: 100 held-out subjects.")],
    model: Annotated[str, typer.Option(help="Name or folder of a model.")] = "phantom-mini",
    out: Annotated[Path, typer.Option(help="Folder of the results; a run goes on where it was.")] = Path("outputs/emoji"),
    limit: Annotated[int | None, typer.Option(help="Only the first so many subjects.")] = None,
) -> None:
    """Make and judge the videos of a suite; the last line is one JSON object."""
    if suite != "emoji":
        raise InputError(f"suite is {suite!r}; legal is emoji")
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it can be 1 or more")
    from phantom_s2v.evaluation.report import table
    from phantom_s2v.evaluation.suites import run_emoji
    from phantom_s2v.generate import load_models
    from phantom_s2v.presets import model_folder

    models = load_models(model_folder(model))
    with progress() as bar:
        task = bar.add_task("videos", total=None)
        figures = run_emoji(models, out, limit, lambda done, total: bar.update(task, completed=done, total=total))
    print(table(figures))
    print(json.dumps(figures | {"model": models.preset.name, "weights": models.hash}))


@evaluate.command("autoencoder")
def evaluate_autoencoder(model: Annotated[str, typer.Option(help="Name or folder of a model.")] = "phantom-mini") -> None:
    """PSNR of held-out clips on textured grounds through the autoencoder; the last line is one JSON object."""
    from phantom_s2v.evaluation.metrics import bootstrap
    from phantom_s2v.evaluation.suites import autoencoder_psnr, held_out
    from phantom_s2v.generate import load_models
    from phantom_s2v.presets import model_folder

    values = autoencoder_psnr(load_models(model_folder(model)), held_out())
    print(json.dumps({name: [round(v, 3) for v in bootstrap(each)] for name, each in values.items()}))
