"""How the processes of a run exchange messages on the host: rank 0 has a connection to each of the others. Arrays go other ways (group.py).

    rank 0:    reception = Reception(ranks)
               (reception.invitation reaches the others by MPI or by a file, or they know the address anyway)
               meeting = reception.wait_for_others(60)
    rank r:    meeting = attend(lambda: invitation, r, ranks, 60)
    then all:  meeting.gather(value) returns the values of all ranks, at every rank

A message is JSON in bytes: whatever a stranger sends to the open port, none of it is ever executed.
"""

import json
import secrets
import socket
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait

from gpt2_numba.errors import UserError

TALK, WATCH = "talk", "watch"  # the two lines, which are TCP connections, between rank 0 and another rank
CONNECT_SECONDS = 5  # per attempt at one address: an address that is unreachable from here must not use up all the time
RETRY_SECONDS = 0.1
GRACE_SECONDS = 5  # the others wait this much longer than rank 0, which alone can say which ranks are missing
MAX_GREETING = 10_000  # bytes; what arrives before the meeting may come from anybody


class RankLost(RuntimeError):
    """The process `rank`, which the others need, is gone."""

    def __init__(self, rank, name):
        super().__init__(f"{name} is gone: its connection has ended. Its last output says why")
        self.rank = rank


class Meeting:
    """All processes of a run, connected through rank 0.

    rank, ranks   this process, and the number of processes
    names         list by rank: the names of the ranks in error messages; Group sets better ones
    watch_lines   for parallel/watch.py, which alone reads and writes them: {rank: Connection} at rank 0, {0: Connection} at the others
                  (multiprocessing.connection.Connection; EOFError or OSError if the peer is gone)
    Meeting(0, 1) is a single process. Reception and attend make all others.
    """

    def __init__(self, rank, ranks, lines=None, watch_lines=None):
        self.rank, self.ranks = rank, ranks
        self.names = [f"rank {r}" for r in range(ranks)]
        self.watch_lines = watch_lines or {}
        self._lines = lines or {}

    def gather(self, value):
        """The values of all ranks, at every rank: a list by rank. All ranks must call it, in the same order as their other gathers.

        value: of JSON's types; a tuple comes back as a list, and a dictionary's keys as text. Floats keep their bits.
        Raises RankLost if a rank is gone, at rank 0 and at the ranks that wait for it. It is up to the watch to find a rank that is there
        but never calls.
        """
        if self.rank != 0:
            return self._gather_from_rank_0(value)
        values = self._collect(value)
        for rank, line in self._lines.items():
            try:
                send(line, {"all": values})
            except OSError:
                self._lose(rank)
        return json.loads(json.dumps(values))  # as the others receive it

    def _collect(self, own):
        """Rank 0: the values that all ranks send, by rank. Reads the lines as they become ready, to notice a lost rank at once."""
        values, waiting = {0: own}, {line: rank for rank, line in self._lines.items()}
        while waiting:
            for line in wait(list(waiting)):
                rank = waiting.pop(line)
                try:
                    values[rank] = receive(line)
                except (EOFError, OSError):
                    self._lose(rank)
        return [values[rank] for rank in range(self.ranks)]

    def _lose(self, lost):
        """Rank 0: report to the others that a rank is gone, and raise RankLost."""
        for rank, line in self._lines.items():
            if rank != lost:
                with suppress(OSError):  # gone as well
                    send(line, {"lost": lost})
        raise RankLost(lost, self.names[lost])

    def _gather_from_rank_0(self, value):
        """The other ranks: send a value, and wait for all of them."""
        try:
            send(self._lines[0], value)
            answer = receive(self._lines[0])
        except (EOFError, OSError):
            raise RankLost(0, self.names[0]) from None
        if "lost" in answer:
            raise RankLost(answer["lost"], self.names[answer["lost"]])
        return answer["all"]

    def close(self):
        """Close all lines. Ranks that still listen take it for the loss of this one: gather first."""
        for line in [*self._lines.values(), *self.watch_lines.values()]:
            line.close()


