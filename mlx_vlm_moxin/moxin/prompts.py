"""The prompts of the Prismatic family, as chat templates.

Reference: the prompt builders in ``prismatic/models/backbones/llm/prompting/`` of github
TRI-ML/prismatic-vlms. ``<image>`` and surrounding space are removed from messages and answers;
an empty answer becomes one space. The tokenizer adds ``<s>``.
"""

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class PromptFormat:
    """The text around the messages of a conversation.

    Attributes:
        before, after: a user message; a space and the answer follow.
        first: precedes the first user message instead of ``before``, with ``{system}`` for the
            system message; None if the prompt has no place for one.
        system: the system message of a conversation that has none.
    """

    before: str
    after: str
    first: str | None = None
    system: str = ""


PROMPT_FORMATS = {
    "pure": PromptFormat("In: ", "\nOut:"),
    "vicuna": PromptFormat(
        "USER: ",
        " ASSISTANT:",
        first="{system} USER: ",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    ),
    # The single ">" after SYS is as in the reference.
    "llama2-chat": PromptFormat(
        "[INST] ",
        " [/INST]",
        first="[INST] <<SYS>\n{system}\n<</SYS>>\n\n",
        system="You are a helpful language and vision assistant. You are able to understand the "
        "visual content that the user provides, and assist the user with a variety of tasks using "
        "natural language.",
    ),
    "mistral-instruct": PromptFormat("[INST] ", " [/INST]"),
}

# If a prompt has no place for a system message (any more), it becomes a separate line before the
# next user message. Consecutive user messages are one message.
_TEMPLATE = """\
{%- set before, after = BEFORE, AFTER -%}
{%- set system_before, system_after, default_system = FIRST -%}
{%- set ns = namespace(message=none, separator='', system=none, has_place=HAS_PLACE) -%}
{%- macro question() -%}
  {%- if ns.has_place -%}{{ system_before + (ns.system or default_system) + system_after }}
  {%- else -%}{{ before }}{%- endif -%}
  {{ (ns.message or '') + after }}
{%- endmacro -%}
{%- for turn in messages -%}
  {%- set text -%}
    {%- if turn['content'] is string -%}{{ turn['content'] }}
    {%- else -%}{%- for part in turn['content'] or [] if part['type'] == 'text' -%}
      {{ part['text'] }}{{ '' if loop.last else ' ' }}
    {%- endfor -%}{%- endif -%}
  {%- endset -%}
  {%- set text = text | replace('<image>', '') | trim -%}
  {%- if turn['role'] == 'assistant' -%}
    {{- question() + ' ' + (text or ' ') + eos_token -}}
    {%- set ns.message, ns.has_place = none, false -%}
  {%- elif turn['role'] in ('system', 'developer') and ns.has_place and ns.message is none -%}
    {%- set ns.system = (ns.system + '\\n' + text) if ns.system else text -%}
  {%- elif turn['role'] in ('user', 'system', 'developer') -%}
    {%- if ns.message is none -%}{%- set ns.message = text -%}
    {%- else -%}{%- set ns.message = (ns.message + ns.separator + text) | trim -%}{%- endif -%}
    {%- set ns.separator = ' ' if turn['role'] == 'user' else '\\n' -%}
  {%- else -%}
    {{- raise_exception("This model's prompt has no role '" + turn['role'] + "'; it knows system, user and assistant") -}}
  {%- endif -%}
{%- endfor -%}
{%- if ns.message is not none or add_generation_prompt -%}{{- question() -}}{%- endif -%}
"""  # noqa: E501


def chat_template(name: str) -> str:
    """The Jinja chat template of one of ``PROMPT_FORMATS``."""
    prompt = PROMPT_FORMATS[name]
    system_before, _, system_after = (prompt.first or "").partition("{system}")
    constants = {
        "BEFORE": json.dumps(prompt.before),
        "AFTER": json.dumps(prompt.after),
        "FIRST": ", ".join(map(json.dumps, (system_before, system_after, prompt.system))),
        "HAS_PLACE": "false" if prompt.first is None else "true",
    }
    template = _TEMPLATE
    for name, value in constants.items():
        template = template.replace(name, value, 1)
    return template
