"""bash test/evaluate_8p.sh on the demo's trained model: two ranks, the official evaluation, kills, the archive."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import zipfile

import pytest

import trained_demo
from launch_sandbox import ROOT, wait_until
from recipe.evaluate import pictures, predict

pytestmark = pytest.mark.trains
# Beside each other: what depends on the machine's speed, or on how often it was started.
NOT_THE_SAME = {'images_per_s', 'pictures', 'seconds', 'ranks'}


@pytest.fixture(scope='module')
def demo():
    return trained_demo.folder()


def command(demo, work_dir, *argv):
    given = [f'--checkpoint={demo / "run"}', f'--data_path={demo / "data"}', f'--work_dir={work_dir}', '--device=cpu']
    return ['bash', str(ROOT / 'test' / 'evaluate_8p.sh'), *given, *argv]


def evaluate(demo, work_dir, *argv, status=0):
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        command(demo, work_dir, *argv), env=env, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def predictions(folder):
    return {path.name: path.read_bytes() for path in (folder / 'predictions').iterdir()}


def result(folder):
    content = json.loads((folder / 'result.json').read_text())
    return {key: value for key, value in content.items() if key not in NOT_THE_SAME}


@pytest.fixture(scope='module')
def alone(demo, tmp_path_factory):
    """Predictions of one rank, in this process."""
    folder = tmp_path_factory.mktemp('alone')
    scenes = [(one.name, one.path) for one in pictures.find(demo / 'data', 'val')]
    (best,) = (demo / 'run').glob('best_*.pth')
    task = predict.Task(str(best), None, str(folder), scenes, 2, 0, 'cpu', 'whole', False, 'off', True, None)
    task.predictions.mkdir()
    predict.run(task, 0, 0, 1, lambda done: None)
    return predictions(folder)


def test_two_ranks_evaluate_as_one_and_the_official_script_agrees(demo, alone, tmp_path):
    folder, archive = tmp_path / 'out', tmp_path / 'sub.zip'
    said = evaluate(
        demo, folder, '--nproc=2', '--batch_size=2', '--num_workers=0', '--official', f'--submission={archive}'
    )
    assert predictions(folder) == alone
    found = result(folder)
    trained = json.loads((demo / 'run' / 'result.json').read_text())
    assert found['miou_percent'] == pytest.approx(trained['miou_last_percent'], abs=0.011)
    assert found['official_largest_difference'] < 1e-6
    assert 'official the same to 1e-06' in said
    assert re.search(r'^miou +\d+\.\d\d %  official \d+\.\d\d$', said, re.MULTILINE), said
    assert re.search(r'^images/s \d+\.\d\d over 2 x cpu$', said, re.MULTILINE), said
    for name in ('confusion.csv', 'confusion.png', 'worst.png', 'command.txt', 'versions.json', 'launcher.log'):
        assert (folder / name).stat().st_size
    with zipfile.ZipFile(archive) as packed:
        assert {name: packed.read(name) for name in packed.namelist()} == alone


@pytest.mark.release
def test_killed_and_run_again_it_predicts_only_what_is_missing(demo, tmp_path):
    folder, other = tmp_path / 'out', tmp_path / 'other'
    evaluate(demo, other, '--nproc=1')
    argv = command(demo, folder, '--nproc=1', '--num_workers=0', '--batch_size=4')
    running = subprocess.Popen(argv, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    place = folder / 'predictions'
    wait_until(lambda: place.is_dir() and any(place.glob('[!.]*')), running)
    os.kill(running.pid, signal.SIGKILL)
    running.wait(60)
    kept = {path.name: path.stat().st_mtime_ns for path in place.glob('[!.]*')}
    said = evaluate(demo, folder, '--nproc=1', '--num_workers=0', '--batch_size=4')
    after = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert len(after) == 10 and {name: after[name] for name in kept} == kept
    assert len(kept) == 10 or f'predicted already: {len(kept)} of 10 pictures' in said
    assert predictions(folder) == predictions(other)
    again = evaluate(demo, folder, '--nproc=1', '--num_workers=0', '--batch_size=4', '--official')
    assert 'predicted already: 10 of 10 pictures' in again
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == after


@pytest.mark.release
def test_a_signal_ends_it_with_its_status(demo, tmp_path):
    folder = tmp_path / 'out'
    running = subprocess.Popen(
        command(demo, folder, '--nproc=1', '--tta'), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: any(folder.glob('logs/*/torchrun.log')), running)
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=600)
    assert running.returncode == 128 + signal.SIGTERM
    assert 'SIGTERM ended the evaluation; start the same command again' in err


@pytest.mark.release
def test_augmentation_in_windows_through_the_launcher(demo, tmp_path):
    for mode in ('whole', 'slide'):
        evaluate(demo, tmp_path / mode, '--nproc=2', '--tta', f'--mode={mode}')
    found = [result(tmp_path / mode) for mode in ('whole', 'slide')]
    assert found[0]['miou_percent'] == pytest.approx(found[1]['miou_percent'], abs=3)
