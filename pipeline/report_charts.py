"""Draw the charts of a report: for phones, for wider pages, and as PNG; text is never under 12 px on any of them."""

import base64
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline.report_blocks import Chart, Drawing

# Okabe and Ito (2008), told apart by colour-blind readers; yellow is left out, being too faint on white.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8A94A3",
)
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, RED)
WIDE_PX, NARROW_PX = 660, 340
_CSS_PX_PER_INCH, _PNG_SCALE = 96, 2
_TITLE_CHARS = {WIDE_PX: 84, NARROW_PX: 42}
_MAX_LABEL_CHARS = 26
# What the axes leave of a chart's width, and what a label takes of it.
_MARGIN_PX, _LABEL_CHAR_PX, _LABEL_GAP_PX = 80, 8, 10
_FONT = "DejaVu Sans"  # comes with matplotlib
_STYLE: dict[Any, Any] = {
    "font.family": _FONT,
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#566070",
    "axes.labelcolor": "#1d2430",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ec",
    "xtick.color": "#1d2430",
    "ytick.color": "#1d2430",
    "text.color": "#1d2430",
    "legend.frameon": False,
    # A price has a dollar sign, and a listing may have two: that is no formula.
    "text.parse_math": False,
    "svg.hashsalt": "forecourt",
    "svg.fonttype": "path",
}


@dataclass(frozen=True, slots=True)
class Pen:
    """Axes to draw on, and how wide the picture is."""

    axes: Axes
    width_px: int

    @property
    def narrow(self) -> bool:
        """Whether this is the picture for phones."""
        return self.width_px == NARROW_PX


def draw_chart(
    name: str,
    title: str,
    draw: Callable[[Pen], None],
    *,
    alt: str,
    caption: str = "",
    height_px: int = 300,
    narrow_height_px: int | None = None,
    small: bool = False,
) -> Chart:
    """Draw a chart in all its forms; a small one has the width of a phone everywhere."""
    narrow = _svg(title, draw, NARROW_PX, narrow_height_px or height_px)
    wide = None if small else _svg(title, draw, WIDE_PX, height_px)
    png = _png(title, draw, NARROW_PX if small else WIDE_PX, height_px)
    return Chart(name, alt, narrow, wide, png, caption)


def columns(pen: Pen, labels: Sequence[str], counts: Sequence[float], *, colours: Sequence[str] | str = BLUE) -> None:
    """Draw upright bars at 0, 1, 2, ... with as many labels as there is room for."""
    places = range(len(labels))
    pen.axes.bar(places, counts, width=0.86, color=colours)
    every = _labelled_every(labels, pen.width_px - _MARGIN_PX)
    pen.axes.set_xticks(places[::every], [legible(label) for label in labels[::every]])
    _count_axis(pen.axes, vertical=True)


def rank_chart(
    name: str,
    title: str,
    ranked: Sequence[tuple[str, float, str]],
    *,
    unit: str,
    alt: str,
    caption: str = "",
    small: bool = False,
    last_colour: str = BLUE,
) -> Chart:
    """Draw lying bars of (label, count, note at its end), the first on top; on a phone a label stands above its bar."""
    labels, counts, notes = ([row[index] for row in ranked] for index in range(3))

    def draw(pen: Pen) -> None:
        above = pen.narrow and not small
        _ranks(pen, [str(label) for label in labels], [float(n) for n in counts], [str(n) for n in notes], above=above)
        pen.axes.patches[-1].set_color(last_colour)
        pen.axes.set_xlabel(unit)

    height_px, narrow_px = 92 + 24 * len(ranked), 92 + (24 if small else 40) * len(ranked)
    return draw_chart(
        name, title, draw, alt=alt, caption=caption, height_px=height_px, narrow_height_px=narrow_px, small=small
    )


def _ranks(pen: Pen, labels: Sequence[str], counts: Sequence[float], notes: Sequence[str], *, above: bool) -> None:
    places = range(len(labels))
    shown = [legible(label) for label in labels]
    pen.axes.barh(places, counts, height=0.42 if above else 0.72, color=BLUE)
    pen.axes.set_yticks(places, [""] * len(shown) if above else shown)
    if above:
        pen.axes.tick_params(axis="y", length=0)
        for place, label in zip(places, shown, strict=True):
            pen.axes.annotate(label, (0, place - 0.3), xytext=(2, 0), textcoords="offset points", va="bottom")
    pen.axes.set_ylim(len(labels) - 0.5, -0.9 if above else -0.5)
    taken_px = _MARGIN_PX if above else _MARGIN_PX + max(map(len, shown)) * _LABEL_CHAR_PX
    note_px = max(map(len, notes)) * _LABEL_CHAR_PX
    pen.axes.set_xlim(0, max([*counts, 1e-9]) / max(0.25, 1 - note_px / (pen.width_px - taken_px)))
    for place, count, note in zip(places, counts, notes, strict=True):
        pen.axes.annotate(_in_font(note), (count, place), xytext=(4, 0), textcoords="offset points", va="center")
    _count_axis(pen.axes, vertical=False)
    pen.axes.xaxis.set_major_locator(MaxNLocator(3 if pen.narrow else 5, integer=max(counts) > 2))


