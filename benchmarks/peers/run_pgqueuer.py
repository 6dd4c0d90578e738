"""pgqueuer, on PostgreSQL. It logs outcomes in bulk, so the jobs record when they ran."""

import asyncio
import logging
import os
import signal
from collections.abc import Iterable
from typing import Any

import asyncpg
from marks import mark
from pgqueuer import AsyncpgDriver, PgQueuer, Queries
from protocol import Script

URL = os.environ["BENCH_URL"]
loop = asyncio.new_event_loop()
_queries: Queries | None = None


async def queries() -> Queries:
    global _queries
    if _queries is None:
        _queries = Queries(AsyncpgDriver(await asyncpg.connect(URL)))
    return _queries


async def install() -> None:
    await (await queries()).install()


async def enqueue(numbers: Iterable[int]) -> None:
    to = await queries()
    for number in numbers:
        await to.enqueue("nothing", str(number).encode())


async def enqueue_many(numbers: Iterable[int]) -> None:
    to, numbers = await queries(), list(numbers)
    for start in range(0, len(numbers), 1000):
        payloads = [str(number).encode() for number in numbers[start : start + 1000]]
        await to.enqueue(["nothing"] * len(payloads), payloads, [0] * len(payloads))


async def work(batch: int) -> None:
    connection = await asyncpg.connect(URL)
    manager = PgQueuer.from_asyncpg_connection(connection)

    @manager.entrypoint("nothing")
    async def nothing(job: Any) -> None:
        mark(int(job.payload))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, manager.shutdown.set)
    await manager.run(batch_size=batch)


async def stored() -> dict[str, Any]:
    driver = (await queries()).driver
    rows = await driver.fetch(
        "SELECT count(*) AS done FROM pgqueuer_log WHERE status = 'successful'"
    )
    return {"stored": rows[0]["done"], "seconds": None}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    script = Script(
        prepare=lambda: loop.run_until_complete(install()),
        enqueue=lambda numbers: loop.run_until_complete(enqueue(numbers)),
        enqueue_many=lambda numbers: loop.run_until_complete(enqueue_many(numbers)),
        work=lambda kind, concurrency: loop.run_until_complete(work(100)),
        outcomes=lambda: loop.run_until_complete(stored()),
    )
    script.main()
