"""The reader of small JSON files answers any bytes with a value of the wanted kind, or with one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipe.core import json_files

TEXTS = st.text(st.characters(exclude_categories=['Cs']))  # without halves of surrogate pairs
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 63) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = st.recursive(
    SCALARS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
# Pieces of JSON and of other files, so that many drawn texts are nearly JSON.
PIECES = st.sampled_from(
    [
        b'{',
        b'}',
        b'[',
        b']',
        b'"a"',
        b'"format"',
        b':',
        b',',
        b'1',
        b'-',
        b'1e999',
        b'NaN',
        b'-Infinity',
        b'null',
        b'true',
        b'9' * 5000,
        b'"\\ud800"',
        b'\xff\xfe',
        b'\xef\xbb\xbf',
        b'\0',
        b'[' * 3000,
        b'{"a":' * 3000,
        b'\x1b[31m',
        '中'.encode('gbk'),
    ]
)
BYTES = st.lists(PIECES | st.binary(max_size=4), max_size=12).map(b''.join)


@given(st.dictionaries(TEXTS, VALUES, max_size=4))
def test_what_python_wrote_is_read_back(value):
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert json_files.parse(text, dict) == value
        assert json_files.parse(b'\xef\xbb\xbf' + text.encode(), dict) == value


@given(BYTES)
def test_any_bytes_are_read_or_refused_in_one_line(data):
    try:
        value = json_files.parse(data, dict)
    except json_files.JsonError as error:
        assert str(error)
        assert '\n' not in str(error)
    else:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        (b'[' * 100_000, 'nested more than'),
        (b'{"a":' * 100_000, 'nested more than'),
        (b'{"a": ' + b'[' * 40 + b']' * 40 + b'}', 'nested more than'),
        (b'{"a": 1e999}', 'too large'),
        (b'{"a": ' + b'9' * 1_000_000 + b'}', 'too large'),
        (b'{"a": 9223372036854775808}', 'too large'),
        (b'{"a": NaN}', 'no number of JSON'),
        (b'{"a": "\\ud800"}', 'no Unicode'),
        (b'{"\\ud800": 1}', 'no Unicode'),
        ('{"a": "中"}'.encode('gbk'), 'not in UTF-8'),
        ('{"a": 1}'.encode('utf-16'), 'not in UTF-8'),
        (b'[1]', 'holds a list, not an object'),
        (b'null', 'holds null, not an object'),
        (b'{"a": 1', 'no JSON'),
        (b'', 'no JSON'),
    ],
)
def test_a_text_that_breaks_readers_is_refused(text, said):
    with pytest.raises(json_files.JsonError, match=said):
        json_files.parse(text, dict)


def test_a_large_file_is_refused_without_being_read(tmp_path: Path):
    path = tmp_path / 'large.json'
    with path.open('wb') as file:
        file.truncate(1 << 40)  # a hole, which takes no room on the disk
    with pytest.raises(json_files.JsonError, match='larger than 16 MiB'):
        json_files.read(path, dict)


def test_numbers_that_are_not_finite_are_read_where_they_are_wanted():
    assert json_files.parse('{"loss": Infinity}', dict, finite=False) == {'loss': float('inf')}


@pytest.mark.parametrize('value', [None, True, '1', [], 1.5, -1, 11])
def test_a_whole_number_in_a_range(value):
    assert json_files.whole_number(10, 0, 10) == 10
    with pytest.raises(json_files.JsonError):
        json_files.whole_number(value, 0, 10)


@pytest.mark.parametrize('value', [None, True, '1', float('nan'), float('inf'), -0.5])
def test_a_number_in_a_range(value):
    assert json_files.number(0.5) == 0.5
    with pytest.raises(json_files.JsonError):
        json_files.number(value)
