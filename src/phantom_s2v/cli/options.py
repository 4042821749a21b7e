"""Options that several commands share, each declared once, and groups of them: dataclasses, which `grouped` makes options of."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from phantom_s2v.cli.app import MAX_PROCESSES, MAX_VIDEOS, real, whole

Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Overwrite outputs that phantom wrote, if they are unchanged since. Other files are never overwritten."
    ),
]
Report = Annotated[Path | None, typer.Option(help="Output report, .html.")]
ModelFolder = Annotated[str, typer.Option(help="Model name or model folder.")]

# Generating
Size = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")]
NumFrames = Annotated[int | None, typer.Option(help="Number of frames, 4n+1.")]
UntrainedSize = Annotated[bool, typer.Option(help="Allow resolutions the model was not trained on.")]
Offload = Annotated[str, typer.Option(help="CPU offload: none, model (whole modules), group (block by block).")]

# Where it computes
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option(help="Data type: auto (bfloat16 on a GPU, float32 on a CPU), float32, bfloat16 or float16.")]

AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        help="Allow this part of the run (a config field, code, subjects) to differ from the checkpoint. Repeat for more."
    ),
]
TextOnCpu = Annotated[bool, typer.Option(help="Run the text encoder on the CPU (needs 23 GB RAM).")]
Threads = Annotated[int, whole(1, MAX_PROCESSES, "Number of CPU threads.")]

# Data
EmojiRoot = Annotated[Path | None, typer.Option(help="Path to the emoji dataset.")]
ShotDetector = Annotated[str | None, typer.Option(help="Shot detector: scenedetect, transnet or both.")]
Workers = Annotated[int, whole(1, MAX_PROCESSES, "Number of worker processes.")]
Ray = Annotated[str, typer.Option(help="Run on Ray: local, or a cluster address.")]
License = Annotated[str, typer.Option(help="License of the videos.")]
Consent = Annotated[str, typer.Option(help="Reference to the consent of the people shown.")]
RequireLicense = Annotated[bool, typer.Option(help="Reject triplets with missing license information.")]
TripletDataset = Annotated[Path, typer.Argument(help="Triplet dataset, NAME.lance.")]
TrainingEmoji = Annotated[bool, typer.Option(help="Use the training emoji, on which the thresholds were set.")]

# Evaluating
References = Annotated[list[str] | None, typer.Option("--reference", help="[NAME=]PATH of a reference image, one per subject.")]
Crop = Annotated[str, typer.Option(help="Region of the frames to evaluate: LEFT,TOP,RIGHT,BOTTOM as fractions 0 to 1.")]
Reconstruct = Annotated[str, typer.Option(help="What to measure VAE reconstruction error on: none, references or videos (slow).")]
KpiFile = Annotated[Path | None, typer.Option(help="TOML file with KPI thresholds; exit code 1 if one is missed.")]


@dataclass(frozen=True)
class Networks:
    """What chooses the networks of an evaluation."""

    features: Annotated[str, typer.Option(help="Feature network for subject similarity: efficientnet-lite0 or phantom-mini.")] = (
        "efficientnet-lite0"
    )
    backend: Annotated[
        str, typer.Option(help="Networks: packaged, or hub (adds CLIP and DINO for text score, CLIP-I and DINO-I).")
    ] = "packaged"
    clip: Annotated[str, typer.Option(help="CLIP or SigLIP model: folder, or OWNER/MODEL on a hub (hub backend).")] = ""
    dino: Annotated[str, typer.Option(help="DINO model: folder, or OWNER/MODEL on a hub (hub backend).")] = ""
    aesthetic: Annotated[str, typer.Option(help="Aesthetic predictor head for CLIP ViT-L/14, .safetensors (hub backend).")] = ""
    arcface: Annotated[str, typer.Option(help="ArcFace model (.onnx) instead of the dlib face embedder.")] = ""
    segmenter: Annotated[str, typer.Option(help="SAM2 model: CLIP-I and DINO-I of the segmented subject on photographs.")] = ""
    object_detector: Annotated[
        str, typer.Option(help="GroundingDINO or OWLv2 model that finds the subject by its name (for --segmenter, opens2v).")
    ] = ""


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `phantom generate`, which `phantom estimate` takes too."""

    prompt: Annotated[str, typer.Option(help="Text prompt. Describe each subject.")] = ""
    reference: Annotated[
        list[str] | None, typer.Option(help="[NAME=]PATH of a reference image. Repeat NAME for more views of one subject.")
    ] = None
    out: Annotated[
        Path,
        typer.Option(help="Output, NAME.mp4. Also writes a contact sheet (NAME.sheet.png) and metadata (NAME.metadata.json)."),
    ] = Path("video.mp4")
    first_frame: Annotated[Path | None, typer.Option(help="First frame of the video (phantom-mini only).")] = None
    background: Annotated[Path | None, typer.Option(help="Background image (never cut out).")] = None
    cutout: Annotated[
        bool, typer.Option(help="Remove the background of reference images (uses alpha, or a uniform background color).")
    ] = False
    segmenter: Annotated[Path | None, typer.Option(help="Path to a SAM2 model, for backgrounds that are not uniform.")] = None
    several_views: Annotated[
        bool, typer.Option(help="Allow several images per subject with Phantom-Wan (not trained for it).")
    ] = False
    model: Annotated[str, typer.Option(help="Model name, model folder, or OWNER/MODEL on a hub.")] = "phantom-mini"
    size: Size = None
    num_frames: NumFrames = None
    fps: Annotated[int | None, typer.Option(help="Frames per second.")] = None
    seed: Annotated[int, typer.Option(help="Random seed. The same seed gives the same video on the same machine.")] = 0
    seeds: Annotated[int, whole(1, MAX_VIDEOS, "Number of videos; seeds SEED, SEED+1, ...")] = 1
    best_of: Annotated[
        int, whole(1, MAX_VIDEOS, "Generate N candidates and keep the one with the highest subject similarity.")
    ] = 1
    num_inference_steps: Annotated[int | None, typer.Option(help="Number of denoising steps.")] = None
    solver: Annotated[str | None, typer.Option(help="Sampler: euler or unipc.")] = None
    image_guidance_scale: Annotated[float | None, real(0, 100, "Image guidance scale.")] = None
    guidance_scale: Annotated[float | None, real(0, 100, "Text guidance scale.")] = None
    negative_prompt: Annotated[str | None, typer.Option(help="Negative prompt.")] = None
    untrained_size: UntrainedSize = False
    released_behavior: Annotated[
        bool, typer.Option(help="Preprocess images and sample noise exactly as Phantom-Wan's released code does.")
    ] = False
    preview: Annotated[
        bool, typer.Option(help="Save intermediate previews to OUT.preview.png (removed when the video is done).")
    ] = False
    requests: Annotated[
        Path | None, typer.Option(help="JSON Lines file with one request per line; keys are these option names with underscores.")
    ] = None
    from_: Annotated[Path | None, typer.Option("--from", help="Reproduce a video from its .metadata.json.")] = None
    device: Device = "auto"
    dtype: DType = "auto"
    offload: Offload = "none"
    quantization: Annotated[str, typer.Option(help="none, fp8 or int8: how weights are stored.")] = "none"
    text_on_cpu: TextOnCpu = False
    tiling: Annotated[bool, typer.Option(help="Tiled VAE decoding (less memory).")] = False
    cache: Annotated[
        str,
        typer.Option(help="Step cache (approximate): none, first-block, taylorseer, magcache, seacache, pab or fastercache."),
    ] = "none"
    cache_threshold: Annotated[
        float | None, real(0, 1_000, "Cache threshold (first-block, magcache, seacache); higher is faster and less accurate.")
    ] = None
    cache_text: Annotated[bool, typer.Option(help="Cache text cross-attention K/V (bit-exact).")] = False
    rephrase: Annotated[
        str | None,
        typer.Option(
            help="Rewrite the prompt with a language model: URL#MODEL of an OpenAI-compatible endpoint, or a model folder."
        ),
    ] = None
    budget: Annotated[str | None, typer.Option(help="Fail if the estimate exceeds this time or memory (20min, 24GB).")] = None
    transformer: Annotated[
        Path | None, typer.Option(help="GGUF file to use instead of the model folder's transformer (Phantom-Wan).")
    ] = None
    parallel: Annotated[str, typer.Option(help="Multi-GPU mode under torchrun: none, ulysses, ring or fsdp.")] = "none"
    lora: Annotated[list[str] | None, typer.Option(help="FILE[=SCALE] of a Wan LoRA. Repeat for more.")] = None
    force: Force = False


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command in which a parameter of a group stands for one option for each field; all fields have defaults."""
    groups, parameters = {}, []
    for name, parameter in inspect.signature(command).parameters.items():
        if is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            parameters += [(f.name, f.default, f.type) for f in fields(parameter.annotation)]
        else:
            parameters.append((name, parameter.default, parameter.annotation))

    @wraps(command)
    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in fields(group)})
        command(**given)

    only = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.Signature([inspect.Parameter(name, only, default=d, annotation=kind) for name, d, kind in parameters])
    run.__signature__ = signature  # type: ignore[attr-defined]  # where typer looks, as for the annotations
    run.__annotations__ = {name: kind for name, _, kind in parameters}
    return run
