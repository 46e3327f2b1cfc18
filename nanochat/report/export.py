"""A model for others: turned from nanochat's older format, copied with its card, put on the Hugging Face hub."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import tyro

from nanochat.common.console import is_terminal, say
from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path
from nanochat.common.paths import named_path
from nanochat.train.run_directory import STAGES

CONVERTED = """---
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A model of nanochat's, turned from its checkpoint of step {step:,}: {parameters:,} parameters, a context of {context:,} tokens.
"""


@dataclass(frozen=True)
class ExportSettings:
    """Bring a model to where others open it: a directory (--output), the Hugging Face hub (--push_to_hub), or both."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Where to": "output push_to_hub public license",
        "Which model": "model source model_tag",
        "An older checkpoint instead": "from_nanochat step precision",
    }

    model: str = ""
    """Directory of a finished model to take. Default: the newest finished model that was trained here."""
    source: Annotated[str, tyro.conf.arg(aliases=["-i"])] = ""
    """Stage whose model to take: base, mid, sft, rl or dpo. Default: the newest of the chat stages."""
    model_tag: Annotated[str, tyro.conf.arg(aliases=["-g"])] = ""
    """Run whose model to take. Default: the newest."""
    from_nanochat: str = ""
    """Directory of a checkpoint of nanochat's (model_STEP.pt, meta_STEP.json, tokenizer.pkl) to turn into a model directory. Default:
    none."""
    step: int = -1
    """Step whose checkpoint of --from_nanochat to take; -1 for the last. Default: -1."""
    precision: str = "bf16"
    """Format of the weights that --from_nanochat writes: bf16 or fp32."""
    output: str = ""
    """Directory to write, which must not be there yet. Default: none."""
    push_to_hub: str = ""
    """Repository on the hub to put the model in, OWNER/NAME; made when it is not there. HF_TOKEN, or `hf auth login`, lets you. Default:
    none."""
    public: bool = False
    """Let everybody see a repository that is made for it."""
    license: str = ""
    """Licence for the card's head, by the hub's ids (mit, apache-2.0). Default: what the base text asks for, else none."""

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        if not self.output and not self.push_to_hub:
            raise UserError("say where to: --output DIR, --push_to_hub OWNER/NAME, or both")
        if self.precision not in ("bf16", "fp32"):
            raise UserError(f"--precision={self.precision}: one of bf16, fp32")
        if self.source and self.source not in STAGES:
            raise UserError(f"--source={self.source}: one of {', '.join(STAGES)}")
        if sum(map(bool, (self.model, self.from_nanochat, self.source or self.model_tag))) > 1:
            raise UserError("--model, --from_nanochat and --source with --model_tag each name a model: give one of them")
        if self.output and named_path(self.output).exists():
            raise UserError(f"--output={self.output} is there already: remove it, or name another directory")
        if self.push_to_hub and self.push_to_hub.strip("/").count("/") != 1:
            raise UserError(f"--push_to_hub={self.push_to_hub}: a repository is named OWNER/NAME")


def export(s: ExportSettings) -> None:
    """Write the directory, then put it on the hub. Raises UserError for a wrong request, or when the hub refuses."""
    s.check()
    with tempfile.TemporaryDirectory() as temporary:
        out = named_path(s.output) if s.output else Path(temporary) / "model"
        try:
            with atomic_path(out) as aside:
                if s.from_nanochat:
                    _convert(s, aside, out.name)
                else:
                    _copy(s, aside)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise UserError(f"--output={s.output}: cannot be written ({error.strerror} at {error.filename})") from None
        if s.output:
            say(f"wrote {out}")
        if s.push_to_hub:
            _push(s, out)


def _copy(s: ExportSettings, aside: Path) -> None:
    from nanochat.model.checksums import verify_model
    from nanochat.model.directory import load_config
    from nanochat.model.find import find_model
    from nanochat.report.card import released_card

    stages = (s.source,) if s.source else ("dpo", "rl", "sft", "mid")
    directory = named_path(s.model) if s.model else find_model(stages, s.model_tag)
    load_config(directory)
    verify_model(directory)
    card = released_card(directory, s.license)
    aside.mkdir()
    for path in directory.iterdir():
        if path.is_file():
            shutil.copyfile(path, aside / path.name)
    (aside / "README.md").write_text(card, encoding="utf-8")


def _convert(s: ExportSettings, aside: Path, name: str) -> None:
    import torch

    from nanochat.model.directory import save_model
    from nanochat.model.from_nanochat import find_checkpoint, read_checkpoint
    from nanochat.report.card import released_card

    found = find_checkpoint(named_path(s.from_nanochat), s.step)
    model, tokenizer = read_checkpoint(found)
    parameters = sum(weight.numel() for weight in model.parameters())
    card = CONVERTED.format(name=name, step=found.step, parameters=parameters, context=model.config.max_seq_len)
    save_model(aside, model, tokenizer, torch.bfloat16 if s.precision == "bf16" else torch.float32, card)
    (aside / "README.md").write_text(released_card(aside, s.license), encoding="utf-8")


def _push(s: ExportSettings, directory: Path) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import disable_progress_bars

    if not is_terminal():
        disable_progress_bars()
    api = HfApi()
    try:
        url = api.create_repo(s.push_to_hub, private=not s.public, exist_ok=True)
        api.upload_folder(repo_id=s.push_to_hub, folder_path=directory, commit_message="Model, tokenizer and card")
    except (HfHubHTTPError, OfflineModeIsEnabled, HTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        refused = isinstance(error, HfHubHTTPError)
        what = "the hub refused" if refused else "the hub cannot be reached"
        advice = "; HF_TOKEN must hold a token that may write there" if refused else ""
        raise UserError(f"--push_to_hub={s.push_to_hub}: {what} ({reason}){advice}") from None
    say(f"the model is at {url}")
