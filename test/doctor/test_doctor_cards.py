from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipe.core import console
from recipe.doctor import cards as doctor_cards
from recipe.doctor import smi
from recipe.doctor.finding import FAILURE, OK, WARNING
from recipe.doctor.subject import Subject
from recipe.launch import options
from smi_outputs import npu_smi, nvidia_smi


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Puts an executable in place of npu-smi or nvidia-smi, and nothing else on PATH but the system's."""
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')

    def put(name: str, script: str) -> Path:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\n{script}\n')
        path.chmod(0o755)
        return path

    return put


def says(text: str) -> str:
    return f"printf '%s' {shlex.quote(text)}"


def subject(device: str, nproc: int = 8, **env: str) -> Subject:
    return Subject(options.parse('full', []), device, nproc, env=env)


def look(device: str, nproc: int = 8, **env: str):
    return [(found.check, found.level, found.found) for found in doctor_cards.examine(subject(device, nproc, **env))]


def test_eight_good_npus(tool):
    tool('npu-smi', says(npu_smi()))
    assert look('npu') == [('cards', OK, '8 x 910B3, healthy and free')]
    listing = smi.ask('npu')
    assert listing.driver == '24.1.1'
    assert [card.index for card in listing.cards] == list(range(8))
    assert {(card.used_mib, card.total_mib, card.pids) for card in listing.cards} == {(3380, 65536, ())}


def test_npus_of_two_chips_count_by_chip(tool):
    tool('npu-smi', says(npu_smi(('OK',) * 16, (2886,) * 16, [(3, 1, 77)], 'Ascend910', 2, '25.2.1')))
    listing = smi.ask('npu')
    assert [card.index for card in listing.cards] == list(range(16))
    assert [card.index for card in listing.cards if card.pids] == [7]
    assert look('npu', 16) == [('busy cards', WARNING, 'memory is in use: card 7: 2886 of 65536 MiB by process 77')]
    assert look('npu', 4) == [('cards', OK, '4 x Ascend910, healthy and free')]


@pytest.mark.parametrize(
    ('health', 'level'), [('Warning', WARNING), ('Alarm', FAILURE), ('Critical', FAILURE), ('UNKNOWN', FAILURE)]
)
def test_an_npu_that_is_not_well_is_named(tool, health, level):
    tool('npu-smi', says(npu_smi(('OK', 'OK', health, *('OK',) * 5))))
    assert look('npu') == [('card 2', level, f'health is {health}')]
    assert look('npu', 2) == [('cards', OK, '2 x 910B3, healthy and free')]


def test_a_busy_npu_is_named_with_its_processes(tool):
    tool('npu-smi', says(npu_smi(used_mib=(3380, 40000, *(3380,) * 6), processes=[(4, 0, 1333928)])))
    found = look('npu')
    assert [row[:2] for row in found] == [('busy cards', WARNING)]
    assert 'card 1: 40000 of 65536 MiB; card 4: 3380 of 65536 MiB by process 1333928' in found[0][2]


@pytest.mark.parametrize('visible', ['0,2', '0, 2,1', '2-4'])
def test_only_cards_that_the_training_sees_count(tool, visible):
    tool('npu-smi', says(npu_smi(('OK', 'Critical', *('OK',) * 6))))
    assert look('npu', 2, ASCEND_RT_VISIBLE_DEVICES=visible)[0][1] == OK


def test_fewer_cards_listed_than_are_used(tool):
    tool('npu-smi', says(npu_smi(('OK',) * 4, (1,) * 4)))
    assert look('npu') == [('cards', WARNING, 'npu-smi lists 4 of the 8 cards to use')]


def test_no_tool_at_all(tool):
    for device, name in (('npu', 'npu-smi'), ('cuda', 'nvidia-smi')):
        (found,) = doctor_cards.examine(subject(device))
        assert (found.level, name in found.found) == (WARNING, True)


def test_a_cpu_needs_no_cards(tool):
    assert look('cpu')[0][:2] == ('cards', OK)


BROKEN = {
    'fails': ('echo "dcmi module initialize failed. ret is -8005"; exit 255', 'dcmi module initialize failed'),
    'lists nothing': ('echo', 'lists no card'),
    'is no program': ('exit 126', 'fails with status 126: and says nothing'),
}


@pytest.mark.parametrize('name', BROKEN)
def test_a_tool_that_fails_is_a_failure_in_one_line(tool, name):
    script, said = BROKEN[name]
    tool('npu-smi', script)
    (found,) = doctor_cards.examine(subject('npu'))
    assert found.level == FAILURE
    assert said in found.found
    assert found.fix


def test_a_tool_that_hangs_is_given_up(tool, monkeypatch):
    monkeypatch.setattr(smi, 'TIMEOUT_S', 0.2)
    tool('npu-smi', 'exec sleep 60')
    with pytest.raises(console.UserError, match=r'npu-smi info did not answer within 0\.2 s'):
        smi.ask('npu')


def nvidia(tool, cards: str, processes: str = ''):
    tool('nvidia-smi', f'case "$1" in --query-gpu=*) {says(cards)};; *) {says(processes)};; esac')


def test_eight_good_gpus(tool):
    nvidia(tool, nvidia_smi(*[{}] * 8))
    assert look('cuda') == [('cards', OK, '8 x NVIDIA H100 80GB HBM3, healthy and free')]
    assert smi.ask('cuda').driver == '550.54.15'


def test_gpus_that_are_not_well(tool):
    nvidia(tool, nvidia_smi({}, {'errors': '3'}, {'used': '[Unknown Error]', 'errors': 'ERR!'}, {'errors': '[N/A]'}))
    assert look('cuda', 4) == [
        ('card 1', WARNING, 'health is 3 uncorrected memory errors'),
        ('card 2', FAILURE, 'health is ERR!'),
    ]


def test_a_busy_gpu_is_named_and_may_be_left_out(tool):
    nvidia(tool, nvidia_smi({}, {}), 'GPU-00000000-1111-2222-3333-444444444444, 4711\n')
    assert look('cuda', 2)[0][2] == 'memory is in use: card 0: 4 of 81559 MiB by process 4711'
    assert look('cuda', 1, CUDA_VISIBLE_DEVICES='1')[0][1] == OK
    assert look('cuda', 1, CUDA_VISIBLE_DEVICES='GPU-1')[0][1] == OK
    assert look('cuda', 1, CUDA_VISIBLE_DEVICES='GPU-0')[0][1] == WARNING


def test_a_lost_gpu(tool):
    tool('nvidia-smi', 'echo "Unable to determine the device handle for GPU 0000:3B:00.0: GPU is lost."; exit 15')
    (found,) = doctor_cards.examine(subject('cuda'))
    assert (found.level, 'GPU is lost' in found.found) == (FAILURE, True)


CUTS = st.tuples(st.integers(0, 40), st.integers(0, 120), st.text(max_size=5))


@settings(deadline=None)
@given(st.lists(CUTS, max_size=6))
def test_no_output_breaks_the_parsers(cuts):
    """Lines cut, replaced or torn: cards are missing then, but nothing is raised, and no card is made up."""
    for whole, parse in ((npu_smi(), smi.parse_npu), (nvidia_smi(*[{}] * 8), smi.parse_gpu)):
        lines = whole.splitlines()
        for line, column, text in cuts:
            line %= len(lines)
            lines[line] = lines[line][:column] + text
        assert len(parse('\n'.join(lines)).cards) <= 8
