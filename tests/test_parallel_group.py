"""The collectives, by MPI and by NCCL, and the exchange of values.

MPI's processes are real. NCCL is replaced by a stand-in that records its calls: `mpirun -np 2 python -m dev.bench.collectives` tests the
same with the library, between GPUs.
"""

import json
import socket
from types import SimpleNamespace

import numpy as np
import pytest

from gpt2_numba.gpu.backend import BFLOAT16_BITS, FLOAT32, bfloat16_bits, bfloat16_values
from gpt2_numba.parallel import nccl_group
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.meeting import Meeting
from gpt2_numba.parallel.nccl_group import NcclGroup
from tests.mpi import run_together
from tests.talk_together import SIZES, even_bounds, initial_values, uneven_bounds

KINDS = [("host", FLOAT32), ("device", FLOAT32), ("device", BFLOAT16_BITS)]


@pytest.fixture(scope="module", params=[2, 3, 4])
def talk(request, tmp_path_factory):
    """What the processes of tests/talk_together.py wrote: lists by rank of the arrays by name, and of the gathered values."""
    directory = tmp_path_factory.mktemp("talk")
    run_together(request.param, "tests/talk_together.py", directory, NUMBA_ENABLE_CUDASIM="1")
    ranks = range(request.param)
    arrays = [dict(np.load(directory / f"rank_{rank}.npz")) for rank in ranks]
    gathered = [json.loads((directory / f"rank_{rank}.json").read_text()) for rank in ranks]
    return SimpleNamespace(ranks=len(ranks), arrays=arrays, gathered=gathered)


def sum_in_rank_order(ranks, size, dtype):
    """The specification: float32 sums, rank 0 first; bfloat16 is rounded to nearest once."""
    rows = [initial_values(rank, size, dtype) for rank in range(ranks)]
    rows = [bfloat16_values(row) for row in rows] if dtype == BFLOAT16_BITS else rows
    total = rows[0].copy()
    for row in rows[1:]:
        total += row
    return bfloat16_bits(total) if dtype == BFLOAT16_BITS else total


@pytest.mark.parametrize("where, dtype", KINDS)
def test_all_reduce_gives_every_rank_the_sum_in_rank_order(talk, where, dtype):
    for size in SIZES:
        expected = sum_in_rank_order(talk.ranks, size, dtype)
        for arrays in talk.arrays:
            for again in ("", " again"):
                np.testing.assert_array_equal(arrays[f"{where} all_reduce{again} {size} {dtype}"], expected)


@pytest.mark.parametrize("where, dtype", KINDS)
def test_all_reduce_of_views_leaves_the_rest_alone(talk, where, dtype):
    for rank, arrays in enumerate(talk.arrays):
        expected = initial_values(rank, 64, dtype)
        expected[2:-1] = sum_in_rank_order(talk.ranks, 64, dtype)[2:-1]
        np.testing.assert_array_equal(arrays[f"{where} all_reduce of views 64 {dtype}"], expected)


@pytest.mark.parametrize("where, dtype", KINDS)
def test_reduce_scatter_gives_each_rank_its_part_of_the_sum(talk, where, dtype):
    for name, size, bounds in pieces_of(talk.ranks):
        expected = sum_in_rank_order(talk.ranks, size, dtype)
        for rank, arrays in enumerate(talk.arrays):
            mine = slice(bounds[rank], bounds[rank + 1])
            np.testing.assert_array_equal(arrays[f"{where} reduce_scatter{name} {size} {dtype}"][mine], expected[mine])


@pytest.mark.parametrize("where, dtype", KINDS)
def test_all_gather_gives_every_rank_every_part(talk, where, dtype):
    for name, size, bounds in pieces_of(talk.ranks):
        parts = [initial_values(rank, size, dtype)[bounds[rank] : bounds[rank + 1]] for rank in range(talk.ranks)]
        for rank, arrays in enumerate(talk.arrays):
            expected = initial_values(rank, size, dtype)
            expected[bounds[0] : bounds[-1]] = np.concatenate(parts)
            np.testing.assert_array_equal(arrays[f"{where} all_gather{name} {size} {dtype}"], expected)


def pieces_of(ranks):
    """(suffix of the name, size, bounds) of the pieces that talk_together passes to reduce_scatter and all_gather."""
    return [("", size, uneven_bounds(size, ranks)) for size in SIZES] + [(", even", 64, even_bounds(ranks))]


def test_the_parts_of_these_tests_are_unequal_and_some_are_empty():
    assert uneven_bounds(1, 4) == [0, 0, 0, 0, 1]
    assert uneven_bounds(64, 4) == [0, 6, 19, 38, 64]
    assert sum_in_rank_order(4, 1001, FLOAT32).tolist() != sum(initial_values(rank, 1001, FLOAT32) for rank in (3, 2, 1, 0)).tolist()


