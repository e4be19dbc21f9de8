"""Logs that have been through other hands are read right, or refused in one line; nothing is lost silently."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable
from unittest import mock

import pytest

from recipe.core import console
from recipe.report import collect, metrics, points, scalars, text_log
from recipe.report import run as metrics_run

RECORDED = Path(__file__).resolve().parents[1] / 'support' / 'data' / 'mmengine-0.10.3.log'
TEXT = RECORDED.read_text()
Edit = Callable[[str], str]


def each_line(change: Callable[[str], str]) -> Edit:
    return lambda text: ''.join(f'{change(line)}\n' for line in text.splitlines())


def iso(separator: str, fraction: str) -> Edit:
    """Another form of the time."""
    pattern = re.compile(r'^(\d{4})/(\d\d)/(\d\d) (\d\d:\d\d:\d\d)', re.MULTILINE)
    return lambda text: pattern.sub(rf'\1-\2-\3{separator}\4{fraction}', text)


SAME = {
    'white space stripped': each_line(str.rstrip),
    'line ends of Windows': lambda text: text.replace('\n', '\r\n'),
    'stripped, line ends of Windows': lambda text: each_line(str.rstrip)(text).replace('\n', '\r\n'),
    'byte order mark': lambda text: '\ufeff' + text,
    'colours': lambda text: text.replace('INFO', '\x1b[4m\x1b[97mINFO\x1b[0m'),
    '256 colours': lambda text: text.replace('INFO', '\x1b[1;38;5;208mINFO\x1b[m\x1b[K'),
    'hyperlinks': lambda text: text.replace('mmengine -', '\x1b]8;;http://x\x07mmengine\x1b]8;;\x07 -'),
    'time with hyphens': iso(' ', ''),
    'time with milliseconds': iso(' ', ',123'),
    'time of ISO 8601': iso('T', '.123456+08:00'),
    'prefix of torchrun': each_line('[default0]:{}'.format),
    'prefix of torch': each_line('[rank0]: {}'.format),
    'prefix of mpirun': each_line('[1,0]<stdout>:{}'.format),
    'prefix of srun': each_line('0: {}'.format),
    'prefix of docker': each_line('2026-11-29T05:30:00.123456789Z {}'.format),
    'prefix of kubernetes': each_line('2026-11-29T05:30:00.123+08:00 stdout F {}'.format),
    'another logger': lambda text: text.replace(' - mmengine - ', ' - my.logger - '),
}


@pytest.mark.parametrize('name', SAME)
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-16'])
def test_the_same_log_in_another_form_reads_the_same(tmp_path: Path, name: str, encoding: str) -> None:
    path = tmp_path / 'a.log'
    edited = SAME[name](TEXT)
    assert edited != TEXT
    path.write_bytes(edited.encode(encoding))
    found, expected = text_log.read_text(path), text_log.read_text(RECORDED)
    for log in (found, expected):
        log.config_text = ''.join(log.config_text.split())
    assert found == expected
    assert len(found.validations[-1].class_iou_percent) == 19


@pytest.mark.parametrize(
    ('edit', 'said'),
    [
        (lambda text: text.replace('2026/11/22 ', 'Sunday, '), 'does not begin as mmengine writes it'),
        (lambda text: text.replace(' - mmengine - INFO - ', ' '), 'does not begin as mmengine writes it'),
        (each_line('> {}'.format), 'does not begin as mmengine writes it'),
        (each_line(lambda line: line[1:]), 'does not begin as mmengine writes it'),
        (lambda text: text.replace('\n', ' ' * 99) * 60, 'is this a log?'),
        (
            lambda text: '2022-03-01 12:00:00,123 - mmseg - INFO - Iter [50/160000]\tlr: 1.2e-06, loss: 3.4\n',
            '.log.json',
        ),
        (lambda text: text.replace('[ 2/20]', f'[ {"9" * 5000}/20]'), 'damaged'),
    ],
)
def test_a_log_in_a_form_that_is_not_known_is_refused_in_one_line(tmp_path: Path, edit: Edit, said: str) -> None:
    path = tmp_path / 'a.log'
    path.write_text(edit(TEXT))
    with pytest.raises(console.UserError, match=said) as refused:
        text_log.read_text(path)
    assert len(str(refused.value)) < 400


def test_a_validation_without_its_table_is_said(tmp_path: Path) -> None:
    path = tmp_path / 'a.log'
    path.write_text(re.sub(r'^[|+].*\n', '', TEXT, flags=re.MULTILINE))
    log = text_log.read_text(path)
    assert [item.miou_percent for item in log.validations] == [26.53, 58.74]
    assert sum('no table of the classes' in warning for warning in log.warnings) == 2


def test_a_line_that_was_cut_is_said(tmp_path: Path) -> None:
    path = tmp_path / 'a.log'
    path.write_text(TEXT.rstrip('\n')[:-40])
    assert any('half-written last line dropped' in warning for warning in text_log.read_text(path).warnings)


# --- mmsegmentation 0.x ----------------------------------------------------------------------------------------------

OLD = [
    {'env_info': 'Python: 3.8', 'seed': 0, 'exp_name': 'a.py', 'mmseg_version': '0.30.0', 'config': 'x = 1'},
    {'mode': 'train', 'epoch': 1, 'iter': 50, 'lr': 6e-05, 'memory': 99, 'data_time': 0.1, 'loss': 3.5, 'time': 1.5},
    {'mode': 'train', 'epoch': 3, 'iter': 100, 'lr': 5e-05, 'memory': 99, 'data_time': 0.1, 'loss': 2.5, 'time': 1.0},
    {'mode': 'val', 'epoch': 3, 'iter': 500, 'lr': 5e-05, 'aAcc': 0.9, 'mIoU': 0.76, 'mAcc': 0.8, 'IoU.road': 0.98},
]


def write_rows(path: Path, rows: list) -> Path:
    path.write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
    return path


def test_fractions_of_mmsegmentation_0_are_percent(tmp_path: Path) -> None:
    path = write_rows(tmp_path / '20220301_120000.log.json', OLD)
    run = metrics_run.read_run(path)
    assert [point.loss for point in run.points] == [3.5, 2.5]
    (found,) = run.validations
    assert (found.iter, found.miou_percent, found.macc_percent, found.aacc_percent) == (100, 76.0, 80.0, 90.0)
    assert found.class_iou_percent == {'road': 98.0}


def test_an_old_log_with_percent_is_refused(tmp_path: Path) -> None:
    path = write_rows(tmp_path / 'a.log.json', [*OLD[:-1], {**OLD[-1], 'mIoU': 76.0}])
    with pytest.raises(console.UserError, match=r'mIoU is 76\.0, but a log of mmsegmentation 0\.x has fractions'):
        scalars.read_scalars(path)


@pytest.mark.parametrize(
    'edit', [lambda text: text.replace('\n', '\r\n'), lambda text: '\ufeff' + text], ids=['CRLF', 'BOM']
)
def test_scalars_and_steps_in_another_form_read_the_same(tmp_path: Path, edit: Edit) -> None:
    rows = [{'loss': 1.5, 'iter': at, 'time': 0.5} for at in range(1, 9)]
    path = write_rows(tmp_path / 'scalars.json', rows)
    expected = scalars.read_scalars(path)
    path.write_text(edit(path.read_text()), newline='')
    assert scalars.read_scalars(path) == expected
    steps = tmp_path / 'steps.csv'
    steps.write_text(edit('iter,data_s,step_s\n1,0.1,0.2\n'), newline='')
    assert scalars.read_steps(steps) == ([scalars.Step(1, 0.1, 0.2)], [])


@pytest.mark.parametrize(
    'row',
    [
        '{"loss": 1.5, "iter": 1e999}',
        '{"loss": 1.5, "iter": ' + '9' * 5000 + '}',
        '{"loss": 1.5, "iter": 99999999999}',
        '{"loss": 1.5, "iter": 1.5}',
        '{"loss": true, "iter": 1}',
        '{"loss": [1], "iter": 1}',
        '{"mIoU": 1, "step": NaN}',
        '[' * 50_000,
    ],
)
def test_a_record_that_broke_the_reader_is_one_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / 'scalars.json'
    path.write_text(f'{row}\n')
    with pytest.raises(console.UserError, match=r'scalars\.json:1: '):
        scalars.read_scalars(path)


# --- size ------------------------------------------------------------------------------------------------------------


def line(at: int, total: int, spoil: str = '') -> str:
    losses = f'loss: {1 + at % 7:.4f}  decode.loss_cls: {at % 5:.4f}{spoil}  decode.d0.loss_cls: nan'
    clock = f'2026/11/22 {at // 3600 % 24:02d}:{at // 60 % 60:02d}:{at % 60:02d}'
    # mmengine puts one space between the learning rates, two between all others.
    rates = 'base_lr: 1.0000e-03 lr: 1.0000e-04'
    values = f'{rates}  eta: 1 day, 0:00:{at % 60:02d}  time: 0.5{at % 10}00  data_time: 0.0100  memory: {at % 50}'
    return f'{clock} - mmengine - INFO - Iter(train) [{at:>6}/{total}]  {values}  {losses}\n'


def json_line(at: int, total: int, spoil: str = '') -> str:
    values = f'"lr": 1e-04, "data_time": 0.01, "loss": {1 + at % 7}.5, "decode.loss_cls": {at % 5}.0{spoil}'
    return f'{{{values}, "time": 0.5{at % 10}, "memory": {at % 50}, "iter": {at}, "step": {at}}}\n'


LONG = 300


@pytest.fixture
def few_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a log of a few hundred lines be a long one."""
    monkeypatch.setattr(points, 'MOST_TERMS', 8)


