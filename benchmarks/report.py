"""A sweep of 1,000 trials as one page: how long it takes to make, how large it is, and how soon a browser shows it.

python -m benchmarks.report --json report.json

The trials are made up, with epochs, pictures, overlays, reliability curves, commands, and some failures with
tracebacks. The page is made by jobs/report.py, timed whole with the start of Python, and shown by headless Chromium
(apt-get install chromium; pip install playwright) with the network off.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.report_sweep import make_sweep
from benchmarks.sweep_rows import Row
from shards.command.flags import parse

MAKE_LIMIT_S, SIZE_LIMIT_MB, SHOW_LIMIT_S, FILTER_LIMIT_S = 10.0, 5.0, 2.0, 0.5
CHROMIUM = Path("/usr/bin/chromium")
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class BenchConfig:
    """Time the page of a large sweep."""

    trials: int = 1_000
    """Trials of the sweep; a multiple of 100."""
    pictures: int = 368
    """Val pictures of each, as the Oxford-IIIT Pet set has; twice as many test pictures."""
    epochs: int = 20
    """Epochs of each."""
    runs: int = 3
    """Repetitions; medians are shown."""
    json: Path | None = None
    """Write the rows to this file too."""

    def __post_init__(self) -> None:
        if self.trials < 100 or self.trials % 100:
            raise ValueError(f"--trials {self.trials}: must be a multiple of 100")


def main() -> int:
    config = parse(BenchConfig, None, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        sweep = make_sweep(Path(folder) / "runs" / "large", config.trials, config.pictures, config.epochs)
        page = sweep.folder / "report.html"
        name = f"page of {config.trials:,} trials"
        made = [time_command(sweep.folder) for _ in range(config.runs)]
        rows = [
            Row.of(f"{name} made", made, "s", MAKE_LIMIT_S),
            Row.of(f"{name}, size", [page.stat().st_size / 1e6], "MB", SIZE_LIMIT_MB),
        ]
        if CHROMIUM.exists():
            shown = [time_browser(page) for _ in range(config.runs)]
            rows.append(Row.of(f"{name} shown by chromium", [one for one, _ in shown], "s", SHOW_LIMIT_S))
            rows.append(Row.of("filtered and sorted in it", [two for _, two in shown], "s", FILTER_LIMIT_S))
        else:
            print("no chromium: apt-get install chromium, to time how soon a browser shows the page")
    for row in rows:
        print(f"{row.text()}; {row.value / (row.limit or 1):.2f} of the limit")
    if config.json:
        config.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    return 0 if all(row.kept is not False for row in rows) else 1


def time_command(folder: Path) -> float:
    """Seconds of `python jobs/report.py`, whole."""
    start = time.perf_counter()
    command = [sys.executable, "jobs/report.py", str(folder)]
    subprocess.run(command, check=True, timeout=600, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def time_browser(page: Path) -> tuple[float, float]:
    """Seconds until the first frame after `load` is drawn, and until a filter and then a sort are drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        tab = browser.new_context(viewport={"width": 1280, "height": 900}, offline=True).new_page()
        start = time.perf_counter()
        tab.goto(page.absolute().as_uri(), wait_until="load")
        tab.evaluate(FRAME)
        shown = time.perf_counter() - start
        acted = tab.evaluate(FILTER_AND_SORT) / 1000
        browser.close()
    return shown, acted


# two frames: the first is asked for before layout, the second after it was drawn
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
# milliseconds in the page itself: Playwright would first search a thousand rows for the button
FILTER_AND_SORT = f"""async () => {{
  const section = document.querySelector("section[aria-labelledby=trials]");
  const field = section.querySelector("input[type=search]");
  const button = [...section.querySelectorAll("thead button")].find(one => one.textContent === "best val Dice");
  field.scrollIntoView();
  await {FRAME};
  const start = performance.now();
  field.value = "resnet34";
  field.dispatchEvent(new Event("input"));
  await {FRAME};
  button.click();
  await {FRAME};
  return performance.now() - start;
}}"""


if __name__ == "__main__":
    sys.exit(main())
