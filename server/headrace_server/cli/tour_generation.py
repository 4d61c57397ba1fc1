"""The tour's questions to text generators: a fact, a chat, a form, a name in other letters."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace_client import Client

__all__ = ["FACT", "chat", "finish", "form", "romanize"]

FACT = "The capital of France is"
_SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
_QUESTIONS = ("Name the capital of France.", "What is this city famous for?")
_SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "country": {"type": "string", "maxLength": 20},
        "is_capital": {"type": "boolean"},
    },
    "required": ["city", "country", "is_capital"],
    "additionalProperties": False,
}
_NAME = "محمد"


def finish(client: Client, model: str) -> list[str]:
    """What the model goes on with, and how sure it is of the next token."""
    answer = client.generate_text(model, FACT, max_tokens=7, temperature=0, logprobs=True, top_logprobs=3)
    likely = ", ".join(f"{top.text!r} {top.logprob:.2f}" for top in answer.choices[0].tokens[0].top_logprobs)
    return [f"{FACT} …{answer.text}", f"log-probabilities of the first token: {likely}"]


def chat(client: Client, model: str) -> list[str]:
    """Two turns, streamed; the second refers to the first, whose beginning is not computed again."""
    messages: list[dict[str, Any]] = [_SYSTEM]
    lines = []
    for question in _QUESTIONS:
        messages.append({"role": "user", "content": question})
        deltas = list(client.generate(model, messages, max_tokens=40, temperature=0))
        answer = "".join(delta.text for delta in deltas)
        messages.append({"role": "assistant", "content": answer})
        summary = deltas[-1].summary
        assert summary is not None, "the last message of a stream holds it"
        lines += [
            f"user       {question}",
            f"assistant  {answer}",
            f"           {len(deltas)} messages, first token after {summary.first_token_us / 1e3:.0f} ms, "
            f"{summary.num_cached_tokens} of {summary.num_prompt_tokens} prompt tokens known before",
        ]
    return lines


def form(client: Client, model: str) -> list[str]:
    """Text that a JSON schema lets through, parsed."""
    question = {"role": "user", "content": "Describe the city of Paris as JSON: city, country, is_capital."}
    answer = client.generate_text(model, [_SYSTEM, question], json_schema=_SCHEMA, max_tokens=80, temperature=0)
    return [json.dumps(json.loads(answer.text))]


def romanize(client: Client, model: str) -> list[str]:
    """A name in Latin letters, by the best beam."""
    return [f"{_NAME}  →  {client.generate_text(model, _NAME).text}"]
