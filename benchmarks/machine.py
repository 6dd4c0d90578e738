"""Describe the machine of the benchmark."""

import os
import platform
from pathlib import Path

from benchmarks import databases


def describe(kinds: list[str]) -> dict[str, str]:
    return {
        "cpu": f"{_cpu()}, {os.cpu_count()} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "django": _django(),
        **{databases.NAMES[kind]: databases.version(kind) for kind in kinds},
    }


def load() -> float:
    """Return the load average of the last minute. Other work on the machine worsens figures."""
    return os.getloadavg()[0]


def _cpu() -> str:
    for line in (
        Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ()
    ):
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _django() -> str:
    import django

    return django.get_version()