@pytest.mark.parametrize(('make', 'read'), [(line, text_log.read_text), (json_line, scalars.read_scalars)])
def test_a_long_log_keeps_all_figures_and_some_terms(tmp_path, few_terms, monkeypatch, make, read) -> None:
    path = tmp_path / 'log'
    path.write_text(''.join(make(at, LONG) for at in range(1, LONG + 1)))
    with mock.patch.object(points.Points, 'add', autospec=True, side_effect=points.Points.add) as add:
        fast = read(path)
    assert add.call_count < LONG / 4, 'only the records whose terms are kept take the slow way'
    monkeypatch.setattr(points.PlainRecord, 'take', lambda *_: ())
    slow = read(path)
    for name in ('iter', *points.COLUMNS):
        assert fast.points.column(name).tolist() == slow.points.column(name).tolist()
    assert (fast.seconds, fast.planned_iters) == (slow.seconds, slow.planned_iters)
    assert 8 <= len(fast.points.detailed()) <= 16
    assert fast.points.detailed()[-1].terms


@pytest.mark.parametrize(('make', 'read'), [(line, text_log.read_text), (json_line, scalars.read_scalars)])
@pytest.mark.parametrize('at', [40, 41, 42, 43, LONG])
def test_damage_in_a_long_log_is_found_wherever_it_is(tmp_path, few_terms, make, read, at) -> None:
    path = tmp_path / 'log'
    path.write_text(''.join(make(now, LONG, 'x' * (now == at)) for now in range(1, LONG + 1)))
    with pytest.raises(console.UserError, match=rf'log:{at}: '):
        read(path)
    path.write_text(''.join(make(now, LONG) for now in (*range(1, at + 1), at)))
    with pytest.raises(console.UserError, match=f'goes back from {at} to {at}'):
        read(path)


