"""The command line, made from a settings dataclass; and the exit status that tells scripts how it went."""

import contextlib
import errno
import inspect
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from nanochat.common.errors import Stopped, UserError
from nanochat.common.files import full_disk
from nanochat.common.processes import die_with_starter
from nanochat.common.secrets import hide, hide_in_output, remember_arguments, remember_secrets

EXIT_WRONG_REQUEST = 2
EXIT_STOPPED = 75
ALONE_AFTER_S = 5.0  # torchrun ends the others well within this time when one rank ends

S = TypeVar("S")


def command(settings_class: type[S], function: Callable[[S], None], doc: str | None = None) -> NoReturn:
    """Parse the command line into `settings_class`, call `function` with it and leave with the house's exit status.

    `doc` is the docstring of the script: after its first paragraph stand examples, which end the page that `--help` prints.
    0 done, 2 a wrong request (one line on standard error), 75 stopped after saving, 130 interrupted; a bug keeps its traceback.
    """
    _speak_utf8()
    # Sizes of buffers change with evaluations and checkpoints; segments that grow keep the GPU's allocator from holding torn ones.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    die_with_starter()
    hide_in_output()
    try:
        settings = parse(settings_class, sys.argv[1:], examples_of(doc))
        remember_secrets(vars(settings))
        function(settings)
    except UserError as error:
        fail(str(error))
    except Stopped:
        if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
            os.kill(os.getppid(), signal.SIGTERM)  # torchrun would start the ranks again, which were asked to stop
        sys.exit(EXIT_STOPPED)
    except KeyboardInterrupt:
        if _is_one_of_several():
            leave_alone("", 130)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        _fail_where_full(error)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            fail(f"not allowed{_at(error)} ({error.strerror}): change its permissions, or set NANOCHAT_BASE_DIR to another directory")
        if _is_one_of_several():
            leave_alone(traceback.format_exc(), 1)
        raise
    except Exception as error:
        _fail_where_full(error)
        if _is_one_of_several():
            leave_alone(traceback.format_exc(), 1)
        raise
    sys.exit(0)


def _speak_utf8() -> None:
    """Start again in UTF-8 where the locale knows less: names of files and texts are more than ASCII. Nothing that is printed fails."""
    if sys.getfilesystemencoding().lower() not in ("utf-8", "utf8") and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _fail_where_full(error: BaseException) -> None:
    if full := full_disk(error):
        fail(
            f"the disk is full{_at(full)} ({full.strerror}): make room (what was complete is still there), then give the same command again"
        )


def _is_one_of_several() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def fail(message: str) -> NoReturn:
    """Print one line on standard error and exit with status 2.

    Where several ranks fail alike the first one speaks: its end is the others' too, before they would.
    """
    line = f"error: {' '.join(message.split())}"
    if not _is_one_of_several():
        print(line, file=sys.stderr, flush=True)
        sys.exit(EXIT_WRONG_REQUEST)
    if rank := int(os.environ.get("RANK", "0")):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(ALONE_AFTER_S)
        line = f"error: rank {rank} alone: {line.removeprefix('error: ')}"
    leave_alone(line + "\n", EXIT_WRONG_REQUEST)


def leave_alone(message: str, status: int) -> NoReturn:
    """End this process at once with a message, asking nothing of the other ranks: they may wait for this one in a collective."""
    sys.stdout.flush()
    sys.stderr.write(message)
    sys.stderr.flush()
    os._exit(status)


def _at(error: OSError) -> str:
    place = error.filename2 or error.filename  # of two the second one was written
    return f" at {place}" if place else ""


def examples_of(doc: str | None) -> str:
    """The lines of a script's docstring that are examples: all after the first paragraph."""
    return inspect.cleandoc(doc or "").partition("\n\n")[2]


def parse(settings_class: type[S], args: list[str], examples: str = "") -> S:
    """An instance of a settings dataclass from command-line arguments; both `--a_b` and `--a-b` are taken.

    Raises UserError, with one line, for a flag or a value that is wrong. `-h` or `--help` prints the page of the flags and leaves.
    """
    args = [arg for arg in args if arg != "--"]
    if {"-h", "--help"} & set(args):
        from nanochat.common.help import help_of

        print(help_of(settings_class, _prog(), examples))
        sys.exit(0)
    remember_arguments(args)
    try:
        return _parse(settings_class, args)
    except UserError:
        _parse(settings_class, [hide(arg) for arg in args])  # the same, but in its lines, which break inside of words, is no secret
        raise


def _parse(settings_class: type[S], args: list[str]) -> S:
    import tyro

    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(settings_class, prog=_prog(), args=args, use_underscores=True)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise UserError(_first_paragraph(captured.getvalue()) + " (--help lists the flags)") from None


def _prog() -> str:
    return f"python -m scripts.{Path(sys.argv[0]).stem}"


def _first_paragraph(box: str) -> str:
    """The message inside the box that tyro draws around an error: the lines between the title and the first rule."""
    lines = []
    for line in box.splitlines()[1:]:
        text = line.strip().strip("│").strip()
        if not text or set(text) <= set("─╰╯"):
            break
        lines.append(text)
    return " ".join(lines) or " ".join(box.split())
