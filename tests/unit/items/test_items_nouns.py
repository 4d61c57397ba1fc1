"""What a catalog, a batch and a filter refuse, and by which field path they say so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.items.batch import MAX_BATCH_ITEMS, ItemBatch, check_batch, split_batch
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType, ModelRef
from headrace_server.items.filter import AllOf, AnyOf, Equals, Exists, Filter, In, Not, Range, check_filter
from headrace_server.items.payload import select_fields

FIELDS = (
    FieldSpec(name="title", type=FieldType.STRING),
    FieldSpec(name="year", type=FieldType.INTEGER),
    FieldSpec(name="price", type=FieldType.NUMBER),
    FieldSpec(name="sold", type=FieldType.BOOLEAN),
    FieldSpec(name="tags", type=FieldType.STRING_LIST),
)
SPEC = CatalogSpec(name="books", dimension=3, fields=FIELDS, max_payload_bytes=100)


def refusal(call: Callable[[], object]) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call()
    assert caught.value.reason is Reason.INVALID_INPUT
    return caught.value


def paths(error: ServingError) -> list[str]:
    return [violation.field for violation in error.violations]


def batch(*ids: str, payloads: list[str | None] | None = None) -> ItemBatch:
    return ItemBatch(ids=ids, vectors=np.ones((len(ids), 3), dtype=np.float32), payloads=payloads)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"name": ""}, "spec.name"),
        ({"name": "-a"}, "spec.name"),
        ({"name": "ä"}, "spec.name"),
        ({"name": "a" * 129}, "spec.name"),
        ({"name": "a\n"}, "spec.name"),
        ({"dimension": 0}, "spec.dimension"),
        ({"dimension": 65_537}, "spec.dimension"),
        ({"metric": "l2"}, "spec.metric"),
        ({"max_payload_bytes": 2**20 + 1}, "spec.max_payload_bytes"),
        ({"description": "ä" * 513}, "spec.description"),
        ({"fields": (FieldSpec(name="", type=FieldType.STRING),)}, "spec.fields[0].name"),
        ({"fields": (FIELDS[0], FIELDS[1], FIELDS[0])}, "spec.fields[2].name"),
        ({"fields": tuple(FieldSpec(name=str(i), type=FieldType.STRING) for i in range(65))}, "spec.fields"),
        ({"embedding_model": ModelRef(name="")}, "spec.embedding_model.name"),
    ],
)
def test_wrong_spec_names_its_field(wrong: dict[str, object], field: str) -> None:
    given = {"name": "books", "dimension": 3} | wrong
    assert paths(refusal(lambda: CatalogSpec(**given))) == [field]  # type: ignore[arg-type]


def test_spec_survives_its_stored_form_under_another_name() -> None:
    spec = CatalogSpec(
        name="a", dimension=2, metric="dot", fields=FIELDS, embedding_model=ModelRef(name="m", label="l")
    )
    again = CatalogSpec.from_json("b", spec.to_json())
    assert again.name == "b"
    assert CatalogSpec.from_json("a", spec.to_json()) == spec


def test_batch_names_every_wrong_item_and_applies_none() -> None:
    vectors = np.ones((6, 3), dtype=np.float32)
    vectors[4, 1] = np.nan
    error = refusal(
        lambda: check_batch(
            SPEC,
            ItemBatch(
                ids=["a", "", "a", "x" * 257, "e", "\ud800"],
                vectors=vectors,
                payloads=["[1]", None, '{"year": "1999"}', "{", None, '{"t": "' + "y" * 100 + '"}'],
            ),
        )
    )
    assert set(paths(error)) == {
        "items.ids[1]",
        "items.ids[2]",
        "items.ids[3]",
        "items.ids[5]",
        "items.vectors",
        "items.payloads[0]",
        "items.payloads[2]",
        "items.payloads[3]",
        "items.payloads[5]",
    }
    described = {violation.field: violation.description for violation in error.violations}
    assert described["items.ids[2]"] == "'a' again, first at 0"
    assert described["items.vectors"] == "element 1 of vector 4 is nan, must be finite"
    assert described["items.payloads[2]"] == "field 'year' is a text, declared as integer"
    assert described["items.payloads[5]"] == "109 bytes, at most 100"


@pytest.mark.parametrize(
    ("vectors", "ids"),
    [
        (np.ones((1, 4), dtype=np.float32), ["a"]),
        (np.ones((2, 3), dtype=np.float32), ["a"]),
        (np.ones((1, 3), dtype=np.float64), ["a"]),
        (np.ones(3, dtype=np.float32), ["a"]),
    ],
)
def test_vectors_of_another_shape_are_refused(vectors: np.ndarray, ids: list[str]) -> None:
    assert paths(refusal(lambda: check_batch(SPEC, ItemBatch(ids=ids, vectors=vectors)))) == ["items.vectors"]


@pytest.mark.parametrize("num_items", [0, MAX_BATCH_ITEMS + 1])
def test_batches_have_from_1_to_10000_items(num_items: int) -> None:
    error = refusal(lambda: check_batch(SPEC, batch(*(str(i) for i in range(num_items)))))
    assert paths(error) == ["items.ids"]


def test_split_takes_the_items_that_fit_and_tells_of_the_others() -> None:
    checked, faults = split_batch(SPEC, batch("a", "b", "a", payloads=['{"price": 1}', "1", None]))
    assert checked.ids == ("a",)
    assert checked.vectors.shape == (1, 3)
    assert [list(column) for column in checked.fields] == [[None], [None], [1.0], [None], [None]]
    assert [(fault.index, fault.id, paths(fault.error)) for fault in faults] == [
        (1, "b", ["items.payloads[1]"]),
        (2, "a", ["items.ids[2]"]),
    ]


def test_batch_does_not_follow_what_its_sender_writes_later() -> None:
    vectors = np.ones((1, 3), dtype=np.float32)
    checked = check_batch(SPEC, ItemBatch(ids=["a"], vectors=vectors))
    vectors[:] = 7
    assert checked.vectors.tolist() == [[1, 1, 1]]


@pytest.mark.parametrize(
    ("payload", "values"),
    [
        ('{"title": "x", "other": {}}', ("x", None, None, None, None)),
        ('{"year": 9223372036854775807}', (None, 2**63 - 1, None, None, None)),
        ('{"year": 1999.0}', (None, 1999, None, None, None)),
        ('{"price": -0.0, "sold": true}', (None, None, 0.0, 1, None)),
        ('{"tags": ["a", "b"], "title": null}', (None, None, None, None, ("a", "b"))),
        ('{"tags": []}', (None, None, None, None, ())),
    ],
)
def test_declared_fields_are_read_in_their_type(payload: str, values: tuple[object, ...]) -> None:
    read = tuple(value for (value,) in check_batch(SPEC, batch("a", payloads=[payload])).fields)
    assert read == values
    assert [type(value) for value in read] == [type(value) for value in values]


@pytest.mark.parametrize(
    "payload",
    [
        '{"year": 1.5}',
        '{"year": 9223372036854775808}',
        '{"year": 9007199254740994.0}',
        '{"year": true}',
        '{"price": "1"}',
        '{"price": NaN}',
        '{"price": 1e400}',
        '{"price": []}',
        '{"sold": 1}',
        '{"tags": "a"}',
        '{"tags": ["a", 1]}',
        '{"title": {}}',
        '{"title": "\\ud800"}',
        "null",
        "",
        '{"a": 1} 2',
    ],
)
def test_payload_of_another_type_is_refused(payload: str) -> None:
    assert paths(refusal(lambda: check_batch(SPEC, batch("a", payloads=[payload])))) == ["items.payloads[0]"]


def test_payload_nested_beyond_reason_is_refused() -> None:
    spec = CatalogSpec(name="a", dimension=3)
    deep = '{"a":' + "[" * 20_000 + "]" * 20_000 + "}"
    assert paths(refusal(lambda: check_batch(spec, batch("a", payloads=[deep])))) == ["items.payloads[0]"]


def test_selected_fields_keep_the_payloads_order() -> None:
    assert (
        select_fields('{"b": 9007199254740993, "a": "ä", "c": 1}', ["a", "b", "z"])
        == '{"b": 9007199254740993, "a": "ä"}'
    )


def nested(depth: int) -> Filter:
    condition: Filter = Exists("year")
    for _ in range(depth - 1):
        condition = Not(condition)
    return condition


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        (Equals("nowhere", 1), "filter.equals.field"),
        (AllOf((Exists("year"), Exists("year"), Equals("year", "1"))), "filter.all_of.filters[2].equals.value"),
        (AnyOf((Not(In("title", ("a", 1))),)), "filter.any_of.filters[0].not.in.values[1]"),
        (In("title", ()), "filter.in.values"),
        (In("year", tuple(range(10_001))), "filter.in.values"),
        (Equals("sold", 1), "filter.equals.value"),
        (Equals("year", True), "filter.equals.value"),
        (Equals("year", 2**63), "filter.equals.value"),
        (Equals("year", 1.0), "filter.equals.value"),
        (Equals("price", float("nan")), "filter.equals.value"),
        (Equals("title", "\ud800"), "filter.equals.value"),
        (Range("sold", gte=True), "filter.range.field"),
        (Range("tags", gte="a"), "filter.range.field"),
        (Range("year", gte=1, gt=1), "filter.range.gt"),
        (Range("year", lt=1, lte=1), "filter.range.lt"),
        (Range("title", lt=1), "filter.range.lt"),
        (AllOf(tuple(Exists("year") for _ in range(1000))), "filter"),
    ],
)
def test_wrong_filter_names_its_part(condition: Filter, field: str) -> None:
    assert paths(refusal(lambda: check_filter(condition, FIELDS))) == [field]


def test_filters_are_at_most_16_deep_and_1000_conditions() -> None:
    check_filter(nested(16), FIELDS)
    assert paths(refusal(lambda: check_filter(nested(17), FIELDS))) == ["filter" + ".not" * 16]
    check_filter(AllOf(tuple(Exists("year") for _ in range(999))), FIELDS)


def test_whole_number_for_a_number_field_becomes_a_double() -> None:
    checked = check_filter(Range("price", gte=1), FIELDS)
    assert isinstance(checked, Range)
    assert type(checked.gte) is float
