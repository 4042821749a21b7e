"""Configuration of a training run: frozen, saved with every checkpoint."""

from dataclasses import dataclass, replace

from phantom_s2v.errors import InputError

PARALLEL = ("ddp", "fsdp", "hsdp")
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
    parallel: str = "ddp"  # under torchrun: ddp, fsdp (weights shared by all processes) or hsdp (by shard_size of them)
    shard_size: int = 0  # processes that share one copy of the weights in hsdp; 0: those of a machine
    ring_degree: int = 1  # processes that share a sequence by ring attention
    ulysses_degree: int = 1  # processes that share a sequence by exchanging attention heads

    def __post_init__(self) -> None:
        if self.parallel not in PARALLEL:
            raise InputError(f"parallel must be {', '.join(PARALLEL[:-1])} or {PARALLEL[-1]} (got {self.parallel!r})")
        for name in ("gradient_accumulation_steps", "keep_checkpoints", "ring_degree", "ulysses_degree"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1 (got {getattr(self, name)})")


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


@dataclass(frozen=True)
class OwnConfig:
    """A fine-tuning. Rates of dropping are shares of samples."""

    train: TrainConfig
    batch_size: int = (
        1  # triplets of the largest bucket; of smaller ones as many more as have the same number of latent positions
    )
    lora: Lora | None = None  # None: all weights
    gradient_checkpointing: bool = False  # blocks are computed again in the backward pass instead of kept
    drop_text: float = 0.1  # the image branch of guidance
    drop_references: float = 0.1  # zeros instead (Phantom-Wan's authors: 10%); with the text, the null branch
    drop_latents: float = 0.0  # reference latents alone (Phantom 4.1: 0.7), where the model has image tokens as well
    drop_tokens: float = 0.0  # image tokens alone
    t_mean: float = 0.0  # logit-normal timestep density (SD3), toward noise, for latents of t_tokens positions
    t_scale: float = 1.0
    t_tokens: int = 256
    permute_subjects: bool = True  # rename subjects at random
    validation: float = 0.05  # share of triplets that are held out, at most HELD
