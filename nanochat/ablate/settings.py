"""The flags of scripts.ablate and scripts.scaling. Imports nothing heavy."""

from dataclasses import dataclass, field

import tyro

from nanochat.common.errors import UserError

OFF = -1


@dataclass(frozen=True)
class AblateSettings:
    """Try changes to how a model is trained: each at every depth and seed of a grid, against the baseline, at equal tokens.

    The grid is a small TOML file: `depths = [4, 6]`, `seeds = 3`, a table `[baseline]` of flags of base_train that all runs have, and for
    each change a table `[changes.NAME]` of those that it has besides. ablations/example.toml is one for two cores and some minutes. Runs
    that are done are not done again: the same command goes on. What came of them is in ablations/NAME/ under the base directory:
    results.jsonl, table.md and a picture of the curves for each depth.

    A change is worth keeping when it wins at two depths or more, by more than what the seeds differ, and loses at none; "tokens to its
    end" is where its curve first came down to the baseline's last value, as a share of the baseline's tokens.
    """

    file: tyro.conf.Positional[str]
    """The grid, a TOML file."""
    equal_time: bool = False
    """Besides, each change with as many steps as take the baseline's time, where its steps take another."""
    jobs: int = OFF
    """Runs at the same time; -1 for one a GPU, or one for every two cores of a CPU."""
    record: bool = False
    """Besides, keep the results and their table beside the grid, in results/ and README.md there."""

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        if self.jobs < 1 and self.jobs != OFF:
            raise UserError(f"--jobs={self.jobs}: must be 1 or more, or -1")


@dataclass(frozen=True)
class ScalingSettings:
    """Fit validation loss against parameters and tokens: over published runs, and over the baselines of your own grids.

    A grid for it has several depths in `depths`; files of the same text at several lengths are fitted together. Six runs at three
    depths and three lengths are the least. scripts.plan shows what a fit expects of a run.
    """

    files: tyro.conf.Positional[list[str]] = field(default_factory=list)
    """Files of scripts.ablate, results.jsonl, whose baselines are fitted too. Default: published runs alone."""
    record: bool = False
    """Keep the runs and fits in this checkout, where scripts.plan reads them."""
