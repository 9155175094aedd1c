"""Tell whether one photo is a crop of another, or the same with something laid over: by aligning their pixels.

Local features (SIFT: Lowe, 2004) of both photos are matched; the matches vote for one scale and shift without
rotation, as a crop that is enlarged back has; then the photos are laid over each other and compared block by block.
Nothing is drawn at random, so that the same two photos always give the same answer.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from schemas.image import decode_stored

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

# Features are sought on a smaller photo, and the strongest kept. On real photos at 256 px and 300 features the weakest
# of 5 % crops and banners keeps 27 matches in place and a photo costs 27 ms; at 160 px and 200 it is 20 and 13 ms,
# at 128 px 12 and 8 ms.
_FEATURES_SIDE_PX = 160
MAX_FEATURES = 200
# Lowe's ratio of the nearest to the second nearest descriptor, on distances.
_RATIO = 0.85
# Directions of matched features differ by this at most; what turns a photo makes another picture here.
_MAX_TURN_DEGREES = 12.0
# Two matches that vote together lie this far apart at least, as nearer ones say little about the scale.
_MIN_BASE_PX = 24.0
_MAX_SKEW = 0.035
_MAX_VOTES = 600
_INLIER_PX = 3.0

BLOCK_PX = 8
# Levels of 255: a block whose pixels vary by less shows nothing, so that its likeness proves nothing.
_FLAT_LEVELS = 3.0
# Mean colours of blocks that agree differ by this at most, once the photos are as bright as each other. Where few
# features agree the photo shows little, and two cars' boots or seats may have the same edges: the colours must tell.
_MAX_LEVELS_APART = 8.0
_MAX_LEVELS_APART_PLAIN = 3.5
_PLAIN_INLIERS = 30
# From this mean level on, some pixels of a block may have been cut off at white.
_WHITE_LEVEL = 235.0
# Correlation from which on two blocks show the same.
_MIN_CORRELATION = 0.75
_NOTHING = np.empty((0, 0), np.float32)
_ALMOST_ZERO = np.float32(1e-3)
# Levels added to both sums of a quotient, against black.
_DARK_LEVELS = 3.0


@dataclass(frozen=True, slots=True)
class Features:
    """Local features of a photo: `places` (N, 2) in px, `angles` (N,) in degrees, `descriptors` (N, 128)."""

    places: Floats
    angles: Floats
    descriptors: Pixels
    short_side_px: int

    def __len__(self) -> int:
        return len(self.places)


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where a pixel of the first photo lies in the second: `scale * place + shift`; `num_inliers` matches say so."""

    scale: float
    shift_px: tuple[float, float]
    num_inliers: int


def features_of(jpeg: bytes) -> Features:
    """Find a stored photo's local features."""
    grey = cv2.cvtColor(decode_stored(jpeg), cv2.COLOR_RGB2GRAY)
    side = min(grey.shape)
    shrink = min(1.0, _FEATURES_SIDE_PX / side)
    if shrink < 1:
        grey = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    points, descriptors = cv2.SIFT.create(nfeatures=MAX_FEATURES).detectAndCompute(grey, None)
    if not points:
        return Features(np.empty((0, 2), np.float32), np.empty(0, np.float32), np.empty((0, 128), np.uint8), side)
    # Features as strong as the last one asked for come on top.
    points = points[:MAX_FEATURES]
    places = np.array([point.pt for point in points], np.float32) / np.float32(shrink)
    angles = np.array([point.angle for point in points], np.float32)
    return Features(places, angles, np.asarray(descriptors[:MAX_FEATURES], np.uint8), side)


