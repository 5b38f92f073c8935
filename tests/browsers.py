"""A real browser for the tests of pages."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")


def require_browser() -> None:
    """Skip where there is no browser; on CI that is a failure."""
    missing = [] if CHROMIUM.exists() else [f"{CHROMIUM} (apt-get install chromium)"]
    try:
        import axe_playwright_python
        import playwright.sync_api  # noqa: F401

        assert axe_playwright_python
    except ImportError as error:
        missing.append(f"{error.name} (pip install playwright axe-playwright-python)")
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"no {', '.join(missing)}")
    if missing:
        pytest.skip(f"no {', '.join(missing)}")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Chromium without a window."""
    require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # Chromium refuses to sandbox root
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()
