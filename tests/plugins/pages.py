"""Reports as tests read them: their tags and words, what they load, and how a real browser shows them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PICTURE = "data:image/png;base64,"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "firefox", "firefox-esr")
_VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page, and the text of what names a key of the record; every tag must be closed in its turn."""

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tags, self.text, self.keyed, self.key = [], [], "", [], None
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        self.key = attributes.get("data-key")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.key = None

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data
        if self.key:
            self.keyed.append((self.key, data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def self_contained(path: Path) -> Page:
    """The page; nothing is loaded from anywhere, and the browser is told so."""
    page, text = Page(path), re.sub(rf"{PICTURE}[^\"]*", "", path.read_text(encoding="utf-8"))
    assert not page.all("link") and not re.search(r"url\(|@import", text)
    assert all(image["src"].startswith(PICTURE) for image in page.all("img"))
    assert not [attributes for _, attributes in page.tags if {"href", "srcset", "data"} & set(attributes)]
    assert not [attributes for attributes in page.all("script") if "src" in attributes]
    (policy,) = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    return page


def says_what_the_record_says(page: Page, record: dict) -> None:
    """What the page shows of a key is what the record holds there, to the digits that are shown."""
    assert page.keyed
    for key, shown in page.keyed:
        value = record
        for part in key.split("."):
            value = value[int(part)] if isinstance(value, list) else value[part]
        if shown == str(value) or (shown == "-" and value is None):
            continue
        assert isinstance(value, int | float), (key, shown, value)
        (number,) = re.findall(r"-?\d[\d.]*(?:e[+-]?\d+)?", shown.replace(",", ""))
        mantissa, _, power = number.partition("e")
        unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2]))
        close = abs((100 if "%" in shown else 1) * value - float(number)) <= 0.5000001 * unit
        assert close or f"{value:.3g}" in shown, (key, shown, value)


# A real browser ----------------------------------------------------------------------------------------------------------

_HARNESS = """<script>
const errors = [];
addEventListener("error", (e) => errors.push(String(e.message || e.target.outerHTML)), true);
addEventListener("unhandledrejection", (e) => errors.push(String(e.reason)));
addEventListener("securitypolicyviolation", (e) => e.blockedURI.endsWith("/favicon.ico") || errors.push("would load " + e.blockedURI));
console.error = (...words) => errors.push(words.join(" "));
const colours = (canvas) => {
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
  return [new Set(pixels).size, pixels.reduce((sum, x) => (sum * 31 + x) | 0, 7)];
};
addEventListener("load", () => setTimeout(async () => {
  const size = (e) => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const scenes = [];
  for (const figure of document.querySelectorAll("figure.scene")) {
    const canvas = figure.querySelector("canvas"), slider = figure.querySelector("input"), label = figure.querySelector("output");
    const found = { size: size(canvas), colours: colours(canvas)[0], frames: +slider.max + 1, first: label.textContent };
    const before = colours(canvas)[1];
    canvas.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
    found.turns = colours(canvas)[1] !== before;
    slider.value = slider.max;
    slider.dispatchEvent(new Event("input"));
    found.last = label.textContent;
    scenes.push(found);
  }
  const images = [...document.images].map((i) => ({ natural: [i.naturalWidth, i.naturalHeight], shown: size(i), alt: i.alt }));
  const wide = document.documentElement.scrollWidth - innerWidth;
  const next = await fetch("/measured", { method: "POST", body: JSON.stringify({ errors, images, scenes, wide }) });
  const place = await next.text();
  if (place) location.href = place;
}, 200));
</script>"""


def browser() -> str | None:
    """The one that is installed, if any."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def browse(pages: Sequence[Path]) -> list[dict]:
    """Open each page in a browser without a window: ``errors`` of scripts, ``images`` and ``scenes`` with their sizes, and by how many
    pixels the page is wider than the window. The browser finds no other server than the one of this test."""
    name, seconds = browser(), 60 + 30 * len(pages)
    assert name is not None
    measured: list[dict] = []
    asked: list[str] = []
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            number = self.path.removeprefix("/page")
            if not number.isdecimal():
                self.send_error(404)
                return
            text = pages[int(number)].read_text(encoding="utf-8")
            allowed = text.replace("default-src 'none';", "default-src 'none'; connect-src 'self';", 1)
            self.answer(allowed.replace("<head>", f"<head>{_HARNESS}", 1))

        def do_POST(self):
            measured.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            more = len(measured) < len(pages)
            self.answer(f"/page{len(measured)}" if more else "")
            if not more:
                done.set()

        def answer(self, text: str):
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        kind = ["--profile", profile] if "firefox" in name else [f"--user-data-dir={profile}", "--no-sandbox", "--disable-gpu"]
        command = [name, "--headless", *kind, f"http://127.0.0.1:{server.server_port}/page0"]
        if "firefox" not in name:
            command[1:2] = ["--headless", "--remote-debugging-port=0"]  # stays until it is ended
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert done.wait(seconds), f"{name} has shown {len(measured)} of {len(pages)} pages in {seconds} s"
        finally:
            process.terminate()
            process.wait(20)
            server.shutdown()
    assert {place for place in asked if not place.endswith(".ico")} == {f"/page{i}" for i in range(len(pages))}
    return measured


def looks_right(found: dict) -> None:
    """No error, nothing cut off at the side, every figure has a size, structures are drawn, turn and can be leafed through."""
    assert not found["errors"], found["errors"]
    assert found["wide"] <= 0, f"{found['wide']} pixels wider than the window"
    for image in found["images"]:
        assert min(image["natural"]) > 200 and min(image["shown"]) > 100, image
    for scene in found["scenes"]:
        assert min(scene["size"]) > 100 and scene["colours"] > 20 and scene["turns"], scene
        assert scene["first"].startswith(f"1 of {scene['frames']}") and scene["last"].startswith(f"{scene['frames']} of"), scene
