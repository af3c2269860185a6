"""JPEG compression of a picture, bit for bit as in TensorFlow.

``tf.io.encode_jpeg`` (quality 95, 4:2:0) followed by ``tf.io.decode_image``, which decodes with
the fast integer inverse transform ("IFAST"), up to 11 levels from the accurate one that Pillow
always uses. Entropy coding is lossless, so no bit stream is produced: the picture is transformed,
quantised and transformed back, in the integer arithmetic of libjpeg-turbo.

Reference: ITU-T T.81; libjpeg-turbo's jccolor, jcsample, jfdctint, jcdctmgr, jidctfst, jdsample
and jdcolor (fixed-point widths and the order of roundings).
"""

import numpy as np

# Quantisation tables of T.81, annex K.
_LUMINANCE = """
16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56
14 17 22 29 51 87 80 62   18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92
49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99"""
# Default quality of tf.io.encode_jpeg.
QUALITY = 95
# Axes along which rows and columns are transformed.
_ROW = -1
_COLUMN = -2


def _fixed(value: float, bits: int) -> int:
    """``value`` with ``bits`` fractional bits."""
    return round(value * (1 << bits))


def _round_shift(x: np.ndarray, bits: int) -> np.ndarray:
    return (x + (1 << (bits - 1))) >> bits