def align(first: Features, second: Features, *, max_scale: float, min_inliers: int) -> Alignment | None:
    """Find the one scale and shift that most matches of two photos agree on; None where too few do.

    `max_scale` is how much larger one may show things than the other were they stored at one size.
    """
    rows, columns = _matches(first, second)
    if len(rows) < min_inliers:
        return None
    ours, theirs = first.places[rows], second.places[columns]
    whole = second.short_side_px / first.short_side_px
    low, high = whole / max_scale, whole * max_scale
    scales, shifts = _votes(ours, theirs, low, high)
    if not len(scales):
        return None
    apart = scales[:, None, None] * ours[None] + shifts[:, None] - theirs[None]
    near = np.einsum("vmc,vmc->vm", apart, apart) < _INLIER_PX**2
    inliers = near[int(near.sum(axis=1).argmax())]
    for _ in range(2):
        if inliers.sum() < min_inliers:
            return None
        scale, shift = _fitted(ours[inliers], theirs[inliers])
        apart = scale * ours + shift - theirs
        inliers = np.einsum("mc,mc->m", apart, apart) < _INLIER_PX**2
    num_inliers = int(inliers.sum())
    if num_inliers < min_inliers or not low <= scale <= high:
        return None
    return Alignment(float(scale), (float(shift[0]), float(shift[1])), num_inliers)


def _matches(first: Features, second: Features) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match features that are each other's nearest, clearly nearer than the next, and turned the same way."""
    if len(first) < 2 or len(second) < 2:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    ours, theirs = first.descriptors.astype(np.float32), second.descriptors.astype(np.float32)
    # Whole numbers below 2^24: exact in float32, in whatever order they are added. NumPy's product would start threads.
    products = cv2.gemm(ours, theirs, 1.0, _NOTHING, 0.0, flags=cv2.GEMM_2_T)
    squares = (ours**2).sum(axis=1)[:, None] + (theirs**2).sum(axis=1)[None] - 2 * products
    rows = np.arange(len(first))
    columns = squares.argmin(axis=1)
    mutual = squares.argmin(axis=0)[columns] == rows
    nearest = squares[rows, columns]
    squares[rows, columns] = np.inf
    clear = nearest < _RATIO**2 * squares.min(axis=1)
    turn = np.abs((first.angles - second.angles[columns] + 180.0) % 360.0 - 180.0)
    kept = mutual & clear & (turn <= _MAX_TURN_DEGREES)
    return rows[kept], columns[kept]


