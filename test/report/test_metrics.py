import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import metrics_toy
from recipe.core import console, sessions
from recipe.report import collect, metrics

pytestmark = pytest.mark.trains

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
RECORDED = Path(__file__).resolve().parents[1] / 'support' / 'data' / 'mmengine-0.10.3.log'
MAX_ITERS, CRASH_AT, CHECKPOINT = 40, 23, 20


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return metrics_toy.make_cityscapes(tmp_path_factory.mktemp('data') / 'cityscapes')


@pytest.fixture(scope='module')
def resumed(tmp_path_factory, data):
    """A run of the patched trainer that crashed in iteration 23 and went on from its checkpoint of iteration 20."""
    folder = tmp_path_factory.mktemp('runs') / 'resumed'
    options = dict(max_iters=MAX_ITERS, val_interval=10, interval=2)
    with pytest.raises(RuntimeError, match='toy crash'):
        metrics_toy.train(folder, data, crash_at=CRASH_AT, **options)
    metrics_toy.next_second()
    metrics_toy.train(folder, data, resume=True, draw=True, **options)
    return folder


@pytest.fixture
def run(resumed, tmp_path):
    """A copy of that run, to be changed."""
    return Path(shutil.copytree(resumed, tmp_path / 'run'))


@pytest.fixture(scope='module')
def diverged(tmp_path_factory, data):
    return metrics_toy.train(
        tmp_path_factory.mktemp('runs') / 'nan', data, patched=False, max_iters=14, val_interval=7, nan_at=8
    ).parent


@pytest.fixture(scope='module')
def unvalidated(tmp_path_factory, data):
    return metrics_toy.train(tmp_path_factory.mktemp('runs') / 'fast', data, max_iters=14, val_interval=0).parent


def call(capsys, *arguments):
    """Exit status, stdout and stderr of the tool."""
    with pytest.raises(SystemExit) as status:
        console.run(lambda: metrics.main([str(argument) for argument in arguments]))
    out, err = capsys.readouterr()
    return status.value.code, out, err


def refused(capsys, *arguments):
    """The one error line of a call that has to fail."""
    status, out, err = call(capsys, *arguments)
    assert status != 0
    assert 'Final' not in out and 'Traceback' not in err
    errors = [line for line in err.splitlines() if not line.startswith('warning: ')]
    assert len(errors) == 1 and errors[0].startswith('error: ')
    return errors[0]


def rows(run):
    """Lines of each steps.csv of a run, as written."""
    files = sorted(run.glob('*/vis_data/steps.csv'))
    return [
        [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file.open())] for file in files
    ]


def scalars(run):
    return sorted(run.glob('*/vis_data/scalars.json'))


def edit_last(path, change):
    lines = path.read_text().splitlines()
    row = json.loads(lines[-1])
    change(row)
    path.write_text('\n'.join([*lines[:-1], json.dumps(row)]) + '\n')


# Figures


def test_speed_is_images_over_the_sum_of_the_step_times(resumed):
    first, second = rows(resumed)
    assert [row['iter'] for row in first] == list(range(1, CRASH_AT))
    assert [row['iter'] for row in second] == list(range(CHECKPOINT + 1, MAX_ITERS + 1))
    # iterations 21 and 22 were done again; each start lost 5 iterations to its warm-up
    window = [row for row in first if 6 <= row['iter'] <= CHECKPOINT] + [row for row in second if row['iter'] >= 26]
    times = sorted(row['step_s'] for row in window)
    result = metrics.collect(resumed)
    assert result.fps_window.iterations == len(window) == 30
    assert (result.fps_window.first_iter, result.fps_window.last_iter) == (6, MAX_ITERS)
    assert result.fps_window.warm_up_iters == [(1, 5), (21, 25)]
    assert result.fps_images_per_s == pytest.approx(metrics_toy.BATCH_SIZE * len(window) / sum(times))
    assert result.step_time_mean_s == pytest.approx(sum(times) / len(times))
    lines = [row for file in scalars(resumed) for row in map(json.loads, file.open())]
    logged = {row['step']: row['time'] for row in lines if 'loss' in row}  # of a later start where there are two
    assert result.step_time_logged_mean_s == pytest.approx(sum(logged.values()) / len(logged))
    assert result.fps_logged_mean_images_per_s == pytest.approx(2 / result.step_time_logged_mean_s)
    assert result.step_time_p50_s == pytest.approx((times[14] + times[15]) / 2)
    assert times[27] <= result.step_time_p95_s <= times[28]
    assert result.data_time_mean_s == pytest.approx(sum(row['data_s'] for row in window) / len(window))
    assert 'steps.csv' in result.fps_window.source


