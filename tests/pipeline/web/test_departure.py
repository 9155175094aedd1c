import asyncio

import pytest

from pipeline.web.departure import Departure
from pipeline.web.pace import HostLimits, HostOutcome, PaceSettings, local_pace

HOST = "cars.example"
PACE = PaceSettings(relearn_s=0.0, horizon_s=0.05, late_s=0.05)


async def test_a_request_that_took_too_long_to_connect_leaves_in_another_slot() -> None:
    pace = local_pace(PACE)
    departure = Departure(pace, HOST, HostLimits(5.0))
    await departure.wait()
    first = departure.slot
    async with asyncio.timeout(0.25) as departure.deadline:
        await asyncio.sleep(0.15)
        await departure.leave()
        assert departure.slot is not None
        assert departure.slot != first
        assert pace.fresh(departure.slot)
        await asyncio.sleep(0.05)
    assert departure.elapsed_s() < 0.25
    departure.end()
    await pace.aclose()


async def test_a_request_in_time_keeps_its_slot() -> None:
    pace = local_pace(PACE)
    departure = Departure(pace, HOST, HostLimits(5.0))
    assert departure.elapsed_s() == 0.0
    await departure.wait()
    first = departure.slot
    await departure.leave()
    assert departure.slot is first
    departure.outcome = HostOutcome(status=200)
    departure.end()
    departure.end()
    await pace.aclose()
    assert pace._hosts[HOST].held == 0


async def test_a_request_leaves_once() -> None:
    pace = local_pace(PACE)
    departure = Departure(pace, HOST, HostLimits(5.0))
    await departure.wait()
    departure.begin()
    await departure.leave()
    with pytest.raises(ConnectionAbortedError):
        departure.begin()
    with pytest.raises(ConnectionAbortedError):
        await departure.leave()
    departure.end()
    await pace.aclose()
