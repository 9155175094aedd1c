"""Decode beside its peers: speed, and PSNR against Pillow's Lanczos from full size; or how it bears mutated files.

Claims: over twice as fast as Pillow's Lanczos from full size on large photos, at a PSNR of 40 dB on average and
38 dB at least over real photos; mutated files cause no crash, no hang over 2 s, no more than 1 GiB of memory.
Photos are drawn where no folder is named. The last line is one JSON object.

    python benchmarks/decode.py
    python benchmarks/decode.py ../shared/data/messy_images
    python benchmarks/decode.py ../shared/data/messy_images --mutate 10000
"""

import argparse
import io
import json
import math
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from schemas.errors import ImageError
from schemas.image import ImageSettings, decode
from schemas.resize import stored_size

Pixels = NDArray[np.uint8]

SHORT_SIDES_PX = (256, 96, 64)
MIN_SOURCE_SIDE_PX = 200
REPEATS = 3
MAX_S, MAX_BYTES = 2.0, 1 << 30
# A worker that says nothing for so long hangs; its file counts as one, and the next worker goes on behind it.
SILENCE_S = 20.0
_HEADER_BYTES = 600


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, help="photos of any format; drawn ones where it is left out")
    parser.add_argument("--mutate", type=int, metavar="N", help="decode N mutated files instead, in guarded processes")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--worker", type=int, metavar="FIRST", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    sources = read_sources(arguments.folder)
    if arguments.worker is not None:
        bear(sources, range(arguments.worker, arguments.mutate), seed=arguments.seed)
        return 0
    if arguments.mutate:
        found = guarded(arguments.folder, arguments.mutate, seed=arguments.seed)
    else:
        found = {"speed": speeds(sources), "threads": threads(sources), "psnr_db": distances(sources)}
    print(json.dumps(found))
    return 0 if not arguments.mutate or found["ok"] else 1


def read_sources(folder: Path | None) -> list[bytes]:
    """Read all files of a folder, or draw photos in every format."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix not in {".csv", ".md"}]
    photo = draw(1600, 1200)
    small = photo.resize((320, 240))
    formats = ("PNG", "WEBP", "AVIF", "TIFF", "JPEG2000", "GIF", "BMP")
    jpegs = [saved(photo, "JPEG", quality=quality, progressive=quality == 80) for quality in (95, 90, 80)]
    lzw = saved(small, "TIFF", compression="tiff_lzw")
    return [*jpegs, *(saved(small, name) for name in formats), lzw, saved(small.convert("CMYK"), "JPEG")]


def draw(width: int, height: int) -> Image.Image:
    """Draw a scene with edges and grain."""
    rng = np.random.default_rng(7)
    grain = rng.integers(0, 24, (height, width, 3), np.uint8)
    coarse = Image.fromarray(rng.integers(0, 230, (9, 12, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray(np.minimum(np.asarray(coarse), 231) + grain)


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    """Save to bytes."""
    target = io.BytesIO()
    image.save(target, name, **options)
    return target.getvalue()


def large_jpegs(sources: Sequence[bytes], short_side_px: int) -> list[bytes]:
    """Choose the plain RGB JPEGs that have something to shrink."""
    chosen = []
    for data in sources:
        if data[:3] == b"\xff\xd8\xff" and is_plain(data, 2 * short_side_px):
            chosen.append(data)
    return chosen


def is_plain(data: bytes, min_side_px: int) -> bool:
    """Tell whether every way decodes the photo, and all mean the same picture by it."""
    try:
        decode(data, ImageSettings())
        simplejpeg.decode_jpeg_header(data)
    except (ImageError, ValueError):
        return False
    with Image.open(io.BytesIO(data)) as image:
        return image.mode == "RGB" and min(image.size) >= min_side_px and not image.getexif().get(0x0112, 1) > 1


def lanczos_from_full(data: bytes, short_side_px: int) -> Pixels:
    """Decode the usual way, which the others are held against."""
    with Image.open(io.BytesIO(data)) as image:
        size = stored_size(*image.size, short_side_px)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def reducing_gap(data: bytes, short_side_px: int) -> Pixels:
    """Decode with Pillow's box average first."""
    with Image.open(io.BytesIO(data)) as image:
        size = stored_size(*image.size, short_side_px)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0))


def draft(data: bytes, short_side_px: int) -> Pixels:
    """Decode with Pillow's scaled decode to twice the size."""
    with Image.open(io.BytesIO(data)) as image:
        size = stored_size(*image.size, short_side_px)
        image.draft("RGB", (2 * size[0], 2 * size[1]))
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS))


def area_from_full(data: bytes, short_side_px: int) -> Pixels:
    """Decode fully with simplejpeg and average with OpenCV."""
    pixels = simplejpeg.decode_jpeg(data, "RGB", strict=False)
    size = stored_size(pixels.shape[1], pixels.shape[0], short_side_px)
    shrunk: Any = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return np.asarray(shrunk, np.uint8)


def ours(data: bytes, short_side_px: int) -> Pixels:
    """Decode through the image door, colour profile aside."""
    return decode(data, ImageSettings(), short_side_px=short_side_px).pixels


PEERS: dict[str, Callable[[bytes, int], Pixels]] = {
    "pillow_lanczos": lanczos_from_full,
    "pillow_reducing_gap_2": reducing_gap,
    "pillow_draft_2x": draft,
    "simplejpeg_opencv_area": area_from_full,
    "ours": ours,
}


