"""The one error that is meant for the person at the keyboard."""


class UserError(Exception):
    """A request that cannot be met: its message says what was wrong, the value seen and what to do.

    Commands print it as one line and exit with status 2; any other exception is a bug and keeps its traceback.
    """


class Stopped(Exception):
    """The run was asked to stop and has saved its state: commands exit with status 75 (the same command goes on)."""
