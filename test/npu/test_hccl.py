from __future__ import annotations

import functools
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import hccl_calls
from hccl_calls import HcclError, run, run_well

STAGE = 4 * 1024 * 1024  # bytes that a collective moves at once, see hccl_group.h
PREFIX = 'emulated NPU: HCCL: '
REDUCED = ('int8', 'int16', 'int32', 'int64', 'float16', 'float32', 'bfloat16')


def to_float(array: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 as the float32 that they mean."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(array: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, to even between two; the bits."""
    bits = array.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def values(name: str, size: int, rank: int) -> np.ndarray:
    random = np.random.RandomState(rank)
    if name.startswith('int'):
        limits = np.iinfo(name)
        return random.randint(limits.min, limits.max, size, name)
    array = random.standard_normal(size).astype(np.float32) * 10.0 ** random.randint(-2, 3, size)
    return to_bfloat16(array.astype(np.float32)) if name == 'bfloat16' else array.astype(name)


def folded(op: str, arrays: list) -> np.ndarray:
    """The reduction in the order of the ranks, rounded at each step."""
    step = {'sum': np.add, 'prod': np.multiply, 'max': np.maximum, 'min': np.minimum}[op]
    with np.errstate(all='ignore'):
        if arrays[0].dtype == np.uint16:
            return functools.reduce(lambda a, b: to_bfloat16(step(to_float(a), to_float(b))), arrays)
        return functools.reduce(step, arrays)


@pytest.mark.parametrize('op', ['sum', 'prod', 'max', 'min'])
@pytest.mark.parametrize('name', REDUCED)
def test_all_reduce_adds_in_the_order_of_the_ranks(name, op):
    arrays = [values(name, 1001, rank) for rank in range(3)]
    expected = folded(op, arrays)
    for out in run_well(3, lambda comm: comm.all_reduce(arrays[comm.rank], op)):
        np.testing.assert_array_equal(out, expected)


def test_the_order_of_the_ranks_shows_in_a_sum():
    arrays = [np.full(3, value, np.float32) for value in (1e8, 1.0, -1e8, 1.0)]
    assert folded('sum', arrays)[0] != folded('sum', arrays[::-1])[0]
    for out in run_well(4, lambda comm: comm.all_reduce(arrays[comm.rank])):
        np.testing.assert_array_equal(out, folded('sum', arrays))


@pytest.mark.parametrize('size', [0, 1, STAGE // 4, STAGE // 4 + 1, 3 * STAGE // 4 + 5])
def test_all_reduce_of_any_size(size):
    arrays = [values('float32', size, rank) for rank in range(2)]
    for out in run_well(2, lambda comm: comm.all_reduce(arrays[comm.rank])):
        np.testing.assert_array_equal(out, folded('sum', arrays))


def test_a_nan_of_one_rank_reaches_all():
    arrays = [np.array([1, np.nan], np.float32), np.array([np.nan, 1], np.float32)]
    for op in ('sum', 'max', 'min'):
        for out in run_well(2, lambda comm, op=op: comm.all_reduce(arrays[comm.rank], op)):
            assert np.isnan(out).all()


def test_eight_ranks_and_every_collective_one_after_the_other():
    size = 3 * STAGE // 8 // 4 + 7  # several rounds where a stage is shared by eight
    table = np.arange(8 * size, dtype=np.float32).reshape(8, size)

    def body(comm):
        mine = table + comm.rank
        found = [comm.all_reduce(mine[comm.rank]), comm.reduce_scatter(mine), comm.all_to_all(mine)]
        found += [comm.all_gather(mine[0, :9]), comm.broadcast(mine, 5), comm.scatter(mine, 3)]
        found += [comm.reduce(mine, 6, 'max')]
        comm.barrier()
        comm.close()
        return found

    ranks = np.arange(8, dtype=np.float32)
    for rank, found in enumerate(run_well(8, body)):
        reduced, row, turned, gathered, given, scattered, largest = found
        np.testing.assert_array_equal(reduced, folded('sum', [table[i] + i for i in range(8)]))
        np.testing.assert_array_equal(row, folded('sum', [table[rank] + i for i in range(8)]))
        np.testing.assert_array_equal(turned, table[rank] + ranks[:, None])
        np.testing.assert_array_equal(gathered, table[0, :9] + ranks[:, None])
        np.testing.assert_array_equal(given, table + 5)
        np.testing.assert_array_equal(scattered, table[rank] + 3)
        np.testing.assert_array_equal(largest, table + 7 if rank == 6 else np.zeros_like(table))


@pytest.mark.parametrize('name', ['uint8', 'uint64', 'float64'])
def test_types_that_are_not_reduced_travel_all_the_same(name):
    def body(comm):
        array = np.arange(5).astype(name) + comm.rank
        return comm.broadcast(array, 1), comm.all_gather(array)

    for given, gathered in run_well(2, body):
        np.testing.assert_array_equal(given, np.arange(1, 6))
        np.testing.assert_array_equal(gathered, [np.arange(5), np.arange(1, 6)])


@pytest.mark.parametrize('name', ['uint8', 'uint64', 'float64'])
def test_what_torch_npu_does_not_reduce_is_refused_by_name(name):
    for error in run(2, lambda comm: comm.all_reduce(np.ones(3, name))):
        assert (error.code, error.text) == (hccl_calls.NOT_SUPPORTED, f'{PREFIX}HCCL does not reduce {name}')


def test_uneven_parts():
    counts = np.array([[1, 2, 0], [STAGE // 8, 0, 5], [0, 0, 3]])

    def body(comm):
        sends = counts[comm.rank]
        array = np.repeat(np.arange(3) + 10 * comm.rank, sends)
        return comm.all_to_all_v(array, sends, counts[:, comm.rank])

    for rank, out in enumerate(run_well(3, body)):
        np.testing.assert_array_equal(out, np.repeat(np.arange(3) * 10 + rank, counts[:, rank]))


def test_parts_that_do_not_fit_together_are_named():
    for error in run(2, lambda comm: comm.all_to_all_v(np.ones(4, np.int8), [2, 2], [2, 2 + comm.rank])):
        assert error.code == hccl_calls.PARAMETER
        assert error.text == f'{PREFIX}all_to_all: rank 1 sends 2 bytes to rank 1, which expects 3'


@pytest.mark.parametrize('size', [0, 1, 100_000])
def test_messages_around_a_ring(size):
    def body(comm):
        following, before = (comm.rank + 1) % comm.ranks, (comm.rank - 1) % comm.ranks
        mine = np.full(size, comm.rank)
        if comm.rank == 0:
            comm.send(mine, following)
            first = comm.receive(mine, before)
        else:
            first = comm.receive(mine, before)
            comm.send(mine, following)
        return first, comm.exchange({following: mine}, {before: np.empty_like(mine)})[before]

    for rank, found in enumerate(run_well(3, body)):
        for out in found:
            np.testing.assert_array_equal(out, np.full(size, (rank - 1) % 3))


def test_a_message_of_another_length_than_expected():
    def body(comm):
        return comm.receive(np.empty(2), 0) if comm.rank else comm.send(np.ones(3), 1)

    for error in run(2, body):
        assert error.text == f'{PREFIX}rank 0 sends 24 bytes to rank 1, which expects 16'


def test_communicators_do_not_disturb_each_other():
    def body(comm):
        pair = comm.rank // 2
        infos = comm.all_gather(np.frombuffer(hccl_calls.root_info(comm.library), np.uint8))
        other = hccl_calls.Communicator(comm.library, infos[2 * pair].tobytes(), 2, comm.rank % 2)
        mine = np.array([10.0**comm.rank], np.float32)
        found = [float(comm.all_reduce(mine)[0]), float(other.all_reduce(mine)[0])]
        other.close()
        return [*found, float(comm.all_reduce(mine)[0])]

    assert run(4, body) == [[1111.0, 11.0, 1111.0]] * 2 + [[1111.0, 1100.0, 1111.0]] * 2


def different(comm):
    """What ranks may do differently: by the name of the test."""
    array = np.ones(4 + comm.rank, np.float32)
    return {
        'counts': lambda: comm.all_reduce(array),
        'types': lambda: comm.all_reduce(array[:4].astype('int32' if comm.rank else 'float32')),
        'reductions': lambda: comm.all_reduce(array[:4], 'max' if comm.rank else 'sum'),
        'roots': lambda: comm.broadcast(array[:4], comm.rank),
        'calls': lambda: comm.broadcast(array[:4], 0) if comm.rank else comm.all_reduce(array[:4]),
    }


@pytest.mark.parametrize(
    ('what', 'first', 'second'),
    [
        ('counts', 'all_reduce of 4 float32 (sum)', 'all_reduce of 5 float32 (sum)'),
        ('types', 'all_reduce of 4 float32 (sum)', 'all_reduce of 4 int32 (sum)'),
        ('reductions', 'all_reduce of 4 float32 (sum)', 'all_reduce of 4 float32 (max)'),
        ('roots', 'broadcast of 4 float32, root 0', 'broadcast of 4 float32, root 1'),
        ('calls', 'all_reduce of 4 float32 (sum)', 'broadcast of 4 float32, root 0'),
    ],
)
def test_ranks_that_do_not_call_the_same_are_told_so(what, first, second):
    for error in run(2, lambda comm: different(comm)[what]()):
        assert error.code == hccl_calls.PARAMETER
        assert error.text == f'{PREFIX}the ranks do not call the same: rank 0 {first}, rank 1 {second}'


@pytest.mark.parametrize('where', ['all_reduce', 'message'])
@pytest.mark.parametrize('end', [lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0)])
def test_a_rank_that_has_ended_is_noticed_and_named(where, end):
    def body(comm):
        comm.barrier()
        if comm.rank == 1:
            end()
        array = np.ones(4, np.float32)
        return comm.all_reduce(array) if where == 'all_reduce' else comm.receive(array, 1)

    first, ended, third = run(3, body)
    assert ended is None
    for error in (first, third):
        assert error.code == hccl_calls.REMOTE
        assert error.text.startswith(f'{PREFIX}rank 1 (process ')
        assert 'has ended; rank ' in error.text


def test_a_rank_that_has_closed_the_communicator_is_named():
    def body(comm):
        comm.barrier()
        if comm.rank == 0:
            comm.close()
            time.sleep(1)  # alive, and of no use
            return None
        return comm.barrier()

    assert 'has closed the communicator; rank 1 waits for it in barrier' in run(2, body)[1].text


def test_nobody_waits_for_ever_for_a_rank_that_is_busy_elsewhere():
    def body(comm):
        if comm.rank:
            time.sleep(3)
        return comm.barrier()

    first, second = run(2, body, {'HCCL_EXEC_TIMEOUT': '0.5'})
    assert first.code == second.code == hccl_calls.TIMEOUT
    assert first.text.startswith(f'{PREFIX}rank 0 has waited 0.5 s (HCCL_EXEC_TIMEOUT) in barrier for rank 1 (process ')


def test_ranks_that_never_come_are_named():
    first, second, *never = run(4, lambda comm: None, {'HCCL_CONNECT_TIMEOUT': '0.5'}, absent=(2, 3))
    assert never == [None, None]
    for error in (first, second):
        assert error.code == hccl_calls.TIMEOUT
        assert 'for rank 2 (no process yet), rank 3 (no process yet)' in error.text


def test_a_watchdog_sees_a_failure_that_another_rank_has_met():
    def body(comm):
        before = comm.async_error()
        if comm.rank:
            while not comm.async_error():
                time.sleep(0.01)
            return before, comm.async_error()
        with pytest.raises(HcclError):
            comm.all_reduce(np.ones(2, np.float64))
        return before, comm.async_error()

    assert run(2, body, {'HCCL_EXEC_TIMEOUT': '1'}) == [(0, hccl_calls.TIMEOUT)] * 2


def test_nothing_is_left_behind_when_all_ranks_are_killed():
    before = set(Path('/dev/shm').iterdir())

    def body(comm):
        comm.all_reduce(np.ones(STAGE // 4, np.float32))
        os.kill(os.getpid(), signal.SIGKILL)

    assert run(2, body) == [None, None]
    assert set(Path('/dev/shm').iterdir()) <= before


def test_memory_of_the_host_is_refused():
    def body(comm):
        array = np.ones(3, np.float32)
        comm.call('HcclBroadcast', *hccl_calls.buffers(array), 3, hccl_calls.TYPES['float32'], 0, comm.handle, None)

    for error in run(2, body):
        assert error.text.startswith(f'{PREFIX}broadcast: 0x')
        assert error.text.endswith(' of 12 bytes is not memory of a device')


def test_bad_input_is_refused():
    loaded = hccl_calls.load()
    info = hccl_calls.root_info(loaded)
    for ranks, rank in ((0, 0), (2, 2), (17, 0)):
        with pytest.raises(HcclError, match=f'rank {rank} of {ranks}; the emulator takes 1 to 16 ranks'):
            hccl_calls.Communicator(loaded, info, ranks, rank)
    with pytest.raises(HcclError, match='not one that HcclGetRootInfo has made'):
        hccl_calls.Communicator(loaded, b'another', 1, 0)
    alone = hccl_calls.Communicator(loaded, info, 1, 0)
    with pytest.raises(HcclError, match='has closed this communicator'):
        hccl_calls.Communicator(loaded, info, 1, 0)
    alone.close()
    with pytest.raises(HcclError, match='not a communicator, or one that was destroyed'):
        alone.barrier()


def test_two_processes_cannot_be_the_same_rank(monkeypatch):
    loaded = hccl_calls.load()
    info = hccl_calls.root_info(loaded)
    monkeypatch.setenv('HCCL_CONNECT_TIMEOUT', '30')
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            try:
                hccl_calls.Communicator(hccl_calls.load(), info, 2, 0)
            except HcclError as error:
                os._exit(0 if 'both say that they are rank 0' in error.text else 1)
            os._exit(2)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
