"""What OpenAI's clients send, checked; and what they are told."""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from nanochat.tokenizer.conversation import Fitted

MAX_CHOICES = 16
MAX_MESSAGES = 512
MAX_STOPS = 8

Text = Annotated[str, Field(max_length=1_000_000)]
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=False)


class Part(_Asked):
    """A part of a message: text, or of an assistant's tool call."""

    type: Literal["text", "python", "python_output"]
    text: Text


class Message(_Asked):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=256)]

    def plain(self) -> dict[str, Any]:
        """As conversations are kept; of a user's or a system's text parts the text."""
        content = self.content
        if self.role != "assistant" and not isinstance(content, str) and all(part.type == "text" for part in content):
            content = "".join(part.text for part in content)
        return {**self.model_dump(), "content": content} if isinstance(content, str) else self.model_dump()


class StreamOptions(_Asked):
    """What a stream has besides."""

    include_usage: bool = False


class Wish(_Asked):
    """How an answer is to be made."""

    model: str = ""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("model", "n", "stream", "logprobs", "echo", mode="before", check_fields=False)
    @classmethod
    def _null_is_the_default(cls, value: Any, info: ValidationInfo) -> Any:
        default = cls.model_fields[str(info.field_name)].default
        return default if value is None else value

    @property
    def stops(self) -> list[str]:
        """The stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Wish):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    """auto: a conversation that has outgrown the model loses its oldest turns, and `truncated` says so; as in OpenAI's Responses."""
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class CompletionRequest(Wish):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_CHOICES)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False


def error(message: str, type_: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def truncated(fitted: Fitted) -> dict[str, int]:
    """What was left out of a conversation."""
    return {"tokens": fitted.tokens, "kept_tokens": len(fitted.ids), "messages_left_out": fitted.left_out}


def head(kind: str, id_: str, model: str) -> dict[str, Any]:
    """What every answer begins with."""
    return {"id": id_, "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Numbers of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
