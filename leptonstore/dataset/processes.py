"""Work divided among processes made by fork: for work that is mostly Python, which threads of one process do in turns.

A child has all that its parent had at that moment, without a copy; what it finds out it sends back. Nothing of it outlives the
parent: each job is preceded by a look whether that still lives.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from leptonstore.errors import LeptonError

Work = Callable[[Iterator[int], Callable[[object], None]], None]
_JOB = struct.Struct("<I")
_FORK_SAFE = {"jemalloc_bg_thd"}  # threads of libraries that hold no lock across a fork (jemalloc: pthread_atfork)
JOBS_MAX = 4096 // _JOB.size  # what every pipe holds (PIPE_BUF) while nobody reads yet


def can_fork() -> bool:
    """Whether this process may be forked: a child has one thread, and locks that others held stay locked for ever."""
    try:
        tasks = [Path("/proc/self/task", task, "comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    except OSError:
        return False
    return sum(name not in _FORK_SAFE for name in tasks) == 1


def run_forked(work: Work, jobs: int, processes: int, stop: Callable[[], None]) -> Iterator[object]:
    """Call `work(numbers, say)` in each of some processes, which share the numbers 0 to jobs - 1, and yield what they say.

    Numbers are given out one after another, each once. What is said (and raised) must be picklable; what `work` raises is
    raised here. `stop` is called when the others should end early, which they are waited for. Not for use with other threads
    in this process (`can_fork`).
    """
    runs = -(-jobs // JOBS_MAX) or 1  # numbers that one step stands for
    tasks, give = os.pipe()
    os.write(give, b"".join(_JOB.pack(first) for first in range(0, jobs, runs)))
    os.close(give)  # whoever reads after the last one meets the end
    parent = os.getpid()

    def numbers() -> Iterator[int]:
        # A read of a pipe is atomic: processes that read equal lengths never share a number.
        while data := os.read(tasks, _JOB.size):
            (first,) = _JOB.unpack(data)
            for number in range(first, min(first + runs, jobs)):
                if os.getppid() != parent:
                    return
                yield number

    children: dict[Connection, int] = {}
    try:
        for _ in range(processes):
            receiving, sending = Pipe(duplex=False)
            child = os.fork()
            if child == 0:
                _run_child(work, numbers(), sending)
            sending.close()
            children[receiving] = child
        yield from _heard(children)
    except BaseException:
        stop()
        raise
    finally:
        os.close(tasks)
        for receiving, child in children.items():
            with suppress(EOFError, OSError):
                while receiving.recv():  # a child that waits for us to listen
                    pass
            os.waitpid(child, 0)
            receiving.close()


def _run_child(work: Work, numbers: Iterator[int], sending: Connection) -> None:
    """Never returns."""
    try:
        # Ctrl-C reaches all processes of a terminal: it is for the parent, which tells us to stop.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            work(numbers, lambda said: sending.send((True, said)))
            sending.send((True, None))
        except BaseException as error:
            sending.send((False, error))
    finally:
        os._exit(0)  # what the parent has to close or to flush is the parent's


def _heard(children: dict[Connection, int]) -> Iterator[object]:
    """What they say, until all have ended. Raises what one of them raised, LeptonError when one was killed."""
    talking = set(children)
    while talking:
        for connection in wait(list(talking)):
            assert isinstance(connection, Connection)
            try:
                fine, said = connection.recv()
            except EOFError:
                raise LeptonError(
                    "a process that did a part of the work was ended from outside: run it again"
                ) from None
            if not fine:
                raise said
            if said is None:
                talking.discard(connection)
            else:
                yield said
