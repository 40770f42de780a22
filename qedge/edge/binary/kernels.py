"""XNOR and popcount: the forward pass of a binary network on 64-bit words, compiled once and kept.

A bit stands for +1 (set) or -1. For n pairs of bits, the dot product is n - 2 * (bits in which they differ), so a layer is exclusive-or
and population count; batch normalisation and sign are one comparison of that count with an integer. A value of several bits is a sum of
planes, 2^p (2 bit - 1), each counted alone. Words of weights lie [word of the patch, output], so that neighbouring lanes of the
processor's vectors hold neighbouring outputs, whatever their width: LLVM takes its own instructions for counting where there are any.

Every layer is a convolution: a dense one has a kernel as large as its input. Images are bits [row][column][channel], each row from a
new word on, its padding (bits that are not set) included.

Source: Rastegari et al., "XNOR-Net: ImageNet classification using binary convolutional neural networks", ECCV 2016, section 3.2;
Hubara et al., "Binarized neural networks", NeurIPS 2016, algorithm 5.
"""

from __future__ import annotations

import math
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.extending import intrinsic

Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# A stage's columns in the plan. Its input is an image of PLANES planes; POOL is that of its output's bits.
PLANES, HEIGHT, WIDTH, CHANNELS = 0, 1, 2, 3
KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_TOP, PAD_LEFT, PAD_BOTTOM, PAD_RIGHT = 4, 5, 6, 7, 8, 9, 10, 11
OUTPUTS, OUT_H, OUT_W, POOL_H, POOL_W, POOL_STRIDE_H, POOL_STRIDE_W = 12, 13, 14, 15, 16, 17, 18
WORDS, LANES, WEIGHTS_AT, LIMITS_AT = 19, 20, 21, 22
COLUMNS = 23

LN2_HIGH, LN2_LOW, LOG2_E = 6.93147180369123816490e-01, 1.90821492927058770002e-10, math.log2(math.e)
SMALLEST = -80.0  # of an exponent: e^-80 beside 1 is nothing, in float32
EXPONENTIAL = tuple(1 / math.factorial(power) for power in range(13, -1, -1))  # Taylor's series, the highest power first
HALVINGS = 0.5 ** np.arange(118)


def _private_folder() -> str | None:
    """A folder for compiled code that nobody else can write to: it will be executed."""
    folder = Path(tempfile.gettempdir()) / f"qedge-kernels-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        about = folder.lstat()
    except OSError:
        return None
    own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077
    return str(folder) if own else None


def _inlined(function: _Function) -> _Function:
    """A part of `forward`, compiled with it."""
    found: _Function = numba.njit(nogil=True, error_model="numpy")(function)
    return found


def _kept(function: _Function) -> _Function:
    """Compiled by the first call; what was made is kept for all processes: beside this file or in the user's cache, or where neither can
    be written to in a private folder of the system's temporary ones, or else not at all.
    """
    found: _Function
    try:
        found = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # numba has no place to write to
        folder = _private_folder()
        if folder is None:
            return _inlined(function)
        numba.config.CACHE_DIR = folder
        found = numba.njit(nogil=True, error_model="numpy", cache=True)(function)
    return found


@intrinsic  # type: ignore[untyped-decorator]
def _count(typing: Any, word: Any) -> Any:
    """Bits that are set in a word; LLVM's `ctpop`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.int64(types.uint64), generate


@_inlined
def _append(row: Words, at: int, bits: np.uint64, width: int) -> None:
    """Set bits [at, at + width) of a row of words that are not set yet; width: 1 to 64, and no other bit of `bits` is set."""
    word, shift = at >> 6, at & 63
    row[word] |= bits << np.uint64(shift)
    if shift + width > 64:
        row[word + 1] |= bits >> np.uint64(64 - shift)


@_inlined
def _extract(row: Words, at: int, width: int) -> np.uint64:
    """Bits [at, at + width) of a row of words; width: 1 to 64."""
    word, shift = at >> 6, at & 63
    bits: np.uint64 = row[word] >> np.uint64(shift)
    if shift + width > 64:
        bits |= row[word + 1] << np.uint64(64 - shift)
    if width < 64:
        bits &= (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    return bits


@_inlined
def _mismatches(patch: Words, weights: Words, plane: int, counts: Counts) -> None:
    """Add 2^plane times the bits in which a patch [words] differs from each output's weights [words, lanes]; counts: [lanes]."""
    words, lanes = weights.shape
    fours, shift = words - words % 4, np.int64(plane)
    for k in range(0, fours, 4):
        one, two, three, four = patch[k], patch[k + 1], patch[k + 2], patch[k + 3]
        for lane in range(lanes):
            found = _count(one ^ weights[k, lane]) + _count(two ^ weights[k + 1, lane])
            found += _count(three ^ weights[k + 2, lane]) + _count(four ^ weights[k + 3, lane])
            counts[lane] += found << shift
    for k in range(fours, words):
        one = patch[k]
        for lane in range(lanes):
            counts[lane] += _count(one ^ weights[k, lane]) << shift


