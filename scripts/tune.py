"""Find out what is fastest on this machine, before a run.

python -m scripts.tune                              # ten minutes
python -m scripts.tune --quick                      # two
python -m scripts.tune --depth=52 --precision=fp8
"""

from nanochat.common.cli import command
from nanochat.tune.settings import TuneSettings


def main(settings: TuneSettings) -> None:
    """Check the request, then tune."""
    settings.check()
    from nanochat.tune.tune import tune

    tune(settings)


if __name__ == "__main__":
    command(TuneSettings, main, __doc__)