def test_a_resumed_run_is_one_training(resumed):
    result = metrics.collect(resumed)
    assert (result.starts, result.resumed_at_iter, result.iters_done, result.complete) == (2, [CHECKPOINT], 40, True)
    assert [at for at, _ in result.loss_curve] == list(range(2, MAX_ITERS + 1, 2))
    assert [item['iter'] for item in result.validations] == [10, 20, 30, 40]
    logged = {}
    for file in scalars(resumed):  # later ones overwrite
        logged.update({row['iter']: row['loss'] for row in map(json.loads, file.open()) if 'loss' in row})
    assert dict(result.loss_curve) == logged
    assert result.loss_final == logged[MAX_ITERS] and result.loss_final_iter == MAX_ITERS


def test_what_a_crashed_start_did_after_its_checkpoint_does_not_count(run):
    lines = scalars(run)[0].read_text().splitlines()
    row = json.loads(lines[-1])
    assert row['iter'] > CHECKPOINT
    honest = metrics.collect(run)
    edit_last(scalars(run)[0], lambda row: row.update(loss=1e9))
    assert metrics.collect(run).loss_curve == honest.loss_curve
    planted = {'mIoU': 100.0, 'mAcc': 100.0, 'aAcc': 100.0, 'step': CRASH_AT}
    scalars(run)[0].write_text('\n'.join([*lines, json.dumps(planted)]) + '\n')
    assert metrics.collect(run).miou_best_percent == honest.miou_best_percent < 100


def test_accuracy_is_that_of_the_last_validation(resumed):
    result = metrics.collect(resumed)
    validations = [row for file in scalars(resumed) for row in map(json.loads, file.open()) if 'mIoU' in row]
    assert len(validations) == 4
    assert result.miou_last_percent == pytest.approx(validations[-1]['mIoU'], abs=1e-3)
    assert result.miou_best_percent == pytest.approx(max(row['mIoU'] for row in validations), abs=1e-3)
    assert result.macc_last_percent == pytest.approx(validations[-1]['mAcc'], abs=1e-3)
    assert result.aacc_last_percent == pytest.approx(validations[-1]['aAcc'], abs=1e-3)
    assert 0 < result.miou_last_percent <= 100
    known = [iou for iou in result.class_iou_last_percent.values() if iou is not None]
    assert result.miou_last_percent == pytest.approx(sum(known) / len(known), abs=0.01)


def test_the_best_validation_need_not_be_the_last(run):
    edit_last(scalars(run)[1], lambda row: row.update(mIoU=0.5))
    result = metrics.collect(run)
    assert (result.miou_last_percent, result.miou_last_iter) == (0.5, MAX_ITERS)
    assert result.miou_best_percent > 0.5 and result.miou_best_iter < MAX_ITERS


def test_memory_is_the_highest_that_was_logged(run):
    assert metrics.collect(run).memory_peak_mb is None  # a CPU
    lines = scalars(run)[1].read_text().splitlines()
    for index, memory in ((0, 700), (2, 900), (4, 800)):
        lines[index] = json.dumps({**json.loads(lines[index]), 'memory': memory})
    scalars(run)[1].write_text('\n'.join(lines) + '\n')
    assert metrics.collect(run).memory_peak_mb == 900


