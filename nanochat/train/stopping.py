"""Being asked to stop: a first signal lets the step finish and save, a second one leaves at once."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Whether SIGTERM, SIGINT or SIGHUP (the terminal is gone) has come."""

    def __init__(self) -> None:
        self.signal_name = ""
        for number in SIGNALS:
            signal.signal(number, self._ask)

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(self.signal_name)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
