"""Each module prints a table and JSON; peers are measured side by side in one run."""

import sys
from importlib.util import find_spec

if sys.argv[:1] == ["-m"] and not find_spec("tyro"):  # Python looks for the module that it is to run
    sys.stderr.write(f"petseg is not installed in {sys.executable}: `. .venv/bin/activate`; or see README.md\n")
    sys.exit(2)
