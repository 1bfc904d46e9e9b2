"""Becomes a child process: leaves root, asks the kernel to be told when the server dies, and executes the command.

Run as a script, so that neither a thread-unsafe ``preexec_fn`` nor the event loop's support for users is needed:
``python -I -S launch.py <parent pid> <signal> <uid> <gid> <command> ...``; a uid of -1 stays as it is.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, death_signal, uid, gid = map(int, sys.argv[1:5])
    command = sys.argv[5:]
    os.umask(0o077)
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":  # elsewhere a leftover is stopped at the next start
        # After setuid, which clears it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != parent:
            sys.exit("the server that started this process is gone already")
    os.execv(command[0], command)  # noqa: S606 - no shell is the point


if __name__ == "__main__":
    main()
