"""Chat templates by name, as Jinja."""

from __future__ import annotations

from collections.abc import Iterator

from evomerge.errors import did_you_mean

AUTO = "auto"

_START = "{% for message in messages %}"
_PROMPT = "{% endfor %}{% if add_generation_prompt %}"

TEMPLATES: dict[str, str] = {
    "chatml": (
        _START + "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        + _PROMPT + "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}" + _START
        + "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim "
        + "+ '<|eot_id|>' }}"
        + _PROMPT + "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    "alpaca": (
        _START + "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
        + "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] + '\\n\\n' }}"
        + "{% else %}{{ '### Response:\\n' + message['content'] + eos_token + '\\n\\n' }}{% endif %}"
        + _PROMPT + "{{ '### Response:\\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set told = namespace(text='') %}" + _START
        + "{% if message['role'] == 'system' %}{% set told.text = message['content'] + '\\n\\n' %}"
        + "{% elif message['role'] == 'user' %}{{ '[INST] ' + told.text + message['content'] + ' [/INST]' }}"
        + "{% set told.text = '' %}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
    "exaone": (
        _START + "{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\\n' }}{% endif %}"
        + "{{ '[|' + message['role'] + '|]' + message['content'] }}"
        + "{% if message['role'] == 'user' %}{{ '\\n' }}{% else %}{{ '[|endofturn|]\\n' }}{% endif %}"
        + _PROMPT + "{{ '[|assistant|]' }}{% endif %}"
    ),
}  # fmt: skip


def chat_template_problems(template: str) -> Iterator[str]:
    """Why a text is neither ``auto``, nor a name, nor a Jinja template."""
    if template == AUTO or template in TEMPLATES:
        return
    if "{" not in template or len(template) < 20:
        known = did_you_mean(template, (AUTO, *TEMPLATES))
        yield f"expected auto, a name or a Jinja template, got {template!r}. {known}"
