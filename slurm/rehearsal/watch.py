"""Stop a rehearsal cluster when its owner dies, however it dies: `-m slurm.rehearsal.watch ROOT PID TICKS`.

Started by `slurm.rehearsal.cluster`, in a session of its own; it ends with the cluster.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slurm.rehearsal.cluster import destroy
from slurm.rehearsal.daemons import start_ticks

POLL_S = 0.5


def main(argv: Sequence[str] | None = None) -> int:
    root, pid, ticks = list(sys.argv[1:] if argv is None else argv)
    while start_ticks(int(pid)) == int(ticks):
        if not (Path(root) / "run").is_dir():
            return 0
        time.sleep(POLL_S)
    destroy(Path(root))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
