"""Curate a root: from stored photos to a published data set, each stage only where something has changed.

The stages, in order: dedup (equal pictures by hash), embed (a vector a photo), copies (crops and banners; all tiers
united), score (the junk filter, from the labels there are), publish (groups, splits, targets, a version). Each is a
script of its own too, and reads and writes what its --help says.

    python pipeline/curate.py --root data --dataset cars
    python pipeline/curate.py --root data --dataset cars --set publish.require=[price,make_model]
    python pipeline/curate.py --root data --until embed
    python pipeline/curate.py --root data --only score --set score.max_fnr=0.02
    ray job submit --working-dir . -- python pipeline/curate.py --root s3://bucket/data --dataset cars

Killed at any moment and run again, it goes on where it was. Without labels no photo is junk: see pipeline/label.py.
Last line: `photos` (stored) = `unreadable` + all `..._dropped` + `kept`; `kept` = `train` + `val` + `test`; `groups`,
`dataset`, `version`. Where the last stage is another, its own last line.
"""

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.catalog import CatalogSettings
from pipeline.copies import CopiesSettings, copies
from pipeline.dedup import DedupSettings, dedup
from pipeline.embed import EmbedSettings, embed
from pipeline.photo_outcomes import COUNT_OF_REASON
from pipeline.publish import publish
from pipeline.publish_content import PublishSettings
from pipeline.runner import RaySettings
from pipeline.score import ScoreSettings, score
from schemas.command import run_script, script_parser
from schemas.errors import ReconcileError, RunError, UsageError
from schemas.manifest import is_dataset_name
from schemas.settings import Section, load_settings
from schemas.storage import Root

STAGES = ("dedup", "embed", "copies", "score", "publish")

log = logging.getLogger("forecourt.curate")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages."""
    parser = script_parser(__doc__)
    parser.add_argument("--dataset", metavar="NAME", help="data set to publish a version of")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--only", metavar="STAGE", help=f"run one stage: {', '.join(STAGES)}")
    some.add_argument("--until", metavar="STAGE", help="run the stages up to this one, itself included")

    def body(args: argparse.Namespace) -> Mapping[str, Any]:
        stages = chosen_stages(only=args.only, until=args.until)
        if "publish" in stages and args.dataset is None:
            raise UsageError("publish needs the name of a data set: --dataset NAME; or stop before it: --until score")
        if args.dataset is not None and not is_dataset_name(args.dataset):
            raise UsageError(f"a data set's name is letters, digits, '.', '_' and '-', found {args.dataset!r}")
        settings = load_settings(CurateSettings, config=args.config, sets=args.sets)
        return curate(Root.open(args.root), settings, stages=stages, dataset=args.dataset)

    return run_script(parser, body, argv=argv)


class CurateSettings(Section):
    """The sections of all stages."""

    dedup: DedupSettings = DedupSettings()
    embed: EmbedSettings = EmbedSettings()
    copies: CopiesSettings = CopiesSettings()
    score: ScoreSettings = ScoreSettings()
    publish: PublishSettings = PublishSettings()
    catalog: CatalogSettings = CatalogSettings()
    ray: RaySettings = RaySettings()


def chosen_stages(*, only: str | None = None, until: str | None = None) -> tuple[str, ...]:
    """Name the stages to run, in order.

    Raises:
        UsageError: there is no such stage.
    """
    for option, stage in (("--only", only), ("--until", until)):
        if stage is not None and stage not in STAGES:
            raise UsageError(f"{option} {stage}: there is no such stage; there are {', '.join(STAGES)}")
    if only is not None:
        return (only,)
    return STAGES if until is None else STAGES[: STAGES.index(until) + 1]


def curate(
    root: Root, settings: CurateSettings, *, stages: Sequence[str] = STAGES, dataset: str | None = None
) -> dict[str, Any]:
    """Run the stages in order; return the last line.

    Raises:
        UsageError: a stage has not what it needs, or a setting is refused.
        RunError: a stage failed; what the ones before it committed stays.
        ReconcileError: stages have not seen the same photos, or photos are not those kept, dropped and unreadable.
    """
    started_s = time.monotonic()
    answers: dict[str, dict[str, Any]] = {}
    for stage, run in _calls(root, settings, stages, dataset).items():
        log.info("event=stage_begun stage=%s", stage)
        answers[stage] = answer = run()
        told = " ".join(f"{name}={value}" for name, value in answer.items() if isinstance(value, int | float))
        log.info("event=stage_done stage=%s %s", stage, told)
        if answer.get("error"):
            raise RunError(f"{stage}: {answer['error']}")
    _require_same_photos(answers)
    last = dict(answers[stages[-1]])
    if "publish" in answers:
        _require_reconciled(last)
    last |= {"seconds_by_stage": {stage: answer["seconds"] for stage, answer in answers.items()}}
    return {**last, "stages": list(stages), "seconds": round(time.monotonic() - started_s, 3)}


def _calls(
    root: Root, settings: CurateSettings, stages: Sequence[str], dataset: str | None
) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return the calls of the chosen stages, in order."""
    limits, encoder = settings.catalog, settings.embed.encoder
    calls: dict[str, Callable[[], dict[str, Any]]] = {
        # Copies unite all tiers; where they do not run now, dedup does.
        "dedup": lambda: dedup(root, settings.dedup, limits, ray=settings.ray, unite="copies" not in stages),
        "embed": lambda: embed(root, settings.embed, settings.ray),
        "copies": lambda: copies(root, settings.copies, settings.dedup, limits, encoder=encoder, ray=settings.ray),
        "score": lambda: score(root, settings.score, encoder=encoder),
        "publish": lambda: publish(root, dataset or "", settings.publish, limits),
    }
    return {stage: calls[stage] for stage in stages}


def _require_same_photos(answers: Mapping[str, Mapping[str, Any]]) -> None:
    """Every stage that counts photos has seen all that are stored."""
    counted = {stage: answer["photos"] for stage, answer in answers.items() if "photos" in answer}
    if len(set(counted.values())) > 1:
        raise ReconcileError(
            f"stages have seen different numbers of photos: {counted}; where a crawl has committed more meanwhile, run "
            "this again, else see pipeline/verify.py"
        )


def _require_reconciled(answer: Mapping[str, Any]) -> None:
    lost = {name: answer[name] for name in COUNT_OF_REASON.values()}
    splits = {split: answer[split] for split in ("train", "val", "test")}
    if answer["photos"] != sum(lost.values()) + answer["kept"] or answer["kept"] != sum(splits.values()):
        raise ReconcileError(
            f"{answer['photos']:,} photos are stored, {lost} are out, {answer['kept']:,} are kept, in {splits}; these "
            "do not add up; see pipeline/verify.py"
        )


if __name__ == "__main__":
    raise SystemExit(main())
