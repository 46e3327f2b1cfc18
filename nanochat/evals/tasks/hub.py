"""Datasets of the Hugging Face hub, or local copies of them, through `datasets`."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from nanochat.common import hub
from nanochat.common.console import is_terminal, warn
from nanochat.common.download import WRONG_CONTENTS, DownloadError, Patience, ask
from nanochat.common.errors import UserError
from nanochat.common.files import discard, full_disk
from nanochat.evals.tasks.task import TaskUnavailable
from nanochat.tokenizer.conversation import Conversation, check_conversation

PROBE_SILENCE_S = 5.0
PROBE_ATTEMPTS = 2
ENDINGS = {".parquet": "parquet", ".jsonl": "json", ".jsonl.gz": "json", ".jsonl.zst": "json", ".json": "json"}


class HubDataset:
    """One split of a dataset, by its id, its configuration and its split."""

    def __init__(self, id: str, config: str | None, split: str, columns: Sequence[str], task_dir: Path | None):
        self.id, self.config, self.split, self.columns, self.task_dir = id, config, split, columns, task_dir
        self._rows: Any = None

    @property
    def where(self) -> str:
        """As it is spoken of."""
        name = "/".join(filter(None, (self.id, self.config, self.split)))
        return f"{self.task_dir / self.id} ({self.split})" if self.task_dir else name

    def rows(self) -> Any:
        """The rows, a `datasets.Dataset`; read once.

        Raises TaskUnavailable where the hub cannot be reached, UserError where there is no such dataset or a column is missing.
        """
        if self._rows is None:
            rows = _load(self._files(self.task_dir)) if self.task_dir else self._from_hub()
            if missing := [column for column in self.columns if column not in rows.column_names]:
                has, read = ", ".join(rows.column_names), ", ".join(self.columns)
                raise UserError(f"{self.where}: there is no column {missing[0]}; it has {has}, and {read} are read")
            self._rows = rows
        return self._rows

    def fingerprint(self) -> str:
        """A text that changes with the rows."""
        if self.task_dir:
            files = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self._files(self.task_dir)]
            return hashlib.sha256(repr((self.id, self.config, self.split, files)).encode()).hexdigest()
        return f"{self.id}/{self.config}/{self.split}/{self.rows()._fingerprint}"

    def _files(self, task_dir: Path) -> list[Path]:
        """The files of the local copy. Raises UserError, saying where was looked, when there are none."""
        folders = [task_dir / self.id / folder for folder in ((self.config,) if self.config else ()) + ("data", "")]
        for folder in folders:
            found = sorted(
                path
                for path in folder.glob(f"{self.split}*")
                if path.name.removeprefix(self.split)[:1] in ("-", ".") and any(path.name.endswith(ending) for ending in ENDINGS)
            )
            if found:
                return found
        looked = ", ".join(str(folder) for folder in folders)
        raise UserError(f"--task_dir: there is no {self.split}.jsonl, {self.split}.parquet or {self.split}-*.parquet in any of {looked}")

    def _from_hub(self) -> Any:
        if not hub_answers():
            os.environ["HF_HUB_OFFLINE"] = "1"  # what was fetched before is found, and nothing waits for the network
        with _quiet_datasets() as datasets:
            try:
                return self._patiently(datasets)
            except datasets.exceptions.DatasetNotFoundError as error:
                raise UserError(f"{_endpoint()} has no dataset {self.id}, or does not let you read it: {_reason(error)}") from None
            except (ConnectionError, FileNotFoundError, OSError) as error:
                if full_disk(error):
                    raise
                reason = _reason(error) if hub_answers() else "it does not answer"
                raise TaskUnavailable(
                    f"{self.id} cannot be fetched from {_endpoint()} ({reason}); a local copy can be given with --task_dir"
                ) from None
            except ValueError as error:  # an unknown configuration or split, and datasets' word for one that is not in its cache
                if hub_answers():
                    raise UserError(f"{self.where}: {_reason(error)}") from None
                raise TaskUnavailable(f"{self.id} is not in the cache of datasets, and {_endpoint()} does not answer") from None

    def _patiently(self, datasets: Any) -> Any:
        """As _verified, again after growing waits while the hub answers but fails for the moment."""
        patience = Patience.set()
        for failures in range(1, patience.attempts + 1):
            try:
                return self._verified(datasets)
            except datasets.exceptions.DatasetNotFoundError:
                raise
            except (ConnectionError, OSError) as error:
                if full_disk(error) or failures == patience.attempts or not hub_answers():
                    raise
                wait_s = patience.wait_s(failures)
                warn(f"{self.id}: {_reason(error)}; trying again in {wait_s:.0f} s")
                time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")

    def _verified(self, datasets: Any) -> Any:
        """The rows, made of files that are those that the hub publishes; one that is not is fetched again.

        A wrong file stays until another takes its place, and the rows made of it go first: wherever this ends, the next start sees it.
        """
        seen: dict[Path, int] = {}
        for attempt in range(WRONG_CONTENTS):
            mode = "force_redownload" if attempt else None
            rows: Any = None
            failure: BaseException | None = None
            try:
                rows = datasets.load_dataset(self.id, self.config, split=self.split, download_mode=mode)
            except Exception as error:  # what a damaged file makes its reader raise may be anything
                failure = error
                if attempt and type(error) is ValueError:  # the client's word for what it could not fetch again
                    failure = ConnectionError(str(error))
            found = {path: path.stat().st_ctime_ns for path in hub.wrong_in_cache(hub.cached_files(self.id))}
            wrong = [path for path, changed in found.items() if seen.get(path) != changed]  # else it is no file of these rows
            if failure and (not wrong or (attempt and isinstance(failure, OSError))):
                raise failure
            if not wrong:
                return rows
            if not hub_answers():
                raise TaskUnavailable(f"{self.id}: {wrong[0]} is not what {_endpoint()} publishes, which does not answer now")
            for path in wrong:
                warn(f"{path} is not what the hub publishes: it is fetched again")
            for made in {Path(file["filename"]).parent for file in (rows.cache_files if rows is not None else ())}:
                discard(made)
            seen = found
        raise TaskUnavailable(f"{self.id}: {wrong[0].name} arrived wrong {WRONG_CONTENTS} times from {_endpoint()}")


class HubExamples:
    """The rows of a dataset as conversations."""

    def __init__(self, dataset: HubDataset, make: Callable[[dict[str, Any]], Conversation]):
        self._rows, self._make, self._where = dataset.rows(), make, dataset.where

    def __len__(self) -> int:
        """Rows."""
        return len(self._rows)

    def __getitem__(self, number: int) -> Conversation:
        """Row `number` as a conversation. Raises UserError, naming it, where it is not what it should be."""
        try:
            made = self._make(self._rows[number])
            check_conversation(made)
            return made
        except UserError as error:
            raise UserError(f"{self._where}, row {number}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self._where}, row {number}: it is not of the schema that is known ({error!r})") from None


def letter_question(question: str, choices: list[str], letters: Sequence[str], answer: int) -> dict[str, Any]:
    """A multiple-choice question as a conversation, answered by the letter alone.

    A letter follows its choice, after a `=`: there it is the same token as in the answer, and the model copies what it has chosen.
    Raises UserError for an answer key out of range.
    """
    if not isinstance(question, str) or not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        raise UserError("the question or one of its choices is no text")
    if len(letters) != len(choices):
        raise UserError(f"{len(choices)} choices, but letters for {len(letters)}")
    if not 0 <= answer < len(choices):
        raise UserError(f"answer key {answer} is out of range: there are {len(choices)} choices, counted from 0")
    lines = "\n".join(f"- {choice}={letter}" for choice, letter in zip(choices, letters, strict=True))
    asked = f"{question}\n{lines}\nAnswer with one letter."
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": letters[answer]}]
    return {"messages": messages, "letters": list(letters), "answer": letters[answer]}


def _load(files: list[Path]) -> Any:
    """The rows of files, one after the other. Raises UserError, naming the file that cannot be read."""
    builder = next(kind for ending, kind in ENDINGS.items() if files[0].name.endswith(ending))
    with _quiet_datasets() as datasets:
        try:
            return datasets.load_dataset(builder, data_files=[str(file) for file in files], split="train")
        except Exception as error:  # each reader and each decompressor has errors of its own
            if full_disk(error):
                raise
            if len(files) > 1:
                for file in files:
                    _load([file])
            raise UserError(f"{files[0]} cannot be read: {_reason(error.__cause__ or error)}") from None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


@cache
def hub_answers() -> bool:
    """Whether the hub can be reached now, found out once: the libraries would try for minutes, for every dataset anew."""
    if any(os.environ.get(name, "").upper() in ("1", "TRUE", "ON", "YES") for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
        return False
    try:
        ask("HEAD", _endpoint(), silence_s=PROBE_SILENCE_S, attempts=PROBE_ATTEMPTS)
    except DownloadError as error:
        return bool(error.status)  # a refusal is an answer
    return True


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[Any]:
    """The library, which in a log draws no bars; what is wrong is said by who calls it."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "0" if is_terminal() else "1")
    import datasets
    import huggingface_hub

    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if not is_terminal():
        datasets.disable_progress_bars()
    if os.environ.get("HF_HUB_OFFLINE") == "1":  # for where the libraries were loaded before
        huggingface_hub.constants.HF_HUB_OFFLINE = True
        datasets.config.HF_HUB_OFFLINE = True
    yield datasets


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