def test_duration_is_the_sum_over_the_starts(resumed):
    result = metrics.collect(resumed)
    clocks = [
        re.findall(r'^\d{4}/\d\d/\d\d (\d\d):(\d\d):(\d\d)', log.read_text(), re.M) for log in resumed.glob('*/*.log')
    ]
    seconds = [[int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in clock] for clock in clocks]
    expected = [(clock[-1] - clock[0]) % 86400 for clock in seconds]
    assert result.e2e_duration_s == sum(expected)
    # the launcher measures its own start, the second one
    first = next(
        clock for log, clock in zip(resumed.glob('*/*.log'), expected) if log == sorted(resumed.glob('*/*.log'))[0]
    )
    assert metrics.collect(resumed, e2e_duration_s=123.5).e2e_duration_s == first + 123.5


def test_the_launcher_tells_device_and_versions(run):
    versions = {'world_size': 4, 'batch_size': 9, 'device': 'npu', 'torch': '2.1.0', 'cann': '8.1.RC1'}
    (run / 'versions.json').write_text(json.dumps(versions))
    result = metrics.collect(run)
    assert result.device == 'npu'
    assert result.versions['cann'] == '8.1.RC1' and result.versions['torch'] == '2.1.0'
    assert 'mmengine' in result.versions and 'device' not in result.versions
    # what the trainer itself logged comes first
    assert (result.world_size, result.batch_size_per_card) == (1, metrics_toy.BATCH_SIZE)


def test_the_launcher_tells_the_batch_where_the_log_does_not(run):
    for start in run.glob('2*/'):
        (start / 'vis_data' / 'config.py').unlink(missing_ok=True)
        for log in start.glob('*.log'):
            log.unlink()
    with pytest.raises(console.UserError, match='FPS is missing'):
        metrics.collect(run)
    (run / 'versions.json').write_text('{"world_size": 4, "batch_size": 9}')
    assert metrics.collect(run).global_batch == 36
    shutil.copy(next(run.parent.glob('run/*.py')), run / 'config.py')
    assert metrics.collect(run).global_batch == 4 * metrics_toy.BATCH_SIZE


def test_starts_with_another_global_batch_are_left_out(run):
    config = run / scalars(run)[0].parent / 'config.py'
    config.write_text(config.read_text().replace(f'batch_size={metrics_toy.BATCH_SIZE}', 'batch_size=7'))
    result = metrics.collect(run)
    assert (result.fps_window.first_iter, result.fps_window.last_iter) == (26, MAX_ITERS)
    assert '1-20 (global batch 7)' in result.fps_window.excluded
    times = [row['step_s'] for row in rows(run)[1] if row['iter'] >= 26]
    assert result.fps_images_per_s == pytest.approx(metrics_toy.BATCH_SIZE * len(times) / sum(times))


def test_without_steps_the_means_in_the_log_are_taken(run):
    for file in run.glob('*/vis_data/steps.csv'):
        file.unlink()
    result = metrics.collect(run)
    assert 'no steps.csv' in result.fps_window.source
    logged = {}
    for file in scalars(run):
        logged.update({row['iter']: row['time'] for row in map(json.loads, file.open()) if 'loss' in row})
    # logged every 2 iterations, each the mean of 2: those that hold an iteration up to 5, or 21 to 25, are warm-up
    window = [logged[at] for at in logged if 8 <= at <= 20 or at >= 28]
    assert result.fps_images_per_s == pytest.approx(metrics_toy.BATCH_SIZE * len(window) / sum(window))
    assert result.fps_window.iterations == 2 * len(window)


def test_times_that_a_killed_process_did_not_write_are_stated(run):
    path = sorted(run.glob('*/vis_data/steps.csv'))[0]
    path.write_text('\n'.join(path.read_text().splitlines()[:13]) + '\n')  # up to iteration 12
    result = metrics.collect(run)
    assert result.fps_window.iterations == (12 - 5) + (40 - 25)
    assert any('8 of 1-20' in text for text in result.fps_window.excluded)


