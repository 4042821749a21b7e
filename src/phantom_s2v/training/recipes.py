"""Complete configurations of trainings: of phantom-mini's parts, and of fine-tuning on one's own triplets."""

from dataclasses import replace

from phantom_s2v.models.wan.spec import LORA_TARGETS
from phantom_s2v.training.config import AutoencoderConfig, ImageEncoderConfig, Lora, OwnConfig, TrainConfig

MINI_TARGETS = ("q", "k", "v", "out", "mlp.0", "mlp.2")  # of both branches
WAN_TOKENS = 21 * 60 * 104  # latent positions of 81 frames at 832x480
SPIKE = 10.0  # of fine-tunings: a step whose gradient is so many times as long as usual is skipped
CONVOLUTIONS = "float32"  # with bfloat16 a CPU with AMX gives NaN for gradients of causal convolutions at 128 pixels (torch 2.13)


def mini_autoencoder(steps: int = 2_150) -> AutoencoderConfig:
    """phantom-mini's autoencoder: its linear path, a quarter of an hour on one core, then the whole, some hours."""
    train = TrainConfig(steps, lr=0.005, adam_lr=5e-4, warmup=100, decay_share=0.9, ema_decay=0.998, precision=CONVOLUTIONS)
    return AutoencoderConfig(train, replace(train, steps=1_500, lr=0.008, adam_lr=1e-3, decay_share=0.7))


def mini_decoder(steps: int = 4_000) -> AutoencoderConfig:
    """The decoder alone, with the encoder frozen, so that latents stay what the transformer knows."""
    train = TrainConfig(steps, lr=0.005, decay_share=0.5, ema_decay=0.998, seed=1, precision=CONVOLUTIONS)
    return AutoencoderConfig(train, decoder_only=True)


def mini_image_encoder(steps: int = 800) -> ImageEncoderConfig:
    """phantom-mini's image encoder: about a quarter of an hour on one core."""
    return ImageEncoderConfig(TrainConfig(steps, lr=0.01, decay_share=0.4, ema_decay=0.995))


def own_mini() -> OwnConfig:
    """phantom-mini on one's own triplets, all weights."""
    train = TrainConfig(500, lr=0.0, workers=0, adam_lr=1e-4, warmup=50, decay_share=0.2, ema_decay=0.99, spike_factor=SPIKE)
    return OwnConfig(train, batch_size=2, drop_latents=0.1, drop_tokens=0.1, t_mean=0.8)


def own_mini_lora() -> OwnConfig:
    """LoRA of rank 16 on phantom-mini, for ten images of one subject; two minutes on two cores."""
    train = TrainConfig(300, lr=0.0, workers=0, adam_lr=5e-3, warmup=20, decay_share=0.5, ema_decay=0.95, spike_factor=SPIKE)
    return replace(own_mini(), train=train, batch_size=10, lora=Lora(16, 16.0, targets=MINI_TARGETS))


def own_wan() -> OwnConfig:
    """Phantom-Wan 1.3B, all weights (RefAlign's learning rate of 1e-5)."""
    train = TrainConfig(
        2_000,
        lr=0.0,
        workers=0,
        adam_lr=1e-5,
        warmup=100,
        decay_share=0.1,
        ema_decay=0.995,
        log_steps=10,  # of up to a minute each
        precision="bfloat16",
        spike_factor=SPIKE,
    )
    return OwnConfig(train, t_tokens=WAN_TOKENS, permute_subjects=False, gradient_checkpointing=True)


def own_wan_lora() -> OwnConfig:
    """LoRA of rank 32 on Phantom-Wan 1.3B, as it is usual: learning rate 1e-4, on attention and feed-forward."""
    config = own_wan()
    train = replace(config.train, adam_lr=1e-4)
    return replace(config, train=train, lora=Lora(targets=LORA_TARGETS), activation_offload=True)  # which is for cards of 12 GB


def own_wan_14b_lora() -> OwnConfig:
    """The same for the 14B model on a card of 24 GB: 39 of its 40 blocks wait in main memory."""
    return replace(own_wan_lora(), blocks_to_swap=39)


OWN = {  # preset -> the model that it fine-tunes, and its configuration
    "mini": ("phantom-mini", own_mini),
    "mini-lora": ("phantom-mini", own_mini_lora),
    "wan-1.3b": ("phantom-wan-1.3b", own_wan),
    "wan-1.3b-lora": ("phantom-wan-1.3b", own_wan_lora),
    "wan-14b-lora": ("phantom-wan-14b", own_wan_14b_lora),
}
