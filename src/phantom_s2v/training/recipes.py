"""Complete configurations of phantom-mini's trainings."""

from dataclasses import replace

from phantom_s2v.training.config import AutoencoderConfig, ImageEncoderConfig, TrainConfig

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
