"""Measures in a headless Chromium how soon a page is painted first, and what is sent for it: `first_paint.py CHROMIUM URL`.
Each time in a browser's new profile, and beside it an empty page of a server of its own, so that what this machine and the
browser take is known. Prints both as JSON, in milliseconds, with the bytes of all answers."""
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from browser import PATIENCE, launch, load_predictions
from playwright.sync_api import expect, sync_playwright

chromium, url = sys.argv[1:]

LOADS = 5
PAINT = """new Promise((painted) => new PerformanceObserver((list) => {
    const found = list.getEntriesByName('first-contentful-paint')[0];
    if (found) painted(found.startTime);
}).observe({ type: 'paint', buffered: true }))"""


class Empty(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b"<!doctype html><title>empty</title><p>Nothing."
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
threading.Thread(target=server.serve_forever, daemon=True).start()
empty = f"http://127.0.0.1:{server.server_address[1]}/"
measured = {"paints_ms": [], "empty_ms": [], "drawn_ms": [], "bytes": []}

with sync_playwright() as playwright:
    browser = launch(playwright, chromium)
    for _ in range(LOADS):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        page = context.new_page()
        page.goto(empty)
        measured["empty_ms"].append(page.evaluate(PAINT))
        context.close()
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        page = context.new_page()
        network = context.new_cdp_session(page)
        network.send("Network.enable")
        received = []
        network.on("Network.dataReceived", lambda event: received.append(event["encodedDataLength"]))
        network.on("Network.responseReceived", lambda event: received.append(event["response"]["encodedDataLength"]))
        page.goto(url)
        measured["paints_ms"].append(page.evaluate(PAINT))
        expect(page.locator("#plots canvas")).to_have_count(4, timeout=PATIENCE)
        measured["drawn_ms"].append(page.evaluate("performance.now()"))
        # And what lies further down.
        load_predictions(page)
        measured["bytes"].append(sum(received))
        context.close()
    browser.close()
print(json.dumps(measured))
