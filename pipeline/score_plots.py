"""The two plots of a filter as PNG: junk removed against keepers lost, and labels against what the filter does."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

_WIDTH_IN, _HEIGHT_IN, _DPI = 6.0, 4.0, 120
_INK, _ACCENT, _SOFT = "#1f2933", "#0b6e99", "#c8d3dc"


def plot_curve(
    points: Sequence[Mapping[str, float]], *, fnr: float, junk_removed: float, max_fnr: float, path: Path
) -> None:
    """Draw the share of junk removed over the share of keepers lost, the threshold marked."""
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.step([100 * p["fnr"] for p in points], [100 * p["junk_removed"] for p in points], where="post", color=_ACCENT)
    axes.axvline(100 * max_fnr, color=_SOFT, linestyle="--", label=f"wanted: at most {100 * max_fnr:g} %")
    said = f"threshold: {100 * junk_removed:.1f} % of junk removed"
    axes.plot([100 * fnr], [100 * junk_removed], "o", color=_INK, label=said)
    # Beyond a few times the wanted rate no filter is wanted.
    axes.set(xlim=(-0.2 * 100 * max_fnr, 800 * max_fnr), ylim=(0, 102))
    axes.set(xlabel="keepers dropped, out of fold (%)", ylabel="junk removed (%)")
    axes.grid(color=_SOFT, linewidth=0.5)
    axes.legend(loc="lower right", frameon=False)
    _save(figure, path)


def plot_confusion(confusion: Mapping[str, int], path: Path) -> None:
    """Draw the four counts of labels against the filter, each with its share of the label."""
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    counts = [[confusion[f"{label}_{done}"] for done in ("kept", "dropped")] for label in ("keep", "junk")]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.6 else _INK
            axes.text(j, i, f"{count:,}\n{100 * shares[i][j]:.1f} %", ha="center", va="center", color=colour)
    axes.set_xticks([0, 1], ["kept", "dropped"])
    axes.set_yticks([0, 1], ["keep", "junk"])
    axes.set(xlabel="what the filter does, out of fold", ylabel="label")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", metadata={"Software": None})
