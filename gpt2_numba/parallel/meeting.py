"""How the processes of a run talk on the host's side: rank 0 in the middle, a line to each of the others. Numbers go other ways (group.py).

    rank 0:    reception = Reception(ranks)
               (its reception.invitation goes to the others: by MPI, by a file, or they know it anyway)
               meeting = reception.wait_for_others(60)
    rank r:    meeting = attend(lambda: invitation, r, ranks, 60)
    then all:  meeting.gather(thing) gives everyone everyone's thing

A message is JSON in bytes: whatever a stranger sends to an open port, nothing of it is ever run.
"""

import json
import secrets
import socket
import time
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection, wait

from gpt2_numba.errors import UserError

TALK, WATCH = "talk", "watch"  # the two lines between rank 0 and another rank
CONNECT_SECONDS = 5  # for one attempt at one address: an address that is not reachable from here must not use up all the time
RETRY_SECONDS = 0.1
GRACE_SECONDS = 5  # that the others wait longer than rank 0, so that it is the one who tells which ranks are missing
LONGEST_GREETING = 10_000  # bytes; what comes before the meeting may come from anybody


class RankLost(RuntimeError):
    """A process that the others need is gone. `rank` says which."""

    def __init__(self, rank, name):
        super().__init__(f"{name} is gone: its connection has ended. What it said last tells why")
        self.rank = rank


class Meeting:
    """All processes of a run, each with lines to the others by way of rank 0.

    rank, ranks   this process, and how many there are
    names         what errors call the ranks, a list; whoever knows better names may put them here
    watch_lines   for parallel/watch.py, which alone reads and writes them: {rank: Connection} at rank 0, {0: Connection} at the others
                  (multiprocessing.connection.Connection; a peer that is gone: EOFError or OSError)
    Meeting(0, 1) is a process by itself. All else comes from Reception and attend.
    """

    def __init__(self, rank, ranks, lines=None, watch_lines=None):
        self.rank, self.ranks = rank, ranks
        self.names = [f"rank {r}" for r in range(ranks)]
        self.watch_lines = watch_lines or {}
        self._lines = lines or {}

    def gather(self, thing):
        """Everyone's thing at every rank: a list by rank. All ranks must call it, in the same order as their other gathers.

        thing: made of JSON's types; a tuple comes back as a list, and a dictionary's keys as text. Floats keep their bits.
        Raises RankLost if a rank is gone, at rank 0 and at those who wait for it. A rank that is there but never calls is the watch's
        affair.
        """
        if self.rank != 0:
            return self._ask(thing)
        things = self._collect(thing)
        for rank, line in self._lines.items():
            try:
                send(line, {"all": things})
            except OSError:
                self._lose(rank)
        return json.loads(json.dumps(things))  # as the others get it

    def _collect(self, thing):
        """Rank 0: what all ranks send, by rank. Whoever is ready first is heard first, so that a lost one is noticed at once."""
        things, waiting = {0: thing}, {line: rank for rank, line in self._lines.items()}
        while waiting:
            for line in wait(list(waiting)):
                rank = waiting.pop(line)
                try:
                    things[rank] = receive(line)
                except (EOFError, OSError):
                    self._lose(rank)
        return [things[rank] for rank in range(self.ranks)]

    def _lose(self, lost):
        """Rank 0: tell the others that a rank is gone, and raise RankLost."""
        for rank, line in self._lines.items():
            if rank != lost:
                with suppress(OSError):  # gone as well
                    send(line, {"lost": lost})
        raise RankLost(lost, self.names[lost])

    def _ask(self, thing):
        """Another rank: send a thing, and wait for all of them."""
        try:
            send(self._lines[0], thing)
            answer = receive(self._lines[0])
        except (EOFError, OSError):
            raise RankLost(0, self.names[0]) from None
        if "lost" in answer:
            raise RankLost(answer["lost"], self.names[answer["lost"]])
        return answer["all"]

    def close(self):
        """End all lines. The others take it for the loss of this rank, unless they do not listen any more: gather before."""
        for line in [*self._lines.values(), *self.watch_lines.values()]:
            line.close()


