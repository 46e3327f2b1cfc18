"""torchrun with the house's exit status: how its ranks ended is how it ends."""

import logging
import os
import re
import signal
import sys

from torch.distributed import DistError, run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from nanochat.common.cli import EXIT_STOPPED, EXIT_WRONG_REQUEST
from nanochat.common.processes import DIES_WITH

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
SHUTDOWN_S, WITH_MIRROR_S = "600", "4200"
ASKED_TO_STOP = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, -signal.SIGUSR1)


def launch(arguments: list[str]) -> int:
    """Run torchrun's arguments; returns 0 when all ranks are done, 75 when they were asked to stop, 2 for a wrong request, else 1.

    A signal is handed on to the ranks, which have ten minutes to finish a step and save, and an hour more to give it to a mirror; a
    second one ends them.
    """
    mirrored = bool(os.environ.get("CHECKPOINT_MIRROR")) or any(re.match("--checkpoint[_-]mirror", word) for word in arguments)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", WITH_MIRROR_S if mirrored else SHUTDOWN_S)
    os.environ[DIES_WITH] = str(os.getpid())
    for name in ("torch.distributed.elastic", "torch.distributed.run"):  # what they say, a line here says
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.raiseExceptions = False  # nor of a signal that comes while they say it
    try:
        run.run(run.parse_args([f"--signals_to_handle={SIGNALS}", *arguments]))
    except SignalException:
        return EXIT_STOPPED
    except ChildFailedError as error:
        codes = {each.exitcode for each in error.failures.values()}
        killed = [item for item in error.failures.items() if item[1].exitcode < 0 and item[1].exitcode not in ASKED_TO_STOP]
        rank, failure = killed[0] if killed else error.get_first_failure()  # one that is killed takes others with it
        if EXIT_STOPPED in codes or failure.exitcode in ASKED_TO_STOP:
            return EXIT_STOPPED
        if failure.exitcode == EXIT_WRONG_REQUEST:
            return EXIT_WRONG_REQUEST
        how = f"ended with status {failure.exitcode}"
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            how = f"was killed by {name}" + (" (the kernel does so when memory runs out: see dmesg)" if name == "SIGKILL" else "")
        print(f"error: rank {rank} {how}, and with it the job", file=sys.stderr, flush=True)
        return 1
    except DistError as error:
        why = str(error).splitlines()[0]
        if "EADDRINUSE" in why:
            why = f"their port is taken, end what listens there (ss -ltnp) or set MASTER_PORT on every node: {why}"
        print(f"error: the nodes could not meet: {why}", file=sys.stderr, flush=True)
        return 1
    return 0