def _table(text: str, quality: int) -> np.ndarray:
    """Steps ``[8, 8]`` for ``quality`` above 50."""
    steps = np.array(text.split(), np.int32).reshape(8, 8)
    return np.clip((steps * (200 - 2 * quality) + 50) // 100, 1, 255)


def _forward_1d(d: np.ndarray, axis: int) -> np.ndarray:
    """One pass of the accurate integer DCT along ``axis``; rows keep 2 fractional bits."""
    d0, d1, d2, d3, d4, d5, d6, d7 = np.moveaxis(d, axis, 0)
    bits = 11 if axis == _ROW else 15
    s0, s1, s2, s3 = d0 + d7, d1 + d6, d2 + d5, d3 + d4
    d7, d6, d5, d4 = d0 - d7, d1 - d6, d2 - d5, d3 - d4
    even = [s0 + s3 + s1 + s2, s0 + s3 - s1 - s2]
    even = [x << 2 if axis == _ROW else _round_shift(x, 2) for x in even]
    a, b = s1 - s2, s0 - s3
    z = (a + b) * _fixed(0.541196100, 13)
    out2 = _round_shift(z + b * _fixed(0.765366865, 13), bits)
    out6 = _round_shift(z - a * _fixed(1.847759065, 13), bits)
    z1 = (d4 + d7) * -_fixed(0.899976223, 13)
    z2 = (d5 + d6) * -_fixed(2.562915447, 13)
    z3, z4 = d4 + d6, d5 + d7
    z5 = (z3 + z4) * _fixed(1.175875602, 13)
    z3 = z3 * -_fixed(1.961570560, 13) + z5
    z4 = z4 * -_fixed(0.390180644, 13) + z5
    odd = [
        d7 * _fixed(1.501321110, 13) + z1 + z4,
        d6 * _fixed(3.072711026, 13) + z2 + z3,
        d5 * _fixed(2.053119869, 13) + z2 + z4,
        d4 * _fixed(0.298631336, 13) + z1 + z3,
    ]
    out1, out3, out5, out7 = (_round_shift(x, bits) for x in odd)
    return np.stack([even[0], out1, out2, out3, even[1], out5, out6, out7], axis)


def _multiply(x: np.ndarray, factor: float) -> np.ndarray:
    return (x * _fixed(factor, 8)) >> 8


def _inverse_1d(c: np.ndarray, axis: int) -> np.ndarray:
    """One pass of the fast integer inverse DCT (Arai, Agui and Nakajima) along ``axis``."""
    c0, c1, c2, c3, c4, c5, c6, c7 = np.moveaxis(c, axis, 0)
    s, t = c0 + c4, c0 - c4
    u = c2 + c6
    v = _multiply(c2 - c6, 1.414213562) - u
    e0, e1, e2, e3 = s + u, t + v, t - v, s - u
    z13, z10, z11, z12 = c5 + c3, c5 - c3, c1 + c7, c1 - c7
    o7 = z11 + z13
    z5 = _multiply(z10 + z12, 1.847759065)
    o6 = _multiply(z10, -2.613125930) + z5 - o7
    o5 = _multiply(z11 - z13, 1.414213562) - o6
    o4 = _multiply(z12, 1.082392200) - z5 + o5
    return np.stack([e0 + o7, e1 + o6, e2 + o5, e3 - o4, e3 + o4, e2 - o5, e1 - o6, e0 - o7], axis)


def _transform(plane: np.ndarray, table: np.ndarray) -> np.ndarray:
    """``plane`` ``[8 m, 8 n]`` of bytes after DCT, quantisation and their inverses."""
    height, width = plane.shape
    blocks = plane.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).astype(np.int32) - 128
    coefficients = _forward_1d(_forward_1d(blocks, _ROW), _COLUMN)
    # The forward transform is scaled by 8.
    steps = table * 8
    levels = np.sign(coefficients) * ((np.abs(coefficients) + steps // 2) // steps)
    cosines = np.cos(np.arange(8) * np.pi / 16) * np.sqrt(2)
    cosines[0] = 1
    scales = np.rint(np.outer(cosines, cosines) * (1 << 14)).astype(np.int32)
    values = levels * _round_shift(table * scales, 12)
    values = _inverse_1d(_inverse_1d(values, _COLUMN), _ROW) >> 5
    values = np.clip(values + 128, 0, 255)
    return values.swapaxes(1, 2).reshape(height, width)


def _pad(plane: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """``plane`` with its last row and column repeated up to multiples."""
    height, width = plane.shape
    return np.pad(plane, [(0, -height % rows), (0, -width % columns)], "edge")


def _halve(plane: np.ndarray) -> np.ndarray:
    """Means of 2 x 2; halves are rounded down and up in turn."""
    sums = plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]
    return (sums + 1 + np.arange(sums.shape[1]) % 2) >> 2


def _double(plane: np.ndarray) -> np.ndarray:
    """Twice the size, by a triangle filter: three quarters of a pixel and one of the next."""
    if plane.shape[1] <= 2:
        return plane.repeat(2, 0).repeat(2, 1)
    rows = np.pad(plane, [(1, 1), (0, 0)], "edge")
    rows = np.stack([3 * plane + rows[:-2], 3 * plane + rows[2:]], 1).reshape(-1, plane.shape[1])
    columns = np.pad(rows, [(0, 0), (1, 1)], "edge")
    left, right = 3 * rows + columns[:, :-2] + 8, 3 * rows + columns[:, 2:] + 7
    return np.stack([left >> 4, right >> 4], 2).reshape(len(rows), -1)


def _ycc(r: np.ndarray, g: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """Luminance and the two chrominances, both centred at 128, of ``int32`` planes."""

    def mix(red: float, green: float, blue: float, offset: int) -> np.ndarray:
        sums = _fixed(red, 16) * r + _fixed(green, 16) * g + _fixed(blue, 16) * b
        return (sums + offset) >> 16

    centre = (128 << 16) + (1 << 15) - 1
    return [
        mix(0.299, 0.587, 0.114, 1 << 15),
        mix(-0.168735892, -0.331264108, 0.5, centre),
        mix(0.5, -0.418687589, -0.081312411, centre),
    ]


def _rgb(y: np.ndarray, cb: np.ndarray, cr: np.ndarray) -> list[np.ndarray]:
    """The inverse of ``_ycc``, not yet limited to bytes."""
    cb, cr = cb - 128, cr - 128
    return [
        y + _round_shift(_fixed(1.402, 16) * cr, 16),
        y + _round_shift(-_fixed(0.34414, 16) * cb - _fixed(0.71414, 16) * cr, 16),
        y + _round_shift(_fixed(1.772, 16) * cb, 16),
    ]


def round_trip(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` after JPEG compression and decompression.

    Args:
        pixels: uint8 ``[H, W, 3]``, RGB.

    Returns:
        uint8 ``[H, W, 3]``.
    """
    height, width, _ = pixels.shape
    y, *chroma = _ycc(*np.moveaxis(pixels.astype(np.int32), 2, 0))
    y = _transform(_pad(y, 16, 16), _table(_LUMINANCE, QUALITY))[:height, :width]
    half = (-(-height // 2), -(-width // 2))
    for index, plane in enumerate(chroma):
        plane = _pad(_halve(_pad(plane, 2, 16)), 8, 8)
        plane = _transform(plane, _table(_CHROMINANCE, QUALITY))[: half[0], : half[1]]
        chroma[index] = _double(plane)[:height, :width]
    return np.clip(np.stack(_rgb(y, *chroma), 2), 0, 255).astype(np.uint8)
