"""What loss more parameters and more tokens buy: `python -m scripts.scaling`."""

from dataclasses import dataclass, field

import tyro

from nanochat.common.cli import command


@dataclass(frozen=True)
class ScalingSettings:
    """Fit validation loss against parameters and tokens: over published runs, and over the baselines of your own grids.

    A grid for it has several depths in `depths`; files of the same text at several lengths are fitted together. Six runs at three
    depths and three lengths are the least. scripts.plan shows what a fit expects of a run.
    """

    files: tyro.conf.Positional[list[str]] = field(default_factory=list)
    """results.jsonl files of scripts.ablate."""
    record: bool = False
    """Keep runs and fits in this checkout, where scripts.plan reads them."""


def main(settings: ScalingSettings) -> None:
    """Fit, and show what follows."""
    from nanochat.ablate.scaling import scaling

    scaling(settings.files, settings.record)


if __name__ == "__main__":
    command(ScalingSettings, main)
