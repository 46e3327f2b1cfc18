"""The pictures of a report."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nanochat.common.console import warn
from nanochat.common.files import atomic_path
from nanochat.report.run_files import StageFiles

COLOURS = {"base": "#0072B2", "mid": "#E69F00", "sft": "#009E73", "rl": "#CC79A7", "dpo": "#56B4E9"}  # Okabe and Ito's, for every eye
WIDTH, HEIGHT, DPI = 7.0, 4.0, 120
SMOOTH = 0.02  # share of a run that the bold line is the mean of

Line = tuple[str, list[float], list[float]]


def draw_all(stages: list[StageFiles], directory: Path) -> list[tuple[str, str]]:
    """Draw what there are figures for, as PNG in a directory; returns file names and captions."""
    made = []
    for name, caption, draw in (
        ("loss_tokens", "Loss against tokens", _loss("tokens", 1e6, "training tokens (millions)")),
        ("loss_hours", "Loss against time", _loss("elapsed_s", 3600, "time (hours)")),
        ("learning_rate", "Learning rate", _steps("lr_scale", "learning rate, share of its peak")),
        ("mfu", "Model FLOPs utilisation", _steps("mfu", "MFU (%)", 100)),
        ("memory", "Peak memory", _steps("mem_gib", "peak memory (GiB)")),
        ("speed", "Speed", _steps("tok_per_sec", "tokens a second")),
        ("scores", "Scores by stage, with 95 % intervals", _scores),
    ):
        try:
            figure = draw(stages)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            warn(f"the picture {name} could not be drawn: a file of the run is damaged ({error!r})")
            continue
        if figure is None:
            continue
        with atomic_path(directory / f"{name}.png") as aside:
            figure.savefig(aside, format="png", dpi=DPI)
        made.append((f"{name}.png", caption))
    return made


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _mean(values: list[float]) -> list[float]:
    """Each value's mean with those before it, over a window that is a share of all."""
    window = max(1, round(SMOOTH * len(values)))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[i + 1] - sums[max(0, i + 1 - window)]) / min(window, i + 1) for i in range(len(values))]


def _loss(key: str, unit: float, label: str) -> Callable[[list[StageFiles]], Any]:
    def draw(stages: list[StageFiles]) -> Any:
        figure, axes = _figure()
        drawn = False
        for stage in stages:
            points = [(row[key] / unit, value) for row, value in stage.series("loss") if key in row]
            if stage.name in ("rl", "dpo") or len(points) < 2:
                continue  # their loss is another quantity
            drawn = True
            x, y = [at for at, _ in points], [value for _, value in points]
            axes.plot(x, y, color=COLOURS[stage.name], alpha=0.25, linewidth=0.8)
            axes.plot(x, _mean(y), color=COLOURS[stage.name], linewidth=1.8, label=stage.name)
        axes.set_xlabel(label)
        axes.set_ylabel("training loss (nats per target token)")
        if drawn:
            axes.legend()
        return figure if drawn else None

    return draw


def _steps(key: str, label: str, scale: float = 1.0) -> Callable[[list[StageFiles]], Any]:
    def draw(stages: list[StageFiles]) -> Any:
        figure, axes = _figure()
        start, drawn = 0, False
        for stage in stages:
            points = stage.series(key)
            if len(points) > 1:
                drawn = True
                x = [start + row["step"] for row, _ in points]
                axes.plot(x, [scale * value for _, value in points], color=COLOURS[stage.name], linewidth=1.5, label=stage.name)
            start += stage.steps[-1]["step"] if stage.steps else 0
        axes.set_xlabel("step, over all stages")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        if drawn:
            axes.legend()
        return figure if drawn else None

    return draw


def _scores(stages: list[StageFiles]) -> Any:
    asked = {stage.name: stage.chat["tasks"] for stage in stages if isinstance(stage.chat.get("tasks"), dict)}
    tasks = list(dict.fromkeys(name for results in asked.values() for name in results))
    if not tasks:
        return None
    figure, axes = _figure()
    figure.set_figwidth(max(WIDTH, 1.1 * len(tasks)))
    width = 0.8 / len(asked)
    for place, (stage, results) in enumerate(asked.items()):
        shown = [(i, results[name]) for i, name in enumerate(tasks) if name in results]
        x = [i + (place - (len(asked) - 1) / 2) * width for i, _ in shown]
        y = [100 * one["accuracy"] for _, one in shown]
        spread = [
            [max(0.0, 100 * (one["accuracy"] - one["low"])) for _, one in shown],
            [100 * (one["high"] - one["accuracy"]) for _, one in shown],
        ]
        axes.bar(x, y, width, yerr=spread, capsize=2, color=COLOURS[stage], label=stage, error_kw={"linewidth": 0.8})
    axes.set_xticks(range(len(tasks)), tasks, rotation=20, ha="right")
    axes.set_ylabel("accuracy (%)")
    axes.set_ylim(0, 105)
    axes.legend(ncols=len(asked), loc="upper center", bbox_to_anchor=(0.5, 1.14), frameon=False)
    return figure
