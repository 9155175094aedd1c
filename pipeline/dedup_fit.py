"""Lay one thumbnail over another, and tell how far apart they are then: the inner loops, compiled at their first call.

A crop of 1 % moves what it shows by up to two thirds of a px at 64 px, and a brighter copy has other levels. So shift
and scale along each axis and one gain and offset of all colours are fitted by least squares (Lucas and Kanade, 1981)
before cells of 4 x 4 px are compared, colour by colour.
"""

import numpy as np
from numba import njit
from numpy.typing import NDArray

SIDE_PX = 64
CELL_PX = 4
_NUM_STEPS = 5
# Px at the edge, where a shifted picture has nothing to compare.
_EDGE_PX = 2
# From this mean level on, some px may have been cut off at white.
_WHITE_LEVEL = 238.0
# A picture whose greys vary by less shows nothing: its likeness proves nothing.
_FLAT_LEVELS = 3.0
# How far px of pictures that are as alike as codecs leave them differ.
_CODEC_LEVELS = 0.25
# A fit that moves px by more at the edge of the picture is lost.
_MAX_MOVE_PX = 2.5

Floats = NDArray[np.float32]


@njit(nogil=True, cache=True)
def compare(ours: Floats, theirs: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit `ours` (64, 64, 3) to `theirs`; return the fit (6,) and what is left between them (5,).

    The fit: gain, offset, then how px move across, px at the edge move outwards, and the same down. What is left: the
    correlation of greys, how far cells differ in colour (root mean square, worst) and in grey (worst), in levels, and
    how far the worst px stands out of all. Correlation -1 where nothing fits or a picture shows nothing.
    """
    fit = np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    for _ in range(_NUM_STEPS):
        if not _improve(ours, theirs, fit):
            return fit, np.array([-1.0, 0.0, 0.0, 0.0, 0.0])
    return fit, _apart(ours, theirs, fit)


@njit(nogil=True, cache=True)
def _improve(ours: Floats, theirs: Floats, fit: NDArray[np.float64]) -> bool:
    """Make one step of the fit: gain, offset, shift and scale across, shift and scale down."""
    sums, right = np.zeros((6, 6)), np.zeros(6)
    row = np.zeros(6)
    middle = (SIDE_PX - 1) / 2
    for y in range(_EDGE_PX, SIDE_PX - _EDGE_PX):
        v = (y - middle) / middle
        for x in range(_EDGE_PX, SIDE_PX - _EDGE_PX):
            u = (x - middle) / middle
            at_x, at_y = x + fit[2] + u * fit[3], y + fit[4] + v * fit[5]
            grey, across, down = 0.0, 0.0, 0.0
            target = 0.0
            is_white = False
            for colour in range(3):
                level, step_x, step_y = _sample(ours, at_x, at_y, colour)
                grey += level
                across += step_x
                down += step_y
                target += theirs[y, x, colour]
                is_white = is_white or level >= _WHITE_LEVEL or theirs[y, x, colour] >= _WHITE_LEVEL
            if is_white:
                continue
            row[0], row[1] = grey / 3, 1.0
            row[2], row[3] = fit[0] * across / 3, fit[0] * across / 3 * u
            row[4], row[5] = fit[0] * down / 3, fit[0] * down / 3 * v
            for i in range(6):
                right[i] += row[i] * target / 3
                for j in range(6):
                    sums[i, j] += row[i] * row[j]
    for i in range(6):
        sums[i, i] += 1.0
    # The pull of the last line is towards no change: gain 1.
    right[0] += 1.0
    if not _solve(sums, right):
        return False
    fit[0], fit[1] = right[0], right[1]
    for i in range(2, 6):
        fit[i] += right[i]
    return bool(abs(fit[2]) + abs(fit[3]) <= _MAX_MOVE_PX and abs(fit[4]) + abs(fit[5]) <= _MAX_MOVE_PX)


@njit(nogil=True, cache=True)
def _sample(pixels: Floats, x: float, y: float, colour: int) -> tuple[float, float, float]:
    """Return the level between px, and how it changes across and down."""
    left, top = min(max(int(x), 0), SIDE_PX - 2), min(max(int(y), 0), SIDE_PX - 2)
    u, v = min(max(x - left, 0.0), 1.0), min(max(y - top, 0.0), 1.0)
    a, b = pixels[top, left, colour], pixels[top, left + 1, colour]
    c, d = pixels[top + 1, left, colour], pixels[top + 1, left + 1, colour]
    upper, lower = a + u * (b - a), c + u * (d - c)
    return upper + v * (lower - upper), (1 - v) * (b - a) + v * (d - c), lower - upper


@njit(nogil=True, cache=True)
def _solve(sums: NDArray[np.float64], right: NDArray[np.float64]) -> bool:
    """Solve `sums` (6, 6) x = `right` in place; False where there is no one answer."""
    for i in range(6):
        pivot = sums[i, i]
        if pivot < 1e-9:
            return False
        for k in range(i + 1, 6):
            share = sums[k, i] / pivot
            for j in range(i, 6):
                sums[k, j] -= share * sums[i, j]
            right[k] -= share * right[i]
    for i in range(5, -1, -1):
        for j in range(i + 1, 6):
            right[i] -= sums[i, j] * right[j]
        right[i] /= sums[i, i]
    return True


@njit(nogil=True, cache=True)
def _apart(ours: Floats, theirs: Floats, fit: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compare what was fitted; see `compare`."""
    middle = (SIDE_PX - 1) / 2
    cells = SIDE_PX // CELL_PX
    # Of each cell: how far its px are apart in level, and in each colour beside that.
    greys, colours, counts = np.zeros((cells, cells)), np.zeros((cells, cells, 3)), np.zeros((cells, cells))
    differences = np.zeros(3)
    squares, peak = 0.0, 0.0
    # Sums of both greys, their squares and their product.
    sums = np.zeros(5)
    for y in range(_EDGE_PX, SIDE_PX - _EDGE_PX):
        for x in range(_EDGE_PX, SIDE_PX - _EDGE_PX):
            at_x, at_y = x + fit[2] + (x - middle) / middle * fit[3], y + fit[4] + (y - middle) / middle * fit[5]
            our_grey, their_grey, apart = 0.0, 0.0, 0.0
            for colour in range(3):
                level = _sample(ours, at_x, at_y, colour)[0]
                expected, found = fit[0] * level + fit[1], theirs[y, x, colour]
                our_grey += min(expected, 255.0) / 3
                their_grey += found / 3
                difference = found - expected
                # What was cut off at white can have been brighter than it is.
                if level >= _WHITE_LEVEL:
                    difference = min(difference, 0.0)
                if found >= _WHITE_LEVEL:
                    difference = max(difference, 0.0)
                differences[colour] = difference
                apart += difference / 3
                squares += difference * difference
                peak = max(peak, abs(difference))
            greys[y // CELL_PX, x // CELL_PX] += apart
            counts[y // CELL_PX, x // CELL_PX] += 1
            for colour in range(3):
                colours[y // CELL_PX, x // CELL_PX, colour] += differences[colour] - apart
            sums += np.array(
                [our_grey, their_grey, our_grey * our_grey, their_grey * their_grey, our_grey * their_grey]
            )
    spread = np.sqrt(squares / (3 * counts.sum()))
    sums /= counts.sum()
    our_spread, their_spread = sums[2] - sums[0] ** 2, sums[3] - sums[1] ** 2
    if our_spread < _FLAT_LEVELS**2 or their_spread < _FLAT_LEVELS**2:
        return np.array([-1.0, 0.0, 0.0, 0.0, 0.0])
    correlation = (sums[4] - sums[0] * sums[1]) / np.sqrt(our_spread * their_spread)
    greys = np.abs(greys) / counts
    colours = np.abs(colours) / counts.reshape(cells, cells, 1)
    mean_colour, stands_out = np.sqrt((colours**2).mean()), peak / max(spread, _CODEC_LEVELS)
    return np.array([correlation, mean_colour, colours.max(), greys.max(), stands_out])
