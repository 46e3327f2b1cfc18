"""Copy a run off its node, or bring it back.

python -m scripts.mirror --model_tag d38 --checkpoint_mirror s3://BUCKET/PATH
python -m scripts.mirror --model_tag d38 --fetch    # from CHECKPOINT_MIRROR
"""

from nanochat.common.cli import command
from nanochat.train.mirror_command import MirrorSettings, mirror

if __name__ == "__main__":
    command(MirrorSettings, mirror, __doc__)
