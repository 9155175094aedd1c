"""Calls over the cluster: a function on many small inputs, each result as it comes; nothing is written by them."""

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.runner import RaySettings
from schemas.errors import ForecourtError, RunError

Given = TypeVar("Given")
Found = TypeVar("Found")


def names_cluster(settings: RaySettings) -> bool:
    """Tell whether there is a cluster to call on; on one machine threads do as well, and start at once."""
    return bool(settings.address or os.environ.get("RAY_ADDRESS"))


def run_calls(
    function: Callable[[Given], Found], inputs: Iterable[Given], *, num_in_flight: int, settings: RaySettings
) -> Iterator[tuple[int, Found]]:
    """Yield the number and the result of each input as it is ready; `inputs` is read as calls end.

    A call whose worker dies is made again, `ray.part_tries` times in all.

    Raises:
        ForecourtError: what a call raised.
        RunError: a worker died each time.
    """
    remote = ray.remote(function).options(num_cpus=settings.cpus_per_part, max_retries=settings.part_tries - 1)
    waiting = enumerate(inputs)
    running: dict[Any, int] = {}
    try:
        while True:
            for number, one in islice(waiting, num_in_flight - len(running)):
                running[remote.remote(one)] = number
            if not running:
                return
            ready, _ = ray.wait(list(running), num_returns=1)
            for reference in ready:
                yield running.pop(reference), _result(reference)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ForecourtError):
            raise error.cause from None
        raise RunError(f"a call failed: {error.cause or error}") from error
    except RayError as error:
        raise RunError(f"the worker of a call died: {type(error).__name__}; run again") from error
