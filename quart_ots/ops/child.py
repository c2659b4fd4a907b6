"""Run as a file by the Python of the service: becomes another program that ends with the service.

    python -I child.py PARENT PROGRAM [ARGUMENT ...]

A file of its own, with three imports, as the embedded database waits for it at every start.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)


def become(parent: int, command: list[str]) -> None:
    """Become a program, and die when the parent does, by kill -9 too: a mongod would keep the data locked.

    The signal survives exec. It comes at the end of the *thread* that forked, which for asyncio and uvloop is the one
    that runs the loop. Linux only; elsewhere the program may outlive a service that was killed.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the service has ended meanwhile")
    os.umask(0o077)
    try:
        os.execv(command[0], command)  # noqa: S606  # nosec B606  # no shell is the point
    except OSError as error:
        sys.exit(error.strerror)


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
