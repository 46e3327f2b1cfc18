"""Start a script on several GPUs, as torchrun does, with an exit status that tells how it went.

python -m scripts.launch --standalone --nproc_per_node=8 \\
    -m scripts.base_train -- --depth=20
# the second of two nodes
python -m scripts.launch --nnodes=2 --node_rank=1 --master_addr=10.0.0.1 \\
    --nproc_per_node=8 -m scripts.base_train -- --depth=38
"""

import sys

from nanochat.common.cli import examples_of, fail
from nanochat.common.processes import die_with_starter

ABOUT = """Start a script on several GPUs, as torchrun does, with an exit status that tells how it went.

A signal is handed on to every rank, which finishes its step and saves. It ends with 0 when all ranks are done, 75 when they were asked to
stop, 2 for a wrong request, else 1."""

FLAGS = {
    "What is started": [
        ("-m scripts.NAME", "The script that every rank runs. Required."),
        ("-- FLAGS", "The script's own flags, after a blank and two hyphens. Default: none."),
    ],
    "This node": [
        ("--nproc_per_node INT", "Processes on this node, one a GPU; gpu for as many as there are. Default: 1."),
        ("--standalone", "The job is this node's alone, at a port that is free. Default: off."),
    ],
    "Several nodes": [
        ("--nnodes INT", "Machines that train together. Default: 1."),
        ("--node_rank INT", "Which of them this is: 0 for the first, 1 for the next. Default: 0."),
        ("--master_addr TEXT", "Name or address of the first one, where all of them meet. Default: 127.0.0.1."),
        ("--master_port INT", "Port there that is free. Default: 29500."),
    ],
}
NOTE = "All other flags of torchrun are taken too: torchrun --help lists them."

if __name__ == "__main__":
    die_with_starter()
    if sys.argv[1:] in (["--help"], ["-h"]):
        from nanochat.common.help import page

        print(page("python -m scripts.launch [--help] [FLAGS] -m scripts.NAME -- [FLAGS]", ABOUT, FLAGS, examples_of(__doc__), NOTE))
        sys.exit(0)
    if not sys.argv[1:]:
        fail("nothing to start: give -m scripts.NAME (--help lists the flags)")
    from nanochat.parallel.launch import launch

    sys.exit(launch(sys.argv[1:]))