def speeds(sources: Sequence[bytes]) -> dict[str, dict[str, float]]:
    """Time each way over the large JPEGs, in turns; best of several rounds."""
    photos = large_jpegs(sources, SHORT_SIDES_PX[0])
    best = dict.fromkeys(PEERS, math.inf)
    for _ in range(REPEATS):
        for name, way in PEERS.items():
            start_s = time.perf_counter()
            for data in photos:
                way(data, SHORT_SIDES_PX[0])
            best[name] = min(best[name], time.perf_counter() - start_s)
    slowest = best["pillow_lanczos"]
    return {name: {"per_s": round(len(photos) / s, 1), "ratio": round(slowest / s, 2)} for name, s in best.items()}


def threads(sources: Sequence[bytes]) -> dict[str, float]:
    """Measure what a second thread adds, which shows whether the interpreter lock is let go."""
    photos = large_jpegs(sources, SHORT_SIDES_PX[0]) * 8
    found = {}
    for count in (1, 2):
        with ThreadPoolExecutor(count) as pool:
            start_s = time.perf_counter()
            list(pool.map(lambda data: ours(data, SHORT_SIDES_PX[0]), photos))
            found[f"per_s_{count}"] = round(len(photos) / (time.perf_counter() - start_s), 1)
    return found


def distances(sources: Sequence[bytes]) -> dict[str, dict[str, float]]:
    """Measure PSNR of ours against Lanczos from full size, photos without a profile."""
    found = {}
    for side in SHORT_SIDES_PX:
        values = []
        for data in large_jpegs(sources, side // 2 + 1):
            with Image.open(io.BytesIO(data)) as image:
                if image.info.get("icc_profile") or min(image.size) <= side:
                    continue
            values.append(psnr(ours(data, side), lanczos_from_full(data, side)))
        if values:
            spread = {"mean": statistics.fmean(values), "min": min(values)}
            found[str(side)] = {name: round(value, 2) for name, value in spread.items()} | {"photos": len(values)}
    return found


def psnr(ours_px: Pixels, theirs_px: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB, 99 where there is no noise."""
    error = float(np.mean((ours_px.astype(np.float64) - theirs_px) ** 2))
    return 10 * math.log10(255**2 / error) if error else 99.0


def mutated(sources: Sequence[bytes], index: int, *, seed: int = 0) -> bytes:
    """Break one of the files: bytes flipped (mostly in its header), a cut, a splice, or a number made extreme."""
    rng = random.Random(f"{seed}/{index}")
    data = bytearray(rng.choice(sources) or b"\0")
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        span = min(len(data), _HEADER_BYTES) if rng.random() < 0.6 else len(data)
        at = rng.randrange(max(span, 1))
        match rng.randrange(5):
            case 0:
                for _ in range(rng.choice((1, 2, 8, 32))):
                    data[rng.randrange(max(span, 1)) % len(data)] ^= 1 << rng.randrange(8)
            case 1:
                data = data[: rng.randrange(len(data)) + 1]
            case 2:
                other = rng.choice(sources)
                start = rng.randrange(len(other) + 1)
                data[at:at] = other[start : start + rng.choice((1, 16, 256, 4096))]
            case 3:
                data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"))
            case _:
                del data[at : at + rng.choice((1, 2, 16, 1024))]
        data = data or bytearray(b"\0")
    return bytes(data)


def bear(sources: Sequence[bytes], indices: range, *, seed: int) -> None:
    """Decode mutated files, a line each: index, outcome, seconds, peak memory so far."""
    settings = ImageSettings()
    for index in indices:
        data = mutated(sources, index, seed=seed)
        print(f"{index} starts 0 0", flush=True)
        start_s = time.perf_counter()
        try:
            decode(data, settings)
            outcome = "decoded"
        except ImageError as error:
            outcome = error.reason
        seconds = time.perf_counter() - start_s
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(f"{index} {outcome} {seconds:.3f} {peak_bytes}", flush=True)


def guarded(folder: Path | None, count: int, *, seed: int) -> dict[str, Any]:
    """Run workers over all mutated files; one that dies or falls silent is replaced behind the file it was at."""
    outcomes: Counter[str] = Counter()
    slow: list[tuple[int, float]] = []
    faults: list[str] = []
    slowest_s, peak_bytes, first = 0.0, 0, 0
    while first < count:
        last = first
        for index, outcome, seconds, memory in worker_lines(folder, first, count, seed=seed):
            last = index
            if outcome == "starts":
                continue
            outcomes[outcome] += 1
            first = index + 1
            slowest_s, peak_bytes = max(slowest_s, seconds), max(peak_bytes, memory)
            if seconds > MAX_S:
                slow.append((index, seconds))
            if memory > MAX_BYTES:
                faults.append(f"memory at {index}")
                break
        if first == last and first < count:
            faults.append(f"crash or hang at {last}")
            first = last + 1
    return {
        "ok": not slow and not faults,
        "files": count,
        "outcomes": dict(sorted(outcomes.items())),
        "slow": slow,
        "faults": faults,
        "slowest_s": round(slowest_s, 3),
        "peak_mb": peak_bytes >> 20,
    }


def worker_lines(folder: Path | None, first: int, count: int, *, seed: int) -> Iterator[tuple[int, str, float, int]]:
    """Yield what one worker says, until it ends or has to be ended."""
    command = [sys.executable, __file__, "--mutate", str(count), "--seed", str(seed), "--worker", str(first)]
    if folder is not None:
        command.insert(2, str(folder))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        watch = threading.Timer(SILENCE_S, process.kill)
        try:
            watch.start()
            for line in process.stdout:
                watch.cancel()
                watch = threading.Timer(SILENCE_S, process.kill)
                watch.start()
                index, outcome, seconds, memory = line.split()
                yield int(index), outcome, float(seconds), int(memory)
        finally:
            watch.cancel()
            process.kill()


if __name__ == "__main__":
    raise SystemExit(main())
