"""Draw the statistics as SVG. No queries; `charts.css` has the colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from math import floor, log, log10
from typing import TYPE_CHECKING, NamedTuple

from django.template.loader import render_to_string
from django.utils.formats import number_format, time_format
from django.utils.safestring import SafeString
from django.utils.timezone import is_aware, localtime
from django.utils.translation import gettext_lazy as _

from peasy_jobs.statuses import BY_LETTER, FINISHED
from peasy_jobs.store.durations import ENDED
from peasy_jobs.web.history import Point

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

# In units of the viewBox, which is 320 wide. On the narrowest screens, a unit is a little less
# than a pixel.
LEFT, RIGHT, TOP, BOTTOM = 56.0, 312.0, 42.0, 146.0
BAR_GAP = 0.6
SMALLEST_BAR = 1.5  # high, so that one failure among thousands is visible
HALF_DOT = 2.5  # half the width of a point without neighbours

SECONDS_TICKS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0)
LINES = ("waited_p95", "run_p95", "waited_median", "run_median")  # the last is drawn on top


class Heading(NamedTuple):
    title: _StrPromise
    when_empty: _StrPromise


HEADINGS = {
    ("jobs", "hour"): Heading(
        _("Jobs per minute in the last hour"),
        _("Nothing ended in the last hour."),
    ),
    ("jobs", "day"): Heading(
        _("Jobs per minute in the last day"),
        _("Nothing ended in the last day."),
    ),
    ("seconds", "hour"): Heading(
        _("Time waited and run in the last hour"),
        _("No job ran to its end in the last hour."),
    ),
    ("seconds", "day"): Heading(
        _("Time waited and run in the last day"),
        _("No job ran to its end in the last day."),
    ),
}


class Unit(NamedTuple):
    seconds: float
    text: _StrPromise


UNITS = (Unit(3600, _("%s h")), Unit(60, _("%s min")), Unit(1, _("%s s")), Unit(0.001, _("%s ms")))


class Tick(NamedTuple):
    """A number at the vertical axis."""

    y: str
    text: str


class Moment(NamedTuple):
    """A time at the horizontal axis."""

    x: str
    anchor: str
    text: str


class Bar(NamedTuple):
    name: str
    x: str
    y: str
    width: str
    height: str


class Line(NamedTuple):
    name: str
    path: str


class Column(NamedTuple):
    """The area of one point, with a tooltip."""

    x: str
    tip: str


class LegendItem(NamedTuple):
    name: str
    label: _StrPromise
    x: int
    y: int
    text_x: int
    text_y: int

    @classmethod
    def at(cls, place: int, name: str, label: _StrPromise) -> LegendItem:
        """Return the item at a place of the legend, which has two columns."""
        row, column = divmod(place, 2)
        x, y = 8 + 164 * column, 3 + 15 * row
        return cls(name, label, x, y, text_x=x + 16, text_y=y + 8)


class Scale(NamedTuple):
    """A logarithmic axis of seconds."""

    low: float
    high: float

    def height(self, seconds: float) -> float:
        inside = min(max(seconds, self.low), self.high)
        share = log(inside / self.low) / log(self.high / self.low)
        return BOTTOM - (BOTTOM - TOP) * share


def jobs_per_minute(points: Sequence[Point]) -> SafeString:
    """Draw stacked bars: how many jobs completed, failed and were cancelled."""
    busiest = max(points, key=_rate)
    highest = _rate(busiest)
    top = _round_up(max(highest, 2 / busiest.minutes))
    peak = _("The busiest time was %(time)s: %(rate)s a minute.") % {
        "time": _clock(busiest),
        "rate": _amount(highest),
    }
    return _draw(
        points,
        kind="jobs",
        desc=f"{_counts_text(points)} {peak}" if highest else "",
        tips=[_tip(point) for point in points],
        ticks=[
            Tick(_number(BOTTOM - (BOTTOM - TOP) * part), _amount(top * part))
            for part in (0.0, 0.5, 1.0)
        ],
        bars=list(_bars(points, top)),
        legend=[
            LegendItem.at(place, BY_LETTER[letter].word, BY_LETTER[letter].label)
            for place, letter in enumerate(FINISHED)
        ],
    )


def seconds(points: Sequence[Point]) -> SafeString:
    """Draw lines on a logarithmic axis: median and 95th percentile of waiting and run times."""
    scale = _scale(points)
    longest = _longest_text(points)
    return _draw(
        points,
        kind="seconds",
        desc=f"{_('The longest times:')} {longest}" if longest else "",
        tips=[_longest_text([point]) for point in points],
        ticks=[
            Tick(_number(scale.height(tick)), duration(tick))
            for tick in SECONDS_TICKS
            if scale.low <= tick <= scale.high
        ],
        lines=[Line(name.replace("_", "-"), _path(points, name, scale)) for name in LINES],
    )


def duration(time: float) -> str:
    """Return seconds in a readable unit."""
    unit = next((unit for unit in UNITS if time >= unit.seconds), UNITS[-1])
    return unit.text % _amount(time / unit.seconds)


def _draw(
    points: Sequence[Point], *, kind: str, desc: str, tips: list[str], **shapes: object
) -> SafeString:
    period = "hour" if points[0].minutes == 1 else "day"
    heading = HEADINGS[kind, period]
    context = {
        "id": f"peasy-chart-{kind}-{period}",
        "title": heading.title,
        "desc": desc or heading.when_empty,
        "empty": not desc,
        "moments": _moments(points),
        "columns": [Column(_number(_x(points, n)), tip) for n, tip in enumerate(tips) if tip],
        "width": _number(_x(points, 1) - LEFT),
        **shapes,
    }
    return render_to_string("peasy_jobs/_chart.html", context)


def _moments(points: Sequence[Point]) -> list[Moment]:
    last = len(points) - 1
    places = {0: "start", last // 2: "middle", last: "end"}
    return [
        Moment(_number(_x(points, place + 0.5)), anchor, _clock(points[place]))
        for place, anchor in places.items()
    ]


def _bars(points: Sequence[Point], top: float) -> Iterator[Bar]:
    width = _x(points, 1) - LEFT - BAR_GAP
    for place, point in enumerate(points):
        x, y = _x(points, place) + BAR_GAP / 2, BOTTOM
        for name, count in _counts([point]).items():
            if count:
                height = max(SMALLEST_BAR, (BOTTOM - TOP) * count / point.minutes / top)
                y -= height
                yield Bar(name, _number(x), _number(y), _number(width), _number(height))


def _scale(points: Sequence[Point]) -> Scale:
    times = [getattr(point, name) for point in points for name in LINES]
    known = [time for time in times if time is not None] or [SECONDS_TICKS[0]]
    low = max((tick for tick in SECONDS_TICKS[:-1] if tick <= min(known)), default=SECONDS_TICKS[0])
    needed = max(*known, low * 5)
    high = min((tick for tick in SECONDS_TICKS if tick >= needed), default=SECONDS_TICKS[-1])
    return Scale(low, high)


def _path(points: Sequence[Point], name: str, scale: Scale) -> str:
    """Return the path of a line, with a gap where nothing is known."""
    times = [getattr(point, name) for point in points]
    path, is_drawing = "", False
    for place, time in enumerate(times):
        if time is None:
            is_drawing = False
            continue
        x, y = _x(points, place + 0.5), _number(scale.height(time))
        has_next = place + 1 < len(times) and times[place + 1] is not None
        if is_drawing:
            path += f"L{_number(x)},{y}"
        elif has_next:
            path += f"M{_number(x)},{y}"
        else:  # a point alone: a stroke, or two dots if the line is dashed
            path += f"M{_number(x - HALF_DOT)},{y}h5"
        is_drawing = True
    return path


def _x(points: Sequence[Point], place: float) -> float:
    return LEFT + (RIGHT - LEFT) * place / len(points)


def _round_up(value: float) -> float:
    """Return the next number that is readable, and whose half is readable too."""
    power = 10.0 ** floor(log10(value))
    return next((power * digit for digit in (1, 2, 4, 6) if power * digit >= value), power * 10)


def _tip(point: Point) -> str:
    return f"{_clock(point)}: {_counts_text([point])}" if _rate(point) else ""


def _counts_text(points: Sequence[Point]) -> str:
    counts = _counts(points)
    text = _(
        "Jobs ended: %(total)s "
        "(%(completed)s completed, %(failed)s failed, %(cancelled)s cancelled)."
    )
    amounts = {name: _amount(count) for name, count in counts.items()}
    return text % {"total": _amount(sum(counts.values())), **amounts}


def _longest_text(points: Sequence[Point]) -> str:
    """Return when jobs waited and ran the longest; empty if none did."""
    waited = _("At %(time)s half of the jobs waited up to %(median)s, 95%% up to %(p95)s.")
    run = _("At %(time)s half of the jobs ran up to %(median)s, 95%% up to %(p95)s.")
    sentences = []
    for kind, text in (("waited", waited), ("run", run)):
        known = [point for point in points if getattr(point, f"{kind}_p95") is not None]
        if known:
            worst = max(known, key=lambda point: getattr(point, f"{kind}_p95"))
            median, p95 = getattr(worst, f"{kind}_median"), getattr(worst, f"{kind}_p95")
            times = {"time": _clock(worst), "median": duration(median), "p95": duration(p95)}
            sentences.append(text % times)
    return " ".join(sentences)


def _counts(points: Sequence[Point]) -> dict[str, int]:
    return {name: sum(getattr(point, name) for point in points) for name in ENDED.values()}


def _rate(point: Point) -> float:
    return sum(_counts([point]).values()) / point.minutes


def _clock(point: Point) -> str:
    return time_format(localtime(point.start) if is_aware(point.start) else point.start)


def _amount(value: float) -> str:
    readable = Decimal(f"{value:.2g}") if value < 10 else round(value)
    return number_format(readable, force_grouping=True)


def _number(value: float) -> str:
    return f"{value:.1f}"  # an SVG attribute must not depend on the language
