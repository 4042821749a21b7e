"""The linear path of the autoencoder, from which its training starts.

Where every residual branch is silent, AutoencoderKLWan is a linear code: convolutions that halve a clip and double it again.
`linear_path` is that code alone, `principal_start` gives it principal components for weights, and after some training
`whole` sets it into the full network, whose branches begin at zero. Why: docs/method.md, the measurements: dev/LOG.md.

Legend: N clips, T frames of a stage, C channels, h w grid of a stage. Features here are [N, T, C, h, w].
"""

from typing import Any

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d, WanResidualBlock, patchify
from einops import rearrange
from torch import nn

from phantom_s2v.models.autoencoder import build_autoencoder, skip_empty_history

DIFFERENCES = (8, 24)  # channels that hold what changes between two frames, at the first and at the second halving of time
GAIN = 8.0  # of the features between the heads: a step of Muon on a silent branch is small beside them
RATIO = 10.0  # of the constant channel to all others, which makes the last norm nearly linear
RIDGE = 1e-4  # of the mean squared input
LOG_VARIANCE = -7.0  # of the posterior at first
ROWS = 60_000  # positions that a layer of the decoder is fitted on


class _Shortcut(nn.Module):
    """A residual block whose branch is silent."""

    def __init__(self, block: WanResidualBlock) -> None:
        super().__init__()
        self.conv_shortcut = block.conv_shortcut

    def forward(self, x: torch.Tensor, feat_cache: list | None = None, feat_idx: list | None = None) -> torch.Tensor:
        return self.conv_shortcut(x)


def linear_path() -> AutoencoderKLWan:
    """phantom-mini's autoencoder without branches, attention, norms and activations.

    The last features before either head are narrower than the full network's: it holds each of them twice, with both signs.
    """
    model: Any = build_autoencoder()
    latents, width = model.config.z_dim, model.encoder.conv_out.in_channels // 2 - 1
    model.encoder.down_blocks[-1].conv_shortcut = WanCausalConv3d(model.encoder.down_blocks[-1].in_dim, width, 1)
    model.encoder.conv_out = WanCausalConv3d(width, 2 * latents, 3, padding=1)
    last, width = _ups(model)[1].resample[1], model.decoder.conv_out.in_channels // 2 - 1
    _ups(model)[1].resample[1] = nn.Conv2d(last.in_channels, width, 3, padding=1)
    model.decoder.conv_out = WanCausalConv3d(width, model.config.out_channels, 3, padding=1)
    for part in (model.encoder, model.decoder):
        part.norm_out, part.nonlinearity = nn.Identity(), nn.Identity()
    _leave_out_branches(model)
    for convolution in (model.quant_conv, model.post_quant_conv):
        nn.init.dirac_(convolution.weight)
        nn.init.zeros_(convolution.bias)
        convolution.requires_grad_(False)
    skip_empty_history(model)
    return model


def _leave_out_branches(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, WanResidualBlock):
            setattr(module, name, _Shortcut(child))
        elif isinstance(child, WanAttentionBlock):
            setattr(module, name, nn.Identity())
        else:
            _leave_out_branches(child)


@torch.no_grad()
def whole(linear: AutoencoderKLWan, pixels: torch.Tensor) -> AutoencoderKLWan:
    """The full network that computes what a linear path does (tests hold them equal), with latents of unit std on `pixels`.

    Before either head stand every feature, its negative, and a constant: silu(x) - silu(-x) = x, and beside a constant that is
    large the norm divides by hardly more than that constant.
    """
    source: Any = linear
    model: Any = build_autoencoder()
    same = {k: v for k, v in source.state_dict().items() if v.shape == model.state_dict()[k].shape}
    model.load_state_dict({**model.state_dict(), **same})
    for module in model.modules():
        for silent in (getattr(module, name, None) for name in ("conv2", "proj")):
            if silent is not None:
                nn.init.zeros_(silent.weight)
                nn.init.zeros_(silent.bias)
    features, latents = _last_features(source, pixels)
    _enlarge(model)
    shortcut = model.encoder.down_blocks[-1].conv_shortcut
    near = [
        model.encoder.mid_block.resnets[0].norm1,
        model.encoder.mid_block.resnets[1].norm1,
        model.encoder.mid_block.attentions[0].norm,
    ]
    _double(source.encoder, model.encoder, (source.encoder.down_blocks[-1].conv_shortcut, shortcut), features[0], near)
    near = [block.norm1 for block in model.decoder.up_blocks[2].resnets]
    _double(source.decoder, model.decoder, (_ups(source)[1].resample[1], _ups(model)[1].resample[1]), features[1], near)
    _normalize(model, latents)
    return model


