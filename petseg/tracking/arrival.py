"""Whether the rows that wandb's client sent have arrived, which no call of the client reports.

If the server refuses rows (403), the client logs that while the training runs. If a proxy answers in wandb's place, it
shows only at the end, when wandb itself is asked what it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

CONFIRM_EVERY_S = 0.5


def confirm(path: str, wanted: Mapping[str, Any], timeout_s: float) -> None:
    """Raises TimeoutError unless wandb shows these values in the run's summary within the time.

    Rows that wandb refused, or that a proxy answered for, are dropped without an error.
    """
    import wandb

    api, deadline = wandb.Api(timeout=10), time.monotonic() + timeout_s
    while wanted and not shows(api.run(path).summary, wanted):
        if time.monotonic() > deadline:
            raise TimeoutError(f"wandb took {path} and does not show all its rows")
        time.sleep(CONFIRM_EVERY_S)
        api.flush()


def shows(summary: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether the summary has all values; for `_step`, this or a later one."""
    return all(
        int(summary.get(name, -1)) >= value if name == "_step" else summary.get(name) == value
        for name, value in wanted.items()
    )


class LossListener(logging.Handler):
    """Catches the line by which wandb's client logs that it has given up sending a run's rows; no call of it raises.

    If the client's words change, `confirm` detects the loss, but only when the run has ended.
    """

    WORDS = "data will not be synced"

    def __init__(self, on_loss: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._on_loss = on_loss

    def emit(self, record: logging.LogRecord) -> None:
        if self.WORDS in (text := record.getMessage()):
            self._on_loss(text.partition(". ")[0].removeprefix("wandb: WARNING "))