def send(line, value):
    """Send a value of JSON's types. OSError if the other end is gone."""
    line.send_bytes(json.dumps(value).encode())


def receive(line, max_bytes=None):
    """Wait for a value. EOFError or OSError if the other end is gone, or sends more than max_bytes."""
    return json.loads(line.recv_bytes(max_bytes))


class Reception:
    """Rank 0 before the others have arrived: it listens at a port on all addresses of this host.

    ranks   the number of processes        port  0: any free one
    secret  True: lets in only processes that know the invitation. False: address and port are enough
    Raises UserError if the port is taken.
    """

    def __init__(self, ranks, port=0, secret=True):
        self._ranks = ranks
        try:
            self._server = socket.create_server(("", port), backlog=2 * ranks)
        except OSError as error:
            raise UserError(
                f"rank 0 must be able to listen on port {port}, and cannot: {error.strerror}. Choose another port, or start only one rank 0"
            ) from None
        self._unknown = []  # lines whose other end has not identified itself yet
        self._arrived = {TALK: {}, WATCH: {}}  # rank -> Connection
        self.port = self._server.getsockname()[1]
        self.invitation = {  # for the other ranks, of JSON's types
            "host": socket.gethostname(),
            "addresses": addresses_of_this_host(),
            "port": self.port,
            "token": secrets.token_hex(16) if secret else "",
        }

    def wait_for_others(self, seconds):
        """Let all other ranks in, then stop listening. Returns the Meeting.

        seconds: the limit, 0 = none. Raises UserError if ranks are missing, if two are the same, or if they disagree on the number of
        processes; the ranks that have arrived raise the same.
        """
        until, complaint = _Deadline(seconds), None
        with self._server:
            while complaint is None and (missing := self._missing()):
                arrived = {line: rank for rank, line in self._arrived[TALK].items()}
                ready = wait([self._server, *self._unknown, *arrived], until.left())
                if not ready:
                    complaint = self._missing_message(missing, seconds)
                for source in ready:
                    if source is self._server:
                        self._unknown.append(_line(self._server.accept()[0]))
                    elif source in arrived:  # nothing is sent before the welcome: this is the end of its line
                        for lines in self._arrived.values():
                            lines.pop(arrived[source], source).close()
                    else:
                        complaint = self._let_in(source) or complaint
        talk, watch = (dict(sorted(lines.items())) for lines in self._arrived.values())
        for line in [*talk.values(), *self._unknown]:
            with suppress(OSError):  # gone already: the first gather will report it
                send(line, {"refused": complaint} if complaint else {"welcome": True})
        for line in self._unknown:
            line.close()
        if complaint:
            raise UserError(complaint)
        return Meeting(0, self._ranks, talk, watch)

    def _missing(self):
        return [rank for rank in range(1, self._ranks) if any(rank not in lines for lines in self._arrived.values())]

    def _let_in(self, line):
        """Read the greeting of an unknown line, and close it if it is a stranger's. Returns a complaint, or None."""
        try:
            hello = receive(line, MAX_GREETING)
            token, rank, ranks, lines = hello["token"], hello["rank"], hello["ranks"], self._arrived[hello["kind"]]
        except (EOFError, OSError, ValueError, KeyError, TypeError):
            token = None
        if token != self.invitation["token"]:
            self._unknown.remove(line)
            line.close()
            return None
        if ranks != self._ranks:
            return (
                f"all processes must agree on the number of processes, and rank 0 has {self._ranks}, rank {rank} {ranks}: "
                f"give all the same -pn"
            )
        if rank == 0 or rank in lines and not lines[rank].poll():  # a waiting rank sends nothing: if there is something to read, it is gone
            return f"each process must have a rank of its own, and two claim to be rank {rank}: give each its own -pr"
        self._unknown.remove(line)
        lines[rank] = line
        if hello["kind"] == TALK:
            with suppress(OSError):  # gone again: the end of its line is noticed next
                send(line, {"heard": True})  # at once: a process without an answer looks elsewhere
        return None

    def _missing_message(self, missing, seconds):
        which = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        return (
            f"all {self._ranks} processes must meet within {seconds:g} s, and {which} did not come: were they started, and can they "
            f"reach host {self.invitation['host']} at port {self.port} ({', '.join(self.invitation['addresses'])})?"
        )