def test_a_start_that_only_made_up_for_a_validation_counts(run):
    """Killed between the last iteration and its validation, then resumed: the trainer only validates."""
    second = scalars(run)[1]
    lines = second.read_text().splitlines()
    second.write_text('\n'.join(lines[:-1]) + '\n')
    with pytest.raises(console.UserError, match='the validation at iteration 40 was not logged'):
        metrics.collect(run)
    third = run / '29991231_235959'
    (third / 'vis_data').mkdir(parents=True)
    (third / 'vis_data' / 'scalars.json').write_text(lines[-1] + '\n')
    shutil.copy(second.parent / 'config.py', third / 'vis_data')
    text = next(second.parent.parent.glob('*.log')).read_text()
    (third / f'{third.name}.log').write_text(
        re.sub(r'resumed epoch: 0, iter: \d+', f'resumed epoch: 0, iter: {MAX_ITERS}', text.split('Iter(train)')[0])
    )
    result = metrics.collect(run)
    assert result.miou_last_iter == MAX_ITERS
    assert result.miou_last_percent == pytest.approx(json.loads(lines[-1])['mIoU'], abs=1e-3)
    assert result.fps_window.iterations == 30


def test_a_start_that_crashed_at_once_is_named(run, capsys):
    first = sorted(run.glob('2*/*.log'))[0]
    crashed = run / '29991231_235959'
    crashed.mkdir()
    (crashed / f'{crashed.name}.log').write_text(first.read_text().split('Iter(train)')[0])
    status, out, err = call(capsys, run, '--no_pictures')
    assert status == 0 and 'Final' in out
    assert '1 start(s) logged no iteration' in err


def resume_finished(run, seconds=3):
    """Add a start that found nothing left to train: its text log, over some seconds, and no iteration."""
    first = sorted(run.glob('2*/*.log'))[0].read_text().split('Iter(train)')[0].splitlines()
    name = '29991231_235959'
    (run / name / 'vis_data').mkdir(parents=True)
    record = next(line for line in first if re.match(r'\d{4}/\d\d/\d\d ', line))
    lines = ['2999/12/31 23:59:10' + record[19:], f'2999/12/31 23:59:1{seconds} - mmengine - INFO - nothing left']
    (run / name / f'{name}.log').write_text('\n'.join(lines) + '\n')
    return name


def test_the_duration_of_a_finished_run_that_was_resumed_is_that_of_all_starts(run):
    before = metrics.collect(run).e2e_duration_s
    resume_finished(run, 3)
    assert metrics.collect(run).e2e_duration_s == before + 3
    assert metrics.collect(run, e2e_duration_s=15.5).e2e_duration_s == before + 15.5  # of the last start


def test_what_the_launcher_measured_counts_instead_of_the_logs(run):
    """A session may hold several starts, and a start that was killed with its launcher has its log only."""
    starts = sorted(path.name for path in run.glob('2*'))
    name = resume_finished(run, 3)
    first = json.dumps({'seconds': 100.5, 'starts': starts}) + '\n'
    file = run / sessions.FILE
    file.write_text(first + '{"seconds": 7, "sta')  # half a line is none
    assert metrics.collect(run).e2e_duration_s == 103.5
    file.write_text(first + json.dumps({'seconds': 20, 'starts': [name]}) + '\n')
    assert metrics.collect(run).e2e_duration_s == 120.5
    with pytest.raises(ValueError), sessions.measured(run):  # also of a session that fails
        (run / '29991231_235959_002' / 'vis_data').mkdir(parents=True)
        raise ValueError
    assert sessions.read(run)[-1].starts == {'29991231_235959_002'}


def test_a_clock_that_went_back_is_a_warning_and_no_year(run, capsys):
    log = sorted(run.glob('2*/*.log'))[-1]
    before = metrics.collect(run).e2e_duration_s
    lines = log.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if re.match(r'\d{4}/\d\d/\d\d ', line))
    lines[last] = '2020/01/01 00:00:00' + lines[last][19:]
    log.write_text(''.join(lines))
    status, out, err = call(capsys, run, '--no_pictures')
    assert status == 0
    assert f'warning: {log}: the clock was set 1 time(s)' in err
    assert 0 <= float(re.search(r'E2E Training Duration sec : (\S+)', out)[1]) <= before


