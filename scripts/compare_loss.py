"""Whether two revisions or two settings train alike: `python -m scripts.compare_loss HEAD~1 HEAD`."""

from nanochat.common.cli import command
from nanochat.train.compare_loss import CompareSettings, compare_loss

if __name__ == "__main__":
    command(CompareSettings, compare_loss)