def test_gather_gives_every_rank_all_values(talk):
    for rank, gathered in enumerate(talk.gathered):
        assert (gathered["rank"], gathered["ranks"]) == (rank, talk.ranks)
        assert gathered["mixed"] == [
            {"rank": r, "none": None, "text": "ß\n" * r, "list": [[], {}, 1.5e-300, float("inf"), 2**60, True]} for r in range(talk.ranks)
        ]
        assert gathered["large"] == [3_000_000 * r for r in range(talk.ranks)]


def test_sums_are_made_in_rank_order(talk):
    expected = [0.0, 0.0, 0.0]
    for rank in range(talk.ranks):
        expected = [a + b for a, b in zip(expected, [0.1 * (rank + 1), 1e16 * (-1) ** rank, float(rank)])]
    assert [gathered["sum"] for gathered in talk.gathered] == [expected] * talk.ranks


def test_ranks_have_names_with_hosts(talk):
    host = socket.gethostname()
    for gathered in talk.gathered:
        assert gathered["names"] == [f"rank {r} on host {host}, CPU" for r in range(talk.ranks)]
        assert gathered["host"] == host


def test_alone_nothing_changes():
    group = Alone()
    array = initial_values(0, 5, FLOAT32)
    group.begin()
    group.all_reduce([array])
    group.reduce_scatter([(array, [0, 5])])
    group.all_gather([(array, [0, 5])])
    group.end()
    np.testing.assert_array_equal(array, initial_values(0, 5, FLOAT32))
    assert (group.rank, group.ranks, group.host) == (0, 1, socket.gethostname())
    assert group.names == [f"rank 0 on host {group.host}, CPU"]
    assert group.gather({"a": (1, 2)}) == [{"a": [1, 2]}]
    assert group.sum([0.5, np.float32(2)]) == [0.5, 2.0]
    group.doing("nothing")
    group.fail("no other process hears it")
    group.barrier()
    group.close()


# ------------------------------------------------------------------------------------------------------------ NCCL


class Recorder:
    """Replaces nccl.bindings.nccl: records the calls."""

    DataType = SimpleNamespace(Float32="float32", Bfloat16="bfloat16")
    RedOp = SimpleNamespace(Sum="sum")
    Result = SimpleNamespace(Success=0, InProgress=7)

    def __init__(self):
        self.calls, self.error = [], 0

    def get_unique_id(self):
        return bytes(range(128))

    class UniqueId:
        from_buffer = staticmethod(lambda buffer: ("id", buffer))

    def comm_get_async_error(self, communicator):
        return self.error

    def get_error_string(self, error):
        return "remote error"

    def get_last_error(self, communicator):
        return "peer closed"

    def __getattr__(self, name):
        def call(*arguments):
            self.calls.append((name, *arguments))
            return "communicator"

        return call


class Array:
    """What NCCL sees of a device array: its type, its size and its address."""

    def __init__(self, address, size, dtype):
        self.size, self.dtype, self.device_ctypes_pointer = size, dtype, SimpleNamespace(value=address)


class Stream:
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def __int__(self):
        return 77

    def synchronize(self):
        self.calls.append(("synchronize", self.name))


class Event:
    def __init__(self, calls):
        self.calls = calls

    def record(self, stream):
        self.calls.append(("record", stream.name))

    def wait(self, stream):
        self.calls.append(("wait", stream.name))


class MeetingOfThree(Meeting):
    """Rank 1 of 3: the others gather the same value as it does; only rank 0 has the id."""

    def __init__(self):
        super().__init__(1, 3)

    def gather(self, value):
        return [bytes(range(128)).hex() if value is None else value, value, value]


@pytest.fixture
def group(monkeypatch):
    """The connected NcclGroup of rank 1 of 3; group.calls: the library calls since."""
    nccl = Recorder()
    monkeypatch.setattr(nccl_group, "_high_priority_stream", lambda: Stream("messages", nccl.calls))
    monkeypatch.setattr(nccl_group, "_event", lambda: Event(nccl.calls))
    monkeypatch.setattr(nccl_group, "compute_stream", lambda: Stream("compute", nccl.calls))
    monkeypatch.setattr(nccl_group, "load_nccl", lambda: nccl)
    group = NcclGroup(MeetingOfThree(), "GPU 1 (a chip)")
    group.connect()
    assert nccl.calls == [("comm_init_rank", 3, ("id", bytes(range(128))), 1)]
    nccl.calls.clear()
    group.calls, group.nccl = nccl.calls, nccl
    return group


LAST_ARGUMENTS = ("communicator", 77)  # of every call


