"""Draws `statistics.Point`s as SVG. Pure functions: no query, and no style but class names for `charts.css`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from math import floor, log, log10

from django.template.loader import render_to_string
from django.utils.formats import number_format, time_format
from django.utils.safestring import SafeString
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext_lazy as _

from peasy_jobs.web.history import Point

# In units of the viewBox, 320 wide: on the narrowest screens one is a little less than a pixel.
LEFT, RIGHT, TOP, BOTTOM = 56.0, 312.0, 42.0, 146.0
GAP, LEAST = (
    0.6,
    1.5,
)  # between two bars, and the height of one: a failure among thousands is to be seen
TICKS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0)  # seconds
ENDED = ("completed", "failed", "cancelled")
TIMES = ("waited_p95", "run_p95", "waited_median", "run_median")  # the last is drawn on top
TITLE_AND_NONE = {
    ("jobs", "hour"): (_("Jobs per minute in the last hour"), _("Nothing ended in the last hour.")),
    ("jobs", "day"): (_("Jobs per minute in the last day"), _("Nothing ended in the last day.")),
    ("seconds", "hour"): (
        _("Time waited and run in the last hour"),
        _("No job ran to its end in the last hour."),
    ),
    ("seconds", "day"): (
        _("Time waited and run in the last day"),
        _("No job ran to its end in the last day."),
    ),
}


def jobs_per_minute(points: Sequence[Point]) -> SafeString:
    """Stacked bars: how many jobs completed, failed and were cancelled."""
    most = _rate(busiest := max(points, key=_rate))
    top = _round_up(max(most, 2 / busiest.minutes))
    peak = _("The busiest time was %(time)s: %(rate)s a minute.") % {
        "time": _clock(busiest),
        "rate": _amount(most),
    }
    return _drawn(
        points,
        kind="jobs",
        desc=f"{_counted(points)} {peak}" if most else "",
        ticks=[
            (_number(BOTTOM - (BOTTOM - TOP) * part), _amount(top * part))
            for part in (0.0, 0.5, 1.0)
        ],
        bars=list(_bars(points, top)),
        tips=[f"{_clock(point)}: {_counted([point])}" if _rate(point) else "" for point in points],
    )


def seconds(points: Sequence[Point]) -> SafeString:
    """Lines on a log axis: median and 95th percentile of the times that jobs waited and ran."""
    times = [
        time for point in points for name in TIMES if (time := getattr(point, name)) is not None
    ] or [TICKS[0]]
    low = max([tick for tick in TICKS[:-1] if tick <= min(times)], default=TICKS[0])
    high = min([tick for tick in TICKS if tick >= max(*times, low * 5)], default=TICKS[-1])
    return _drawn(
        points,
        kind="seconds",
        desc=f"{_('The longest times:')} {longest}" if (longest := _longest(points)) else "",
        ticks=[
            (_number(_height(tick, low, high)), duration(tick))
            for tick in TICKS
            if low <= tick <= high
        ],
        lines=[(name.replace("_", "-"), _path(points, name, low, high)) for name in TIMES],
        tips=[_longest([point]) for point in points],
    )


def duration(time: float) -> str:
    """Seconds in a readable unit."""
    for unit, text in ((3600, _("%s h")), (60, _("%s min")), (1, _("%s s"))):
        if time >= unit:
            return text % _amount(time / unit)
    return _("%s ms") % _amount(time * 1000)


def _drawn(
    points: Sequence[Point], kind: str, desc: str, tips: list[str], **context: object
) -> SafeString:
    period, last = "hour" if points[0].minutes == 1 else "day", len(points) - 1
    title, none = TITLE_AND_NONE[kind, period]
    moments = [(0, "start"), (last // 2, "middle"), (last, "end")]
    context |= {
        "id": f"peasy-chart-{kind}-{period}",
        "title": title,
        "desc": desc or none,
        "empty": not desc,
        "moments": [
            (_number(_x(points, place + 0.5)), anchor, _clock(points[place]))
            for place, anchor in moments
        ],
        "columns": [(_number(_x(points, place)), tip) for place, tip in enumerate(tips) if tip],
        "width": _number(_x(points, 1) - LEFT),
    }
    return render_to_string("peasy_jobs/_chart.html", context)


def _bars(points: Sequence[Point], top: float) -> Iterator[tuple[str, ...]]:
    width = _x(points, 1) - LEFT - GAP
    for place, point in enumerate(points):
        base = BOTTOM
        for name in ENDED:
            if count := getattr(point, name):
                height = max(LEAST, (BOTTOM - TOP) * count / point.minutes / top)
                base -= height
                yield name, *map(_number, (_x(points, place) + GAP / 2, base, width, height))


def _path(points: Sequence[Point], name: str, low: float, high: float) -> str:
    path, pen = "", "M"
    times = [getattr(point, name) for point in points]
    for place, (time, after) in enumerate(zip(times, [*times[1:], None], strict=True)):
        if time is not None:
            alone = (
                pen == "M" and after is None
            )  # then h5 draws a stroke, or two dots of the dashed line
            x, y = _x(points, place + 0.5) - 2.5 * alone, _height(time, low, high)
            path += f"{pen}{_number(x)},{_number(y)}" + "h5" * alone
        pen = "M" if time is None else "L"
    return path


def _x(points: Sequence[Point], place: float) -> float:
    return LEFT + (RIGHT - LEFT) * place / len(points)


def _height(time: float, low: float, high: float) -> float:
    return BOTTOM - (BOTTOM - TOP) * log(min(max(time, low), high) / low) / log(high / low)


def _round_up(value: float) -> float:
    """The next number that is readable, and so is its half."""
    power = 10.0 ** floor(log10(value))
    return next((power * digit for digit in (1, 2, 4, 6) if power * digit >= value), power * 10)


def _counted(points: Sequence[Point]) -> str:
    counts = {name: sum(getattr(point, name) for point in points) for name in ENDED}
    text = _(
        "Jobs ended: %(total)s (%(completed)s completed, %(failed)s failed, %(cancelled)s cancelled)."
    )
    return text % {
        name: _amount(count) for name, count in {"total": sum(counts.values()), **counts}.items()
    }


def _longest(points: Sequence[Point]) -> str:
    """When jobs waited and ran the longest, in words; empty when none did."""
    waited = _("At %(time)s half of the jobs waited up to %(median)s, 95%% up to %(p95)s.")
    ran = _("At %(time)s half of the jobs ran up to %(median)s, 95%% up to %(p95)s.")
    sentences = []
    for kind, text in (("waited", waited), ("run", ran)):
        if known := [point for point in points if getattr(point, f"{kind}_p95") is not None]:
            worst = max(known, key=lambda point: getattr(point, f"{kind}_p95"))
            times = {part: duration(getattr(worst, f"{kind}_{part}")) for part in ("median", "p95")}
            sentences.append(text % {"time": _clock(worst), **times})
    return " ".join(sentences)


def _rate(point: Point) -> float:
    return (point.completed + point.failed + point.cancelled) / point.minutes


def _clock(point: Point) -> str:
    return time_format(localtime(point.start) if is_aware(point.start) else point.start)


def _amount(value: float) -> str:
    return number_format(
        Decimal(f"{value:.2g}") if value < 10 else round(value), force_grouping=True
    )


def _number(value: float) -> str:
    return f"{value:.1f}"  # never in the language of the page
