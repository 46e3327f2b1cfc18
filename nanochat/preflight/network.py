"""The services that a run speaks to: the hub and wandb. Nothing that is secret is ever part of what is told."""

import os
from urllib.parse import urlsplit

from nanochat.plan.disk import still_needed
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings

ANSWER_S = 8.0
REFUSED = (401, 403)


def host_of(address: str) -> str:
    """The host of an address, without the user and the password that may stand in it."""
    parts = urlsplit(address)
    return f"{parts.hostname or address}{f':{parts.port}' if parts.port else ''}"


def check_hub(settings: PreflightSettings) -> list[Finding]:
    """Whether the hub answers, and knows the token where there is one; red only while text has still to come from it."""
    if not settings.wants_hub:
        return [Finding("hub", GREEN, "not asked: the text is made here")]
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import build_hf_headers, get_session

    needs = still_needed(settings.answer().disk, settings.data, settings.depth)
    bad = RED if any(need.name == "text" for need in needs) else YELLOW
    if constants.HF_HUB_OFFLINE:
        return [Finding("hub", bad, "HF_HUB_OFFLINE is set", "unset it: text and questions come from the hub")]
    host, token = host_of(constants.ENDPOINT), get_token()
    address = f"{constants.ENDPOINT}/api/whoami-v2" if token else constants.ENDPOINT
    try:
        answer = get_session().get(address, headers=build_hf_headers(token=token or False), timeout=ANSWER_S, follow_redirects=True)
    except Exception as error:  # of the library's transport, whichever it is
        value = f"{host} does not answer ({type(error).__name__})"
        return [Finding("hub", bad, value, "mend the network, a proxy (HTTPS_PROXY) or HF_ENDPOINT; what is there already is kept")]
    if token and answer.status_code in REFUSED:
        return [Finding("hub", bad, f"{host} refuses the token ({answer.status_code})", "give a valid HF_TOKEN, or none: hf auth login")]
    if answer.status_code >= 500:
        return [Finding("hub", bad, f"{host} answers {answer.status_code}", "wait until it is mended, see status.huggingface.co")]
    if not token:
        return [Finding("hub", GREEN, f"{host} answers; nobody is logged in, which is slower where many ask")]
    try:
        name = str(answer.json()["name"])
    except (ValueError, KeyError, TypeError):  # a mirror
        return [Finding("hub", GREEN, f"{host} answers; it does not say who is logged in")]
    return [Finding("hub", GREEN, f"{host} answers; logged in as {name}")]


def check_wandb(settings: PreflightSettings) -> list[Finding]:
    """Whether wandb answers and knows the key, where WANDB_RUN asks for it; training goes on without it, so never red."""
    if not settings.wandb_run:
        return []
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    host = host_of(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    advice = "wandb login, or set WANDB_API_KEY; without it the run is kept on disk, and wandb sync sends it later"
    try:
        name = wandb.Api(timeout=int(ANSWER_S)).viewer.username
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        return [Finding("wandb", YELLOW, f"{host}: {first[0]}"[:200], advice)]
    return [Finding("wandb", GREEN, f"{host} answers; logged in as {name}")]
