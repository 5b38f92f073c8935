"""Run a command and adopt what it leaves behind: `reaper.py COMMAND ...`; ends when all of that has.

Without namespaces it stands above a node's slurmd. A process whose parent ends goes to the nearest ancestor that
is a subreaper (prctl(2), PR_SET_CHILD_SUBREAPER), so whatever the node's jobs do to get away, by new sessions or by
forking twice, they stay below this process, and `slurm.rehearsal.nodes` finds them there.
Run as a script, by path and isolated: one such process for each node should cost little.
"""

import ctypes
import os
import sys

PR_SET_CHILD_SUBREAPER = 36


def main() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
    os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return 0


if __name__ == "__main__":
    raise SystemExit(main())
