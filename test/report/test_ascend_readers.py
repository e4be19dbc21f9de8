"""Programs that read figures from the files of Ascend's scripts with grep and awk read the same from ours."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Dict

import pytest

from recipe.core import console
from recipe.launch.run_log import RunLog
from recipe.report import collect, metrics

RECORDED = Path(__file__).resolve().parents[1] / 'support' / 'data' / 'mmengine-0.10.3.log'
# What Ascend's scripts compute from their log of the training: mean of the logged times, last mIoU, logged losses.
OF_A_LOG = r"""
images=$2
step=$(grep -a 'Iter(train)' "$1" | awk -F ' time: ' '{ print $NF }' | awk '{ sum += $1; n++ } END { print sum / n }')
echo "fps=$(awk -v images="$images" -v step="$step" 'BEGIN { printf "%.2f\n", images / step }')"
echo "accuracy=$(grep -a 'mIoU:' "$1" | tail -n 1 | awk -F 'mIoU:' '{ print $NF }' | awk '{ print $1 }')"
echo "losses=$(grep 'Iter(train)' "$1" | awk -F 'loss:' '{ split($NF, rest, " "); print rest[1] }' | xargs)"
"""
# What a dashboard reads from the file of figures, and from what the script has printed.
OF_FIGURES = r"""
for key in Network RankSize BatchSize DeviceType CaseName ActualFPS TrainingStepTime ActualLoss E2ETrainingTime miou; do
  echo "$key=$(grep "^$key = " "$1" | awk -F ' = ' '{ print $2 }')"
done
"""
OF_PRINTED = r"""
figures=$(awk '/^-+ Final result -+$/ { found = 1; next } found' "$1")
echo "fps=$(grep 'Final Performance images/sec : ' <<<"$figures" | awk -F ' : ' '{ print $2 }')"
echo "accuracy=$(grep 'Final Train Accuracy : ' <<<"$figures" | awk -F ' : ' '{ print $2 }')"
echo "seconds=$(grep 'E2E Training Duration sec : ' <<<"$figures" | awk -F ' : ' '{ print $2 }')"
echo "step=$(grep 'TrainingTime for step: ' <<<"$figures" | awk -F ': ' '{ print $2 }')"
"""


def read(script: str, path: Path, *arguments: object) -> Dict[str, str]:
    """What a script reads from a file."""
    command = ['bash', '-euo', 'pipefail', '-c', script, 'reader', str(path), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(line.split('=', 1) for line in done.stdout.splitlines())


@pytest.fixture(scope='module')
def theirs(tmp_path_factory) -> Path:
    """The log of Ascend's scripts: stdout and stderr of all ranks."""
    log = tmp_path_factory.mktemp('theirs') / 'train_full_8p.log'
    log.write_text(f'WARNING:torch.distributed.run: each process has 1 thread\n{RECORDED.read_text()}rank 1: goodbye\n')
    return log


@pytest.fixture
def ours(tmp_path, monkeypatch) -> Path:
    """A run folder with our log of the same training, and with what the launcher says at its end."""
    monkeypatch.setattr(console, '_logs', [])
    run = tmp_path / '20260101_000000'
    logs = run / 'logs'
    for rank, text in ((0, RECORDED.read_text()), (1, 'goodbye\n')):
        folder = logs / 'none_x' / 'attempt_0' / str(rank)
        folder.mkdir(parents=True)
        (folder / 'stdout.log').write_text(text)
    (logs / 'torchrun.log').write_text('WARNING:torch.distributed.run: each process has 1 thread\n')
    log = run / 'train_full_8p.log'
    console.log_to(log)
    console.say(f'run      {run}')
    with RunLog([log], logs):
        pass
    start = run / '20260101_000001'
    start.mkdir()
    (start / f'{start.name}.log').write_text(RECORDED.read_text())
    result = collect.collect(run)
    metrics.write_legacy(result, run)
    metrics.write_legacy(result, run, 'performance')
    printed = [*metrics.summary(result), *metrics.legacy_lines(result)]
    for line in printed:
        console.say(line)
    (run / 'printed').write_text('\n'.join(printed))
    return run


def test_the_log_of_a_run_gives_the_same_figures(theirs, ours):
    found = read(OF_A_LOG, ours / 'train_full_8p.log', 2)
    assert found == read(OF_A_LOG, theirs, 2)
    result = collect.collect(ours)
    assert found['fps'] == f'{result.fps_logged_mean_images_per_s:.2f}'
    assert float(found['accuracy']) == result.miou_last_percent == 58.74
    for name in ('full', 'performance'):
        case = f'mask2former_swin_1p_{"miou" if name == "full" else "perf"}'
        assert (ours / f'train_{case}_loss.txt').read_text().split() == found['losses'].split()


@pytest.mark.parametrize('suffix', ['miou', 'perf'])
def test_the_file_of_figures_and_the_printed_lines_agree_with_it(theirs, ours, suffix):
    figures = read(OF_FIGURES, ours / f'mask2former_swin_1p_{suffix}.log')
    log, printed = read(OF_A_LOG, theirs, 2), read(OF_PRINTED, ours / 'printed')
    assert figures['miou'] == printed['accuracy'] == f'{float(log["accuracy"]):.2f}'
    assert figures['ActualLoss'] == log['losses'].split()[-1]
    assert (figures['ActualFPS'], figures['TrainingStepTime']) == (printed['fps'], printed['step'])
    assert figures['E2ETrainingTime'] == printed['seconds'] == '10'
    assert (figures['CaseName'], figures['RankSize']) == (f'mask2former_swin_1p_{suffix}', '1')
    assert all(figures.values())


def test_the_log_of_a_run_is_read_by_our_own_tool_too(ours):
    of_log, of_run = collect.collect(ours / 'train_full_8p.log'), collect.collect(ours)
    for name in ('miou_last_percent', 'loss_curve', 'fps_images_per_s', 'fps_logged_mean_images_per_s'):
        assert getattr(of_log, name) == getattr(of_run, name)


def test_a_run_folder_named_as_its_log_is_no_start(ours):
    named = ours.rename(ours.with_name('train_full_8p'))
    (named / 'command.txt').write_text('bash test/train_full_8p.sh\n')
    assert collect.collect(named).miou_last_percent == 58.74
