"""The picture of a grid: validation bits per byte against tokens, a line for each change."""

from pathlib import Path

from nanochat.ablate.grid import BASELINE
from nanochat.ablate.results import Result
from nanochat.common.files import atomic_path

WIDTH, HEIGHT, DPI = 7.0, 4.5, 120
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")  # Okabe and Ito's, for every eye
STYLES = ("-", "--", ":", "-.")
FROM = 0.25
"""Share of the tokens that the picture begins at: before, all fall alike."""


def draw(results: list[Result], depth: int, path: Path) -> Path:
    """Draw the runs of one depth as PNG; each change is the mean of its seeds, with all that they span."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    by_change: dict[str, list[Result]] = {BASELINE: []}
    for result in results:
        if result.depth == depth and result.equal == "tokens":
            by_change.setdefault(result.change, []).append(result)
    for number, (change, runs) in enumerate((change, runs) for change, runs in by_change.items() if runs):
        tokens = [point[0] / 1e6 for point in runs[0].curve]
        values = [[point[2] for point in run.curve] for run in runs if [point[0] for point in run.curve] == [1e6 * each for each in tokens]]
        first = next((at for at, value in enumerate(tokens) if value >= FROM * tokens[-1]), 0)
        columns = list(zip(*values, strict=True))[first:]
        colour = "black" if change == BASELINE else COLOURS[(number - 1) % len(COLOURS)]
        style = STYLES[(number - 1) // len(COLOURS) % len(STYLES)]
        axes.plot(tokens[first:], [sum(column) / len(column) for column in columns], style, color=colour, label=change)
        axes.fill_between(
            tokens[first:], [min(column) for column in columns], [max(column) for column in columns], color=colour, alpha=0.15
        )
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("validation bits per byte")
    axes.set_title(f"depth {depth}")
    axes.legend(fontsize=8)
    with atomic_path(path) as aside:
        figure.savefig(aside, format="png", dpi=DPI)
    return path
