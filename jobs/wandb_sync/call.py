"""A call to wandb in a subprocess, which can be ended even if wandb's client hangs.

`ask` starts `python -m MODULE` with a request on its stdin; the module's main is `answer(handler)`. The answer is a
line of JSON: the handler's result, or {"error": type, "text": ...}.

After an error that may be transient the whole handler runs again, and checks first whether wandb already has what it
should create. The client's own retries would create it twice if only wandb's answer was lost.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from shards.command import without_secrets

REQUEST_TIMEOUT_S = 10
TRIES, WAIT_S = 2, 1.0
NEVER_S = 1000.0
REFUSALS = re.compile(r"\b(401|403|404|409)\b|permission|forbidden|unauthorized|previously created and deleted", re.I)
REFUSAL_TYPES = ("UsageError", "AuthenticationError", "ValueError", "TypeError", "KeyError")
UNVERIFIED = "credentials"  # in an AuthenticationError: the server may only be unreachable


def is_refusal(kind: str, text: str) -> bool:
    """True if another try would meet the same error.

    kind: the error's type; text: of the error
    """
    return bool(REFUSALS.search(text)) or (kind in REFUSAL_TYPES and UNVERIFIED not in text)


def reason(answer: Mapping[str, str]) -> str:
    """What an answer says of its error, on one line."""
    return " ".join(answer["text"].split()) or "no reason given"


def ask(
    module: str, request: Mapping[str, Any], timeout_s: float, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The module's answer; its process is ended after timeout_s. Errors are answers too and are not raised.

    environ: the module's environment, by default this process's
    """
    given = os.environ if environ is None else environ
    environment = {name: value for name, value in given.items() if name != "WANDB_SERVICE"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=timeout_s,
            start_new_session=True,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return {"error": "TimeoutError", "text": f"no answer within {timeout_s:g} s"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": "RuntimeError", "text": f"its client has ended with exit code {done.returncode}"}
    return answer


def answer(handler: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Read the request, and write the handler's result or its last error."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the client prints must not mix with the answer
    os.write(answers, (json.dumps(_try(handler, json.load(sys.stdin))) + "\n").encode())


def _try(handler: Callable[[dict[str, Any]], Mapping[str, Any]], request: dict[str, Any]) -> Mapping[str, Any]:
    for left in reversed(range(TRIES)):
        try:
            return handler(request)
        except Exception as error:  # the client raises many types, and the caller gets each as an answer
            failure = {"error": type(error).__name__, "text": without_secrets(str(error))}
            if isinstance(error, ValueError) or is_refusal(failure["error"], failure["text"]):
                break
            time.sleep(WAIT_S if left else 0)
    return failure


def connect() -> Any:
    """wandb.Api with a timeout for each request and without retries of its own.

    Raises what the client raises.
    """
    import wandb

    wandb.setup(
        wandb.Settings(
            silent=True,
            x_graphql_timeout_seconds=REQUEST_TIMEOUT_S,
            x_graphql_retry_max=1,  # the least
            x_graphql_retry_wait_min_seconds=NEVER_S,
            x_graphql_retry_wait_max_seconds=NEVER_S,
        )
    )
    return wandb.Api(timeout=REQUEST_TIMEOUT_S)


def require_workspaces(flag: str) -> None:
    """Raises ValueError if wandb-workspaces is missing, which reports need. flag: the option that needs it."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError(f"{flag} needs wandb-workspaces: pip install 'petseg[reports]'")
