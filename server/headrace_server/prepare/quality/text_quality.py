"""How far a decoder is from its source on held-out texts: divergence, agreement, perplexity, golden answers."""

from __future__ import annotations

from headrace_server.models.model import Model
from headrace_server.prepare.decoder_quality import answer_golden, measure_quality
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quality.inputs import Inputs

__all__ = ["measure_texts"]

_MIN_TOKENS = 2


def measure_texts(reference: Model, candidate: Model, inputs: Inputs) -> tuple[dict[str, float], dict[str, float], int]:
    """(figures of the source alone, of the candidate, texts measured). Both run on the CPU.

    raises  PrepareError where no held-out text has two tokens: nothing follows then that could be compared
    """
    tokenizer = reference.tokenizer
    assert tokenizer is not None, "a text generator has a tokenizer"
    texts = {
        f"text {number}": text
        for number, text in enumerate(inputs.texts, 1)
        if len(tokenizer.encode([text])[0].ids) >= _MIN_TOKENS
    }
    if not texts:
        raise PrepareError(
            f"{inputs.data.name}: every held-out text is shorter than {_MIN_TOKENS} tokens", cure="give longer texts"
        )
    total = measure_quality(candidate.folder, reference.folder, texts).total
    before = {"perplexity": total.fp32_perplexity}
    after = {
        "kl_divergence": total.kl_divergence,
        "top1_agreement": total.top1_agreement,
        "perplexity": total.perplexity,
    }
    if inputs.golden:
        pairs = [(golden.prompt, golden.expected) for golden in inputs.golden]
        for figures, model in ((before, reference), (after, candidate)):
            answers = answer_golden(model.folder, pairs)
            figures["golden_answers"] = sum(answer.holds for answer in answers) / len(answers)
    return before, after, len(texts)
