"""Whether what wandb's client has sent has arrived: no call of the client says so.

A server that refuses rows (403) is heard of while the training runs, one on the way that answers for wandb only at the
end, when wandb itself is asked what it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

CONFIRM_EVERY_S = 0.5


def confirm(path: str, wanted: Mapping[str, Any], timeout_s: float) -> None:
    """Raises TimeoutError unless wandb shows this in a run's summary.

    Rows that it refused are dropped without an error, and so are those that a proxy on the way has answered for.
    """
    import wandb

    api, deadline = wandb.Api(timeout=10), time.monotonic() + timeout_s
    while wanted and not shows(api.run(path).summary, wanted):
        if time.monotonic() > deadline:
            raise TimeoutError(f"wandb took {path} and does not show all its rows")
        time.sleep(CONFIRM_EVERY_S)
        api.flush()


def shows(summary: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether all values are there, or a later step."""
    return all(
        int(summary.get(name, -1)) >= value if name == "_step" else summary.get(name) == value
        for name, value in wanted.items()
    )


class LossListener(logging.Handler):
    """Hears wandb's client say, in a line for people, that it has given up sending a run's rows.

    No call of it raises then. Should the words change, `confirm` finds the loss, but only when the run has ended.
    """

    WORDS = "data will not be synced"

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if self.WORDS in (text := record.getMessage()):
            self._tell(text.partition(". ")[0].removeprefix("wandb: WARNING "))