def test_no_screen_is_needed_whatever_a_notebook_says(run):
    env = {**os.environ, 'MPLBACKEND': 'module://matplotlib_inline.backend_inline', 'DISPLAY': ':99'}
    (run / 'matplotlibrc').write_text('backend: TkAgg\ntext.usetex: True\n')
    command = [sys.executable, str(TOOLS / 'metrics.py'), str(run)]
    done = subprocess.run(command, env=env, cwd=run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (run / 'curves.png').is_file()


# Faults


def test_a_nan_loss_is_an_error(diverged, capsys):
    error = refused(capsys, diverged)
    assert 'loss is nan at iteration 14 (first at 8' in error
    assert 'scalars.json' in error and 'learning rate' in error
    assert refused(capsys, diverged, '--require', 'fps')
    assert not (diverged / 'result.json').exists()


def test_a_loss_that_recovered_is_a_warning(run, capsys):
    path = scalars(run)[0]
    lines = path.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), 'loss': math.nan})
    path.write_text('\n'.join(lines) + '\n')
    status, _, err = call(capsys, run, '--no_pictures')
    assert status == 0
    assert 'warning: the loss is not finite at 1 logged iteration(s), first at 4' in err
    content = (run / 'result.json').read_text()
    assert 'NaN' not in content and [4, None] in json.loads(content)['loss_curve']


@pytest.mark.parametrize('figure', ['mIoU', 'mAcc', 'aAcc'])
def test_a_nan_accuracy_is_an_error(run, capsys, figure):
    edit_last(scalars(run)[1], lambda row: row.update({figure: math.nan}))
    assert f'{figure} is nan in the validation at iteration 40' in refused(capsys, run)


def test_a_missing_miou_is_an_error_unless_only_speed_is_asked(unvalidated, capsys):
    assert 'mIoU is missing' in refused(capsys, unvalidated, '--no_pictures')
    assert not (unvalidated / 'result.json').exists()
    status, out, _ = call(capsys, unvalidated, '--mode=performance', '--no_pictures')
    assert status == 0
    assert 'Final Performance images/sec : ' in out and 'Final Train Accuracy' not in out
    assert json.loads((unvalidated / 'result.json').read_text())['miou_last_percent'] is None
    assert 'mIoU is missing' in refused(capsys, unvalidated, '--mode=performance', '--require=fps,miou')


def test_an_unfinished_run_needs_partial(run, capsys):
    shutil.rmtree(scalars(run)[1].parent.parent)
    error = refused(capsys, run)
    assert f'stopped at iteration {CRASH_AT - 1} of {MAX_ITERS}' in error and '--resume=1' in error
    status, out, _ = call(capsys, run, '--partial', '--no_pictures')
    assert status == 0
    assert 'INCOMPLETE' in out and 'Final' not in out and 'TrainingTime' not in out
    assert json.loads((run / 'result.json').read_text())['complete'] is False
    assert 'incomplete' in refused(
        capsys, run, '--partial', '--no_pictures', '--legacy=toy', '--legacy_dir', run / 'out'
    )


@pytest.mark.parametrize(
    ('figure', 'message'), [('memory', 'peak memory is missing'), ('class_iou', 'table of class IoU'), ('e2e', 'E2E')]
)
def test_other_figures_can_be_required(run, capsys, figure, message):
    for log in run.glob('2*/*.log'):
        log.unlink()
    assert message in refused(capsys, run, '--require', figure, '--nproc=1')
    assert call(capsys, run, '--nproc=1', '--no_pictures')[0] == 0


