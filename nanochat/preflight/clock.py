"""The clock, against that of the hub: certificates and signed addresses are refused by one that is wrong."""

import ssl
import time
import urllib.error
import urllib.request
from email.utils import parsedate_to_datetime
from pathlib import Path

from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.network import ANSWER_S, host_of
from nanochat.preflight.settings import PreflightSettings

OFF_S, FAR_OFF_S = 60.0, 86_400.0
ADVICE = "set it: timedatectl set-ntp true, or the host's where this is a container"


def check(settings: PreflightSettings) -> list[Finding]:
    """Yellow when it is minutes off, red when it is days off: no certificate is valid then."""
    from huggingface_hub import constants

    files_s = max(path.stat().st_mtime for path in Path(__file__).parent.glob("*.py"))
    if files_s - time.time() > FAR_OFF_S:
        return [Finding("clock", RED, f"{_now()}, which is before this program's files were written", ADVICE)]
    if not settings.wants_hub or constants.HF_HUB_OFFLINE:
        return [Finding("clock", GREEN, f"{_now()}; no server was asked")]
    host = host_of(constants.ENDPOINT)
    try:
        off_s = time.time() - server_time_s(constants.ENDPOINT)
    except (OSError, ValueError, TypeError):  # no answer, or none with a date
        return [Finding("clock", YELLOW, f"{_now()}; {host} did not tell the time", "see that it is right: date")]
    if abs(off_s) < OFF_S:
        return [Finding("clock", GREEN, f"{_now()}, as {host} has it")]
    value = f"{_now()}, {_span(abs(off_s))} {'ahead of' if off_s > 0 else 'behind'} {host}"
    return [Finding("clock", RED if abs(off_s) >= FAR_OFF_S else YELLOW, value, ADVICE)]


def server_time_s(address: str) -> float:
    """Seconds since 1970 by a server's Date header. Raises OSError or ValueError where there is none."""
    # A wrong clock makes every certificate invalid: its time is asked without, and nothing else is sent or believed.
    asked = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(asked, timeout=ANSWER_S, context=ssl._create_unverified_context()) as answer:
            date = answer.headers["Date"]
    except urllib.error.HTTPError as error:
        date = error.headers["Date"]
    return parsedate_to_datetime(date).timestamp()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(time.time()))


def _span(seconds: float) -> str:
    if seconds >= FAR_OFF_S:
        return f"{seconds / 86_400:,.0f} days"
    return f"{seconds / 3600:.1f} hours" if seconds >= 7200 else f"{seconds / 60:.0f} minutes"
