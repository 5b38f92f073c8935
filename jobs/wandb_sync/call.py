"""A call to wandb, run by a subprocess that can be ended, whatever hangs in wandb's client.

`ask` starts `python -m MODULE` with a request on its stdin; the module's main is `answer(handler)`. The answer is a
line of JSON: what the handler found, or {"error": type, "text": ...}.

A handler runs again after an error that may pass, as a whole: it looks first whether wandb has already what it is to
make. The client's own tries would make it twice where only wandb's answer was lost.
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
UNVERIFIED = "credentials"  # an AuthenticationError with this word: the server may just be away


def is_refusal(kind: str, text: str) -> bool:
    """Whether wandb's client would meet the same again.

    kind: the error's type; text: of the error
    """
    return bool(REFUSALS.search(text)) or (kind in REFUSAL_TYPES and UNVERIFIED not in text)


def ask(
    module: str, request: Mapping[str, Any], timeout_s: float, environ: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the module answers; it is ended after that time. Errors are answers too, nothing is raised for them.

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
    """Read the request, and write what the handler returns or raises at last."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever the client prints is no answer
    os.write(answers, (json.dumps(_try(handler, json.load(sys.stdin))) + "\n").encode())


def _try(handler: Callable[[dict[str, Any]], Mapping[str, Any]], request: dict[str, Any]) -> Mapping[str, Any]:
    for left in reversed(range(TRIES)):
        try:
            return handler(request)
        except Exception as error:  # whatever the client raises, its owner is told
            found = {"error": type(error).__name__, "text": without_secrets(str(error))}
            if isinstance(error, ValueError) or is_refusal(found["error"], found["text"]):
                break
            time.sleep(WAIT_S if left else 0)
    return found


def connect() -> Any:
    """wandb.Api, which gives up on a request after a while and does not try again by itself.

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
    """Raises ValueError if the package is missing that asks wandb for more than runs."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise ValueError(f"{flag} needs wandb-workspaces: pip install 'petseg[reports]'")