def attend(find_invitation, rank, ranks, seconds):
    """Connect to rank 0's Reception as another rank. Returns the Meeting.

    find_invitation  function that returns a Reception's invitation, or None as long as there is none. It is called again if the invitation
                     leads nowhere: it may be old
    seconds          the limit for finding rank 0, and again for its wait for the others; 0 = none
    Raises UserError if rank 0 is not found, or with its message if it ends the meeting.
    """
    until, tried = _Deadline(seconds), "there was no address to try"
    while True:
        invitation = find_invitation()
        for address in _addresses_from_here(invitation):
            tried = f"the last attempt was {address} at port {invitation['port']}"
            with suppress(EOFError, OSError):  # nothing listens here, or something else
                return _go_to(address, invitation, rank, ranks, seconds)
        if until.left() == 0:
            raise UserError(
                f"rank {rank} must find rank 0 within {seconds:g} s, and did not; {tried}. Was rank 0 started, and is it still running?"
            )
        time.sleep(RETRY_SECONDS)


def _go_to(address, invitation, rank, ranks, seconds):
    """The Meeting, if rank 0 is at this address. EOFError or OSError if it is not."""
    with ExitStack() as lines_to_close:
        lines = []
        for _ in (TALK, WATCH):
            lines.append(_line(socket.create_connection((address, invitation["port"]), CONNECT_SECONDS)))
            lines_to_close.enter_context(lines[-1])
        for line, kind in zip(lines, (TALK, WATCH)):  # only now, with both open
            with suppress(OSError):  # closed already, after a refusal, which the other line holds: read it
                send(line, {"token": invitation["token"], "rank": rank, "ranks": ranks, "kind": kind})
        answer = _answer(lines[0], CONNECT_SECONDS)
        if "heard" in answer:
            answer = _answer(lines[0], seconds + GRACE_SECONDS if seconds else None)
        if "refused" in answer:
            raise UserError(answer["refused"])
        lines_to_close.pop_all()
        return Meeting(rank, ranks, {0: lines[0]}, {0: lines[1]})


def _answer(line, seconds):
    """Rank 0's answer. EOFError or OSError if there is none within `seconds` (None: no limit), or if it is not rank 0."""
    if not line.poll(seconds):
        raise EOFError
    try:
        answer = receive(line, MAX_GREETING)
    except ValueError:
        raise EOFError from None
    return answer if isinstance(answer, dict) else {}


def addresses_of_this_host():
    """Where other hosts may reach this one: its name, and the IP addresses that it knows, without the loopback ones."""
    name = socket.gethostname()
    found = []
    with suppress(OSError):  # a host may not be able to resolve its own name
        found += [address[0] for *_, address in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # there may be no network
        probe.connect(("203.0.113.1", 9))  # sends nothing: only selects the address of this host that leads out (RFC 5737)
        found.append(probe.getsockname()[0])
    return [name, *dict.fromkeys(address for address in found if not address.startswith("127."))]


def _addresses_from_here(invitation):
    """The addresses to try, in order. On the same host the loopback comes first: no firewall and no unknown name is in the way."""
    if invitation is None:
        return []
    return (["127.0.0.1"] if invitation["host"] == socket.gethostname() else []) + invitation["addresses"]


def _line(connected_socket):
    """A Connection that takes over a connected socket."""
    connected_socket.settimeout(None)
    connected_socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are short, and a process waits for each
    return Connection(connected_socket.detach())


class _Deadline:
    """The end of a wait. seconds: from now; 0 = never."""

    def __init__(self, seconds):
        self._end = time.monotonic() + seconds if seconds else None

    def left(self):
        """The seconds that remain, at least 0; None if there is no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
