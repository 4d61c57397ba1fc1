from __future__ import annotations

import numpy as np
import pytest
from contract.services_models import picture
from unit.jobs.asking import answer, refused

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.jobs.embed import Embed, embedded
from headrace_server.jobs.queries import EmbedQuery, EmbedResult, ModelRef
from headrace_server.models.inputs import ImageInput, Input, TextInput
from headrace_server.models.model import PrepareOptions
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository

SENTENCE = ModelRef("sentence")


@pytest.fixture
def embed(repository: Repository, limits: InputLimits) -> Embed:
    return Embed(repository, limits)


def ask(embed: Embed, *inputs: Input, **wishes: object) -> EmbedResult:
    query = EmbedQuery(model=SENTENCE, inputs=inputs, **wishes)  # type: ignore[arg-type]
    return answer(embed.submit(query, RequestContext()))


def test_vectors_stand_in_order_of_length_one_where_the_model_is_so(embed: Embed) -> None:
    texts = [TextInput("the cat sat"), TextInput("good"), TextInput("the cat sat")]
    result = ask(embed, *texts)
    assert result.embeddings.shape == (3, 8)
    assert result.embeddings.dtype == np.float32
    assert result.embeddings.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(result.embeddings, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(result.embeddings[0], result.embeddings[2], atol=1e-6)
    assert not np.allclose(result.embeddings[0], result.embeddings[1])
    assert [usage.num_units for usage in result.usage] == [5, 3, 5]
    assert result.model == ModelRef("sentence", "2")


def test_dimensions_are_cut_before_the_length_is_made_one(embed: Embed) -> None:
    text = TextInput("the cat sat")
    plain = ask(embed, text, normalize=False).embeddings
    cut = ask(embed, text, dimensions=3).embeddings
    assert cut.shape == (1, 3)
    np.testing.assert_allclose(cut, plain[:, :3] / np.linalg.norm(plain[:, :3]), atol=1e-6)
    np.testing.assert_allclose(ask(embed, text, dimensions=3, normalize=False).embeddings, plain[:, :3], atol=1e-6)
    assert np.linalg.norm(plain) != pytest.approx(1, abs=1e-3)


def test_a_zero_vector_stays_zero() -> None:
    zero = {"embedding": np.zeros(4, np.float32)}
    assert not embedded([zero], "inputs[{}]".format, normalize=True).any()


def test_a_version_is_the_one_that_was_named(embed: Embed) -> None:
    query = EmbedQuery(model=ModelRef("sentence", "1"), inputs=[TextInput("a")])
    assert answer(embed.submit(query, RequestContext())).model.version == "1"


def test_images_are_embedded_by_a_model_that_reads_images(embed: Embed) -> None:
    query = EmbedQuery(model=ModelRef("picture"), inputs=[ImageInput(picture())])
    assert answer(embed.submit(query, RequestContext())).embeddings.shape == (1, 3)


def test_prompts_are_put_before_the_text(embed: Embed) -> None:
    named = ask(embed, TextInput("cat"), prepare=PrepareOptions(prompt_name="query"))
    literal = ask(embed, TextInput("the cat"))
    np.testing.assert_allclose(named.embeddings, literal.embeddings, atol=1e-6)
    with refused(Reason.INVALID_INPUT, field="prompt_name", words=("'quary'", "query")):
        ask(embed, TextInput("cat"), prepare=PrepareOptions(prompt_name="quary"))


def test_wrong_fields_are_named(embed: Embed) -> None:
    with refused(Reason.INVALID_INPUT, field="dimensions", words=("9", "8")):
        ask(embed, TextInput("a"), dimensions=9)
    with refused(Reason.INVALID_INPUT, field="dimensions", words=("-1",)):
        ask(embed, TextInput("a"), dimensions=-1)
    with refused(Reason.INVALID_INPUT, field="inputs", words=("0 inputs",)):
        ask(embed)
    with refused(Reason.INVALID_INPUT, field="inputs[0].text", words=("65 bytes", "64")):
        ask(embed, TextInput("a" * 65))
    with refused(Reason.INVALID_INPUT, field="inputs[1]", words=("image",)):
        ask(embed, TextInput("a"), ImageInput(b"x"))
    with refused(Reason.WRONG_TASK, words=("cannot embed", "classify")):
        answer(embed.submit(EmbedQuery(model=ModelRef("mood"), inputs=[TextInput("a")]), RequestContext()))
