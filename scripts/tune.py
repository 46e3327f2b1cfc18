"""Find out what is fastest on this machine: `python -m scripts.tune`, before a run; `--quick` in two minutes."""

from nanochat.common.cli import command
from nanochat.tune.settings import TuneSettings


def main(settings: TuneSettings) -> None:
    """Check the request, then tune."""
    settings.check()
    from nanochat.tune.tune import tune

    tune(settings)


if __name__ == "__main__":
    command(TuneSettings, main)
