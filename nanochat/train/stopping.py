"""Being asked to stop: a first signal lets the step finish and save, a second one leaves at once."""

import os
import signal
import socket
import threading
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
SAME_S = 1.0  # a cluster signals a launcher and its workers, and the launcher its workers again: that is one request


class StopRequest:
    """Whether SIGTERM, SIGINT, SIGHUP (the terminal is gone) or SIGUSR1 (a cluster's notice) has come.

    Signals are answered in a thread, so that the second one is heard while the main thread waits for other ranks.
    """

    def __init__(self) -> None:
        """Called from the main thread."""
        self.signal_name = ""
        self._first_s = 0.0
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        self._heard, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        self._before = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        self._wakeup = wakeup
        threading.Thread(target=self._listen, daemon=True, name="signals").start()

    @property
    def asked(self) -> bool:
        """Whether this process was asked to stop."""
        return bool(self.signal_name)

    def close(self) -> None:
        """Listen no more; signals then end this process."""
        signal.set_wakeup_fd(self._before)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        self._wakeup.close()

    def _listen(self) -> None:
        while numbers := self._heard.recv(64):
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if not self.asked:
                    self._first_s = time.monotonic()
                    self.signal_name = signal.Signals(number).name
                elif time.monotonic() - self._first_s > SAME_S:
                    os._exit(128 + number)
        self._heard.close()
