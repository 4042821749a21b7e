"""Configuration of a training run: frozen, saved with every checkpoint."""

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from phantom_s2v.errors import InputError

CHOICES = {
    "parallel": ("ddp", "fsdp", "hsdp"), "precision": ("auto", "float32", "bfloat16"),
    "t_density": ("logit-normal", "uniform"), "bad_data": ("stop", "skip"),
}  # fmt: skip
COUNTED = (
    "gradient_accumulation_steps",
    "keep_checkpoints",
    "ring_degree",
    "ulysses_degree",
    "log_steps",
    "threads",
)  # from 1 on
FROM_ZERO = (
    "steps", "lr", "adam_lr", "warmup", "spike_factor", "seed", "workers", "minutes", "decay_minutes", "save_minutes",
    "save_steps", "validate_minutes", "validate_steps", "shard_size", "max_step_saves_to_keep", "blocks_to_swap",
)  # fmt: skip
SHARES = (
    "decay_share", "ema_decay", "drop_text", "drop_references", "drop_latents", "drop_tokens", "outside_mask", "regularization",
    "validation",
)  # fmt: skip
POSITIVE = ("clip_norm", "t_shift", "t_scale", "batch_size", "rank", "alpha")
NOT_ALL = ("regularization", "validation")  # of SHARES: something has to be left
HELD = 16  # validation triplets of a fine-tuning, at most


@dataclass(frozen=True)
class TrainConfig:
    """What every run has: length, rates, and what is written when."""

    steps: int  # optimizer steps
    lr: float = 0.02  # Muon, on matrices
    adam_lr: float = 1e-3  # AdamW, on the rest
    warmup: int = 200  # steps
    decay_share: float = 0.0  # share of the run over which the rates fall to zero; 0: never
    clip_norm: float = 1.0  # bound on the gradient's norm
    gradient_accumulation_steps: int = 1  # batches of an optimizer step in each process
    spike_factor: float = 0.0  # a step whose gradient's norm is so many times the usual one is skipped; 0: none
    ema_decay: float = 0.999
    seed: int = 0
    threads: int = 1  # CPU threads of torch
    precision: str = "auto"  # float32, bfloat16, or auto: bfloat16 where it is measured to be quicker
    workers: int = 1  # processes that compose batches
    minutes: float = 0.0  # the run ends after so many, whatever `steps` says; 0: no limit
    decay_minutes: float = 0.0  # of `minutes`, at their end, over which the rates fall to zero
    save_minutes: float = 5.0
    save_steps: int = 0  # steps between checkpoints, beside save_minutes; 0: by time alone
    keep_checkpoints: int = 2  # the newest; the one before is used where the last is damaged
    log_steps: int = 50
    may_change: tuple[str, ...] = ()  # names of parts that may differ from those of the state that the run goes on from
    validate_minutes: float = 15.0
    validate_steps: int = 0  # steps between validations, beside validate_minutes; 0: by time alone
    wandb: str = ""  # project of Weights & Biases that gets the log as well
    parallel: str = "ddp"  # under torchrun: ddp, fsdp (weights shared by all processes) or hsdp (by shard_size of them)
    shard_size: int = 0  # processes that share one copy of the weights in hsdp; 0: those of a machine
    ring_degree: int = 1  # processes that share a sequence by ring attention
    ulysses_degree: int = 1  # processes that share a sequence by exchanging attention heads

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.decay_minutes and not self.minutes:
            raise InputError(f"decay_minutes are the last of minutes, which must be above 0 then (got {self.decay_minutes})")
        if self.shard_size and self.parallel != "hsdp":
            raise InputError(f"shard_size is for parallel hsdp (got {self.shard_size} with {self.parallel})")


def check_ranges(config: Any) -> None:
    """Raise InputError for a field of a configuration that is outside of what its name allows."""
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        if allowed := CHOICES.get(name):
            fits, wanted = value in allowed, " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
        elif name in COUNTED:
            fits, wanted = value >= 1, "at least 1"
        elif name in FROM_ZERO:
            fits, wanted = 0 <= value < math.inf, "at least 0"
        elif name in SHARES:
            fits, wanted = 0 <= value <= 1 and not (name in NOT_ALL and value == 1), "between 0 and 1"
        elif name in POSITIVE:
            fits, wanted = 0 < value < math.inf, "above 0"
        else:
            continue
        if not fits:
            raise InputError(f"{name} must be {wanted} (got {value!r})")


