"""ChatTemplate: what the model's template makes of a conversation, and what it must not be able to do."""

from __future__ import annotations

from typing import Any

import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.models.chat import ChatTemplate

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def template(source: str, *, max_bytes: int = 10_000) -> ChatTemplate:
    return ChatTemplate(source, special_tokens={"bos_token": "<s>"}, max_bytes=max_bytes)


def refusal(source: str, **options: Any) -> ServingError:
    max_bytes = options.pop("max_bytes", 10_000)
    with pytest.raises(ServingError) as caught:
        template(source, max_bytes=max_bytes).render([{"role": "user", "content": "Hi"}], **options)
    assert caught.value.reason is Reason.INVALID_INPUT
    return caught.value


def test_a_conversation_becomes_the_text_that_the_model_was_trained_on() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    assert template(CHATML).render(messages) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>assistant\n"
    )
    assert not template(CHATML).render(messages, add_generation_prompt=False).endswith("assistant\n")


def test_special_tokens_tools_and_values_reach_the_template() -> None:
    source = "{{ bos_token }}{{ mood }}{{ tools[0].name }}{{ tools | tojson }}"
    text = template(source).render([], tools=[{"name": "wéather"}], values={"mood": "calm"})
    assert text == '<s>calmwéather[{"name": "wéather"}]'


def test_blocks_leave_no_lines_behind() -> None:
    assert template("{% if true %}\nyes\n{% endif %}\n").render([]) == "yes\n"


def test_what_the_template_itself_refuses_is_the_callers_to_know() -> None:
    error = refusal("{{ raise_exception('Roles must alternate') }}")
    assert error.violations[0].field == "chat"
    assert "Roles must alternate" in error.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    ],
)
def test_a_template_reaches_nothing_outside(source: str) -> None:
    refusal(source)


def test_an_endless_template_is_stopped() -> None:
    refusal("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", max_bytes=1_000_000)


def test_a_long_text_is_refused_before_it_is_whole() -> None:
    error = refusal("{% for i in range(9999) %}xxxxxxxxxx{% endfor %}", max_bytes=100)
    assert "100 bytes" in error.message


def test_values_cannot_pose_as_the_conversation() -> None:
    error = refusal("{{ messages }}", values={"messages": "x"})
    assert error.violations[0].field == "chat.template_values.messages"


def test_what_the_template_misses_is_named_and_nothing_of_ours() -> None:
    error = refusal("{{ messages[0].content.missing.deeper }}")
    assert "missing" in error.message or "deeper" in error.message
    assert "Traceback" not in error.message


def test_a_template_that_does_not_compile_makes_the_model_invalid() -> None:
    with pytest.raises(ServingError) as caught:
        template("{% for %}")
    assert caught.value.reason is Reason.MODEL_INVALID