def test_nccl_sums_all_arrays_in_one_launch(group):
    group.all_reduce([Array(1000, 6, FLOAT32), Array(2000, 0, FLOAT32), Array(3000, 5, BFLOAT16_BITS)])
    assert group.calls == [
        ("group_start",),
        ("all_reduce", 1000, 1000, 6, "float32", "sum", *LAST_ARGUMENTS),
        ("all_reduce", 3000, 3000, 5, "bfloat16", "sum", *LAST_ARGUMENTS),
        ("group_end",),
    ]


def test_nccl_has_functions_for_equal_parts(group):
    """In place: NCCL recognizes that by the address of the own part, which is that of all parts plus rank times the size of a part."""
    group.reduce_scatter([(Array(1000, 9, FLOAT32), [0, 3, 6, 9]), (Array(3000, 9, BFLOAT16_BITS), [2, 4, 6, 8])])
    group.all_gather([(Array(1000, 9, FLOAT32), [0, 3, 6, 9]), (Array(3000, 9, BFLOAT16_BITS), [2, 4, 6, 8])])
    assert group.calls == [
        ("group_start",),
        ("reduce_scatter", 1000, 1012, 3, "float32", "sum", *LAST_ARGUMENTS),
        ("reduce_scatter", 3004, 3008, 2, "bfloat16", "sum", *LAST_ARGUMENTS),
        ("group_end",),
        ("group_start",),
        ("all_gather", 1012, 1000, 3, "float32", *LAST_ARGUMENTS),
        ("all_gather", 3008, 3004, 2, "bfloat16", *LAST_ARGUMENTS),
        ("group_end",),
    ]


def test_nccl_takes_unequal_parts_one_by_one(group):
    group.reduce_scatter([(Array(1000, 9, FLOAT32), [0, 4, 4, 9])])
    group.all_gather([(Array(3000, 9, BFLOAT16_BITS), [0, 1, 9, 9])])
    assert group.calls == [
        ("group_start",),
        ("reduce", 1000, 1000, 4, "float32", "sum", 0, *LAST_ARGUMENTS),
        ("reduce", 1016, 1016, 5, "float32", "sum", 2, *LAST_ARGUMENTS),
        ("group_end",),
        ("group_start",),
        ("broadcast", 3000, 3000, 1, "bfloat16", 0, *LAST_ARGUMENTS),
        ("broadcast", 3002, 3002, 8, "bfloat16", 1, *LAST_ARGUMENTS),
        ("group_end",),
    ]


def test_nccl_and_the_compute_stream_wait_for_each_other(group):
    group.begin()
    group.end()
    assert group.calls == [("record", "compute"), ("wait", "messages"), ("record", "messages"), ("wait", "compute")]
    group.end()  # nothing has been queued since: in a captured graph there would be nothing to wait for
    assert len(group.calls) == 4


def test_an_error_that_nccl_has_met_is_raised(group):
    group.doing("step 1")
    group.nccl.error = 6
    with pytest.raises(RuntimeError, match="before step 2: remote error; peer closed"):
        group.doing("step 2")


def test_the_communicator_lives_until_the_process_ends(group):
    group.close()
    assert group.calls == [("synchronize", "messages")]


def test_a_missing_nccl_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "nccl.bindings", None)
    with pytest.raises(nccl_group.UserError, match="nccl4py.*pip install nccl4py nvidia-nccl-cu13"):
        nccl_group.load_nccl()


# ------------------------------------------------------------------------------------------------------- the benchmark

BENCHMARK = """
from dataclasses import replace
from dev.bench.collectives import check, measure, size_name, times_table
from gpt2_numba.parallel.start import join
from gpt2_numba.training.settings import SHARD_DEFAULTS

group = join(replace(SHARD_DEFAULTS, hang_timeout=60), "gpu")
faults = check(group, large=4096)
rows = measure(group, (4096, 8192))
if group.rank == 0:
    print("FAULTS", faults)
    print(times_table(rows))
correct = group.all_gather

def faulty(pieces):
    correct(pieces)
    if group.rank == 1:
        pieces[-1][0][-1:][:] = 1000

group.all_gather = faulty
found = check(group, large=4096)
if group.rank == 0:
    print("FOUND", len(found), found[0])
group.close()
"""


def test_the_benchmark_finds_faults():
    """In the simulator, as on GPUs: dev/bench/collectives.py finds no fault, then one that is introduced in all_gather at rank 1."""
    lines = run_together(2, ["-c", BENCHMARK], NUMBA_ENABLE_CUDASIM="1").stdout.splitlines()
    assert "FAULTS []" in lines
    assert [line.split()[:2] for line in lines if "KiB" in line] == [["4", "KiB"], ["8", "KiB"]]
    found = next(line for line in lines if line.startswith("FOUND"))
    assert found.startswith("FOUND 64 launched directly: rank 1 on host")  # two types, four layouts, four rounds, all_gather and all_reduce
    assert "1 of 2064 elements are wrong, the first at 2055, the last at 2055: " in found and " instead of " in found
