"""``tools/predict.py``: what is written for pictures, and what is passed over."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from recipe.core import console, exit_status
from recipe.predict import cli, sources
from recipe.predict.segmenter import Segmenter


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, trained):
    """Load the model once for all these tests."""
    monkeypatch.setattr('recipe.predict.trained_model.load_trained_model', lambda *_: trained)


@pytest.fixture
def predict(tmp_path, run):
    """Call the tool with the results in ``out``; returns the exit status."""

    def call(*argv):
        return cli.main([*map(str, argv), '--checkpoint', str(run), '--out', str(tmp_path / 'out'), '--device=cpu'])

    return call


@pytest.fixture
def pictures(tmp_path, street):
    """Pictures of two sizes in a folder with another one in it, and a file that is no picture."""
    folder = tmp_path / 'in'
    (folder / 'deeper').mkdir(parents=True)
    street.save(folder / 'a.png')
    street.crop((0, 0, 99, 50)).save(folder / 'b.JPG', 'JPEG')
    street.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / 'deeper' / 'a.png')
    (folder / 'notes.txt').write_text('no picture')
    return folder


def made(tmp_path):
    return sorted(path.relative_to(tmp_path / 'out').as_posix() for path in (tmp_path / 'out').rglob('*.*'))


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened.convert('RGB') if opened.mode != 'P' else opened)


@pytest.mark.parametrize('batch_size', [1, 2])
def test_a_folder(tmp_path, pictures, predict, trained, capsys, batch_size):
    assert predict(pictures, f'--batch_size={batch_size}') == 0
    names = ['a', 'b', 'deeper/a']
    assert made(tmp_path) == [f'{name}_{kind}.png' for name in names for kind in ('labels', 'overlay')]
    segment = Segmenter(trained)
    for name, source in zip(names, ('a.png', 'b.JPG', 'deeper/a.png')):
        labels = pixels(tmp_path / 'out' / f'{name}_labels.png')
        assert (labels == segment(pictures / source)).mean() > 0.999
        assert pixels(tmp_path / 'out' / f'{name}_overlay.png').shape == (*labels.shape, 3)
        with Image.open(tmp_path / 'out' / f'{name}_labels.png') as opened:
            assert opened.mode == 'P' and opened.getpalette()[:6] == trained.palette[:2].ravel().tolist()
    assert '3 pictures predicted, ' in capsys.readouterr().out


def test_opacity_classes_and_side_by_side(tmp_path, street, predict, trained):
    street.save(tmp_path / 'a.png')
    predict(tmp_path / 'a.png', '--opacity=1', '--side_by_side', '--scores')
    labels = pixels(tmp_path / 'out' / 'a_labels.png')
    left, right = np.hsplit(pixels(tmp_path / 'out' / 'a_overlay.png'), 2)
    assert np.array_equal(left, np.asarray(street)) and np.array_equal(right, trained.palette[labels])
    scores = np.load(tmp_path / 'out' / 'a_scores.npy')
    assert scores.dtype == np.float32 and np.array_equal(scores.argmax(0), labels)
    one = int(np.bincount(labels.ravel()).argmax())
    for chosen in (f'{one}', f' {trained.classes[one]},'):
        predict(tmp_path / 'a.png', '--opacity=1', f'--classes={chosen}', '--force')
        drawn = pixels(tmp_path / 'out' / 'a_overlay.png')
        assert np.array_equal(drawn[labels != one], np.asarray(street)[labels != one])
        assert (drawn[labels == one] == trained.palette[one]).all()
    predict(tmp_path / 'a.png', '--opacity', '0', '--force')
    assert np.array_equal(pixels(tmp_path / 'out' / 'a_overlay.png'), np.asarray(street))


def test_unreadable_files_are_named_and_passed_over(tmp_path, pictures, predict, capsys):
    (pictures / 'empty.png').write_bytes(b'')
    (pictures / 'text.png').write_text('no picture')
    whole = (pictures / 'b.JPG').read_bytes()
    (pictures / 'cut.jpg').write_bytes(whole[:-20])
    whole = (pictures / 'a.png').read_bytes()
    (pictures / 'cut.png').write_bytes(whole[: len(whole) // 2])
    assert predict(pictures, pictures / 'gone.png', pictures / 'notes.txt') == exit_status.UNREADABLE
    printed = capsys.readouterr()
    for name, why in [
        ('empty.png', 'is empty'),
        ('text.png', 'is not a picture'),
        ('cut.jpg', 'is damaged'),
        ('cut.png', 'is damaged'),
        ('gone.png', 'cannot be read'),
        ('notes.txt', ''),
    ]:
        assert f'passed over: {pictures / name} {why}' in printed.err
    assert '6 files passed over' in printed.out
    assert len(made(tmp_path)) == 6


def test_nothing_is_overwritten_without_force(tmp_path, pictures, predict):
    predict(pictures / 'a.png')
    before = (tmp_path / 'out' / 'a_labels.png').stat().st_mtime_ns
    with pytest.raises(console.UserError, match=r'a_overlay.png is there already \(and 1 more\); give .* --force'):
        predict(pictures)
    assert (tmp_path / 'out' / 'a_labels.png').stat().st_mtime_ns == before and len(made(tmp_path)) == 2
    assert predict(pictures / 'a.png', '--force') == 0
    assert (tmp_path / 'out' / 'a_labels.png').stat().st_mtime_ns > before


def test_a_list_on_the_standard_input(tmp_path, pictures, predict, monkeypatch):
    monkeypatch.setattr('sys.stdin', io.StringIO(f'{pictures / "a.png"}\n\n{pictures / "deeper"}/*.png\r\n'))
    assert predict('-') == 0
    assert made(tmp_path) == ['a_labels.png', 'a_overlay.png', 'deeper/a_labels.png', 'deeper/a_overlay.png']


def test_a_disk_that_is_full(tmp_path, pictures, predict, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('pathlib.Path.write_bytes', full)
    with pytest.raises(OSError, match='No space left') as raised:
        predict(pictures)
    assert raised.value.filename.startswith(str(tmp_path / 'out'))
    assert [path for path in (tmp_path / 'out').rglob('*') if path.is_file()] == []


def test_too_little_memory(pictures, predict, trained, monkeypatch):
    def too_much(*_):
        raise RuntimeError('CUDA out of memory. Tried to allocate 1 GiB\nmore')

    monkeypatch.setattr(trained, 'labels', too_much, raising=False)
    with pytest.raises(console.UserError, match=r'2 pictures of 256 x 128 pixels need more memory .* --batch_size=1'):
        predict(pictures, '--batch_size=2')


@pytest.mark.parametrize(
    ('files', 'names'),
    [
        (['x/a.png'], ['a']),
        (['x/a.png', 'y/a.png'], ['x/a', 'y/a']),
        (['x/a.png', 'x/a.jpg'], ['a.png', 'a.jpg']),
        (['x/a.png', 'x/a.jpg', 'x/a.png.jpg'], ['a.png', 'a.jpg', 'a.png.jpg']),
        (['x/a', 'x/a.png'], ['a', 'a.png']),
        (['x/a', 'x/b'], ['a', 'b']),
        (['x/a.png', 'x/a.png', 'x/../x/a.png'], ['a']),
        (['x/a.b/c.png', 'x/a.b/c.d.png'], ['c', 'c.d']),
    ],
)
def test_two_inputs_never_have_one_name(tmp_path, files, names):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('x')
    found = sources.find([str(tmp_path / file) for file in files], [], tmp_path / 'out')
    assert [source.name for source in found] == names


@pytest.mark.parametrize(
    ('given', 'names'),
    [
        (['x', 'z.png'], ['a', 'y/b', 'z']),
        (['x/*'], ['a', 'y/b']),
        (['x/**/*.png'], ['a', 'y/b']),
        (['x/y', 'x/a.png'], ['b', 'a']),
        (['x', 'x/y/b.png'], ['a', 'y/b']),
        (['x', 'v/a.png'], ['x/a', 'x/y/b', 'v/a']),
    ],
)
def test_names_below_a_folder_and_a_pattern(tmp_path, given, names):
    for file in ('x/a.png', 'x/y/b.png', 'z.png', 'v/a.png'):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text('x')
    found = sources.find([str(tmp_path / one) for one in given], [], tmp_path / 'out')
    assert [source.name for source in found] == names


def test_results_in_the_folder_of_the_inputs_are_no_inputs(tmp_path):
    for file in ('a.png', 'out/a_overlay.png', '.hidden/b.png', '.c.png'):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text('x')
    for given in (tmp_path, tmp_path / '**' / '*.png', tmp_path / '*'):
        found = sources.find([str(given)], [], tmp_path / 'out')
        assert [source.path.name for source in found] == ['a.png']