def groups(pen: Pen, labels: Sequence[str], series: Mapping[str, Sequence[float]]) -> None:
    """Draw bars of several series side by side, with a legend above."""
    width = _group_bar_width(series)
    for index, (name, values) in enumerate(series.items()):
        places = [place + _offset(index, series) for place in range(len(labels))]
        pen.axes.bar(places, values, width=width * 0.94, label=legible(name), color=SERIES[index % len(SERIES)])
    every = _labelled_every(labels, pen.width_px - _MARGIN_PX)
    pen.axes.set_xticks(range(0, len(labels), every), [legible(label) for label in labels[::every]])
    pen.axes.set_ylim(bottom=0)
    pen.axes.grid(visible=False, axis="x")
    legend_above(pen, len(series))


def label_bars(pen: Pen, series: Mapping[str, Sequence[float]]) -> None:
    """Write each bar's value, in whole numbers, over the bars of `groups`."""
    for index, values in enumerate(series.values()):
        for place, value in enumerate(values):
            over = (place + _offset(index, series), value)
            pen.axes.annotate(f"{value:.0f}", over, xytext=(0, 2), textcoords="offset points", ha="center")


def _group_bar_width(series: Mapping[str, Sequence[float]]) -> float:
    return 0.84 / max(1, len(series))


def _offset(index: int, series: Mapping[str, Sequence[float]]) -> float:
    return (index - (len(series) - 1) / 2) * _group_bar_width(series)


def legend_above(pen: Pen, entries: int) -> None:
    """Put the legend over the axes, where it hides nothing."""
    pen.axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=1 if pen.narrow and entries > 2 else max(1, entries),
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.2,
    )


def legible(text: str) -> str:
    """Cut a label to what a chart has room for, in characters that its font has."""
    kept = _in_font(text)
    return kept if len(kept) <= _MAX_LABEL_CHARS else f"{kept[: _MAX_LABEL_CHARS - 3]}..."


def _in_font(text: str) -> str:
    known = get_font(findfont(FontProperties(family=_FONT))).get_charmap()
    return "".join(c if ord(c) in known and c.isprintable() else "?" for c in text)


def thousands(value: float, _position: int | None = None) -> str:
    """Write a count on an axis."""
    if abs(value) >= 1_000_000:
        return f"{value / 1_000_000:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:,.0f}"


def _labelled_every(labels: Sequence[str], width_px: int) -> int:
    """Return the smallest step from label to label that leaves none on another, at the last if it can be."""
    longest_px = max((len(legible(label)) for label in labels), default=0) * _LABEL_CHAR_PX + _LABEL_GAP_PX
    least = max(1, -(-len(labels) * longest_px // width_px))
    ends_well = [step for step in range(least, least + 4) if (len(labels) - 1) % step == 0]
    return ends_well[0] if ends_well else least


def _count_axis(axes: Axes, *, vertical: bool) -> None:
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_major_locator(MaxNLocator(5, integer=True))
    axis.set_major_formatter(FuncFormatter(thousands))
    axes.grid(visible=False, axis="x" if vertical else "y")


def _figure(title: str, draw: Callable[[Pen], None], width_px: int, height_px: int) -> Figure:
    figure = Figure(figsize=(width_px / _CSS_PX_PER_INCH, height_px / _CSS_PX_PER_INCH), layout="constrained")
    wrapped = textwrap.fill(_in_font(title), _TITLE_CHARS[width_px])
    figure.suptitle(wrapped, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    draw(Pen(figure.subplots(), width_px))
    return figure


def _svg(title: str, draw: Callable[[Pen], None], width_px: int, height_px: int) -> Drawing:
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        _figure(title, draw, width_px, height_px).savefig(file, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(file.getvalue()).decode("ascii")
    return Drawing(f"data:image/svg+xml;base64,{encoded}", width_px, height_px)


def _png(title: str, draw: Callable[[Pen], None], width_px: int, height_px: int) -> bytes:
    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = _figure(title, draw, width_px, height_px)
        dpi = _CSS_PX_PER_INCH * _PNG_SCALE
        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()
