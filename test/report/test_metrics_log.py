import contextlib
import io
import math
import shutil
from pathlib import Path

import pytest

import metrics_toy
from recipe.core import config_text, console
from recipe.report import run as metrics_run
from recipe.report import scalars as metrics_log
from recipe.report import text_log as metrics_text

# Written by mmengine's own LoggerHook; the header is shortened.
RECORDED = Path(__file__).resolve().parents[1] / 'support' / 'data' / 'mmengine-0.10.3.log'


@pytest.fixture(scope='module')
def console_text():
    return io.StringIO()


@pytest.fixture(scope='module')
def start(tmp_path_factory, console_text):
    folder = tmp_path_factory.mktemp('log')
    with contextlib.redirect_stdout(console_text):
        return metrics_toy.train(
            folder / 'run', metrics_toy.make_cityscapes(folder / 'data'), patched=False, max_iters=14, val_interval=6
        )


def text_log(start):
    return start / f'{start.name}.log'


def scalars(start):
    return start / 'vis_data' / 'scalars.json'


def copy(path, folder, edit=lambda text: text):
    target = folder / path.name
    target.write_text(edit(path.read_text()))
    return target


def test_scalars_hold_what_was_logged(start):
    log = metrics_log.read_scalars(scalars(start))
    assert [point.iter for point in log.points] == [2, 4, 6, 8, 10, 12, 14]
    assert [item.iter for item in log.validations][:2] == [6, 12]
    first = log.points[0]
    assert first.loss == pytest.approx(sum(first.terms.values()))
    assert set(first.terms) == {'decode.loss_cls', 'decode.d0.loss_cls'}
    assert first.step_s > first.data_s > 0
    assert first.memory_mb is None
    assert first.learning_rate > log.points[-1].learning_rate == 0
    assert log.warnings == []


def test_the_text_log_agrees_with_scalars(start):
    # alone in its folder, so that only the text is read
    exact = metrics_log.read_scalars(scalars(start))
    text = metrics_text.read_text(text_log(start))
    assert [point.iter for point in text.points] == [point.iter for point in exact.points]
    for rounded, point in zip(text.points, exact.points):
        assert rounded.loss == pytest.approx(point.loss, abs=1e-4)
        assert rounded.terms == pytest.approx(point.terms, abs=1e-4)
        assert rounded.step_s == pytest.approx(point.step_s, abs=1e-4)
        assert rounded.data_s == pytest.approx(point.data_s, abs=1e-4)
        assert rounded.learning_rate == pytest.approx(point.learning_rate, rel=1e-3)
    assert [item.miou_percent for item in text.validations] == [item.miou_percent for item in exact.validations]
    assert [item.aacc_percent for item in text.validations] == [item.aacc_percent for item in exact.validations]
    assert (text.world_size, text.planned_iters, text.resumed_iter) == (1, 14, 0)
    assert set(text.versions) >= {'python', 'torch', 'mmengine'}


def test_class_iou_averages_to_miou(start):
    log = metrics_text.read_text(text_log(start))
    for validation in log.validations:
        assert len(validation.class_iou_percent) == 19
        known = [iou for iou in validation.class_iou_percent.values() if iou is not None]
        assert len(known) < 19  # classes that occur nowhere have none
        assert validation.miou_percent == pytest.approx(sum(known) / len(known), abs=0.01)


def test_validations_get_their_iteration_from_the_text_alone(start, tmp_path):
    exact = [item.iter for item in metrics_log.read_scalars(scalars(start)).validations]
    run = metrics_run.read_run(copy(text_log(start), tmp_path))
    assert [item.iter for item in run.validations] == exact
    assert run.starts[0].batch_size == metrics_toy.BATCH_SIZE  # from the config that the text repeats


def test_a_console_log_reads_like_the_file(start, console_text, tmp_path):
    console_log = tmp_path / 'train_full_8p.log'
    # coloured as mmengine does where stdout is a terminal
    console_log.write_text(console_text.getvalue().replace(' - INFO - ', ' - \x1b[4m\x1b[97mINFO\x1b[0m - '))
    assert console_log.read_text().count('\x1b[97m') > 10
    shown, filed = metrics_text.read_text(console_log), metrics_text.read_text(text_log(start))
    assert shown.points == filed.points
    assert shown.validations == filed.validations
    assert (shown.world_size, shown.planned_iters, shown.config_text) == (1, 14, filed.config_text)


def test_a_console_log_with_the_prefix_of_torchrun(tmp_path):
    prefixed = copy(RECORDED, tmp_path, lambda text: ''.join(f'[default0]:{line}\n' for line in text.splitlines()))
    assert metrics_text.read_text(prefixed) == metrics_text.read_text(RECORDED)


