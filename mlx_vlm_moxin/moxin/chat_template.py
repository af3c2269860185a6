"""The chat template. A Python string, since mlx-vlm packages no other kind of file."""

CHAT_TEMPLATE = r"""{#- Prismatic's "pure" prompt: "In: {message}\nOut:" and, after an answer,
    "</s>" and the next turn. A system message goes on a separate line before the next user message;
    user messages in a row are one message. The tokenizer adds <s>. -#}
{%- set ns = namespace(message=none) -%}
{%- for turn in messages -%}
  {%- set text -%}
    {%- if turn['content'] is string -%}{{ turn['content'] }}
    {%- else -%}{%- for part in turn['content'] or [] if part['type'] == 'text' -%}
      {{ part['text'] }}{{ '' if loop.last else ' ' }}
    {%- endfor -%}{%- endif -%}
  {%- endset -%}
  {%- set text = text | replace('<image>', '') -%}
  {%- if turn['role'] == 'assistant' -%}
    {{- 'In: ' + (ns.message or '') + '\nOut: ' + (text or ' ') + eos_token -}}
    {%- set ns.message = none -%}
  {%- elif turn['role'] in ('user', 'system', 'developer') -%}
    {%- set text = text | trim -%}
    {%- if ns.message is none -%}{%- set ns.message = text -%}
    {%- else -%}{%- set ns.message = (ns.message + ns.separator + text) | trim -%}{%- endif -%}
    {%- set ns.separator = ' ' if turn['role'] == 'user' else '\n' -%}
  {%- else -%}
    {{- raise_exception("Moxin's prompt has no role '" + turn['role']
        + "'; it knows system, user and assistant") -}}
  {%- endif -%}
{%- endfor -%}
{%- if ns.message is not none or add_generation_prompt -%}
  {{- 'In: ' + (ns.message or '') + '\nOut:' -}}
{%- endif -%}
"""