def test_a_bare_log_without_a_batch_says_what_to_give(run, tmp_path, capsys):
    bare = tmp_path / 'train.log'
    start = sorted(run.glob('2*/*.log'))[1]
    text = start.read_text()
    records = re.findall(r'^\d{4}.*Iter\((?:train|val)\).*$', text, re.M)
    bare.write_text('\n'.join(records) + '\n')
    assert 'give --batch_size' in refused(capsys, bare)
    assert 'give --nproc' in refused(capsys, bare, '--batch_size=2')
    status, out, _ = call(capsys, bare, '--batch_size=2', '--nproc', '8', '--no_pictures')
    assert status == 0 and '8 processes x 2 images' in out
    assert (tmp_path / 'train_metrics' / 'result.json').is_file()
    assert call(capsys, bare, '--require=miou', '--no_pictures')[0] == 0


def test_too_short_for_a_window(data, tmp_path, capsys):
    run = metrics_toy.train(tmp_path / 'short', data, max_iters=5, val_interval=5, interval=1).parent
    status, out, err = call(capsys, run, '--no_pictures')
    assert status == 0 and 'the step times include the warm-up: the training has too few iterations' in err
    assert '5 iterations from 1 to 5' in out
    result = json.loads((run / 'result.json').read_text())
    assert result['fps_window']['warm_up_iters'] == [] and '(warm-up)' not in str(result['fps_window']['excluded'])
    assert result['fps_images_per_s'] == pytest.approx(metrics_toy.BATCH_SIZE / result['step_time_mean_s'])


def test_damage_is_one_line_with_its_place(run, capsys):
    path = scalars(run)[0]
    path.write_text('oops\n' + path.read_text())
    assert f'{path}:1: no JSON object' in refused(capsys, run)


def test_a_broken_versions_file(run, capsys):
    (run / 'versions.json').write_text('{')
    assert 'versions.json is no JSON' in refused(capsys, run)


@pytest.mark.parametrize(
    'arguments',
    [
        ['--batch_size=0'],
        ['--batch_size=two'],
        ['--nproc=-1'],
        ['--e2e_duration_s=nan'],
        ['--e2e_duration_s=inf'],
        ['--require=speed'],
        ['--mode=fast'],
        ['--req=fps'],
        ['--nonsense'],
    ],
)
def test_bad_options(resumed, capsys, arguments):
    status, out, err = call(capsys, resumed, *arguments)
    assert status == 2 and out == '' and 'error: ' in err and 'Traceback' not in err


