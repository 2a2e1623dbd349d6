"""Reads many small files, in a process of its own: `python read_worker.py`, jobs on stdin, contents on stdout.

In threads of one interpreter, opening, reading and closing a small file costs more in waiting for the interpreter's lock
than in the system. Imports nothing of LeptonStore, so that it starts in some milliseconds. Ends when stdin does.

    job     count u32 | bytes u32 | paths, each followed by a zero byte
    answer  count x i64: the file's length, or VANISHED, TOO_LONG, or ERRNO - errno | contents of those with a length
"""

from __future__ import annotations

import os
import signal
import struct
import sys

HEAD = struct.Struct("<II")
VANISHED, TOO_LONG, ERRNO = -1, -2, -1000
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_unnoticed(path: bytes, flags: int) -> int:
    """`os.open` that leaves the access time as it was, which costs a write of the inode; only an owner may ask for that."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def read_files(paths: list[bytes], most: int) -> tuple[list[int], bytes]:
    """(length or what went wrong, for each; contents of the former, joined). Files have at most `most` bytes."""
    lengths, contents = [], []
    for path in paths:
        try:
            fd = open_unnoticed(path, _FLAGS)
            try:
                data = os.read(fd, most + 1)
            finally:
                os.close(fd)
        except FileNotFoundError:
            lengths.append(VANISHED)
        except OSError as error:
            lengths.append(ERRNO - (error.errno or 0))
        else:
            if len(data) > most:
                lengths.append(TOO_LONG)
            else:
                lengths.append(len(data))
                contents.append(data)
    return lengths, b"".join(contents)


def main(most: int) -> None:
    """Answer jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks; stdin ends with it
    jobs, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := jobs.read(HEAD.size):
        count, size = HEAD.unpack(head)
        lengths, contents = read_files(jobs.read(size).split(b"\0")[:count], most)
        answers.write(struct.pack(f"<{count}q", *lengths))
        answers.write(contents)
        answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
