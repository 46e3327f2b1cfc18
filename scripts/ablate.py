"""Try changes to how a model is trained against a baseline.

python -m scripts.ablate ablations/example.toml --jobs 2
python -m scripts.ablate ablations/example.toml --equal_time --record
"""

from nanochat.ablate.settings import AblateSettings
from nanochat.common.cli import command


def main(settings: AblateSettings) -> None:
    """Check the request, then do the runs."""
    settings.check()
    from nanochat.ablate.ablate import ablate

    ablate(settings)


if __name__ == "__main__":
    command(AblateSettings, main, __doc__)
