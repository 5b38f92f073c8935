"""Commands run this file by its path before their imports, which take seconds where torch is among them.

By its path, because it must work where petseg is not installed and nothing of ours can be imported: it says so in a
line. Until run_command takes over, Ctrl-C ends the process at once and without a traceback (130 in a shell).
"""

from __future__ import annotations

import signal
import sys
from importlib.util import find_spec

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a shell has it ignored
    signal.signal(signal.SIGINT, signal.SIG_DFL)
if not (find_spec("petseg") and find_spec("tyro")):
    sys.stderr.write(f"petseg is not installed in {sys.executable}: `. .venv/bin/activate`; or see README.md\n")
    sys.exit(2)
