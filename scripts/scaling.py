"""What loss more parameters and more tokens buy.

python -m scripts.scaling
python -m scripts.scaling --record
python -m scripts.scaling ~/.cache/nanochat/ablations/mine/results.jsonl
"""

from nanochat.ablate.settings import ScalingSettings
from nanochat.common.cli import command


def main(settings: ScalingSettings) -> None:
    """Fit, and show what follows."""
    from nanochat.ablate.scaling import scaling

    scaling(settings.files, settings.record)


if __name__ == "__main__":
    command(ScalingSettings, main, __doc__)
