"""huey, on SQLite or Redis. It stores no outcomes, so jobs that left the queue are counted."""

import json
import logging
import os
from collections.abc import Iterable
from typing import Any

from huey import Huey, RedisHuey
from huey.storage import SqliteStorage
from marks import mark, marks
from protocol import Script

SETTINGS = json.loads(os.environ["BENCH_SETTINGS"])


class NormalStorage(SqliteStorage):
    """Use synchronous NORMAL as all other systems, unless huey's default FULL is measured."""

    def _create_connection(self) -> Any:
        connection = super()._create_connection()
        connection.execute(f"PRAGMA synchronous={SETTINGS.get('synchronous', 'NORMAL')}")
        return connection


URL = os.environ["BENCH_URL"]
if URL.startswith("sqlite"):
    huey = Huey("bench", storage_class=NormalStorage, filename=URL.removeprefix("sqlite://"))
else:
    huey = RedisHuey("bench", url=URL)


@huey.task()
def nothing(number: int) -> None:
    mark(number)


def enqueue(numbers: Iterable[int]) -> None:
    for number in numbers:
        nothing(number)


def work(kind: str, concurrency: int) -> None:
    logging.basicConfig(level=logging.WARNING)
    huey.create_consumer(workers=concurrency, worker_type=kind).run()


def outcomes() -> dict[str, Any]:
    return {"stored": marks().done() if huey.pending_count() == 0 else 0, "seconds": None}


if __name__ == "__main__":
    Script(prepare=lambda: None, enqueue=enqueue, work=work, outcomes=outcomes).main()
