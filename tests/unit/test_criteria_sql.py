"""Which indexes serve a criterion, and what the SQL then says."""

from __future__ import annotations

import pytest

from orisun_server.core.criteria import criterion
from orisun_server.errors import InvalidArgument
from orisun_server.storage.criteria_sql import access, latest_sql
from orisun_server.storage.index_sql import IndexCondition, IndexDefinition, IndexField, ValueType, text_sql
from orisun_server.storage.names import BoundaryNames

NAMES = BoundaryNames("events", "orders")


def index(name: str, *keys: str, kind: ValueType = ValueType.TEXT, **where: str) -> IndexDefinition:
    conditions = tuple(IndexCondition(key, "=", value) for key, value in where.items())
    return IndexDefinition(name, tuple(IndexField(key, kind) for key in keys), conditions)


def used(indexes: list[IndexDefinition], **tags: str) -> set[str]:
    """The names of the indexes whose first key expression is compared."""
    sql = access(criterion(tags.items()), indexes).condition([f"${n}" for n in range(len(tags))])
    return {one.name for one in indexes if one.key_sql(one.fields[0], text_sql(one.fields[0].key)) in sql}


def test_no_index_is_the_primary_key() -> None:
    one = access(criterion([("a", "1"), ("eventType", "T")]), [])
    assert not one.indexed
    assert one.values == ("1", "T")
    condition = one.condition(["$1", "$2"], "e")
    assert condition.endswith("ELSE (e.data->>'a') = $1 AND e.event_type = $2 END")
    assert one.order(descending=True) == "global_id DESC"
    assert access((), []).condition([]).endswith("ELSE true END")


def test_the_first_field_must_be_compared() -> None:
    both = index("both", "a", "b")
    assert access(criterion([("a", "1")]), [both]).indexed
    assert access(criterion([("b", "1"), ("a", "1")]), [both]).indexed
    assert not access(criterion([("b", "1")]), [both]).indexed
    assert not access((), [both]).indexed


def test_an_index_that_decides_more_makes_another_needless() -> None:
    a, ab, c = index("a", "a"), index("ab", "b", "a"), index("c", "c")
    assert used([a, ab], a="1", b="2") == {"ab"}
    assert used([a, ab], a="1") == {"a"}
    assert used([a, c], a="1", c="2") == {"a", "c"}


def test_a_partial_index_serves_what_implies_its_condition() -> None:
    partial = index("partial", "a", status="open")
    assert access(criterion([("a", "1"), ("status", "open")]), [partial]).indexed
    assert not access(criterion([("a", "1"), ("status", "closed")]), [partial]).indexed
    assert not access(criterion([("a", "1")]), [partial]).indexed
    either = IndexDefinition("either", partial.fields, (*partial.conditions, IndexCondition("b", ">", "10")), "OR")
    assert access(criterion([("a", "1"), ("b", "11")]), [either]).indexed
    assert not access(criterion([("a", "1"), ("b", "9")]), [either]).indexed
    assert not access(criterion([("a", "1"), ("b", "x")]), [either]).indexed


@pytest.mark.parametrize(
    ("kind", "converts", "fails"),
    [
        (ValueType.NUMERIC, ["0", "-1.50", "9" * 30], ["", "x", "1e5", "9" * 31, " 1", "1\n", "+1", ".5", "١"]),
        (ValueType.BOOLEAN, ["true", "false"], ["", "TRUE", "t", "1"]),
        (
            ValueType.TIMESTAMPTZ,
            ["2024-01-31T10:00:00Z", "2024-01-31 10:00", "2024-01-31T10:00:00.5+05:30", "2024-02-31T00:00:00-0800"],
            ["", "2024-01-31", "2024-13-01T00:00:00Z", "2024-01-31T24:00:00Z", "0000-01-01T00:00:00Z", "now"],
        ),
    ],
)
def test_a_typed_index_serves_values_that_convert(kind: ValueType, converts: list[str], fails: list[str]) -> None:
    typed = index("typed", "a", kind=kind)
    for value in converts:
        assert access(criterion([("a", value)]), [typed]).indexed, value
    for value in fails:
        assert not access(criterion([("a", value)]), [typed]).indexed, value
    # of a key that is given twice, either value will do
    assert access(criterion([("a", fails[0]), ("a", converts[0])]), [typed]).indexed


def test_the_shape_does_not_depend_on_values() -> None:
    indexes = [index("a", "a"), index("n", "n", kind=ValueType.NUMERIC)]
    for one, other in [(("a", "1"), ("a", "2")), (("n", "1"), ("n", "2")), (("x", "1"), ("x", "2"))]:
        assert access(criterion([one]), indexes).key == access(criterion([other]), indexes).key
    # a long value must be compared as a whole, a short one is decided by the index
    short, long = (access(criterion([("a", "x" * length)]), indexes) for length in (499, 500))
    assert "data->>'a') = " in long.key.split("event_id")[1]
    assert "event_id" not in short.key


def test_keys_and_values_are_quoted() -> None:
    one = access(criterion([("it's", "a'b"), ("b\\", "\\")]), [])
    sql = latest_sql('"s"."e"', one, ["$1", "$2"])
    assert "data->>'it''s'" in sql
    assert "data->> E'b\\\\'" in sql
    assert "a'b" not in sql
    for tags in ([("a\0", "1")], [("a", "\0")]):
        with pytest.raises(InvalidArgument, match="NUL"):
            access(criterion(tags), [])


def test_an_index_row_fits_a_page() -> None:
    for count in range(1, 17):
        one = index("x", *(f"k{n}" for n in range(count)))
        characters = [one.characters(field) or 0 for field in one.fields]
        assert sum(4 + 4 * number + 4 for number in characters) + 8 + 8 + 16 <= 2704
        assert min(characters) >= 36  # a UUID


def test_names_of_indexes_stay_apart() -> None:
    names = {
        index(name, key).pg_name(BoundaryNames("s", boundary), incarnation)
        for boundary, name in [("a_b", "c"), ("a", "b_c"), ("a" * 63, "b" * 63), ("a" * 63, "b" * 62 + "c")]
        for key in "xy"
        for incarnation in "12"
    }
    assert len(names) == 16
    assert all(len(name.encode()) <= 63 for name in names)


def test_the_statement_that_builds() -> None:
    one = index("x", "a", "eventType", status="open")
    assert one.create_sql(NAMES, "name") == (
        'CREATE INDEX CONCURRENTLY "name" ON "events"."orders_orisun_es_event" USING btree '
        '(("left"((data->>\'a\'), 328) COLLATE "C"), (event_type), transaction_id, global_id) '
        "WHERE ((data->>'status') = 'open')"
    )
