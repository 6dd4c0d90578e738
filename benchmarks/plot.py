"""Draw the throughput and latency of each system at its best setting as bars in an SVG."""

import statistics
from dataclasses import dataclass
from html import escape

from benchmarks import databases
from benchmarks.cells import RAW, Cell
from benchmarks.report import best, number
from benchmarks.systems import OURS

WIDTH, LABEL, FIGURE, BAR, LINE, GAP, EDGE = 760, 170, 190, 14, 22, 46, 16  # pixels
# Its own background: the page may be light where the reader's system is dark.
STYLE = """
.ground { fill: #ffffff }
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.head { font-weight: 600 } .unit, .setting { fill: #59636e } .setting { font-size: 11px }
.bar { fill: #8c959f } .ours { fill: #0969da } .range { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  .ground { fill: #0d1117 }
  text { fill: #f0f6fc } .unit, .setting { fill: #9198a1 }
  .bar { fill: #656c76 } .ours { fill: #4493f8 } .range { stroke: #f0f6fc }
}
"""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    figure: str
    cells: list[Cell]  # best first


def panels(cells: list[Cell]) -> list[Panel]:
    found = []
    for part, figure, unit in (
        ("throughput", "jobs/s", "no-op jobs per second, higher is better"),
        ("latency", "p50 ms", "median wait of a single job in milliseconds, lower is better"),
    ):
        for database in dict.fromkeys(cell.database for cell in cells):
            mine = [
                cell
                for cell in cells
                if (cell.part, cell.database) == (part, database) and cell.system is not RAW
            ]
            names = dict.fromkeys(cell.system.name for cell in mine)
            tops = [
                best([cell for cell in mine if cell.system.name == name], figure) for name in names
            ]
            measured = [cell for cell in tops if cell]
            measured.sort(
                key=lambda cell: statistics.median(cell.figures[figure]),
                reverse=figure.endswith("/s"),
            )
            if measured:
                found.append(Panel(databases.NAMES[database], unit, figure, measured))
    return found


def svg(drawn: list[Panel]) -> str:
    lines, top = [], 0
    for panel in drawn:
        # All panels of a figure share one scale, so that their bars can be compared.
        like = [cell for other in drawn if other.figure == panel.figure for cell in other.cells]
        lines += _panel(panel, top, max(max(cell.figures[panel.figure]) for cell in like) or 1)
        top += GAP + LINE * len(panel.cells)
    width, height = WIDTH + 2 * EDGE, top + 8 + EDGE
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{-EDGE} 0 {width} {height}"'
        f' width="{width}" role="img"'
    )
    ground = f'<rect class="ground" x="{-EDGE}" width="{width}" height="{height}" rx="6"/>'
    parts = [
        f'{head} aria-label="{escape(_told(drawn))}">',
        f"<style>{STYLE}</style>",
        ground,
        *lines,
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _told(drawn: list[Panel]) -> str:
    """Return the figures in words."""
    return " ".join(
        f"{panel.title}, {panel.unit}: "
        + ", ".join(
            f"{cell.system.title} {number(statistics.median(cell.figures[panel.figure]))}"
            for cell in panel.cells
        )
        + "."
        for panel in drawn
    )


def _panel(panel: Panel, top: int, most: float) -> list[str]:
    room = WIDTH - LABEL - FIGURE
    lines = [
        f'<text class="head" x="0" y="{top + 30}">{escape(panel.title)} '
        f'<tspan class="unit" font-weight="400">{escape(panel.unit)}</tspan></text>'
    ]
    for place, cell in enumerate(panel.cells):
        values, y = cell.figures[panel.figure], top + GAP - 6 + LINE * place
        low, middle, high = (
            room * value / most for value in (min(values), statistics.median(values), max(values))
        )
        kind = "bar ours" if cell.system.name == OURS else "bar"
        lines += [
            f'<text x="{LABEL - 8}" y="{y + 12}" text-anchor="end">'
            f"{escape(cell.system.title)}</text>",
            f'<rect class="{kind}" x="{LABEL}" y="{y}"'
            f' width="{max(middle, 1):.1f}" height="{BAR}"/>',
            f'<path class="range" d="M{LABEL + low:.1f} {y + BAR / 2}H{LABEL + high:.1f}"/>',
            f'<text x="{LABEL + max(high, middle) + 6:.1f}" y="{y + 12}">'
            f"{number(statistics.median(values))} "
            f'<tspan class="setting">{escape(cell.setting)}</tspan></text>',
        ]
    return lines