def test_a_log_recorded_with_mmengine_0_10_3():
    run = metrics_run.read_run(RECORDED)
    text = RECORDED.read_text()
    assert [point.iter for point in run.points] == list(range(2, 21, 2))
    assert run.points[-1].loss == 0.9814
    assert [(item.iter, item.miou_percent) for item in run.validations] == [(8, 26.53), (16, 58.74)]
    assert f'mIoU: {26.53:.4f}' in text
    assert run.validations[-1].class_iou_percent['sidewalk'] == 20.31
    assert run.validations[-1].class_iou_percent['bus'] is None
    assert (run.planned_iters, run.val_interval) == (20, 8)
    assert run.starts[0].global_batch == 2
    assert run.starts[0].log.versions == {
        'python': '3.11.7',
        'torch': '2.13.0+cpu',
        'opencv': '5.0.0',
        'mmengine': '0.10.3',
    }
    assert run.starts[0].seconds == 10


def test_a_console_log_over_new_year(tmp_path):
    def edit(text):
        return text.replace('2026/11/22 23:44', '12/31 23:59').replace('2026/11/22 23:45', '01/01 00:00')

    log = copy(RECORDED, tmp_path, edit)
    assert metrics_run.read_run(log).starts[0].seconds == 10


@pytest.mark.parametrize('later', ['2025/10/18', '2026/11/21', '2027/12/27'], ids=['a year back', 'back', 'ahead'])
def test_a_clock_that_was_set_adds_nothing_to_the_duration(tmp_path, later):
    """All records from iteration 16 on are of another day."""

    def edit(text):
        before, first, after = text.partition('2026/11/22 23:45:06')
        return before + (first + after).replace('2026/11/22', later)

    run = metrics_run.read_run(copy(RECORDED, tmp_path, edit))
    assert 0 < run.starts[0].seconds <= 10
    assert run.starts[0].log.clock_steps == 1


def test_an_epoch_based_run(tmp_path):
    def by_epoch(cfg):
        cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
        cfg.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
        cfg.log_processor.by_epoch = True
        cfg.default_hooks.logger.log_metric_by_epoch = True
        cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1)

    start = metrics_toy.train(
        tmp_path / 'run', metrics_toy.make_cityscapes(tmp_path / 'data'), by_epoch, patched=False, interval=2
    )
    (tmp_path / 'text').mkdir()
    text = copy(text_log(start), tmp_path / 'text')
    for path in (start.parent, text):
        run = metrics_run.read_run(path)
        assert [point.iter for point in run.points] == [2, 4, 6, 8]  # 8 images, batches of 2
        assert [item.iter for item in run.validations] == [4, 8]


def test_accelerator_and_backend_from_the_header(tmp_path):
    header = '2024/01/01 00:00:00 - mmengine - INFO - \n-----\nSystem environment:\n    {}\n    GPU number: 8\n-----\n'
    path = tmp_path / 'header.log'
    path.write_text(header.format('GPU 0,1,2,3: NVIDIA H100'))
    assert metrics_text.read_text(path).device == 'NVIDIA H100'
    path.write_text(header.format("dist_cfg: {'backend': 'hccl'}"))
    log = metrics_text.read_text(path)
    assert (log.device, log.world_size) == ('npu', 8)


# Damage


def test_a_half_written_last_line_is_dropped_with_a_warning(start, tmp_path):
    whole = metrics_log.read_scalars(scalars(start))
    for cut in (1, 20, 60):
        damaged = copy(scalars(start), tmp_path, lambda text, cut=cut: text.rstrip('\n')[:-cut])
        log = metrics_log.read_scalars(damaged)
        assert log.points == whole.points[: len(log.points)]
        assert len(log.points) + len(log.validations) == len(whole.points) + len(whole.validations) - 1
        assert len(log.warnings) == 1 and str(damaged) in log.warnings[0]


def test_a_whole_last_line_without_its_line_end_counts(start, tmp_path):
    path = copy(scalars(start), tmp_path, lambda text: text.rstrip('\n'))
    assert metrics_log.read_scalars(path) == metrics_log.read_scalars(scalars(start))


def test_a_text_log_cut_anywhere_never_makes_up_a_figure(start, tmp_path):
    whole = metrics_text.read_text(text_log(start))
    content = text_log(start).read_text()
    begin = content.index('Iter(train)')
    path = tmp_path / 'cut.log'
    for end in range(begin, len(content), 37):
        path.write_text(content[:end])
        log = metrics_text.read_text(path)
        assert log.points == whole.points[: len(log.points)]
        assert log.validations == whole.validations[: len(log.validations)]


@pytest.mark.parametrize('garbage', ['{"lr": 0.1, "los', 'Segmentation fault', '\x00\x00\x00', '12', '[1, 2]', ''])
def test_garbage_in_the_middle_of_scalars_names_file_and_line(start, tmp_path, garbage):
    def edit(text):
        lines = text.splitlines()
        lines[2] = garbage
        return '\n'.join(lines) + '\n'

    with pytest.raises(console.UserError, match=r'scalars\.json:3: no JSON object'):
        metrics_log.read_scalars(copy(scalars(start), tmp_path, edit))


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('loss: 2.2478', 'loss: 2.2478x', 'damaged'),
        ('[ 4/20]', '[ 4/', 'damaged'),
        ('  loss: 2.2478  decode.loss_cls: 1.4985  decode.d0.loss_cls: 0.7493', '', 'damaged'),
        ('[ 6/20]', '[ 4/20]', 'goes back from 4 to 4'),
        ('| 11.17 | 11.17 |', '| 11.17x | 11.17 |', 'damaged table'),
    ],
)
def test_damage_in_the_middle_of_a_text_log_names_file_and_line(tmp_path, old, new, message):
    assert old in RECORDED.read_text()
    path = copy(RECORDED, tmp_path, lambda text: text.replace(old, new, 1))
    with pytest.raises(console.UserError, match=rf'{path.name}:\d+: .*{message}'):
        metrics_text.read_text(path)