@dataclass(frozen=True)
class AutoencoderConfig:
    """Autoencoder: its linear path first, then the whole; then the encoder is frozen and the decoder goes on alone."""

    train: TrainConfig
    linear: TrainConfig | None = None  # of the linear path, where no weights to start from are given; None: random ones
    batches: tuple[tuple[int, int], ...] = ((17, 4), (9, 6), (17, 4), (9, 6), (1, 24))  # frames and clips of 64 pixels, in turn
    side: int = 64  # pixels of the clips; of larger ones a step has fewer, so that its pixels stay about the same
    references: float = 0.4  # share of stills that are references
    textured: float = 0.6  # share of backgrounds that are textured whatever the scene says: the hardest to keep
    kl: float = 2.5e-5  # weight of the posterior's divergence from a unit normal, per latent element
    decoder_only: bool = False


@dataclass(frozen=True)
class ImageEncoderConfig:
    """Image encoder: contrast with captions of appearances, and between two renderings of one appearance."""

    train: TrainConfig
    batch: int = 64  # appearances per batch
    instance_weight: float = 1.0


@dataclass(frozen=True)
class Bucket:
    """Batches of one shape."""

    side: int  # pixels
    frames: int  # 1: stills
    batch: int  # samples of each process
    share: float  # how often, relative to the other buckets
    end_share: float | None = None  # the share after the config's ramp_steps, where it changes; linear on the way

    def share_at(self, progress: float) -> float:
        """The share at a progress of 0 to 1 on that way."""
        end = self.share if self.end_share is None else self.end_share
        return self.share + (end - self.share) * min(1.0, progress)


@dataclass(frozen=True)
class TransformerConfig:
    """Transformer. Rates of the null branches are shares of samples."""

    train: TrainConfig
    buckets: tuple[Bucket, ...] = (Bucket(96, 1, 16, 0.3), Bucket(128, 1, 12, 0.5), Bucket(96, 25, 2, 0.2))
    ramp_steps: int = 5_000  # over which shares of buckets go to their end_share
    references: tuple[tuple[int, float], ...] = ((0, 0.04), (1, 0.66), (2, 0.24), (4, 0.06))  # images of a sample and how often
    plain: float = 0.6  # share of samples of one or two references that are large subjects on a plain background
    drop_text: float = 0.1  # empty prompt: the image branch
    drop_all: float = 0.05  # empty prompt, zero references: the null branch
    drop_vae: float = 0.1  # zero latents at reference places, image tokens kept (the paper: 0.7)
    drop_image: float = 0.1  # null image tokens, latents kept
    subject_weight: float = 2.0  # added weight of latent positions that a subject covers
    first_frame: float = 0.08  # first latent frame clean, of clips with more than one
    t_mean: float = 0.8  # logit-normal timestep density (SD3), toward noise, for latents of t_tokens positions
    t_scale: float = 1.0
    t_tokens: int = 256  # a still of 128 pixels; latents of more positions are noised more (`shift_mean`)
    guidance_range: tuple[float, float] | None = None  # of weights of guidance that a student learns; None: ordinary training
    unguided: float = 0.25  # of a student's samples: share with weights 1 and 1, which alone have null branches


