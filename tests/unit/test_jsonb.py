"""What ``->>`` prints, computed without PostgreSQL (the property test compares it with PostgreSQL)."""

import pytest

from orisun_server.core.jsonb import number, text_of, top_level


@pytest.mark.parametrize(
    ("literal", "printed"),
    [
        ("7", "7"),
        ("-12", "-12"),
        ("1.50", "1.50"),
        ("1e3", "1000"),
        ("1E+2", "100"),
        ("1.5e-3", "0.0015"),
        ("0.00001", "0.00001"),
        ("1.50e1", "15.0"),
        ("-0", "0"),
        ("-0.0", "0.0"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_numbers_lose_their_exponent_and_keep_their_scale(literal: str, printed: str) -> None:
    assert number(literal) == printed


def test_an_absurd_exponent_is_not_expanded() -> None:
    assert number("1e999999999") == "1e999999999"


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ('"a\\u00e9\\n"', "aé\n"),
        ("true", "true"),
        ("null", None),
        ('{"b":1,"a":2,"aa":{"x":[]}}', '{"a": 2, "b": 1, "aa": {"x": []}}'),
        ('{"a":1,"a":2}', '{"a": 2}'),
        ('[1,"a",1.0,null,false]', '[1, "a", 1.0, null, false]'),
        ('[1e3, {"a": -1.50e-2}]', '[1000, {"a": -0.0150}]'),
        ("[1e9999999999999999999999]", "[1e9999999999999999999999]"),
        ('["\\u0001\\t\\"\\\\/"]', '["\\u0001\\t\\"\\\\/"]'),
    ],
)
def test_values_print_as_jsonb_does(value: str, printed: str | None) -> None:
    assert text_of(top_level(f'{{"key": {value}}}')["key"]) == printed


def test_a_missing_key_has_no_text() -> None:
    assert text_of(top_level("{}").get("key")) is None
