"""Chat templates shaped like those of well-known families, and conversations to render with them."""

from __future__ import annotations

from llmkit.protocols import Message

TEMPLATES = {
    "chatml": (
        "{%- for message in messages %}\n"
        "    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}\n"
    ),
    "llama 2": (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
        "{% set system = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
        "{% for message in rest %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}{% endif %}"
        "{% if loop.index0 == 0 and system %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + "
        "message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "llama 3": (
        "{{- bos_token }}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system = messages[0]['content'] | trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n"
        "    {%- set system = '' %}\n"
        "{%- endif %}\n"
        "{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}\n"
        "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}\n"
        "{{- 'Today: ' + date_string + '\\n\\n' + system + '<|eot_id|>' }}\n"
        "{%- for message in messages %}\n"
        "    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}\n"
        "        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
        "        {{- message['content'] | trim + '<|eot_id|>' }}\n"
        "    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}\n"
        "{%- endif %}\n"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "tools and thinking": (
        "{%- if tools %}{{- 'TOOLS ' ~ (tools | tojson) }}{%- endif %}\n"
        "{%- set ns = namespace(last=-1) %}\n"
        "{%- for message in messages[::-1] %}\n"
        "    {%- if message.role == 'user' and ns.last < 0 %}{%- set ns.last = loop.index0 %}{%- endif %}\n"
        "{%- endfor %}\n"
        "{%- macro block(role, text) %}<{{ role }}>{{ text | replace('<', '&lt;') }}</{{ role }}>{%- endmacro %}\n"
        "{%- for message in messages %}\n"
        "    {%- if message.content is string %}{{- block(message.role, message.content) }}\n"
        "    {%- else %}{% for part in message.content %}{{ part.text }}{% endfor %}{%- endif %}\n"
        "    {%- if message.role == 'assistant' %}{% generation %}{{ eos_token }}{% endgeneration %}{% endif %}\n"
        "{%- endfor %}{{ ns.last }}\n"
        "{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    ),
    "indented, with trimming": (
        "{% for message in messages %}\n"
        "    {% if message['role'] == 'user' %}\n"
        "User: {{ message['content'] }}\n"
        "    {% elif message['role'] == 'assistant' %}\n"
        "Assistant: {{ message['content'] }}{{ eos_token }}\n"
        "    {% else %}\n"
        "{{ message['content'] }}\n"
        "    {% endif %}\n"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}\nAssistant:\n{% endif %}\n"
    ),
}


def conversation(*contents: str, system: str | None = None) -> list[Message]:
    """Messages of user and assistant in turn."""
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for number, content in enumerate(contents):
        messages.append({"role": "assistant" if number % 2 else "user", "content": content})
    return messages


CONVERSATIONS: list[list[Message]] = [
    conversation("Hello"),
    conversation("Hello", system="Be brief."),
    conversation("Hello", "Hi! How can I help?", "  Spaces around  \n", system=""),
    conversation("é 漢字 🎉 <b>&amp;</b> \"quotes\" 'single' \\n {{ not.jinja }} {% raw %}", "<|im_end|>", "a\r\nb\tc"),
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two in a row"}],
    [{"role": "assistant", "content": "assistant first"}],
]
