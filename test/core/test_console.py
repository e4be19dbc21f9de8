"""What tools print: one line each, whatever the names in it hold."""

from __future__ import annotations

import os

import pytest

from recipe.core import console

EVIL = 'a\x1b[31mb\rc\x9bd\u202ee\x00'
ESCAPED = r'a\x1b[31mb\rc\x9bd\u202ee\x00'


@pytest.mark.parametrize(
    'character', [*map(chr, range(9)), *map(chr, range(10, 32)), *map(chr, range(0x7F, 0xA0)), '\u2028']
)
def test_no_control_character_reaches_a_terminal(character):
    shown = console.printable(f'a{character}b')
    assert shown.isprintable()
    assert shown.encode().decode('unicode_escape') == f'a{character}b'


@pytest.mark.parametrize('text', ['/data/城市/ünï', 'a\tb', 'emoji 🚗', r'C:\new', '\udc80 is a byte of a name'])
def test_other_text_is_shown_as_it_is(text):
    assert console.printable(text) == text


@pytest.mark.parametrize('show', [console.say, console.warn, console.show])
def test_every_way_to_print_escapes(capsys, show):
    show(f'{EVIL}\nerror: not mine')
    shown = ''.join(capsys.readouterr())
    assert shown.count('\n') == 1
    assert ESCAPED + r'\nerror: not mine' in shown


def test_a_log_gets_the_same_text(tmp_path, monkeypatch):
    monkeypatch.setattr(console, '_logs', [])
    console.log_to(tmp_path / 'log')
    console.say(EVIL)
    assert ESCAPED in (tmp_path / 'log').read_text().splitlines()[-1]


def test_an_error_is_one_line_that_names_the_file_as_it_is():
    error = console.UserError(f'/data/a\nb{EVIL}: cannot be read', 'mend it')
    assert str(error) == rf'/data/a\nb{ESCAPED}: cannot be read; mend it'


def test_the_line_breaks_of_a_library_are_folded():
    assert str(console.UserError('size mismatch:\n\tcopying a parameter \n  with shape (3,)\n')) == (
        'size mismatch: copying a parameter with shape (3,)'
    )


@pytest.mark.parametrize(
    'error', [OSError(), OSError(2, None), ValueError(), MemoryError(), OSError('cut short'), OSError(28, 'full')]
)
def test_a_reason_is_never_empty_and_never_none(error):
    assert console.reason(error)
    assert 'None' not in console.reason(OSError('x'))


@pytest.mark.parametrize(('given', 'left'), [('x', None), ('', None), ('3', '3')])
def test_a_rank_that_is_no_number_is_nobodys(monkeypatch, given, left):
    """mmengine's logger reads LOCAL_RANK as a number."""
    monkeypatch.setenv('LOCAL_RANK', given)
    seen = []
    with pytest.raises(SystemExit):
        console.run(lambda: seen.append(os.environ.get('LOCAL_RANK')))
    assert seen == [left]
