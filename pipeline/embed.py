"""Embed every stored photo: one vector of L2 norm 1 a photo, by an encoder of your choice.

Reads: photos and shards, part by part. Writes: `embeddings/ENCODER/`, a table of `key` and `embedding` (float16).
A second run embeds only what is new or was crawled again since. Each encoder has a folder of its own.

    python pipeline/embed.py --root data
    python pipeline/embed.py --root data --set embed.encoder=open_clip:ViT-B-16/openai
    python pipeline/embed.py --root data --set embed.encoder=timm:resnet50 --set embed.weights=resnet50.safetensors
    ray job submit --working-dir . -- python pipeline/embed.py --root s3://bucket/data --set embed.device=cuda

The default, efficientnet_lite0, has its weights in an installed package and needs no network; others fetch theirs from
the model hub once, or take them from `embed.weights`. There is a worker for each GPU of the cluster, or for each
machine where it has none. Last line: `photos` (stored) = `embedded` + `unreadable`, over all parts.
"""

import argparse
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import PurePosixPath
from typing import Any, Literal

from pipeline.embed_encoders import RANDOM, Encoder, TextEncoder, check_encoder, load_encoder, weights_fingerprint
from pipeline.embed_part import EmbedSpec, EmbedWork, source_inputs, source_receipt
from pipeline.embeddings import DEFAULT_ENCODER, embed_stage, embeddings_folder
from pipeline.global_stage import is_current
from pipeline.lease import Lease, hold_lease
from pipeline.leftovers import remove_half_written
from pipeline.runner import PartTask, RaySettings, RunResult, connected, plan_workers, run_parts_on_workers
from schemas.command import EXIT_DONE, EXIT_FAILED, Progress, run_script, script_parser
from schemas.errors import ReconcileError, SettingsError
from schemas.receipts import INGEST_STAGES, read_receipt, read_receipts, receipt_name
from schemas.settings import Section, differing_settings, load_settings, operational, result
from schemas.storage import Root

__all__ = ["DEFAULT_ENCODER", "RANDOM", "EmbedSettings", "Encoder", "TextEncoder", "embed", "load_encoder", "main"]

log = logging.getLogger("forecourt.embed")


def main(argv: Sequence[str] | None = None) -> int:
    """Embed a root."""
    parser = script_parser(__doc__)
    parser.add_argument("--overwrite", action="store_true", help="redo parts that were made with other settings")

    def body(args: argparse.Namespace) -> Mapping[str, Any]:
        settings = load_settings(_Settings, config=args.config, sets=args.sets)
        return embed(Root.open(args.root), settings.embed, settings.ray, overwrite=args.overwrite)

    return run_script(parser, body, argv=argv)


class EmbedSettings(Section):
    """Which encoder, and on what it runs."""

    encoder: str = result(DEFAULT_ENCODER, "efficientnet_lite0, open_clip:ARCH/TAG or timm:NAME")
    weights: str | None = result(
        None, "file of weights instead of the encoder's own (safetensors, or a state dict); random: as drawn, for tests"
    )
    precision: Literal["fp32", "bf16", "fp16"] | None = result(
        None, "None is fp16 on cuda, and on a CPU bf16 where it has instructions for it"
    )
    device: Literal["cpu", "cuda"] | None = operational(None, "None is cuda where there is one")
    num_workers: int | None = operational(None, "None is one a GPU, or one a machine where there is none", ge=1)
    cpus_per_worker: int | None = operational(None, "None shares a machine's cores out among its workers", ge=1)
    decode_threads: int = operational(2, "threads of a worker that decode photos", ge=1)


class _Settings(Section):
    """The sections this script reads."""

    embed: EmbedSettings = EmbedSettings()
    ray: RaySettings = RaySettings()


