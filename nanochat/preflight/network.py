"""The services that a run speaks to: the hub and wandb. Nothing that is secret is ever part of what is told."""

import os
from pathlib import Path
from urllib.parse import urlsplit

from nanochat.common.errors import UserError
from nanochat.common.paths import base_path, data_dir
from nanochat.data.sources import NAMED
from nanochat.data.text_shards import shard_path
from nanochat.data.token_shards import read_index
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

    bad = RED if lacks_text(settings) else YELLOW
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


def lacks_text(settings: PreflightSettings) -> bool:
    """Whether base training, where it is not done, has neither all shards of its text nor all token shards made of them."""
    base = base_path()
    if (base / "runs" / f"d{settings.depth}" / "base" / "model").is_dir():
        return False
    wanted = [NAMED[settings.data].val_index, *range(settings.answer().disk.text_shards)]
    paths = [shard_path(data_dir(settings.data), index) for index in wanted]
    if all(path.is_file() for path in paths):
        return False
    names = {path.stem for path in paths}
    return not any(names <= _encoded(tokens, settings.vocab_size) for tokens in (base / "tokens").glob(f"{settings.data}-*"))


def _encoded(directory: Path, vocab_size: int) -> set[str]:
    """Names, without their endings, of the text shards that a directory has token shards of."""
    try:
        index = read_index(directory)
    except UserError:
        return set()
    return {Path(shard.name).stem for shard in index.shards} if index.vocab_size == vocab_size else set()


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
