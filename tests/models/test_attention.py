"""Window attention against plain attention and against a slow loop over queries."""

import pytest
import torch
from einops import rearrange
from torch.nn.functional import scaled_dot_product_attention

from phantom_s2v.geometry import windows
from phantom_s2v.models.phantom.attention import Seen, Tokens, window_attention
from phantom_s2v.models.phantom.layers import rotary_table, rotate

pytestmark = pytest.mark.threads

B, H, S, E, M = 2, 2, 4, 12, 6


def tokens(time: int, n: int, length: int = 3) -> tuple[Tokens, Tokens, Tokens]:
    torch.manual_seed(0)
    return tuple(
        Tokens(torch.randn(B, H, time, S, E), torch.randn(B, H, n, S, E), torch.randn(B, H, length, E)) for _ in range(3)
    )


def table() -> torch.Tensor:
    return rearrange(rotary_table(M, 2, 2, E, torch.device("cpu")), "m h w e -> m (h w) e")


def slow(q, k, v, ranges, angles, mask_text=None):
    """One query at a time, with explicit sums: figure 5 taken literally."""
    n = q.references.shape[2]
    video = torch.zeros_like(q.video)
    references, text = torch.zeros_like(q.references), torch.zeros_like(q.text)
    for b in range(B):
        for h in range(H):
            for start, stop in ranges:
                keys, values = [], []
                for t in range(start, stop):
                    for s in range(S):
                        keys.append(rotate(k.video[b, h, t, s], angles[t - start, s]))
                        values.append(v.video[b, h, t, s])
                for i in range(n):
                    for s in range(S):
                        keys.append(rotate(k.references[b, h, i, s], angles[M - n + i, s]))
                        values.append(v.references[b, h, i, s])
                for i in range(k.text.shape[2]):
                    if mask_text is None or mask_text[b, i]:
                        keys.append(k.text[b, h, i])
                        values.append(v.text[b, h, i])

                def attend(query, keys=keys, values=values):
                    scores = torch.stack([(query * key).sum() / E**0.5 for key in keys])
                    weights = scores.exp() / scores.exp().sum()
                    return sum(w * value for w, value in zip(weights, values, strict=True))

                for s in range(S):
                    for t in range(start, stop):
                        video[b, h, t, s] = attend(rotate(q.video[b, h, t, s], angles[t - start, s]))
                    for i in range(n):
                        turned = rotate(q.references[b, h, i, s], angles[M - n + i, s])
                        references[b, h, i, s] += attend(turned) / len(ranges)
                for i in range(q.text.shape[2]):
                    text[b, h, i] += attend(q.text[b, h, i]) / len(ranges)
    return Tokens(video, references, text)


def same(a: Tokens, b: Tokens) -> None:
    for name in ("video", "references", "text"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-5)


def test_one_window_is_plain_full_attention():
    q, k, v = tokens(3, 2)
    out = window_attention(q, k, v, [(0, 3)], table(), Seen(None, None))
    places = torch.cat([table()[:3], table()[M - 2 :]])

    def flat(x, turn):
        vision = torch.cat([x.video, x.references], 2)
        return torch.cat([rearrange(rotate(vision, places) if turn else vision, "b h t s e -> b h (t s) e"), x.text], 2)

    plain = scaled_dot_product_attention(flat(q, True), flat(k, True), flat(v, False))
    torch.testing.assert_close(rearrange(out.video, "b h t s e -> b h (t s) e"), plain[:, :, : 3 * S])
    torch.testing.assert_close(rearrange(out.references, "b h t s e -> b h (t s) e"), plain[:, :, 3 * S : 5 * S])
    torch.testing.assert_close(out.text, plain[:, :, 5 * S :])


def test_many_windows_equal_the_slow_loop():
    q, k, v = tokens(7, 2)
    for shifted in (False, True):
        ranges = windows(7, M, 2, shifted)
        assert len(ranges) > 1
        same(window_attention(q, k, v, ranges, table(), Seen(None, None)), slow(q, k, v, ranges, table()))


def test_masked_text_is_not_attended():
    q, k, v = tokens(5, 1)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    ranges = windows(5, M, 1, True)
    out = window_attention(q, k, v, ranges, table(), Seen(None, mask))
    same(out, slow(q, k, v, ranges, table(), mask))


def test_masked_references_equal_none_over_the_same_partition():
    q, k, v = tokens(7, 2)
    ranges = windows(7, M, 2, False)
    hidden = window_attention(q, k, v, ranges, table(), Seen(torch.zeros(B, 2, dtype=torch.bool), None))
    bare = [Tokens(x.video, x.references[:, :, :0], x.text) for x in (q, k, v)]
    without = window_attention(*bare, ranges, table(), Seen(None, None))
    torch.testing.assert_close(hidden.video, without.video)
    torch.testing.assert_close(hidden.text, without.text)


def test_injection_once_reaches_the_last_window_alone():
    q, k, v = tokens(8, 2)
    ranges = windows(8, M, 2, False)
    out = window_attention(q, k, v, ranges, table(), Seen(None, None), everywhere=False)
    other = Tokens(k.video, k.references + 1, k.text)
    moved = window_attention(q, other, v, ranges, table(), Seen(None, None), everywhere=False)
    assert torch.equal(out.video[:, :, :4], moved.video[:, :, :4])
    assert not torch.allclose(out.video[:, :, 4:], moved.video[:, :, 4:])


@pytest.mark.parametrize("gradients", [True, False])  # written out, and by the fused kernel
def test_bfloat16_on_a_cpu_agrees_with_float32(gradients):
    q, k, v = tokens(7, 2)
    ranges = windows(7, M, 2, True)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    half = [Tokens(x.video.bfloat16(), x.references.bfloat16(), x.text.bfloat16()) for x in (q, k, v)]
    with torch.set_grad_enabled(gradients):
        coarse = window_attention(*half, ranges, table(), Seen(None, mask))
    fine = window_attention(q, k, v, ranges, table(), Seen(None, mask))
    torch.testing.assert_close(coarse.video.float(), fine.video, rtol=0.05, atol=0.05)