def embed(
    root: Root, settings: EmbedSettings, ray: RaySettings | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Embed what is not embedded yet; return the last line, `exit_code` 1 in it where a part failed.

    Raises:
        UsageError: the encoder, its weights or the device are not to be had.
        SettingsError: parts were embedded with other settings, and `overwrite` is not asked for.
        ReconcileError: photos stored are not photos embedded and unreadable.
        LeaseError: another run embeds this root with this encoder.
    """
    started_s = time.monotonic()
    check_encoder(settings.encoder, settings.weights)
    spec = EmbedSpec(
        encoder=settings.encoder,
        weights=settings.weights,
        weights_fingerprint=weights_fingerprint(settings.encoder, settings.weights),
        device=settings.device,
        precision=settings.precision,
        decode_threads=settings.decode_threads,
    )
    if not overwrite:
        _require_settings(root, spec)
    with hold_lease(root, embed_stage(spec.encoder)) as lease:
        _tidy(root, spec.encoder)
        stored = {
            receipt.part: receipt.counts["stored"] for stage in INGEST_STAGES for receipt in read_receipts(root, stage)
        }
        run = _run(root, lease, spec, stored, settings, ray or RaySettings())
    counts = _totals(root, spec.encoder, stored, run)
    answer = {
        **counts,
        "done_now": run.done,
        "encoder": spec.encoder,
        "seconds": round(time.monotonic() - started_s, 2),
    }
    if run.failed:
        shown = "; ".join(f"{part}: {why}" for part, why in sorted(run.failed.items())[:3])
        error = f"{len(run.failed)} parts failed, run again to try them again; {shown}"
        return {**answer, "error": error, "parts_failed": len(run.failed), "exit_code": EXIT_FAILED}
    return {**answer, "exit_code": EXIT_DONE}


def _require_settings(root: Root, spec: EmbedSpec) -> None:
    for receipt in read_receipts(root, embed_stage(spec.encoder)):
        if differences := differing_settings(spec.pinned(), receipt.settings):
            raise SettingsError(
                f"part {receipt.part} in {root.text} was embedded with other settings: {'; '.join(differences)}; "
                "use the same, or --overwrite to embed such parts again"
            )


def _tidy(root: Root, encoder: str) -> None:
    """Remove what killed runs left, and embeddings of parts that are committed no more."""
    stage, folder = embed_stage(encoder), embeddings_folder(encoder)
    remove_half_written(root, (folder, f"receipts/{stage}"))
    named: set[str] = set()
    for receipt in read_receipts(root, stage):
        if source_receipt(root, receipt.part) is None:
            log.info("event=part_gone stage=%s part=%s", stage, receipt.part)
            root.remove(receipt_name(stage, receipt.part))
        else:
            named.update(receipt.files)
    for name in root.list(folder, suffix=".parquet"):
        if str(PurePosixPath(name)) not in named:
            log.info("event=leftover_removed file=%s", name)
            root.remove(name)


def _run(
    root: Root, lease: Lease, spec: EmbedSpec, stored: Mapping[str, int], settings: EmbedSettings, ray: RaySettings
) -> RunResult:
    tasks = (PartTask(part, None) for part in stored if not _is_done(root, spec, part))
    first = next(tasks, None)
    if first is None:
        return RunResult()  # nothing to do: neither Ray nor the encoder is started for it
    watch = _Watch(sum(stored.values()))
    with connected(ray):
        plan = plan_workers(
            settings.device or "auto", num_workers=settings.num_workers, cpus_per_worker=settings.cpus_per_worker
        )
        run = run_parts_on_workers(
            chain([first], tasks),
            partial(EmbedWork, spec),
            plan=plan,
            ticket=lease.ticket,
            settings=ray,
            on_done=watch.part_done,
            on_tick=watch.tick,
            check=lease.check,
        )
    watch.close()
    return run


def _is_done(root: Root, spec: EmbedSpec, part: str) -> bool:
    source, ours = source_receipt(root, part), read_receipt(root, embed_stage(spec.encoder), part)
    if source is None or ours is None:
        return False
    return is_current(root, ours, source_inputs(source), spec.pinned())


def _totals(root: Root, encoder: str, stored: Mapping[str, int], run: RunResult) -> dict[str, int]:
    """Add up the receipts.

    Raises:
        ReconcileError: they are not of all stored photos, and no part failed.
    """
    totals = Counter({"photos": 0, "embedded": 0, "unreadable": 0, "parts": 0})
    for receipt in read_receipts(root, embed_stage(encoder)):
        if receipt.part in stored:
            totals.update({name: receipt.counts[name] for name in ("photos", "embedded", "unreadable")})
            totals["parts"] += 1
    lost = totals["parts"] != len(stored) and not run.failed
    if lost or totals["photos"] != totals["embedded"] + totals["unreadable"]:
        raise ReconcileError(f"{len(stored):,} parts hold photos, and embeddings hold {dict(totals)}; run again")
    return dict(totals)


class _Watch:
    """Show progress."""

    def __init__(self, num_photos: int) -> None:
        self._progress = Progress(num_photos, "photos")
        self._done = 0

    def part_done(self, part: str, counts: Mapping[str, int]) -> None:
        """Count a committed part."""
        self._done += counts["photos"]

    def tick(self, in_flight: Mapping[str, Mapping[str, int]]) -> None:
        """Show where the run is."""
        photos = self._done + sum(counts.get("photos", 0) for counts in in_flight.values())
        self._progress.show(photos, parts_in_flight=len(in_flight))

    def close(self) -> None:
        """End the bar."""
        self._progress.close()


if __name__ == "__main__":
    raise SystemExit(main())