def test_a_figure_that_is_no_number(start, tmp_path):
    path = copy(scalars(start), tmp_path, lambda text: text.replace('"loss": ', '"loss": "high", "x": ', 1))
    with pytest.raises(console.UserError, match=r'scalars\.json:1: loss is no number'):
        metrics_log.read_scalars(path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('1,0.1,0.2\n', r':1: expected the header'),
        ('iter,data_s,step_s\n1,0.1,0.2\nx\n2,0.1,0.2\n', r':3: no .* line'),
        ('iter,data_s,step_s\n1,0.1\n', r':2: no .* line'),
        ('iter,data_s,step_s\n1,0.1,nan\n', r':2: a time must be'),
        ('iter,data_s,step_s\n1,0.1,0\n', r':2: a time must be'),
        ('iter,data_s,step_s\n1,-0.1,0.2\n', r':2: a time must be'),
        ('iter,data_s,step_s\n2,0.1,0.2\n1,0.1,0.2\n', r':3: iteration goes back'),
    ],
)
def test_faults_in_steps_name_file_and_line(tmp_path, content, message):
    path = tmp_path / 'steps.csv'
    path.write_text(content)
    with pytest.raises(console.UserError, match=rf'steps\.csv{message}'):
        metrics_log.read_steps(path)


def test_the_last_step_counts_only_with_its_line_end(tmp_path):
    path = tmp_path / 'steps.csv'
    path.write_text('iter,data_s,step_s\n1,0.1,0.25\n2,0.1,0.2')  # was 0.25 too?
    steps, warnings = metrics_log.read_steps(path)
    assert steps == [metrics_log.Step(1, 0.1, 0.25)]
    assert len(warnings) == 1 and 'steps.csv:3' in warnings[0]


def test_nan_in_a_log_stays_nan(start, tmp_path):
    path = copy(scalars(start), tmp_path, lambda text: text.replace('"loss": ', '"loss": NaN, "x": ', 1))
    assert math.isnan(metrics_log.read_scalars(path).points[0].loss)


# The config


def test_a_dumped_config_reads_as_mmengine_reads_it(start):
    from mmengine.config import Config

    dumped = start / 'vis_data' / 'config.py'
    assert config_text.read_config(dumped.read_text()) == Config.fromfile(str(dumped)).to_dict()


def test_a_config_is_read_without_being_run(tmp_path):
    ran = tmp_path / 'ran'
    source = f"open({str(ran)!r}, 'w')\nlr = open({str(ran)!r}, 'w')\nbatch = dict(size=-2, other=[1, (2,)], odd=inf)\n"
    config = config_text.read_config(source)
    assert not ran.exists()
    assert config == {'lr': None, 'batch': {'size': -2, 'other': [1, [2]], 'odd': None}}
    assert config_text.read_config('this is no Python') == {}


def test_looking_up_what_is_not_there():
    config = {'train_cfg': {'max_iters': 10, 'flag': True}, 'text': 'x'}
    assert config_text.lookup_int(config, 'train_cfg.max_iters') == 10
    assert config_text.lookup_int(config, 'train_cfg.flag') is None
    assert config_text.lookup(config, 'train_cfg.max_iters.deeper') is None
    assert config_text.lookup(config, 'text.deeper') is None


# Finding the files


def test_what_is_no_run(tmp_path):
    with pytest.raises(console.UserError, match='no such run folder or log'):
        metrics_run.read_run(tmp_path / 'nothing')
    with pytest.raises(console.UserError, match='holds no mmengine log'):
        metrics_run.read_run(tmp_path)
    picture = tmp_path / 'picture.png'
    picture.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(console.UserError, match='no training iteration is logged'):
        metrics_run.read_run(picture)


def test_a_log_inside_a_run_brings_its_neighbours(start):
    expected = metrics_run.read_run(start.parent)
    for path in (start, text_log(start), scalars(start)):
        run = metrics_run.read_run(path)
        assert run.points == expected.points
        assert run.validations == expected.validations
        assert run.starts[0].global_batch == expected.starts[0].global_batch == metrics_toy.BATCH_SIZE


def test_scalars_alone_know_no_batch(start, tmp_path):
    shutil.copy(scalars(start), tmp_path)
    run = metrics_run.read_run(tmp_path / 'scalars.json')
    assert run.starts[0].global_batch is None
    assert metrics_run.read_run(tmp_path / 'scalars.json', batch_size=3, nproc=4).starts[0].global_batch == 12
