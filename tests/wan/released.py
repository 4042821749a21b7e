"""An independent, slow reimplementation of Phantom-Wan's released code (reference preprocessing, latents, sampling): plain tensor
operations over a state dict in the native layout, nothing of ours and nothing of diffusers.

`break_` names one behavior to do wrongly on purpose, so that a test can see that it matters.
"""

import math

import numpy as np
import torch

TEXT_LEN = 512


def letterbox(image: np.ndarray, height: int, width: int, break_: str = "") -> np.ndarray:
    """uint8 [H, W, 3] -> [height, width, 3], by Pillow's resize of the whole, pasted by hand."""
    from PIL import Image

    h, w = image.shape[:2]
    if w / h > width / height:
        new_w, new_h = width, int(width / (w / h))
    else:
        new_w, new_h = int(height * (w / h)), height
    if break_ == "truncation":
        new_w, new_h = min(width, math.ceil(new_w + 0.5)), min(height, math.ceil(new_h + 0.5))
    kind = Image.Resampling.BILINEAR if break_ == "lanczos" else Image.Resampling.LANCZOS
    small = np.asarray(Image.fromarray(image).resize((new_w, new_h), kind))
    out = np.full((height, width, 3), 0 if break_ == "white" else 255, np.uint8)
    top, left = (height - new_h) // 2, (width - new_w) // 2
    if break_ == "odd pixel":
        top, left = height - new_h - top, width - new_w - left
    out[top : top + new_h, left : left + new_w] = small
    return out


def sinusoid(t: torch.Tensor, width: int) -> torch.Tensor:
    half = width // 2
    angle = torch.outer(t.double(), torch.pow(10000.0, -torch.arange(half).double() / half))
    return torch.cat([torch.cos(angle), torch.sin(angle)], 1).float()


def rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight


def layer_norm(x: torch.Tensor, weight=None, bias=None) -> torch.Tensor:
    x = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 1e-6)
    return x if weight is None else x * weight + bias


def gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def linear(x: torch.Tensor, state: dict, name: str) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def rope(x: torch.Tensor, grid: tuple[int, int, int], times: list[int]) -> torch.Tensor:
    """x [N, heads, d] as complex numbers turned by time, row and column of their token."""
    d = x.shape[-1]
    c = d // 2
    parts = [c - 2 * (c // 3), c // 3, c // 3]
    tables = []
    for part in parts:
        frequency = 1.0 / torch.pow(10000.0, torch.arange(0, 2 * part, 2).double() / (2 * part))
        positions = torch.outer(torch.arange(1024).double(), frequency)
        tables.append(torch.polar(torch.ones_like(positions), positions))
    out = torch.empty_like(x)
    _, rows, columns = grid
    index = 0
    for t in times:
        for i in range(rows):
            for j in range(columns):
                turn = torch.cat([tables[0][t], tables[1][i], tables[2][j]])
                number = torch.view_as_complex(x[index].double().reshape(-1, c, 2).contiguous())
                out[index] = torch.view_as_real(number * turn).flatten(1).float()
                index += 1
    return out


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """[N, heads, d], [M, heads, d], [M, heads, d] -> [N, heads * d], one head after the other."""
    heads = []
    for h in range(q.shape[1]):
        score = q[:, h] @ k[:, h].T / math.sqrt(q.shape[-1])
        heads.append(torch.softmax(score, -1) @ v[:, h])
    return torch.cat(heads, 1)


def forward(state: dict, heads: int, x: torch.Tensor, timestep: int, text: torch.Tensor, times: list[int]) -> torch.Tensor:
    """WanModel on x [C, T, h, w] and text [L, D], as the released code runs it."""
    dim = state["patch_embedding.bias"].shape[0]
    depth = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    c, frames, h, w = x.shape
    grid = (frames, h // 2, w // 2)
    patches = x.reshape(c, frames, h // 2, 2, w // 2, 2).permute(1, 2, 4, 0, 3, 5).reshape(-1, c * 4)
    tokens = patches @ state["patch_embedding.weight"].reshape(dim, -1).T + state["patch_embedding.bias"]
    frequency = state["time_embedding.0.weight"].shape[1]
    e = linear(sinusoid(torch.tensor([timestep]), frequency), state, "time_embedding.0")
    e = linear(e * torch.sigmoid(e), state, "time_embedding.2")
    e6 = linear(e * torch.sigmoid(e), state, "time_projection.1").reshape(6, dim)
    context = linear(gelu(linear(text, state, "text_embedding.0")), state, "text_embedding.2")
    for n in range(depth):
        b = f"blocks.{n}"
        shift1, scale1, gate1, shift2, scale2, gate2 = state[f"{b}.modulation"][0] + e6
        y = layer_norm(tokens) * (1 + scale1) + shift1
        q = rms(linear(y, state, f"{b}.self_attn.q"), state[f"{b}.self_attn.norm_q.weight"]).reshape(len(y), heads, -1)
        k = rms(linear(y, state, f"{b}.self_attn.k"), state[f"{b}.self_attn.norm_k.weight"]).reshape(len(y), heads, -1)
        v = linear(y, state, f"{b}.self_attn.v").reshape(len(y), heads, -1)
        y = attention(rope(q, grid, times), rope(k, grid, times), v)
        tokens = tokens + linear(y, state, f"{b}.self_attn.o") * gate1
        y = layer_norm(tokens, state[f"{b}.norm3.weight"], state[f"{b}.norm3.bias"])
        q = rms(linear(y, state, f"{b}.cross_attn.q"), state[f"{b}.cross_attn.norm_q.weight"]).reshape(len(y), heads, -1)
        k = rms(linear(context, state, f"{b}.cross_attn.k"), state[f"{b}.cross_attn.norm_k.weight"])
        v = linear(context, state, f"{b}.cross_attn.v")
        y = attention(q, k.reshape(len(context), heads, -1), v.reshape(len(context), heads, -1))
        tokens = tokens + linear(y, state, f"{b}.cross_attn.o")
        y = layer_norm(tokens) * (1 + scale2) + shift2
        y = linear(gelu(linear(y, state, f"{b}.ffn.0")), state, f"{b}.ffn.2")
        tokens = tokens + y * gate2
    shift, scale = state["head.modulation"][0] + e
    out = linear(layer_norm(tokens) * (1 + scale) + shift, state, "head.head")
    return out.reshape(*grid, 2, 2, c).permute(5, 0, 1, 3, 2, 4).reshape(c, frames, h, w)


def grid_of_times(steps: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Sigmas [steps + 1] and integer timesteps [steps]."""
    s = np.linspace(0.999, 0.0, steps + 1)[:-1]
    s = shift * s / (1 + (shift - 1) * s)
    return np.append(s, 0.0), (s * 1000).astype(np.int64)


def unipc(x: torch.Tensor, predict, sigmas: np.ndarray) -> torch.Tensor:
    """UniPC of order 2 with B2, data prediction, lower order at the end; `predict(i, x)` gives the clean latent at step i."""
    alphas, lambdas = 1 - sigmas, np.log(np.maximum(1 - sigmas, 1e-300)) - np.log(np.maximum(sigmas, 1e-300))
    steps = len(sigmas) - 1
    outputs: list[torch.Tensor] = []
    last = x
    for i in range(steps):
        m = predict(i, x)
        if i > 0:  # the corrector: from the sample before to this one, knowing m
            order = min(2, i)
            h = lambdas[i] - lambdas[i - 1]
            base = sigmas[i] / sigmas[i - 1] * last - alphas[i] * np.expm1(-h) * outputs[-1]
            b = np.expm1(-h)
            if order == 1:
                x = base - alphas[i] * b * 0.5 * (m - outputs[-1])
            else:
                r = (lambdas[i - 2] - lambdas[i - 1]) / h
                g1 = np.expm1(-h) / -h - 1
                g2 = g1 / -h - 0.5
                # | 1  1 | (rho_1, rho_c) = (g1, 2 g2) / b
                # | r  1 |
                right = np.array([g1, 2 * g2]) / b
                rho1 = (right[0] - right[1]) / (1 - r)
                rho_c = right[0] - rho1
                x = base - alphas[i] * b * (rho1 * (outputs[-2] - outputs[-1]) / r + rho_c * (m - outputs[-1]))
        outputs = [*outputs[-1:], m]
        last = x
        if i == steps - 1:  # to sigma 0 in first order: the clean latent itself
            x = outputs[-1]
            break
        h = lambdas[i + 1] - lambdas[i]
        x = sigmas[i + 1] / sigmas[i] * last - alphas[i + 1] * np.expm1(-h) * outputs[-1]
        if i > 0:
            r = (lambdas[i - 1] - lambdas[i]) / h
            x = x - alphas[i + 1] * np.expm1(-h) * 0.5 * (outputs[-2] - outputs[-1]) / r
    return x


def sample(
    state: dict,
    heads: int,
    references: torch.Tensor,
    text: torch.Tensor,
    negative: torch.Tensor,
    frames: int,
    seed: int,
    steps: int = 6,
    shift: float = 5.0,
    g_image: float = 5.0,
    g_text: float = 7.5,
    break_: str = "",
) -> torch.Tensor:
    """Latents [C, T, h, w]: references [C, n, h, w] normalized, texts [l, D] as the encoder gives them."""
    c, n, h, w = references.shape
    video = (frames - 1) // 4 + 1
    generator = torch.Generator().manual_seed(seed)
    if break_ == "one draw of noise":
        x = torch.cat([torch.randn(c, video, h, w, generator=generator), torch.randn(c, n, h, w, generator=generator)], 1)
    else:
        x = torch.randn(c, video + n, h, w, generator=generator)

    def padded(features: torch.Tensor) -> torch.Tensor:
        length = len(features) if break_ == "padding seen" else TEXT_LEN
        return torch.cat([features, torch.zeros(length - len(features), features.shape[1])])

    text, negative = padded(text), padded(negative)
    sigmas, timesteps = grid_of_times(steps, 3.0 if break_ == "shift" else shift)
    if break_ == "integer timesteps":
        timesteps = sigmas[:-1] * 1000
    times = list(range(video + n))
    if break_ == "next time indices":
        times = [*range(n, video + n), *range(n)]
    none = torch.zeros_like(references)
    if break_ == "zero latents":
        none = references.mean() + torch.ones_like(references)

    def predict(i: int, x: torch.Tensor) -> torch.Tensor:
        def velocity(tail: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            kept = x if break_ == "overwritten" and i else torch.cat([x[:, :-n], tail], 1)
            return forward(state, heads, kept, timesteps[i], words, times)

        both, image, null = velocity(references, text), velocity(references, negative), velocity(none, negative)
        if break_ == "what the third sees":
            null = velocity(none, text)
        if break_ == "guidance":
            v = null + g_text * (image - null) + g_image * (both - image)
        else:
            v = null + g_image * (image - null) + g_text * (both - image)
        return x - float(sigmas[i]) * v

    x = unipc(x, predict, sigmas)
    return x[:, n:] if break_ == "tail dropped" else x[:, :-n]
