"""A headless Chromium for the scripts beside this one."""
import os
import time
from pathlib import Path

PATIENCE = 60_000


def launch(playwright, chromium):
    """Starts it, with the libraries and fonts that a packaged one has beside it."""
    beside = Path(chromium).parent
    environment = dict(os.environ)
    if (beside / "al2023").exists():
        environment["LD_LIBRARY_PATH"] = str(beside / "al2023" / "lib")
        environment["FONTCONFIG_FILE"] = str(beside / "fonts.conf")
    return playwright.chromium.launch(executable_path=chromium, env=environment, args=["--no-sandbox", "--disable-gpu"])


def load_predictions(page):
    """Scrolls to the pictures with predictions, and waits until all of them are loaded."""
    page.locator("#predictions-list > li").last.scroll_into_view_if_needed()
    loaded = "[...document.querySelectorAll('#predictions img')].every((img) => img.complete && img.naturalWidth > 0)"
    until = time.monotonic() + PATIENCE / 1000
    # The page's policy forbids `wait_for_function`, which evaluates text within the page.
    while not page.evaluate(loaded):
        assert time.monotonic() < until, "the pictures are not loaded"
        page.wait_for_timeout(50)