def _last_features(source: Any, pixels: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What reaches the heads of encoder and decoder, as rows, and the latents of clips."""
    seen: list[list[torch.Tensor]] = [[], []]
    heads = (source.encoder.conv_out, source.decoder.conv_out)
    hooks = [head.register_forward_hook(lambda _m, x, _y, of=of: of.append(x[0])) for head, of in zip(heads, seen, strict=True)]
    latents = source.encode(pixels).latent_dist.mode()
    source.decode(latents)
    for hook in hooks:
        hook.remove()
    return [torch.cat([_rows(rearrange(x, "n c t h w -> n t c h w")) for x in of]) for of in seen], latents


def _enlarge(model: Any) -> None:
    """GAIN times the features between the heads: weights of the first layers, biases of those that follow."""
    for convolution in (model.encoder.conv_in, model.decoder.conv_in):
        convolution.weight.mul_(GAIN)
    layers = [layer for each in (*_downs(model), *_ups(model)) for layer in (each.resample[1], each.time_conv)]
    for layer in [model.encoder.conv_in, model.decoder.conv_in, model.encoder.down_blocks[2].conv_shortcut, *layers]:
        layer.bias.mul_(GAIN)


def _double(source: Any, part: Any, layers: tuple[Any, Any], rows: torch.Tensor, norms: list[Any]) -> None:
    """Both signs and a constant from the layer before the head on; `norms` see the features without the constant."""
    (narrow, wide), count = layers, rows.shape[1]
    energy = 2 * GAIN**2 * float(rows.square().sum(1).mean())
    constant = RATIO * energy**0.5
    nn.init.zeros_(wide.weight)
    nn.init.zeros_(wide.bias)
    for place, sign in ((0, 1), (count, -1)):
        wide.weight[place : place + count] = sign * narrow.weight
        wide.bias[place : place + count] = sign * GAIN * narrow.bias
    wide.bias[2 * count] = constant
    for norm in (part.norm_out, *norms):
        norm.gamma[: 2 * count] = RATIO
        norm.gamma[2 * count] = 0
    weight = source.conv_out.weight * (constant**2 + energy) ** 0.5 / (part.norm_out.scale * RATIO * GAIN)
    nn.init.zeros_(part.conv_out.weight)
    part.conv_out.weight[:, : 2 * count] = torch.cat([weight, -weight], 1)
    part.conv_out.bias.copy_(source.conv_out.bias)


def _normalize(model: Any, latents: torch.Tensor) -> None:
    """Latents of mean 0 and std 1, and a narrow posterior, by the 1x1 convolutions on either side of them."""
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    count = len(mean)
    for convolution, scale, shift in (
        (model.quant_conv, 1 / std, -mean / std),
        (model.post_quant_conv, std, mean),
    ):
        nn.init.zeros_(convolution.weight)
        convolution.weight[:count, :count, 0, 0, 0] = scale.diag()
        convolution.bias[:count] = shift
    model.quant_conv.bias[count:] = LOG_VARIANCE


def _downs(model: Any) -> list[Any]:
    return [model.encoder.down_blocks[1], model.encoder.down_blocks[3]]


def _ups(model: Any) -> list[Any]:
    return [model.decoder.up_blocks[0].upsamplers[0], model.decoder.up_blocks[1].upsamplers[0]]


@torch.no_grad()
def principal_start(model: AutoencoderKLWan, pixels: torch.Tensor) -> None:
    """Weights of a linear path from clips [N, 3, F, H, W], in closed form.

    Encoder: principal components of 2x2 blocks, then means and principal differences of two frames, twice, then principal
    components for latents. Decoder: each layer is fitted (ridge) to give the encoder's features of its place.
    """
    network: Any = model
    stages = _start_encoder(network, rearrange(patchify(pixels, 2), "n c t h w -> n t c h w"))
    _start_decoder(network, stages)


def _start_encoder(network: Any, images: torch.Tensor) -> list[torch.Tensor]:
    """Fit the encoder; the features of every stage, from patches to latents."""
    encoder, count = network.encoder, images.shape[2]
    nn.init.normal_(encoder.conv_in.weight, std=0.05)  # beyond the image itself, something for the branches to start from
    _set(encoder.conv_in, {(2, 1, 1): torch.eye(count)})
    stages, x = [images], images
    for down, widen, differences in zip(_downs(network), (2, 4), DIFFERENCES, strict=True):
        blocks = _blocks(x)
        spatial = _components(blocks)[: down.dim]
        corners = rearrange(spatial, "d (c p q) -> p q d c", p=2, q=2)
        _set(down.resample[1], {(p, q): corners[p, q] for p in (0, 1) for q in (0, 1)})
        x = _apply(spatial, blocks)
        stages.append(x)
        x, earlier, later = _pairs(x, differences)
        _set(down.time_conv, {(1, 0, 0): earlier, (2, 0, 0): later})
        stages.append(x)
        shortcut = encoder.down_blocks[widen].conv_shortcut
        nn.init.normal_(shortcut.weight, std=0.1)
        width = min(x.shape[2], shortcut.out_channels)
        _set(shortcut, {(0, 0, 0): torch.eye(x.shape[2])[:width]})
        x = x[:, :, :width]
    latents = _components(x)[: network.config.z_dim]
    nn.init.zeros_(encoder.conv_out.weight)
    _set(encoder.conv_out, {(2, 1, 1): latents})
    return [*stages, x, _apply(latents, x)]


def _start_decoder(network: Any, stages: list[torch.Tensor]) -> None:
    """Fit the decoder from the latents up, each layer on what the layers before it really give."""
    images, fine, fine_pairs, coarse, _, coarse_pairs, latents = stages
    decoder, (first, second) = network.decoder, _ups(network)
    nn.init.normal_(decoder.conv_in.weight, std=0.02)
    _set(decoder.conv_in, {(2, 1, 1): ridge(_rows(latents), _rows(coarse_pairs))[: decoder.conv_in.out_channels]})
    x = rearrange(decoder.conv_in(rearrange(latents, "n t c h w -> n c t h w")), "n c t h w -> n t c h w")
    x = _fit_up(first, _fit_split(first, x, coarse), fine_pairs)
    _fit_up(second, _fit_split(second, x, fine), images)
    _set(decoder.conv_out, {(2, 1, 1): torch.eye(images.shape[2])})


def _fit_split(up: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Fit the convolution that makes two frames of one; the first frame passes by it."""
    nn.init.normal_(up.time_conv.weight, std=0.02)
    nn.init.zeros_(up.time_conv.bias)
    for half in (0, 1):
        weight = ridge(_rows(x[:, 1:]), _rows(target[:, 1 + half :: 2]))
        outputs = slice(half * up.dim, half * up.dim + len(weight))
        up.time_conv.weight[outputs] = 0
        up.time_conv.weight[outputs, :, 2, 0, 0] = weight
    later = _apply(up.time_conv.weight[:, :, 2, 0, 0], x[:, 1:])
    return torch.cat([x[:, :1], rearrange(later, "n t (s c) h w -> n (t s) c h w", s=2)], 1)


def _fit_up(up: Any, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Fit the convolution after nearest neighbors; the features that it gives."""
    convolution = up.resample[1]
    large = nn.functional.interpolate(rearrange(x, "n t c h w -> (n t) c h w"), scale_factor=2.0, mode="nearest-exact")
    places = len(large) * large[0, 0].numel()
    rows = torch.linspace(0, places - 1, min(ROWS, places), dtype=torch.float64).long()
    weight = ridge(_neighborhoods(large, rows), _rows(target)[rows])
    nn.init.normal_(convolution.weight, std=0.02)
    nn.init.zeros_(convolution.bias)
    convolution.weight[: len(weight)] = rearrange(weight, "d (c p q) -> d c p q", p=3, q=3)
    return rearrange(convolution(large), "(n t) c h w -> n t c h w", n=len(x))


def _neighborhoods(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The 3x3 inputs [R, C * 9] of a convolution of x [M, C, H, W] at places `rows` of its M * H * W outputs."""
    frame, y, column = torch.unravel_index(rows, (len(x), *x.shape[2:]))
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    return torch.stack([padded[frame, :, y + p, column + q] for p in range(3) for q in range(3)], 2).flatten(1)


def _set(convolution: Any, taps: dict[tuple[int, ...], torch.Tensor]) -> None:
    """Give the first outputs of a convolution these weights [outputs, inputs] at these taps, and none elsewhere."""
    nn.init.zeros_(convolution.bias)
    for weight in taps.values():
        convolution.weight[: len(weight)] = 0
    for tap, weight in taps.items():
        convolution.weight[: len(weight), : weight.shape[1], *tap] = weight


def _blocks(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "n t c (h p) (w q) -> n t (c p q) h w", p=2, q=2)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return rearrange(x, "n t c h w -> (n t h w) c")


def _apply(weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return torch.einsum("dc,ntchw->ntdhw", weight, x)


def _components(x: torch.Tensor) -> torch.Tensor:
    """Principal components of features, uncentered, the largest first: orthonormal rows [C, C]."""
    rows = _rows(x)
    return torch.linalg.eigh((rows.T @ rows).double())[1].flip(1).T.float()


def _pairs(x: torch.Tensor, differences: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means and principal differences of frames (1, 2), (3, 4) and so on, after frame 0 as it is; the weights of either frame."""
    earlier, later = x[:, 1::2], x[:, 2::2]
    change = _components(later - earlier)[:differences]
    mean = torch.eye(x.shape[2])[: x.shape[2] - differences]
    of_earlier, of_later = torch.cat([mean, -change]) / 2, torch.cat([mean, change]) / 2
    return torch.cat([x[:, :1], _apply(of_earlier, earlier) + _apply(of_later, later)], 1), of_earlier, of_later


def ridge(inputs: torch.Tensor, targets: torch.Tensor, strength: float = RIDGE) -> torch.Tensor:
    """Weights [D, C] that give targets [N, D] from inputs [N, C] with least squared error and a light pull to zero."""
    gram = (inputs.T @ inputs).double()
    gram += strength * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    return torch.linalg.solve(gram, (inputs.T @ targets).double()).float().T