def send(line, thing):
    """Send a thing made of JSON's types. OSError if the other end is gone."""
    line.send_bytes(json.dumps(thing).encode())


def receive(line, longest=None):
    """Wait for a thing, of at most `longest` bytes. EOFError or OSError if the other end is gone, or says more than that."""
    return json.loads(line.recv_bytes(longest))


class Reception:
    """Rank 0 before the others are there: it listens at a port on all of this host's addresses.

    ranks  how many processes there will be        port  0: any that is free
    secret True: only who knows the invitation is let in. With False it is enough to know address and port.
    Raises UserError if the port is taken.
    """

    def __init__(self, ranks, port=0, secret=True):
        self._ranks = ranks
        try:
            self._server = socket.create_server(("", port), backlog=2 * ranks)
        except OSError as error:
            raise UserError(
                f"rank 0 must be able to listen at port {port}, and cannot: {error.strerror}. Choose another port, or start only one rank 0"
            ) from None
        self._unknown = []  # lines whose other end has not said yet who it is
        self._arrived = {TALK: {}, WATCH: {}}  # rank -> Connection
        self.port = self._server.getsockname()[1]
        self.invitation = {  # of JSON's types, for the other ranks
            "host": socket.gethostname(),
            "addresses": addresses_of_this_host(),
            "port": self.port,
            "token": secrets.token_hex(16) if secret else "",
        }

    def wait_for_others(self, seconds):
        """Let all other ranks in, and listen no longer. Returns the Meeting.

        seconds: how long, 0 = for ever. Raises UserError that names the ranks which did not come, or says that two are the same or that
        they disagree on their number; those who came are told the same.
        """
        until, complaint = _Deadline(seconds), None
        with self._server:
            while complaint is None and (missing := self._missing()):
                arrived = {line: rank for rank, line in self._arrived[TALK].items()}
                ready = wait([self._server, *self._unknown, *arrived], until.left())
                if not ready:
                    complaint = self._who_is_missing(missing, seconds)
                for end in ready:
                    if end is self._server:
                        self._unknown.append(_line(self._server.accept()[0]))
                    elif end in arrived:  # has nothing to say before it is welcome: it has gone away again
                        for of_kind in self._arrived.values():
                            of_kind.pop(arrived[end], end).close()
                    else:
                        complaint = self._let_in(end) or complaint
        talk, watch = (dict(sorted(of_kind.items())) for of_kind in self._arrived.values())
        for line in [*talk.values(), *self._unknown]:
            with suppress(OSError):  # gone already: the first gather will tell
                send(line, {"refused": complaint} if complaint else {"welcome": True})
        for line in self._unknown:
            line.close()
        if complaint:
            raise UserError(complaint)
        return Meeting(0, self._ranks, talk, watch)

    def _missing(self):
        return [rank for rank in range(1, self._ranks) if any(rank not in of_kind for of_kind in self._arrived.values())]

    def _let_in(self, line):
        """Hear who is at the other end of a line that is unknown so far. Returns a complaint, or None. Strangers are sent away."""
        try:
            hello = receive(line, LONGEST_GREETING)
            token, rank, ranks, of_kind = hello["token"], hello["rank"], hello["ranks"], self._arrived[hello["kind"]]
        except (EOFError, OSError, ValueError, KeyError, TypeError):
            token = None
        if token != self.invitation["token"]:
            self._unknown.remove(line)
            line.close()
            return None
        if ranks != self._ranks:
            return (
                f"all processes must agree on their number, and rank 0 was told {self._ranks}, rank {rank} {ranks}: give all the same -pn"
            )
        if rank == 0 or rank in of_kind and not of_kind[rank].poll():  # whoever waits says nothing: what could be read is an end
            return f"each process must have a rank of its own, and two say that they are rank {rank}: give each its own -pr"
        self._unknown.remove(line)
        of_kind[rank] = line
        if hello["kind"] == TALK:
            with suppress(OSError):  # gone again: its line has ended, which is noticed next
                send(line, {"heard": True})  # at once: whoever gets no answer looks elsewhere
        return None

    def _who_is_missing(self, missing, seconds):
        which = f"rank {missing[0]}" if len(missing) == 1 else f"ranks {', '.join(map(str, missing))}"
        return (
            f"all {self._ranks} processes must come together within {seconds:g} s, and {which} did not: were they started, and do they "
            f"reach host {self.invitation['host']} at port {self.port} ({', '.join(self.invitation['addresses'])})?"
        )


