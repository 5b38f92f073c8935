"""One of several processes of a job: `python -m jobs.node.worker`, started by jobs.node.workers alone."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

import submitit

from jobs.node.task import TrialTask, set_up_logging
from jobs.node.workers import NODE_FAULT, REQUEUE, read_order, take
from jobs.runs.log_files import START_OF_WORKER
from petseg.footprint.gpus import NodeFault
from petseg.training import interrupt
from shards.command import FAILED, INTERRUPTED, OK, Interrupted

logger = logging.getLogger(__name__)


def main() -> int:
    interrupt.install()
    order, environment = read_order(), submitit.JobEnvironment()
    set_up_logging(order.slot)
    logger.info(START_OF_WORKER, environment, order.slot, order.at_once)
    task = TrialTask(1, order.threads, order.at_once, order.named)
    try:
        failed = task.run_all(take(order), environment, order.slot)
    except Interrupted as stop:
        logger.info("interrupted: %s", stop)
        leave_at_once(REQUEUE if stop.requeue else INTERRUPTED)
    except NodeFault as fault:
        logger.error("%s", fault)
        return NODE_FAULT
    return FAILED if failed else OK


def leave_at_once(code: int) -> NoReturn:
    """End this process, whose work is saved, without the 2 s of CPU time that torch's teardown takes.

    The job gives up its node only when all of its workers have ended, and another job may be waiting for that node.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
