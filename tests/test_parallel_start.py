"""How processes meet: by MPI, by an address, by a file; which errors name those that do not come; which rank gets which GPU."""

import functools
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from gpt2_numba.errors import UserError
from gpt2_numba.parallel import meeting as meeting_module
from gpt2_numba.parallel import start
from gpt2_numba.parallel.group import Alone
from gpt2_numba.parallel.meeting import Meeting, RankLost, Reception, attend, receive, send
from gpt2_numba.training.settings import SHARD_DEFAULTS
from tests.mpi import process_environment, run_together

SETTINGS = replace(SHARD_DEFAULTS, hang_timeout=30)


def at_once(*works):
    """Call functions, all at the same time. Returns a list of what they return or raise; TimeoutError for one that does not end."""
    outcomes = [TimeoutError(f"{work} does not end") for work in works]

    def run(index, work):
        try:
            outcomes[index] = work()
        except (UserError, RankLost) as error:
            outcomes[index] = error

    threads = [threading.Thread(target=run, args=(index, work), daemon=True) for index, work in enumerate(works)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return outcomes


def meet(ranks, seconds=10):
    """The Meetings of all processes, which are threads here."""
    reception = Reception(ranks)
    others = [functools.partial(attend, lambda: reception.invitation, rank, ranks, seconds) for rank in range(1, ranks)]
    return at_once(lambda: reception.wait_for_others(seconds), *others)


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


# ------------------------------------------------------------------------------------------------------- meetings


def test_a_meeting_has_lines_for_gather_and_for_the_watch():
    meetings = meet(3)
    assert [m.rank for m in meetings] == [0, 1, 2]
    assert [sorted(m.watch_lines) for m in meetings] == [[1, 2], [0], [0]]
    for _ in range(2):
        gathered = at_once(*[functools.partial(m.gather, {"rank": m.rank}) for m in meetings])
        assert gathered == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3
    for rank in (1, 2):
        send(meetings[rank].watch_lines[0], f"from {rank}")
        assert receive(meetings[0].watch_lines[rank]) == f"from {rank}"


def test_only_json_is_sent():
    with pytest.raises(TypeError):
        Meeting(0, 1).gather({"a": object()})
    one, other = meeting_module.socket.socketpair()
    line = meeting_module.Connection(other.detach())
    send(line, [1, "ä", None])
    assert one.recv(100)[4:] == b'[1, "\\u00e4", null]'
    one.close()
    line.close()


def test_a_lost_rank_is_named_at_every_rank():
    meetings = meet(4)
    meetings[0].names[2] = meetings[1].names[2] = "rank 2 on host b"
    meetings[2].close()
    zero, one, three = at_once(*[functools.partial(meetings[rank].gather, rank) for rank in (0, 1, 3)])
    assert isinstance(zero, RankLost) and zero.rank == one.rank == three.rank == 2
    assert str(zero) == str(one) and "rank 2 on host b is gone" in str(zero)
    assert "rank 2 is gone" in str(three)


def test_a_lost_rank_0_is_named_at_every_rank():
    meetings = meet(3)
    meetings[0].close()
    lost = at_once(*[functools.partial(m.gather, None) for m in meetings[1:]])
    assert [error.rank for error in lost] == [0, 0]


def test_missing_ranks_are_named_at_those_that_came():
    reception = Reception(4)
    begin = time.monotonic()
    errors = at_once(lambda: reception.wait_for_others(0.5), lambda: attend(lambda: reception.invitation, 2, 4, 0.5))
    assert time.monotonic() - begin < 5
    assert all(isinstance(error, UserError) for error in errors) and str(errors[0]) == str(errors[1])
    assert "all 4 processes must meet within 0.5 s, and ranks 1, 3 did not come" in str(errors[0])
    assert socket.gethostname() in str(errors[0]) and f"port {reception.port}" in str(errors[0])


def test_without_rank_0_the_others_give_up():
    with pytest.raises(UserError, match="rank 1 must find rank 0 within 0.3 s, and did not; there was no address to try"):
        attend(lambda: None, 1, 2, 0.3)
    port = free_port()
    invitation = {"host": socket.gethostname(), "addresses": [], "port": port, "token": ""}
    with pytest.raises(UserError, match=f"the last attempt was 127.0.0.1 at port {port}"):
        attend(lambda: invitation, 1, 2, 0.3)


def test_each_address_of_rank_0_is_tried():
    reception = Reception(2)
    reception.invitation |= {"host": "another", "addresses": ["no.such.host.invalid", "127.0.0.1"]}
    _, one = at_once(lambda: reception.wait_for_others(5), lambda: attend(lambda: reception.invitation, 1, 2, 5))
    assert one.rank == 1


def test_rank_0_invites_to_addresses_that_other_hosts_can_reach():
    addresses = meeting_module.addresses_of_this_host()
    assert addresses[0] == socket.gethostname()
    assert not any(address.startswith("127.") for address in addresses)


@pytest.mark.parametrize(
    "others, complaint",
    [
        ([(1, 3), (1, 3)], "two claim to be rank 1: give each its own -pr"),
        ([(0, 3), (1, 3)], "two claim to be rank 0: give each its own -pr"),
        ([(1, 4), (2, 3)], "rank 0 has 3, rank 1 4: give all the same -pn"),
    ],
)
def test_processes_that_contradict_each_other_are_refused(others, complaint):
    reception = Reception(3)
    errors = at_once(
        lambda: reception.wait_for_others(10),
        *[functools.partial(attend, lambda: reception.invitation, rank, ranks, 1) for rank, ranks in others],
    )
    assert isinstance(errors[0], UserError) and complaint in str(errors[0])
    assert any(complaint in str(error) for error in errors[1:])  # a process that comes too late finds no reception


def test_a_process_that_is_refused_before_its_second_greeting_reads_why(monkeypatch):
    """Rank 0 may read the first greeting, refuse and close both lines before the second one is sent."""
    reception = Reception(2)
    rank_0 = threading.Thread(target=at_once, args=(lambda: reception.wait_for_others(10),))

    def send_slowly(line, value):
        send(line, value)
        if value.get("kind") == meeting_module.TALK:
            rank_0.start()
            rank_0.join(10)
        if value.get("kind") == meeting_module.WATCH:
            raise BrokenPipeError  # what the system reports now or a send later

    monkeypatch.setattr(meeting_module, "send", send_slowly)
    with pytest.raises(UserError, match="two claim to be rank 0"):
        attend(lambda: reception.invitation, 0, 2, 0.5)


def test_strangers_do_no_harm():
    reception = Reception(2)
    strangers = [socket.create_connection(("127.0.0.1", reception.port)) for _ in range(4)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    wrong = {"token": "guessed", "rank": 1, "ranks": 2, "kind": "talk"}
    for stranger, message in ((strangers[1], json.dumps(wrong).encode()), (strangers[2], b"[1]")):
        stranger.sendall(len(message).to_bytes(4, "big") + message)
    zero, one = at_once(lambda: reception.wait_for_others(5), lambda: attend(lambda: reception.invitation, 1, 2, 5))
    assert at_once(lambda: zero.gather(0), lambda: one.gather(1)) == [[0, 1]] * 2
    for stranger in strangers:
        stranger.close()


def test_a_process_that_leaves_before_the_meeting_may_come_again():
    reception = Reception(3)
    lines = [socket.create_connection(("127.0.0.1", reception.port)) for _ in range(2)]
    for line, kind in zip(lines, ("talk", "watch")):
        message = json.dumps({"token": reception.invitation["token"], "rank": 1, "ranks": 3, "kind": kind}).encode()
        line.sendall(len(message).to_bytes(4, "big") + message)
    with ThreadPoolExecutor() as pool:
        zero = pool.submit(reception.wait_for_others, 10)
        assert b"heard" in lines[0].recv(100)
        for line in lines:
            line.close()
        others = [pool.submit(attend, lambda: reception.invitation, rank, 3, 10) for rank in (1, 2)]
        meetings = [zero.result(), *(other.result() for other in others)]
    assert at_once(*[functools.partial(m.gather, m.rank) for m in meetings]) == [[0, 1, 2]] * 3


def test_a_taken_port_is_named():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"rank 0 must be able to listen on port {port}"):
            Reception(2, port)


# ------------------------------------------------------------------------------- processes without MPI: -pi tcp, fs

MEET = """
import json, sys
from dataclasses import replace
from gpt2_numba.parallel.start import meet_without_mpi
from gpt2_numba.training.settings import SHARD_DEFAULTS
meeting = meet_without_mpi(replace(SHARD_DEFAULTS, **json.loads(sys.argv[1])), on_gpus=True)
print(meeting.gather(meeting.rank))
"""


def meet_without_mpi(rank, ranks, **settings):
    """The Meeting of one of the processes, which are threads here. It needs no GPUs."""
    return start.meet_without_mpi(replace(SETTINGS, processes=ranks, rank=rank, **settings), on_gpus=True)


@pytest.mark.parametrize("method", ["tcp", "fs"])
def test_processes_meet_without_mpi(method, tmp_path):
    settings = dict(processes=3, init_method=method, server_address=f"127.0.0.1:{free_port()}", shared_path=str(tmp_path), hang_timeout=30)
    commands = [[sys.executable, "-c", MEET, json.dumps({**settings, "rank": rank})] for rank in (2, 1, 0)]
    running = [subprocess.Popen(command, env=process_environment(), stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        assert [process.communicate(timeout=60)[0] for process in running] == ["[0, 1, 2]\n"] * 3
    finally:
        for process in running:
            process.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_does_not_come_to_an_address_is_named():
    settings = dict(init_method="tcp", server_address=f"localhost:{free_port()}", hang_timeout=1)
    errors = at_once(*[functools.partial(meet_without_mpi, rank, 3, **settings) for rank in (0, 2)])
    assert all("within 1 s, and rank 1 did not come" in str(error) for error in errors), errors


@pytest.mark.parametrize("stale", ["no listener", "a silent listener", "another run", "half a file"])
def test_a_file_left_by_an_earlier_run_does_no_harm(stale, tmp_path, monkeypatch):
    """Ranks 1 and 2 find the old file and try it; then rank 0 starts."""
    monkeypatch.setattr(meeting_module, "CONNECT_SECONDS", 0.3)
    path = tmp_path / "gpt2_numba_rank_0_run.json"
    invitation = {"host": socket.gethostname(), "addresses": ["127.0.0.1"], "port": free_port(), "token": "the earlier run's"}
    settings = dict(init_method="fs", shared_path=str(tmp_path))
    with socket.create_server(("", 0)) as silent, ThreadPoolExecutor() as pool:
        if stale == "a silent listener":
            invitation["port"] = silent.getsockname()[1]
        if stale == "another run":
            other_run = Reception(3)
            invitation["port"] = other_run.port
            pool.submit(other_run.wait_for_others, 1)
        path.write_text(json.dumps(invitation)[: 20 if stale == "half a file" else None])
        others = [pool.submit(meet_without_mpi, rank, 3, **settings) for rank in (1, 2)]
        time.sleep(0.6)
        assert not any(other.done() for other in others)
        assert meet_without_mpi(0, 3, **settings).ranks == 3
        assert [other.result().rank for other in others] == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_slurm_job_has_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    settings = dict(init_method="fs", shared_path=str(tmp_path), hang_timeout=5)
    path = tmp_path / "gpt2_numba_rank_0_4711.json"
    with ThreadPoolExecutor() as pool:
        zero = pool.submit(meet_without_mpi, 0, 2, **settings)
        while not path.exists() and not zero.done():
            time.sleep(0.01)
        assert path.stat().st_mode & 0o077 == 0  # the token lets a process in: only this user's may read it
        assert meet_without_mpi(1, 2, **settings).rank == 1
        assert zero.result().rank == 0


@pytest.mark.parametrize(
    "options, complaint",
    [
        (dict(init_method="tcp", rank=0), "-pi tcp needs the number of processes and this one's rank: add -pn N and -pr RANK"),
        (dict(init_method="fs", processes=2), "-pi fs needs the number of processes and this one's rank"),
        (dict(init_method="tcp", processes=2, rank=2), "the rank .-pr. must be below the number of processes .-pn., got 2 of 2"),
        (dict(init_method="tcp", processes=2, rank=1), "-pi tcp needs the address of rank 0: add -ps HOST"),
        (dict(init_method="tcp", processes=2, rank=1, server_address="a:b"), "must be HOST or HOST:PORT, .* got a:b"),
        (dict(init_method="tcp", processes=2, rank=1, server_address="a:70000"), "must be HOST or HOST:PORT, .* got a:70000"),
        (dict(init_method="fs", processes=2, rank=0), "-pi fs needs a directory that all processes see: add -pf DIR"),
        (dict(init_method="fs", processes=2, rank=0, shared_path="/no/such"), "must be a directory, and /no/such is none"),
        (dict(processes=4), "-pn 4 with -pi mpi needs 4 processes, and this one was started alone: mpirun -np 4 python"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(options, complaint, monkeypatch):
    monkeypatch.setattr(start, "real_gpu", lambda: True)
    with pytest.raises(UserError, match=complaint):
        start.join(replace(SETTINGS, **options), "gpu")


@pytest.mark.parametrize("method", ["tcp", "fs"])
def test_on_a_cpu_the_collectives_need_mpi(method):
    with pytest.raises(UserError, match=f"-pi {method} is for GPUs, and this run is on a CPU.*: mpirun -np 2 python"):
        start.join(replace(SETTINGS, init_method=method, processes=2, rank=0, server_address="a", shared_path="."), "cpu")


def test_one_process_is_alone():
    for options in ({}, {"processes": 1}, {"init_method": "tcp", "processes": 1, "rank": 0}):
        group = start.join(replace(SETTINGS, **options), "cpu")
        assert isinstance(group, Alone) and group.names == [f"rank 0 on host {socket.gethostname()}, CPU"]


# -------------------------------------------------------------------------------------------------------------- MPI

JOIN = """
import sys
from dataclasses import replace
from gpt2_numba.errors import UserError
from gpt2_numba.parallel.start import join
from gpt2_numba.training.settings import SHARD_DEFAULTS
try:
    group = join(replace(SHARD_DEFAULTS, processes=int(sys.argv[1]) or None), "cpu")
    lines = group.gather(type(group).__name__)
    group.close()
    # One write: mpirun mixes the pieces that several processes write.
    sys.stdout.write(" ".join(map(str, [*lines, "mpi4py" in sys.modules])) + chr(10))
    sys.stdout.flush()
except UserError as error:
    print(error, flush=True)
"""


def test_without_a_launcher_mpi_is_not_loaded():
    done = subprocess.run([sys.executable, "-c", JOIN, "0"], env=process_environment(), capture_output=True, text=True, timeout=60)
    assert done.stdout == "Alone False\n", done.stderr


@pytest.mark.parametrize("processes", [0, 2])
def test_mpirun_sets_the_number_of_processes(processes):
    """0: -pn is not given."""
    done = run_together(2, ["-c", JOIN], processes)
    assert done.stdout == "MpiGroup MpiGroup True\n" * 2


def test_a_number_other_than_mpiruns_is_refused():
    done = run_together(2, ["-c", JOIN], 3)
    error = "-pn 3 needs 3 processes, and 2 were started: mpirun -np 3 python -m gpt2_numba.train ..., or leave out -pn\n"
    assert done.stdout == error * 2


def test_a_launcher_of_another_mpi_is_noticed():
    """Each of its processes would take itself for the only one and overwrite the others' files. MPICH's mpirun sets PMI_SIZE."""
    pytest.importorskip("mpi4py")
    environment = process_environment(PMI_SIZE="2")
    done = subprocess.run([sys.executable, "-c", JOIN, "0"], env=environment, capture_output=True, text=True, timeout=60)
    assert "2 processes were started, and mpi4py's library (" in done.stdout and "sees 1" in done.stdout, done.stderr


# -------------------------------------------------------------------------------------------------------------- GPUs


@pytest.mark.parametrize(
    "visible, chosen",
    [
        ([("a", "xy"), ("a", "xy")], [0, 1]),
        ([("a", "xy"), ("b", "xy"), ("a", "xy"), ("b", "xy")], [0, 0, 1, 1]),  # ranks assigned to hosts in turn
        ([("a", "xyz")], [0]),
        ([("a", "x"), ("a", "y")], [0, 0]),  # a launcher that shows each process only its own GPU
        ([("a", "xy"), ("a", "xy"), ("a", "zw"), ("a", "zw")], [0, 1, 0, 1]),
        ([("a", "xy"), ("a", "yx")], [0, 0]),
        ([("a", "xy"), ("a", "xz")], [0, 1]),
    ],
)
def test_each_rank_gets_its_own_gpu_of_its_host(visible, chosen):
    assert start.share_out_gpus([(host, list(gpus)) for host, gpus in visible]) == chosen


@pytest.mark.parametrize(
    "visible, per_host, complaint",
    [
        ([("a", "xy")] * 3, None, "host a has 2 GPUs for 3 processes"),
        ([("a", "xy"), ("b", "x"), ("b", "x")], None, "host b has 1 GPUs for 2 processes"),
        ([("a", "xy")] * 2, 1, "host a has 2 GPUs, of which 1 may be used .-pg., for 2 processes"),
        ([("a", "")], 8, "host a has 0 GPUs for 1 processes"),
    ],
)
def test_more_processes_than_gpus_are_refused(visible, per_host, complaint):
    with pytest.raises(UserError, match=complaint):
        start.share_out_gpus([(host, list(gpus)) for host, gpus in visible], per_host)


def test_processes_on_gpus_join_with_one_each(monkeypatch):
    """Two processes, which are threads here, with stand-ins for the GPUs and NCCL."""
    from numba import cuda

    selected, connected = [], []
    monkeypatch.setattr(cuda, "list_devices", lambda: [type("Gpu", (), {"uuid": uuid}) for uuid in ("GPU-1", "GPU-2")], raising=False)
    monkeypatch.setattr(cuda, "select_device", selected.append)
    monkeypatch.setattr(start, "real_gpu", lambda: True)
    monkeypatch.setattr(start, "device_name", lambda: "a chip")
    monkeypatch.setattr(start.NcclGroup, "connect", lambda self: connected.append((self.rank, self.watch is not None, sorted(selected))))
    monkeypatch.setattr(start.NcclGroup, "close", start.Alone.close)  # without a stream
    settings = replace(SETTINGS, init_method="tcp", processes=2, server_address=f"127.0.0.1:{free_port()}")
    groups = at_once(*[functools.partial(start.join, replace(settings, rank=rank), "gpu") for rank in (0, 1)])
    host = socket.gethostname()
    assert groups[0].names == groups[1].names == [f"rank {rank} on host {host}, GPU {rank} (a chip)" for rank in (0, 1)]
    assert sorted(connected) == [(0, True, [0, 1]), (1, True, [0, 1])]
    at_once(*[group.close for group in groups])


def test_a_process_that_cannot_connect_reports_it_to_the_others(monkeypatch):
    reported = []
    monkeypatch.setattr(start, "meet_by_mpi", lambda settings: (Meeting(0, 1), None))
    monkeypatch.setattr(start.MpiGroup, "connect", lambda self: 1 / 0)
    monkeypatch.setattr(start.MpiGroup, "fail", lambda self, message: reported.append(message))
    with pytest.raises(ZeroDivisionError):
        start.join(SETTINGS, "cpu")
    assert reported == ["ZeroDivisionError: division by zero"]