@_inlined
def _gather(image: Words, top: int, left: int, rows: int, width: int, patch: Words) -> None:
    """Bits [left, left + width) of `rows` rows of an image [row, words] from `top` on, one after another."""
    patch[:] = np.uint64(0)
    at = 0
    for row in range(top, top + rows):
        for begin in range(0, width, 64):
            taken = min(64, width - begin)
            _append(patch, at, _extract(image[row], left + begin, taken), taken)
            at += taken


@_inlined
def _pack(eights: Words, plane: int, width: int, row: Words, at: int) -> None:
    """Append bit `plane` of each of `width` bytes, eight to a word of `eights`; of the last word's bytes past `width` no bit is set.

    Eight bytes of 0 or 1 become eight bits by one multiplication; bytes lie as on every processor that numba knows, the first lowest.
    """
    for k in range((width + 7) // 8):
        ones = (eights[k] >> np.uint64(plane)) & np.uint64(0x0101010101010101)
        _append(row, at + 8 * k, (ones * np.uint64(0x0102040810204080)) >> np.uint64(56), min(8, width - 8 * k))


@_inlined
def _fire(counts: Counts, limits: npt.NDArray[np.int32], fired: npt.NDArray[np.uint8], row: Words, at: int) -> None:
    """Append a bit for each output, set where its count is no more than its limit. fired: bytes to work in, at least as many as lanes."""
    for k in range(len(limits)):  # bytes first, since this loop is vectorised and one that shifts bits is not
        fired[k] = counts[k] <= limits[k]
    fired[len(limits) : len(counts)] = 0
    _pack(fired.view(np.uint64), 0, len(limits), row, at)


@_inlined
def _pool(whole: Words, channels: int, stage: Counts, image: Words, top: int, left: int) -> None:
    """The largest of each window of an image of bits, which is their disjunction, into another at (top, left)."""
    for y in range((stage[OUT_H] - stage[POOL_H]) // stage[POOL_STRIDE_H] + 1):
        for x in range((stage[OUT_W] - stage[POOL_W]) // stage[POOL_STRIDE_W] + 1):
            for begin in range(0, channels, 64):
                taken = min(64, channels - begin)
                bits = np.uint64(0)
                for row in range(y * stage[POOL_STRIDE_H], y * stage[POOL_STRIDE_H] + stage[POOL_H]):
                    for column in range(x * stage[POOL_STRIDE_W], x * stage[POOL_STRIDE_W] + stage[POOL_W]):
                        bits |= _extract(whole[row], column * channels + begin, taken)
                _append(image[top + y], (left + x) * channels + begin, bits, taken)


@_inlined
def _counts(stage: Counts, weights: Words, planes: Words, patch: Words, y: int, x: int, counts: Counts) -> None:
    """Counts [lanes] at one position of a stage, of its input [plane, row, words]."""
    counts[:] = 0
    width, left = stage[KERNEL_W] * stage[CHANNELS], x * stage[STRIDE_W] * stage[CHANNELS]
    whole = stage[KERNEL_H] == planes.shape[1] == 1 and stage[KERNEL_W] == stage[PAD_LEFT] + stage[WIDTH] + stage[PAD_RIGHT]
    for plane in range(len(planes)):
        if whole:  # a dense layer on a dense one: the row is the patch
            _mismatches(planes[plane, 0], weights, plane, counts)
        else:
            _gather(planes[plane], y * stage[STRIDE_H], left, stage[KERNEL_H], width, patch)
            _mismatches(patch, weights, plane, counts)


@_inlined
def _planes(stage: Counts, row: npt.NDArray[np.float32], ranges: npt.NDArray[np.float32], planes: Words) -> bool:
    """Set the planes [plane, row, words] of one row of features [channel * row * column], quantised; whether all are numbers."""
    channels, height, width = stage[CHANNELS], stage[HEIGHT], stage[WIDTH]
    groups = (width * channels + 7) // 8
    levels, most, numbers = np.zeros((height, 8 * groups), np.uint8), np.float32((1 << len(planes)) - 1), True
    low, inverse = ranges[0], ranges[1]
    for channel in range(channels):
        for y in range(height):
            begin = (channel * height + y) * width
            for x in range(width):
                k = begin + x
                value = (row[k] - low[k]) * inverse[k]
                numbers &= row[k] == row[k]
                value = most if value > most else (value if value > np.float32(0) else np.float32(0))  # what is no number becomes 0
                levels[y, x * channels + channel] = np.uint8(np.int32(np.rint(value)))
    for y in range(height):
        for plane in range(len(planes)):
            _pack(levels[y].view(np.uint64), plane, width * channels, planes[plane, stage[PAD_TOP] + y], stage[PAD_LEFT] * channels)
    return numbers


@_inlined
def _exponential(exponent: float) -> float:
    """e^exponent for -80 <= exponent <= 0 in additions and multiplications alone, which are the same on every machine."""
    halvings = np.rint(-exponent * LOG2_E)
    rest = (exponent + halvings * LN2_HIGH) + halvings * LN2_LOW
    sum_ = 0.0
    for coefficient in EXPONENTIAL:
        sum_ = sum_ * rest + coefficient
    power: float = sum_ * HALVINGS[np.int64(halvings)]
    return power


@_inlined
def _answer(stage: Counts, counts: Counts, last: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float32]) -> None:
    """Softmax of the logits: scale * (the dot product, of weights of several bits) + bias."""
    classes = len(probabilities)
    bits = stage[OUTPUTS] // classes
    pairs = stage[KERNEL_H] * stage[KERNEL_W] * stage[CHANNELS] * ((1 << stage[PLANES]) - 1)
    logits, largest, total = np.empty(classes), -np.inf, 0.0
    for k in range(classes):
        product = np.int64(0)
        for bit in range(bits):
            product += (pairs - 2 * counts[bit * classes + k]) << bit
        logits[k] = np.float64(product) * last[0, k] + last[1, k]
        largest = max(largest, logits[k])
    for k in range(classes):
        logits[k] = _exponential(max(logits[k] - largest, SMALLEST))
        total += logits[k]
    for k in range(classes):
        probabilities[k] = np.float32(logits[k] / total)


@_kept
def forward(
    plan: Counts,
    words: Words,
    limits: npt.NDArray[np.int32],
    ranges: npt.NDArray[np.float32],
    last: npt.NDArray[np.float64],
    rows: npt.NDArray[np.float32],
    probabilities: npt.NDArray[np.float32],
) -> None:
    """Fill probabilities [batch, classes] for rows [batch, features]; a row with what is no number gets NaN.

    plan: [stages, columns]; words: all stages' weights; limits: all but the last stage's; ranges: [low and levels a unit, features]; last:
    [scale and bias, classes]. What they say of one another was checked before.
    """
    counts = np.empty(plan[:, LANES].max(), np.int64)
    fired = np.empty(len(counts), np.uint8)
    patch = np.empty(plan[:, WORDS].max(), np.uint64)
    for k in range(len(rows)):
        image = _image(plan[0])
        numbers = _planes(plan[0], rows[k], ranges, image)
        for s in range(len(plan) - 1):
            image = _next(plan[s], plan[s + 1], words, limits, image, patch, counts, fired)
        stage = plan[-1]
        lanes = counts[: stage[LANES]]
        _counts(stage, _weights(stage, words), image, patch[: stage[WORDS]], 0, 0, lanes)
        _answer(stage, lanes, last, probabilities[k])
        if not numbers:
            probabilities[k] = np.float32(np.nan)


@_inlined
def _image(stage: Counts) -> Words:
    """An empty input of a stage, [plane, row, words]."""
    bits = (stage[PAD_LEFT] + stage[WIDTH] + stage[PAD_RIGHT]) * stage[CHANNELS]
    return np.zeros((stage[PLANES], stage[PAD_TOP] + stage[HEIGHT] + stage[PAD_BOTTOM], (bits + 63) // 64), np.uint64)


@_inlined
def _weights(stage: Counts, words: Words) -> Words:
    begin = stage[WEIGHTS_AT]
    return words[begin : begin + stage[WORDS] * stage[LANES]].reshape(stage[WORDS], stage[LANES])


@_inlined
def _next(
    stage: Counts,
    after: Counts,
    words: Words,
    limits: npt.NDArray[np.int32],
    image: Words,
    patch: Words,
    counts: Counts,
    fired: npt.NDArray[np.uint8],
) -> Words:
    """The next stage's input."""
    outputs = stage[OUTPUTS]
    weights, fires = _weights(stage, words), limits[stage[LIMITS_AT] : stage[LIMITS_AT] + outputs]
    whole = np.zeros((stage[OUT_H], (stage[OUT_W] * outputs + 63) // 64), np.uint64)
    for y in range(stage[OUT_H]):
        for x in range(stage[OUT_W]):
            _counts(stage, weights, image, patch[: stage[WORDS]], y, x, counts[: stage[LANES]])
            _fire(counts[: stage[LANES]], fires, fired, whole[y], x * outputs)
    if stage[OUT_H] * stage[OUT_W] * after[KERNEL_H] * after[KERNEL_W] == 1:
        return whole.reshape(1, *whole.shape)
    found = _image(after)
    _pool(whole, outputs, stage, found[0], after[PAD_TOP], after[PAD_LEFT])
    return found
