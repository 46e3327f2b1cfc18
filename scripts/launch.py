"""Start a script on several GPUs, as torchrun does, with an exit status that tells how it went.

python -m scripts.launch --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20
"""

import sys

from nanochat.common.processes import die_with_starter

if __name__ == "__main__":
    die_with_starter()
    if sys.argv[1:] in ([], ["--help"], ["-h"]):
        print((__doc__ or "") + "\nThe flags are torchrun's: torchrun --help lists them.")
        sys.exit(0 if sys.argv[1:] else 2)
    from nanochat.parallel.launch import launch

    sys.exit(launch(sys.argv[1:]))