def attend(find_invitation, rank, ranks, seconds):
    """Come to rank 0's reception as another rank. Returns the Meeting.

    find_invitation  function that gives a Reception's invitation, or None so long as there is none. It is asked again when the one it gave
                     leads nowhere: it may be old
    seconds          how long rank 0 is looked for, and how long it may then wait for the others; 0 = for ever
    Raises UserError if there is no rank 0, or with what it says if it ends the meeting.
    """
    until, tried = _Deadline(seconds), "nobody told where it is"
    while True:
        invitation = find_invitation()
        for address in _addresses_from_here(invitation):
            tried = f"the last attempt was {address} at port {invitation['port']}"
            with suppress(EOFError, OSError):  # nobody there, or somebody else
                return _go_to(address, invitation, rank, ranks, seconds)
        if until.left() == 0:
            raise UserError(
                f"rank {rank} must find rank 0 within {seconds:g} s, and did not; {tried}. Was rank 0 started, and does it still run?"
            )
        time.sleep(RETRY_SECONDS)


def _go_to(address, invitation, rank, ranks, seconds):
    """The Meeting, if rank 0 is at this address. EOFError or OSError if it is not."""
    with ExitStack() as lines_to_close:
        lines = []
        for _ in (TALK, WATCH):
            lines.append(_line(socket.create_connection((address, invitation["port"]), CONNECT_SECONDS)))
            lines_to_close.enter_context(lines[-1])
        for line, kind in zip(lines, (TALK, WATCH)):  # now that there are both
            send(line, {"token": invitation["token"], "rank": rank, "ranks": ranks, "kind": kind})
        answer = _answer(lines[0], CONNECT_SECONDS)
        if "heard" in answer:
            answer = _answer(lines[0], seconds + GRACE_SECONDS if seconds else None)
        if "refused" in answer:
            raise UserError(answer["refused"])
        lines_to_close.pop_all()
        return Meeting(rank, ranks, {0: lines[0]}, {0: lines[1]})


def _answer(line, seconds):
    """What rank 0 says. EOFError or OSError if it says nothing for so many seconds (None: for ever), or if it is not rank 0."""
    if not line.poll(seconds):
        raise EOFError
    try:
        answer = receive(line, LONGEST_GREETING)
    except ValueError:
        raise EOFError from None
    return answer if isinstance(answer, dict) else {}


def addresses_of_this_host():
    """Where other hosts may reach this one: its name, and its IP addresses as far as it knows them, without those that mean itself."""
    name = socket.gethostname()
    found = []
    with suppress(OSError):  # the name need not be known to its own host
        found += [address[0] for *_, address in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # there need be no network
        probe.connect(("203.0.113.1", 9))  # sends nothing: it only chooses the address of this host that leads out (RFC 5737)
        found.append(probe.getsockname()[0])
    return [name, *dict.fromkeys(address for address in found if not address.startswith("127."))]


def _addresses_from_here(invitation):
    """In which order to try an invitation's addresses. On the same host neither a firewall nor an unknown name is in the way."""
    if invitation is None:
        return []
    return (["127.0.0.1"] if invitation["host"] == socket.gethostname() else []) + invitation["addresses"]


def _line(connected):
    """A Connection from a connected socket."""
    connected.settimeout(None)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # messages are short, and somebody waits for each
    return Connection(connected.detach())


class _Deadline:
    """When waiting ends. seconds: from now; 0 = never."""

    def __init__(self, seconds):
        self._end = time.monotonic() + seconds if seconds else None

    def left(self):
        """Seconds until then, at least 0; None if there is no end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
