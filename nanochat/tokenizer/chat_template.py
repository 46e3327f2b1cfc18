"""The chat template of a model directory: `transformers.apply_chat_template` gives the ids of `Renderer`."""

from nanochat.tokenizer.special import SPECIAL_TOKENS

TEMPLATE_FILE = "chat_template.jinja"

CHAT_TEMPLATE = """\
{%- macro plain(content) -%}
{%- set text = content if content is string else content | map(attribute='text') | join -%}
{%- for token in SPECIAL_TOKENS -%}
{%- if token in text -%}{{- raise_exception('a message spells the special token ' + token) -}}{%- endif -%}
{%- endfor -%}
{{- text -}}
{%- endmacro -%}
{%- macro words(content) -%}
{%- if content is not string and content | rejectattr('type', 'equalto', 'text') | list -%}
{{- raise_exception('only an assistant message has parts that are no text') -}}
{%- endif -%}
{{- plain(content) -}}
{%- endmacro -%}
{{- bos_token -}}
{%- set state = namespace(system='') -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{%- if not loop.first -%}{{- raise_exception('a system message can only be the first') -}}{%- endif -%}
{%- set state.system = words(message['content']) + '\\n\\n' -%}
{%- elif message['role'] == 'user' -%}
{{- '<|user_start|>' + state.system + words(message['content']) + '<|user_end|>' -}}
{%- set state.system = '' -%}
{%- elif message['role'] == 'assistant' -%}
{{- '<|assistant_start|>' -}}
{%- set whole = plain(message['content']) -%}
{%- if message['content'] is string -%}
{%- generation -%}{{- whole -}}{%- endgeneration -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'text' -%}
{%- generation -%}{{- part['text'] -}}{%- endgeneration -%}
{%- elif part['type'] == 'python' -%}
{%- generation -%}{{- '<|python_start|>' + part['text'] + '<|python_end|>' -}}{%- endgeneration -%}
{%- elif part['type'] == 'python_output' -%}
{{- '<|output_start|>' + part['text'] + '<|output_end|>' -}}
{%- else -%}
{{- raise_exception('unknown part ' + part['type']) -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- generation -%}{{- '<|assistant_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- raise_exception('unknown role ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
""".replace("SPECIAL_TOKENS", repr(list(SPECIAL_TOKENS)))
"""`generation` marks what the assistant says itself, for `return_assistant_tokens_mask`.

Text that spells a special token, be it over several parts, is refused: in the text that a template makes it would be that token, and
a user could speak for the assistant. A text may also come as parts, as vLLM hands it over.
"""
