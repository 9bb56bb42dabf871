"""Looks at the page of a run through the run's life in a headless Chromium: `look_at_page.py CHROMIUM URL WORKER FOLDER`.
Kills the worker of this process id once there was an evaluation, waits for the recovery, looks at the page in two widths
and two colour schemes, reads it by keyboard, stops the run by its button, and waits for the end. Leaves screenshots in
FOLDER and prints what it measured as JSON."""
import json
import os
import signal
import sys

from browser import PATIENCE, launch, load_predictions
from playwright.sync_api import expect, sync_playwright

chromium, url, worker, folder = sys.argv[1:]

VIEWS = [("desktop", 1280, 900), ("phone", 390, 844)]
problems = []
measured = {"views": []}


def watch(page, own):
    """Notes errors and requests to other places."""
    page.on("pageerror", lambda e: problems.append(f"error: {e}"))
    # The connection ends with the run.
    page.on("console", lambda m: problems.append(m.text) if m.type == "error" and "ERR_" not in m.text else None)
    page.on("request", lambda r: None if r.url.startswith(own) else problems.append(f"a request to {r.url}"))


with sync_playwright() as playwright:
    browser = launch(playwright, chromium)
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US", color_scheme="light")
    page = context.new_page()
    own = url.split("/?")[0]
    watch(page, own)
    page.goto(url)
    assert page.url == own + "/", f"the token stays in the address {page.url}"
    expect(page.locator("#state")).to_contain_text("training", timeout=PATIENCE)
    expect(page.locator("#worker-rows tr")).to_have_count(2, timeout=PATIENCE)
    expect(page.locator("#worker-rows tr").first).to_contain_text("computing", timeout=PATIENCE)
    # The validation's line has a value.
    accuracy = page.locator("figure", has_text="Accuracy").locator(".said")
    expect(accuracy).to_contain_text("validation top-1", timeout=PATIENCE)

    # What the evaluation says of eight pictures, in words too.
    shown = page.locator("#predictions-list > li")
    expect(shown).to_have_count(8, timeout=PATIENCE)
    load_predictions(page)
    # At once: the next evaluation may say something else.
    read = shown.evaluate_all("""(items) => items.map((item) => [
        item.innerText.split("\\n"), item.querySelector("img").alt, [...item.querySelectorAll("ol li")].map((guess) => guess.innerText)])""")
    for words, alt, guesses in read:
        classes = [line.removeprefix("Class: ") for line in words if line.startswith("Class: ")]
        assert len(classes) == 1 and alt == f"A validation picture of class {classes[0]}", f"{alt}: {words}"
        assert len(guesses) == 3 and all(guess.endswith(" %") for guess in guesses), guesses
        right = guesses[0].rsplit(" ", 2)[0] == classes[0]
        assert ("✓ right" if right else "✕ wrong") in words, f"{guesses}: {words}"
    measured["predictions"] = len(read)

    os.kill(int(worker), signal.SIGKILL)
    for kind in ["lost", "recovered"]:
        expect(page.locator(f"#timeline .kind.{kind}").first).to_be_visible(timeout=PATIENCE)
    expect(page.locator("#worker-rows tr")).to_have_count(2, timeout=PATIENCE)
    # The worker that took its place has trained for a moment.
    expect(page.locator("#worker-rows tr").nth(1)).to_contain_text("computing", timeout=PATIENCE)

    # By keyboard: the first stop is the way to the content, and a plot reads its points.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    plot = page.locator("figure", has_text="Loss").locator("[role=img]").first
    plot.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator("figure", has_text="Loss").locator(".said").first).to_contain_text("step ")
    plot.blur()

    # A new reader, as its network sees it.
    fresh = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
    reader = fresh.new_page()
    watch(reader, own)
    network = fresh.new_cdp_session(reader)
    network.send("Network.enable")
    received = []
    network.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    reader.goto(own + "/")
    expect(reader.locator("#plots figure")).to_have_count(4, timeout=PATIENCE)
    paint = reader.evaluate("performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)[0]")
    measured["first_paint_ms"], measured["bytes"] = paint, sum(received)
    expect(reader.locator("#actions")).to_be_hidden()
    fresh.close()

    for scheme in ["light", "dark"]:
        for name, width, height in VIEWS:
            page.set_viewport_size({"width": width, "height": height})
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(700)
            page.locator("#predictions").screenshot(path=f"{folder}/predictions-{name}-{scheme}.png")
            page.screenshot(path=f"{folder}/{name}-{scheme}.png", full_page=True)
            measured["views"].append([name, scheme, page.evaluate("document.documentElement.scrollWidth"), width])

    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    page.get_by_role("button", name="Stop with a checkpoint").press("Enter")
    page.get_by_role("button", name="Stop the run").press("Enter")
    expect(page.locator("#state")).to_contain_text("finished", timeout=PATIENCE)
    expect(page.locator("#checkpoints li").first).to_contain_text("step", timeout=PATIENCE)
    page.screenshot(path=f"{folder}/end.png", full_page=True)
    browser.close()
measured["problems"] = problems
print(json.dumps(measured))