def test_the_curves_of_a_long_log_are_thinned_and_that_is_said(tmp_path, few_terms, monkeypatch) -> None:
    path = tmp_path / 'log'
    path.write_text(''.join(line(at, LONG) for at in range(1, LONG + 1)))
    arguments = dict(require=['fps'], batch_size=2, nproc=1)
    whole = collect.collect(path, **arguments)
    monkeypatch.setattr(collect, 'MOST_CURVE_POINTS', 100)
    thin = collect.collect(path, **arguments)
    assert len(whole.loss_curve) == LONG
    assert [at for at, _ in thin.loss_curve] == list(range(3, LONG + 1, 3))
    assert any('the curves and loss.txt hold one in 3' in warning for warning in thin.warnings)
    assert thin.fps_images_per_s == whole.fps_images_per_s
    assert (thin.step_time_p95_s, thin.memory_peak_mb) == (whole.step_time_p95_s, 49)


# --- the terminal ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings('error:Glyph')
def test_names_in_a_log_act_on_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [{'loss': 1.5, 'evil\x1b[2Jloss': 1, 'iter': at, 'time': 0.5} for at in range(1, 99)]
    old = {**OLD[-1], 'IoU.ro\x1b]0;title\x07ad\n$x_{$': 0.5}
    folder = tmp_path / 'a\nerror: run\x1b[31m'
    folder.mkdir()
    path = write_rows(folder / 'a$\\frac$.log.json', [*rows, old])
    metrics.main([str(path), '--batch_size=2', '--nproc=1'])
    out, err = capsys.readouterr()
    assert all(text.replace('\n', '').isprintable() for text in (out, err))
    assert not any(shown.startswith('error:') for shown in out.splitlines())
    assert r'ro\x1b]0;title\x07ad\n$x_{$: 50.00 %' in out
    assert (folder / 'a$\\frac$.log_metrics' / 'curves.png').is_file()
