"""The log of a run that grows while its ranks write, and what ``test/output`` shows of a run."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from recipe.core import console, run_folder
from recipe.launch import cli, options, run_log
from recipe.launch.plan import Plan
from recipe.launch.run_log import RunLog


@pytest.fixture
def ranks(tmp_path) -> Path:
    """torchrun's folder with the logs of two ranks."""
    for rank in '01':
        (tmp_path / 'logs' / 'none_x' / 'attempt_0' / rank).mkdir(parents=True)
    return tmp_path / 'logs'


@pytest.fixture
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(run_folder, 'OUTPUT', tmp_path / 'output')
    return tmp_path / 'output'


def say(ranks: Path, text: str, rank: int = 0, name: str = 'stdout', attempt: int = 0) -> None:
    folder = ranks / 'none_x' / f'attempt_{attempt}' / str(rank)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f'{name}.log').open('a') as file:
        file.write(text)


def test_it_grows_by_whole_lines_and_has_everything_in_the_end(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, '_LOOK_EVERY_S', 0)
    log = tmp_path / 'train_full_8p.log'
    log.write_text('an earlier start\n')
    with RunLog([log], ranks) as collected:
        say(ranks, 'Iter(train) [1/2]\nIter(tr')
        collected.look()
        assert log.read_text() == 'an earlier start\nIter(train) [1/2]\n'
        say(ranks, 'ain) [2/2]\n')
        say(ranks, 'Traceback\n\n  boom', rank=1, name='stderr')
        collected.look()
        collected.look()
        assert log.read_text().splitlines()[2:] == ['Iter(train) [2/2]', '[rank1]: Traceback', '']
        say(ranks, 'again\n', attempt=1)
        (ranks / 'torchrun.log').write_text('failed\n')
    assert log.read_text().splitlines()[5:] == ['[rank1]:   boom', 'again', 'failed']


def test_ranks_of_another_machine_have_their_own_numbers(ranks, tmp_path):
    with RunLog([tmp_path / 'log'], ranks, first_rank=8):
        say(ranks, 'here\n', rank=1)
    assert (tmp_path / 'log').read_text() == '[rank9]: here\n'


def test_what_a_full_disk_refuses_is_written_later_and_once(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, '_LOOK_EVERY_S', 0)
    log, copy = tmp_path / 'log', tmp_path / 'copy'
    log.mkdir()  # a file that cannot be written
    with RunLog([copy, log], ranks) as collected:
        say(ranks, 'one\n')
        collected.look()
        say(ranks, 'two\n')
        collected.look()
        log.rmdir()
    assert log.read_text() == copy.read_text() == 'one\ntwo\n'


def test_a_long_log_is_read_in_parts(ranks, tmp_path, monkeypatch):
    monkeypatch.setattr(run_log, '_MOST_BYTES', 7)
    with RunLog([tmp_path / 'log'], ranks):
        say(ranks, 'a line longer than a part\nand more')
    assert (tmp_path / 'log').read_text() == 'a line longer than a part\nand more\n'


def refuse(*_: object) -> None:
    raise OSError(errno.EPERM, 'Operation not permitted')


def finished(output: Path, name: str, text: str) -> Path:
    """The log of a run."""
    log = output / 'train_full_8p' / name / 'train_full_8p.log'
    log.parent.mkdir(parents=True)
    log.write_text(text)
    return log


def test_the_output_folder_shows_the_newest_run_and_no_earlier_one_is_lost(output):
    first, second = (finished(output, name, name) for name in ('20260101_000000', '20260102_000000'))
    place = run_folder.publish(first)
    assert place == output / 'train_full_8p.log'
    run_folder.publish(second)
    assert (place.read_text(), first.read_text()) == ('20260102_000000', '20260101_000000')
    moved = output.rename(output.with_name('elsewhere'))  # the link is relative
    assert (moved / place.name).read_text() == '20260102_000000'


def test_a_file_that_is_no_link_is_kept(output, capsys):
    """Such as the only log of a run of Ascend's own scripts."""
    output.mkdir()
    for content in ('theirs', 'theirs too'):
        (output / 'train_full_8p.log').unlink(missing_ok=True)
        (output / 'train_full_8p.log').write_text(content)
        log = output / f'run of {content}' / 'train_full_8p.log'
        log.parent.mkdir()
        log.write_text('ours')
        run_folder.publish(log)
        assert 'train_full_8p.log of an earlier run as train_full_8p.2' in capsys.readouterr().out
    kept = [path.read_text() for path in output.glob('train_full_8p.2*.log')]
    assert sorted(kept) == ['theirs', 'theirs too']


def test_storage_without_links_has_copies(output, monkeypatch):
    monkeypatch.setattr(Path, 'symlink_to', refuse)
    place = run_folder.publish(finished(output, '20260101_000000', 'ours'))
    assert place.read_text() == 'ours' and not place.is_symlink()
    run_folder.link_newest(output / 'train_full_8p' / '20260101_000000')  # says nothing: the folder of the run is said
    assert not (output / 'ckpt').exists()


@pytest.mark.parametrize('links', [True, False])
def test_a_start_shows_its_log_and_writes_its_messages_there(output, tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, 'symlink_to', refuse)
    monkeypatch.setattr(console, '_logs', [])
    plan = Plan(options.parse('full', ['--demo']), folder=tmp_path / 'run')
    plan.folder.mkdir()
    logs = cli.open_logs(plan)
    console.say('run      here')
    shown = output / 'train_full_8p.log'
    assert logs == [plan.folder / shown.name] + ([] if links else [shown])
    assert shown.is_symlink() == links
    assert shown.read_text() == (plan.folder / shown.name).read_text()
    assert 'run      here' in shown.read_text()


def test_a_run_in_the_output_folder_itself_is_not_shown_there(output, tmp_path):
    output.mkdir()
    assert not run_folder.is_shown(output)
    (tmp_path / 'link').symlink_to(output)
    assert not run_folder.is_shown(tmp_path / 'link')
    assert run_folder.is_shown(tmp_path / 'run')


def test_ckpt_leads_to_the_newest_run(output):
    runs = [finished(output, name, '').parent for name in ('20260101_000000', '20260102_000000')]
    for run in [*runs, output / 'ckpt']:  # the last one: --work_dir=test/output/ckpt --resume=1
        run_folder.link_newest(run)
        assert run_folder.foreign_checkpoints(run) is None
    assert (output / 'ckpt').resolve() == runs[1]


def test_a_ckpt_folder_of_ascends_scripts_stays_and_is_said(output):
    ours = finished(output, '20260101_000000', '').parent
    folder = output / 'ckpt'
    folder.mkdir()
    run_folder.link_newest(ours)
    assert folder.is_dir() and not folder.is_symlink()
    assert run_folder.foreign_checkpoints(ours) == 'rename it to have a link to the newest run there'
    (folder / 'iter_5000.pth').touch()
    told = run_folder.foreign_checkpoints(ours)
    assert told.startswith(f'continue its checkpoints with --resume=1 --work_dir={folder}')
    with pytest.raises(console.UserError, match=f'no checkpoint in .* with --resume=1 --work_dir={folder}'):
        run_folder.choose('train_full_8p', False, None, True)
    assert run_folder.choose('train_full_8p', False, str(folder), True) == folder
    assert run_folder.foreign_checkpoints(folder) is None
