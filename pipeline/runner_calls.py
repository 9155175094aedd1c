"""Calls over the cluster: a function on many small inputs, each result as it comes; nothing is written by them.

Names, numbers and arrays of hashes go this way; pixels never do.
"""

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


class RayHands:
    """Calls as Ray tasks, over values that they share; used while connected. `num_calls` keep the cluster busy.

    A call whose worker dies is made again, as by `run_calls`.
    """

    def __init__(self, num_in_flight: int, settings: RaySettings) -> None:
        # One more than there is room for, so that none waits for the driver.
        self.num_calls = num_in_flight + 1
        self._settings = settings
        self._running: list[Any] = []

    def share(self, value: Any) -> Any:
        """Put a value where all tasks read it; it goes with its last reference."""
        return ray.put(value)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Begin a call; of its arguments those that `share` gave arrive as the values themselves."""
        settings = self._settings
        remote = ray.remote(function).options(num_cpus=settings.cpus_per_part, max_retries=settings.part_tries - 1)
        self._running.append(remote.remote(*arguments))

    def result(self) -> Any:
        """Wait for any of the calls begun.

        Raises:
            ForecourtError: what it raised.
            RunError: its worker died each time.
        """
        (ready, *_), self._running = ray.wait(self._running, num_returns=1)
        return _result(ready)


def _result(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, ForecourtError):
            raise error.cause from None
        raise RunError(f"a call failed: {error.cause or error}") from error
    except RayError as error:
        raise RunError(f"the worker of a call died: {type(error).__name__}; run again") from error
