"""Get text.

python -m scripts.dataset --data python --num_shards 3
python -m scripts.dataset --data fineweb-edu --num_shards 8
python -m scripts.dataset --data path:my_texts
"""

from nanochat.common.cli import command
from nanochat.data.make_text import DatasetSettings, make_text

if __name__ == "__main__":
    command(DatasetSettings, make_text, __doc__)
