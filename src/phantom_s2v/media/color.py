"""What the colors of a video mean, and HDR and wide gamut as BT.709 (docs/method.md has the formula and its reasons).

Codes are those of ITU-T H.273, as files carry them. Signals are R'G'B' in 0..1; light is linear, 1 is the reference white.
"""

import numpy as np

PQ, HLG, LINEAR = 16, 18, 8  # transfer characteristics that are converted
BT2020 = 9
WIDE = {  # primaries that are converted: xy of red, green and blue. Smaller gamuts than these count as BT.709
    BT2020: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # DCI-P3; its white is shown as white
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
BT709_XY = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
D65 = (0.3127, 0.3290)
WEIGHTS = {  # matrix -> shares of red and blue in luma
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
RGB, YCGCO = 0, 8
MATRICES = {*WEIGHTS, RGB, YCGCO}  # that can be read
REFERENCE_WHITE = 203.0  # cd/m2, ITU-R BT.2408
PEAK = 1000.0 / REFERENCE_WHITE  # what becomes white; brighter light is clipped
KNEE = 0.5  # light up to it is kept as it is
GAMMA = 2.4  # of BT.1886, the display that BT.709 is made for
LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
LUMA_709 = np.array([0.2126, 0.7152, 0.0722], np.float32)


def guess_matrix(height: int, width: int) -> int:
    """The matrix of a video that names none: BT.601 for standard definition, BT.709 for what is larger, as players do."""
    return 6 if height <= 576 and width < 1280 else 1


def needs_conversion(transfer: int, primaries: int) -> bool:
    """Whether a video shows other colors than BT.709's."""
    return transfer in (PQ, HLG, LINEAR) or primaries in WIDE


def decode_yuv(yuv: np.ndarray, matrix: int, full: bool) -> np.ndarray:
    """R'G'B' float32 [H, W, 3], 0..1, of Y'CbCr uint16 [H, W, 3] of 16 bits in full or limited range."""
    scale, black, gray = (65535.0, 0.0, 32768.0) if full else (256 * 219.0, 256 * 16.0, 32768.0)
    luma = (yuv[..., 0].astype(np.float32) - black) / scale
    blue, red = ((yuv[..., i].astype(np.float32) - gray) / (scale if full else 256 * 224.0) for i in (1, 2))
    if matrix == YCGCO:  # Cg and Co stand in the places of Cb and Cr
        rgb = luma - blue + red, luma + blue, luma - blue - red
    else:
        kr, kb = WEIGHTS[matrix]
        r, b = luma + 2 * (1 - kr) * red, luma + 2 * (1 - kb) * blue
        rgb = r, (luma - kr * r - kb * b) / (1 - kr - kb), b
    return np.clip(np.stack(rgb, -1), 0, 1)


def to_bt709(signal: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint8 [H, W, 3] for a BT.709 display of R'G'B' float32 [H, W, 3], 0..1, of another transfer or gamut.

    Light is carried into BT.709's primaries; colors that they cannot show are mixed with gray of their luminance until they can.
    HDR keeps light up to half the reference white and rolls off above it, to white at 1,000 cd/m2.
    """
    high = transfer in (PQ, HLG)
    light = _pq_light(signal) if transfer == PQ else _hlg_light(signal) if transfer == HLG else signal
    if not high and transfer != LINEAR:
        light = signal**GAMMA
    wide = primaries if primaries in WIDE else BT2020 if high and primaries not in (1, 5, 6, 7) else 0
    if wide:
        light = _inside(light @ (np.linalg.inv(_to_xyz(BT709_XY)) @ _to_xyz(WIDE[wide])).T.astype(np.float32))
    if high:
        light = _rolled_off(light)
    return (np.clip(light, 0, 1) ** (1 / GAMMA) * 255 + 0.5).astype(np.uint8)


def _pq_light(signal: np.ndarray) -> np.ndarray:
    """SMPTE ST 2084's light of a signal: 10,000 cd/m2 at 1."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = signal ** np.float32(1 / m2)
    return (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** np.float32(1 / m1) * np.float32(10_000 / REFERENCE_WHITE)


def _hlg_light(signal: np.ndarray) -> np.ndarray:
    """ITU-R BT.2100's light of an HLG signal on a display of 1,000 cd/m2, whose system gamma is 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return scene * (scene @ LUMA_2020)[..., None] ** np.float32(0.2) * np.float32(PEAK)


def _to_xyz(corners: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Matrix from linear RGB of these primaries, with white D65, to XYZ."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in corners]).T
    white = np.array([D65[0] / D65[1], 1, (1 - D65[0] - D65[1]) / D65[1]])
    return columns * np.linalg.solve(columns, white)


def _inside(light: np.ndarray) -> np.ndarray:
    """Light without negative parts: each color mixed with gray of its own luminance as far as needed."""
    gray, minimum = (light @ LUMA_709)[..., None], light.min(-1, keepdims=True)
    share = np.where(minimum < 0, gray / np.maximum(gray - minimum, 1e-9), 1)
    return np.maximum(gray + share * (light - gray), 0)


def _rolled_off(light: np.ndarray) -> np.ndarray:
    """Light whose largest channel is bent above KNEE, with the same slope there, so that PEAK becomes 1; hues stay."""
    largest = light.max(-1, keepdims=True)
    above, maximum = np.maximum(largest - KNEE, 0) / (1 - KNEE), (PEAK - KNEE) / (1 - KNEE)
    bent = KNEE + (1 - KNEE) * above * (1 + above / maximum**2) / (1 + above)
    return np.where(largest > KNEE, light * bent / np.maximum(largest, 1e-9), light)