def distilling(config: TransformerConfig) -> TransformerConfig:
    """The same for guidance distillation. Null branches are a third of the unguided samples, so that they stay what they were."""
    return replace(config, guidance_range=(1.0, 7.0), drop_all=0.3)


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (Hu 2021, arXiv 2106.09685)."""

    rank: int = 32
    alpha: float = 32.0
    rank_stabilized: bool = False  # scale alpha / sqrt(rank) instead of alpha / rank (rsLoRA, arXiv 2312.03732)
    targets: tuple[str, ...] = ()  # ends of the names of linear layers

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Mix:
    """Shares of steps by what is seen of references. Those of a triplet that are not of the kind are left out."""

    in_pair: float = 0.0  # references out of the clip itself
    cross_pair: float = 0.0  # references from elsewhere
    text_to_video: float = 0.0  # none, and no places for them

    def __post_init__(self) -> None:
        shares = (self.in_pair, self.cross_pair, self.text_to_video)
        if min(shares) < 0 or not sum(shares) > 0:
            raise InputError(f"shares of the mix must be at least 0, and one of them above (got {shares})")


@dataclass(frozen=True)
class OwnConfig:
    """A fine-tuning. Rates of dropping are shares of samples."""

    train: TrainConfig
    batch_size: int = (
        1  # triplets of the largest bucket; of smaller ones as many more as have the same number of latent positions
    )
    lora: Lora | None = None  # None: all weights
    init_from: str = ""  # LoRA file whose factors training starts from, with an optimizer of its own
    base_weights: tuple[str, ...] = ()  # LoRA files, FILE or FILE=SCALE, that are merged into the base before training
    gradient_checkpointing: bool = False  # blocks are computed again in the backward pass instead of kept
    activation_offload: bool = False  # what gradient checkpointing keeps waits in main memory
    blocks_to_swap: int = 0  # blocks of a frozen base that wait in main memory, from the last one on
    compile: bool = False  # blocks by torch.compile: quicker steps, after a slow first one of each shape of batches
    quantization: str = "none"  # of a frozen base: int8, int4 (torchao), 8bit, 4bit (bitsandbytes), or a GGUF file
    drop_text: float = 0.1  # the image branch of guidance
    drop_references: float = 0.1  # zeros instead (Phantom-Wan's authors: 10%); with the text, the null branch
    drop_latents: float = 0.0  # reference latents alone (Phantom 4.1: 0.7), where the model has image tokens as well
    drop_tokens: float = 0.0  # image tokens alone
    t_density: str = "logit-normal"  # of timesteps (SD3, toward noise), or uniform
    t_mean: float = 0.0  # of the logit-normal density, for latents of t_tokens positions
    t_scale: float = 1.0
    t_tokens: int = 256
    t_shift: float = 1.0  # t -> s t / (1 + (s - 1) t), toward noise for more than 1
    min_timestep: int = 0  # of 1000; one of Wan2.2's experts learns a part of them
    max_timestep: int = 1000
    permute_subjects: bool = True  # rename subjects at random
    outside_mask: float = 0.0  # weight in the loss of what is black in a clip's mask; white: 1, gray: between
    mix: Mix | None = None  # None: each triplet with the references that it has
    regularization: float = 0.1  # share of steps on regularization clips, where there are any
    validation: float = 0.05  # share of triplets that are held out, at most HELD
    samples: str = ""  # JSON Lines file of requests (phantom generate --requests) that are made at each validation
    evaluate: bool = False  # measure the subject similarity of samples
    max_step_saves_to_keep: int = 0  # weights of earlier steps that are kept beside the best and the last
    bad_data: str = "stop"  # or skip: what is done where triplets cannot be used

    @property
    def recomputes(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self.gradient_checkpointing or self.activation_offload

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 <= self.min_timestep < self.max_timestep <= 1000:
            given = f"{self.min_timestep} and {self.max_timestep}"
            raise InputError(f"min_timestep must be below max_timestep, both between 0 and 1000 (got {given})")
        if self.train.lr:
            raise InputError(f"lr is the rate of Muon, which fine-tuning does not use; set adam_lr (got lr {self.train.lr})")
        if self.lora and not all(self.lora.targets or [""]):
            raise InputError("lora needs targets, the ends of names of linear layers; presets that end in -lora have them")
        if self.evaluate and not self.samples:
            raise InputError("evaluate measures samples; samples must be a JSON Lines file of requests")
        if self.lora is None and (self.init_from or self.blocks_to_swap or self.quantization != "none"):
            raise InputError("init_from, blocks_to_swap and quantization need LoRA: all weights are trained in float32 otherwise")
