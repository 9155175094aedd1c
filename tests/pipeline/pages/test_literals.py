import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.pages.literals import read_documents, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 1, 'b': [1, 2,], \"c\": .5, d: -0x1F}", {"a": 1, "b": [1, 2], "c": 0.5, "d": -31}),
        ("{a: undefined, b: NaN, c: !0, d: !1, e: void 0, f: null}", dict.fromkeys("abef") | {"c": True, "d": False}),
        ("{/* c */ a: 1, // c\n b: 2,}", {"a": 1, "b": 2}),
        (r"{a: 'it\'s \u00e9 \x41 \u{1F697} \ud83d\ude97'}", {"a": "it's \u00e9 A \U0001f697 \U0001f697"}),
        ("{a: `x`, b: new Date('2012-10-01')}", {"a": "x", "b": "2012-10-01"}),
        ("{a: JSON.parse('{\"b\": 1}')}", {"a": {"b": 1}}),
        ('JSON.parse("{\\"a\\": \\"\\\\u00e9\\"}")', {"a": "\u00e9"}),
        ("decodeURIComponent('%7B%22a%22%3A1%7D')", {"a": 1}),
        ("atob('eyJhIjogMX0=')", {"a": 1}),
        ("[1,2] ; alert(1)", [1, 2]),
        ('{"a": "b"}</script>', {"a": "b"}),
        ('{"size": "17" alloy", "b": 1}', {"size": '17" alloy', "b": 1}),
    ],
)
def test_a_javascript_literal_is_read(text: str, value: Any) -> None:
    assert read_value(text) == value


@pytest.mark.parametrize(
    "text", ["", "{", "[1", "{a}", "getState()", "{a: f(1)}", "{a: 'x}", "}", "{a: 1]", "[" * 100_000, '{"a":' * 5000]
)
def test_what_is_no_literal_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_value(text)


def test_documents_are_read_one_after_another() -> None:
    assert read_documents('{"a": 1}{"b": 2},\n[3];') == [{"a": 1}, {"b": 2}, [3]]
    assert read_documents('{"a": 1} {oops') == [{"a": 1}]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**50), 2**50) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.lists(_JSON) | st.dictionaries(st.text(), _JSON))
def test_all_json_is_read_as_json_also_by_the_mending_reader(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False)
    assert read_value(text) == value
    assert read_value(text[:1] + "/* comment */" + text[1:]) == value


@given(st.text(alphabet="{}[]\"'`\\,:/*<!-ab1.\n u", max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert isinstance(read_documents(text), list)


@pytest.mark.parametrize(
    "text", ["{" + '"a":1,' * 300_000, '{a:"' + "\\" * 400_000, "/*" * 200_000, "{a:" + "'b'" * 200_000]
)
def test_long_broken_text_costs_little_time(text: str) -> None:
    start = time.monotonic()
    read_documents(text)
    assert time.monotonic() - start < 8