def _votes(ours: Floats, theirs: Floats, low: float, high: float) -> tuple[Floats, Floats]:
    """Let every two matches name a scale and shift; leave out those that turn or scale too much."""
    left, right = np.triu_indices(len(ours), k=1)
    from_px, to_px = ours[right] - ours[left], theirs[right] - theirs[left]
    length = np.hypot(from_px[:, 0], from_px[:, 1])
    wide = length >= _MIN_BASE_PX
    left, right, from_px, to_px, length = left[wide], right[wide], from_px[wide], to_px[wide], length[wide]
    along = (from_px * to_px).sum(axis=1) / length**2
    across = np.abs(from_px[:, 0] * to_px[:, 1] - from_px[:, 1] * to_px[:, 0]) / length**2
    kept = np.flatnonzero((across <= _MAX_SKEW * along) & (along >= low) & (along <= high))
    # More votes than enough: an even choice of them.
    kept = kept[:: -(-len(kept) // _MAX_VOTES) or 1]
    scales = along[kept].astype(np.float32)
    middles = ours[left[kept]] + from_px[kept] / 2, theirs[left[kept]] + to_px[kept] / 2
    return scales, middles[1] - scales[:, None] * middles[0]


def _fitted(ours: Floats, theirs: Floats) -> tuple[np.float32, Floats]:
    """Fit scale and shift to matched places by least squares."""
    our_middle, their_middle = ours.mean(axis=0), theirs.mean(axis=0)
    centred = ours - our_middle
    spread = np.float32((centred**2).sum())
    scale = np.float32(((theirs - their_middle) * centred).sum()) / max(spread, _ALMOST_ZERO)
    return scale, their_middle - scale * our_middle


def agreement(first: bytes, second: bytes, alignment: Alignment) -> float:
    """Lay two stored photos over each other; return the share of blocks that show the same, where both photos are.

    Blocks that are flat and alike in both count neither way: two cut-outs on white have most of them in common.
    """
    ours, theirs = decode_stored(first), decode_stored(second)
    scale, (right, down) = alignment.scale, alignment.shift_px
    if scale > 1:  # the finer photo is reduced, never the coarser one enlarged
        ours, theirs = theirs, ours
        scale, right, down = 1 / scale, -right / scale, -down / scale
    ours, covered = _laid_over(ours, theirs.shape, scale, (right, down))
    inside = _blocks(covered[:, :, None]).all(axis=(2, 3, 4))
    if not inside.any():
        return 0.0
    # A slight blur forgives what re-encoding and half a pixel of shift do.
    ours_in, theirs_in = (
        _blocks(cv2.GaussianBlur(pixels, (0, 0), 1.0))[inside].astype(np.float32) for pixels in (ours, theirs)
    )
    is_plain = alignment.num_inliers < _PLAIN_INLIERS
    levels_apart = _levels_apart(ours_in.mean(axis=(1, 2)), theirs_in.mean(axis=(1, 2)))
    is_even = levels_apart <= (_MAX_LEVELS_APART_PLAIN if is_plain else _MAX_LEVELS_APART)
    spread, correlation = _texture(ours_in.mean(axis=3), theirs_in.mean(axis=3))
    shows = spread >= _FLAT_LEVELS
    num_counted = int((shows | ~is_even).sum())
    num_same = int((shows & is_even & (correlation >= _MIN_CORRELATION)).sum())
    return num_same / num_counted if num_counted else 0.0


def _levels_apart(ours: Floats, theirs: Floats) -> Floats:
    """Return how far the mean colours (N, 3) of blocks are apart once the darker photo is made as bright as the other.

    What a brighter copy shows white has lost its level, and is held against white.
    """
    if ours.sum() > theirs.sum():
        ours, theirs = theirs, ours
    open_blocks = theirs.max(axis=1) < _WHITE_LEVEL
    gain = np.float32(1.0)
    if open_blocks.any():
        sums = theirs[open_blocks].sum(axis=1), ours[open_blocks].sum(axis=1)
        gain = np.median((sums[0] + _DARK_LEVELS) / (sums[1] + _DARK_LEVELS))
    apart: Floats = np.abs(theirs - np.minimum(gain * ours, 255.0)).max(axis=1)
    return apart


def _texture(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Return how much grey blocks (N, 8, 8) vary, the livelier of the two, and how well the two correlate."""
    ours = ours - ours.mean(axis=(1, 2), keepdims=True)
    theirs = theirs - theirs.mean(axis=(1, 2), keepdims=True)
    our_spread, their_spread = np.sqrt((ours**2).mean(axis=(1, 2))), np.sqrt((theirs**2).mean(axis=(1, 2)))
    products = (ours * theirs).mean(axis=(1, 2))
    return np.maximum(our_spread, their_spread), products / np.maximum(our_spread * their_spread, _ALMOST_ZERO)


def _laid_over(
    pixels: Pixels, shape: tuple[int, ...], scale: float, shift: tuple[float, float]
) -> tuple[Pixels, NDArray[np.bool_]]:
    """Move a photo onto a canvas of `shape`, and tell which px it covers."""
    height, width = shape[:2]
    move = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float64)
    laid = cv2.warpAffine(pixels, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    x, y = np.arange(width) - shift[0], np.arange(height) - shift[1]
    on_x, on_y = (x >= 0) & (x <= scale * (pixels.shape[1] - 1)), (y >= 0) & (y <= scale * (pixels.shape[0] - 1))
    return np.asarray(laid, np.uint8), on_y[:, None] & on_x[None]


def _blocks(pixels: NDArray[Any]) -> NDArray[Any]:
    """Cut (H, W, C) into (H / 8, W / 8, 8, 8, C) blocks; what is over at the edges is left out."""
    high, wide = pixels.shape[0] // BLOCK_PX, pixels.shape[1] // BLOCK_PX
    cut = pixels[: high * BLOCK_PX, : wide * BLOCK_PX]
    return cut.reshape(high, BLOCK_PX, wide, BLOCK_PX, -1).transpose(0, 2, 1, 3, 4)
