"""Whether two revisions or two settings train alike.

python -m scripts.compare_loss HEAD~1 .         # what is not committed yet
python -m scripts.compare_loss . ". --precision=bf16" --tolerance=0.05
"""

from nanochat.common.cli import command
from nanochat.train.compare_loss import CompareSettings, compare_loss

if __name__ == "__main__":
    command(CompareSettings, compare_loss, __doc__)
