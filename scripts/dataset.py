"""Get text: python -m scripts.dataset --data climbmix --num_shards 8"""

from nanochat.common.cli import command
from nanochat.data.make_text import DatasetSettings, make_text

if __name__ == "__main__":
    command(DatasetSettings, make_text)