def test_the_process_fails_loudly(diverged):
    done = subprocess.run(
        [sys.executable, str(TOOLS / 'metrics.py'), str(diverged)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout == ''
    assert done.stderr.count('\n') == 1 and done.stderr.startswith('error: ')


def test_help_loads_nothing_heavy():
    heavy = '{"numpy", "matplotlib", "torch", "mmengine"}'
    code = f'import sys; from recipe.report import metrics; print({heavy} & set(sys.modules))'
    done = subprocess.run([sys.executable, '-c', code], cwd=TOOLS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'set()'


# What is written


def test_result_json_holds_every_figure_with_unit_and_definition(run, capsys):
    assert call(capsys, run, '--no_pictures')[0] == 0
    content = json.loads((run / 'result.json').read_text())
    result = metrics.collect(run)
    assert content['fps_images_per_s'] == result.fps_images_per_s
    assert content['fps_window']['iterations'] == 30
    assert content['miou_last_percent'] == result.miou_last_percent
    assert content['class_iou_last_percent']['bus'] is None
    assert content['schema'] == 1
    for name in content['definition']:
        assert name in content
    assert set(content['validations'][0]) >= {'iter', 'miou_percent', 'class_iou_percent'}
    assert str(run.parent) not in (run / 'result.json').read_text()  # no place of this machine
    assert (run / 'loss.txt').read_text().split() == [f'{loss:.4f}' for _, loss in result.loss_curve]


def test_legacy_lines_exactly(run, capsys):
    result = metrics.collect(run)
    result.fps_images_per_s, result.miou_last_percent, result.step_time_mean_s = 26.0349, 83.2581, 0.61457
    result.e2e_duration_s = 27000.4
    assert metrics.legacy_lines(result) == [
        '------------------ Final result ------------------',
        'Final Performance images/sec : 26.03',
        'Final Train Accuracy : 83.26',
        'E2E Training Duration sec : 27000',
        'TrainingTime for step: 0.615',
    ]
    result.fps_images_per_s = 0.3397
    assert metrics.legacy_lines(result)[1] == 'Final Performance images/sec : 0.340'
    _, out, _ = call(capsys, run, '--no_pictures')
    assert out.splitlines()[-5:] == metrics.legacy_lines(metrics.collect(run))


def test_legacy_files(run, tmp_path, capsys):
    output = tmp_path / 'output'
    call(capsys, run, '--no_pictures', '--legacy=mask2former_swin', '--legacy_dir', output, '--e2e_duration_s=50')
    case = 'mask2former_swin_1p_miou'
    assert sorted(path.name for path in output.iterdir()) == [f'{case}.log', f'train_{case}_loss.txt']
    lines = (output / f'{case}.log').read_text().splitlines()
    values = dict(line.split(' = ') for line in lines)
    figures = ['ActualFPS', 'TrainingStepTime', 'ActualLoss', 'E2ETrainingTime', 'miou']
    assert list(values) == ['Network', 'RankSize', 'BatchSize', 'DeviceType', 'CaseName', *figures]
    result = metrics.collect(run, e2e_duration_s=50)
    printed = dict(line.rsplit(':', 1) for line in metrics.legacy_lines(result)[1:])
    assert values['ActualFPS'] == printed['Final Performance images/sec '].strip()
    assert values['miou'] == printed['Final Train Accuracy '].strip()
    assert values['E2ETrainingTime'] == printed['E2E Training Duration sec '].strip()
    assert (values['Network'], values['RankSize'], values['BatchSize']) == ('mask2former_swin', '1', '2')
    losses = (output / f'train_{case}_loss.txt').read_text().split()
    assert len(losses) == len(result.loss_curve) and losses[-1] == values['ActualLoss']


@pytest.mark.parametrize('validated', [True, False])
def test_a_performance_run_has_its_figures_under_both_names(run, unvalidated, validated, tmp_path, capsys):
    output, of = tmp_path / 'output', run if validated else unvalidated
    call(capsys, of, '--mode=performance', '--no_pictures', '--legacy=toy', '--legacy_dir', output)
    miou = f'{metrics.collect(run).miou_last_percent:.2f}' if validated else ''
    for name in ('toy_1p_miou', 'toy_1p_perf'):
        lines = (output / f'{name}.log').read_text().splitlines()
        assert f'CaseName = {name}' in lines and lines[-1] == f'miou = {miou}'
        assert (output / f'train_{name}_loss.txt').is_file()


def test_legacy_files_need_their_figures(run, tmp_path, capsys):
    for log in run.glob('2*/*.log'):
        log.unlink()
    output = tmp_path / 'output'
    error = refused(capsys, run, '--nproc=1', '--no_pictures', '--legacy=toy', '--legacy_dir', output)
    assert 'e2e_duration_s' in error and not output.exists()


def test_an_out_dir_that_cannot_be_written(run, tmp_path, capsys):
    (tmp_path / 'file').write_text('')
    assert str(tmp_path / 'file') in refused(capsys, run, '--out_dir', tmp_path / 'file' / 'deeper', '--no_pictures')


def test_a_recorded_text_log_through_the_tool(tmp_path, capsys):
    status, out, _ = call(capsys, RECORDED, '--out_dir', tmp_path, '--no_pictures')
    assert status == 0
    # 2 images x 14 iterations behind the warm-up (7 logged means of 2) over the sum of their times
    times = [float(text) for text in re.findall(r'\[ ?(?:8|1\d|20)/20\].* time: (\S+)', RECORDED.read_text())]
    assert len(times) == 7
    assert f'Final Performance images/sec : {2 * 14 / (2 * sum(times)):.2f}' in out.splitlines()
    assert 'Final Train Accuracy : 58.74' in out.splitlines()
    assert 'E2E Training Duration sec : 10' in out.splitlines()


def test_all_required_names_are_figures():
    assert set(sum(collect.REQUIRED.values(), ())) <= set(collect.FIGURES)
