"""Pack, train and report as jobs that wait for each other, or one after the other on this machine.

python jobs/chain.py pack train report --partition gpu --pack --download --out data/shards
python jobs/chain.py train report --sweep jobs/sweeps/lab.yaml --partition gpu
python jobs/chain.py pack train report --sweep jobs/sweeps/demo.yaml --cluster local --pack --synthetic 400

Any of the three that follow each other. Their flags are those of jobs/sweep.py; what stands after --pack goes to
`python -m shards.pack`.

The names of trials hold the shard set's hash, which is known only when packing is done: after `pack` the rest of the
chain is this same command with the rest of its words, run by a small job that waits for the pack.

Exit code that of the first step that does not succeed; 4 if Slurm does not say how trials stand: the chain ends there,
and the same command again continues.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(f"{Path(__file__).parents[1]}/shards/preamble.py")

from jobs.launch.options import ChainOptions, split_words
from shards.command import run_command
from shards.command.flags import parse
from slurm.profiles import profile_of


def main(argv: Sequence[str] | None = None) -> int:
    words, pack_flags = split_words(sys.argv[1:] if argv is None else argv)
    options = parse_options(words)
    from jobs.launch import chain  # numpy, scipy and submitit, which `--help` and wrong flags do without

    return chain.run_chain(chain.read_chain(options, words, pack_flags))


def parse_options(words: Sequence[str]) -> ChainOptions:
    return parse(ChainOptions, words, __doc__, default=ChainOptions(resources=profile_of(words)))


if __name__ == "__main__":
    sys.exit(run_command(main))
