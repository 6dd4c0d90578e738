"""The commands of each system's script, run by the interpreter that has the system installed.

run_huey.py prepare                 make the tables
run_huey.py preload FIRST COUNT     enqueue jobs FIRST … FIRST+COUNT−1 in its fastest way
run_huey.py enqueue FIRST COUNT     the same one at a time and in bulk; prints both rates
run_huey.py work KIND CONCURRENCY   run jobs until SIGTERM
run_huey.py latency FIRST COUNT GAP enqueue one job about each GAP s; prints each wait in ms
run_huey.py outcomes COUNT          wait until COUNT are stored as completed; prints outcomes
"""

import json
import random
import sys
from collections.abc import Callable, Iterable
from time import monotonic, perf_counter, sleep
from typing import Any

from marks import marks

PATIENCE = 60.0  # seconds, more than the longest job takes
WARM_UP = 3  # jobs whose latency is not counted: connections are opened, modules imported


class Script:
    def __init__(
        self,
        *,
        prepare: Callable[[], None],
        enqueue: Callable[[Iterable[int]], None],
        work: Callable[[str, int], None],
        outcomes: Callable[[], dict[str, Any]],
        enqueue_many: Callable[[Iterable[int]], None] | None = None,
        preload: Callable[[Iterable[int]], None] | None = None,
    ) -> None:
        """Enqueue one at a time. `outcomes` returns {"stored": jobs, "seconds": from first start
        to last finish, if the system knows it}.
        """
        self.prepare, self.one, self.many, self.work, self.stored = (
            prepare,
            enqueue,
            enqueue_many,
            work,
            outcomes,
        )
        self.fastest = preload or enqueue_many or enqueue

    def main(self) -> None:
        command, *args = sys.argv[1:]
        if command == "work":
            self.work(args[0], int(args[1]))
        elif command == "prepare":
            self.prepare()
        else:
            print(json.dumps(getattr(self, command)(*map(float, args))))

    def preload(self, first: float, count: float) -> None:
        self.fastest(range(int(first), int(first + count)))

    def enqueue(self, first: float, count: float) -> dict[str, float]:
        numbers = range(int(first), int(first + count))
        rates = {"one at a time": self._rate(self.one, numbers)}
        if self.many:
            rates["in bulk"] = self._rate(self.many, numbers)
        return rates

    def _rate(self, enqueue: Callable[[Iterable[int]], None], numbers: range) -> float:
        enqueue(numbers[:1])  # the first opens the connection
        started = perf_counter()
        enqueue(numbers)
        return len(numbers) / (perf_counter() - started)

    def latency(self, first: float, count: float, gap: float) -> list[float]:
        waits = [
            self._wait(number, gap) for number in range(int(first), int(first + count + WARM_UP))
        ]
        return waits[WARM_UP:]

    def _wait(self, number: int, gap: float) -> float:
        # At random, so that no polling interval is met in step.
        sleep(gap * random.uniform(0.35, 1.65))
        self.one([number])
        enqueued = monotonic()
        while not marks().runs[number]:
            if monotonic() > enqueued + PATIENCE:
                raise TimeoutError(f"job {number} has not begun after {PATIENCE:g} s")
            sleep(0.002)
        return 1000 * (marks().times[number] - enqueued)

    def outcomes(self, count: float) -> dict[str, Any]:
        deadline = monotonic() + PATIENCE
        while (found := self.stored())["stored"] < count and monotonic() < deadline:
            sleep(0.05)
        return found
