"""The gateway's page, in a real Chromium without its window, against a real gateway and a real Triton."""

from __future__ import annotations

import base64
import contextlib
import csv
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import LABELS, ROOT

pytestmark = pytest.mark.triton
PAGE = ROOT / "serve/gateway/page"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
INSULT = "You are such an idiot, nobody wants to read this."
SHOTS = os.environ.get("TRITOX_SCREENSHOTS")
"""Folder for pictures of what the tests see."""


class Browser:
    """Chromium by its DevTools protocol."""

    def __init__(self, profile: Path) -> None:
        import websocket

        assert CHROMIUM is not None
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-extensions"]
        flags += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen([CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port_file = profile / "DevToolsActivePort"
            wait_until(lambda: port_file.is_file() and len(port_file.read_text().splitlines()) == 2, 40)
            port = int(port_file.read_text().splitlines()[0])
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            targets = json.load(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=60))
            url = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
            self.socket = websocket.create_connection(url, timeout=60)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.numbers = itertools.count(1)
        self.asked: list[str] = []
        """URLs that the page asked for."""
        self.complaints: list[str] = []
        """Exceptions, and what the console was told as an error."""
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def call(self, method: str, **parameters: Any) -> Any:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._event(message["method"], message["params"])

    def _event(self, method: str, told: Any) -> None:
        if method == "Network.requestWillBeSent":
            self.asked.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, code: str, seconds: float = 40) -> None:
        """Until a JavaScript expression is true."""
        wait_until(lambda: self.run(f"Boolean({code})"), seconds, code)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && document.querySelectorAll('#bars li').length === 6")

    def look(self, width: int, height: int, *, dark: bool = False, still: bool = True) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def type(self, text: str) -> None:
        """Into what has the focus, as a keyboard or an input method does."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, shift: bool = False) -> None:
        parameters = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {" ": " ", "Enter": "\r"}.get(key)
        self.call("Input.dispatchKeyEvent", type="keyDown", **parameters, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **parameters)

    def picture(self, name: str) -> None:
        if SHOTS:
            found = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            (Path(SHOTS) / f"{name}.png").write_bytes(base64.b64decode(found["data"]))


def wait_until(true: Any, seconds: float, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def running_gateway(triton: str, keys: dict[str, Any] | None = None) -> Iterator[str]:
    """A gateway in a thread, and its address."""
    pytest.importorskip("fastapi", reason="the gateway needs fastapi")
    from client.policy import PRESETS, Policy
    from serve.gateway.__main__ import http_server, listen
    from serve.gateway.app import Settings, create
    from serve.gateway.gate import Keys

    policies = {name: Policy.read(name) for name in PRESETS}
    app = create(Settings(triton, timeout=60, keys=Keys(keys), policies=policies))
    listening, gateway = listen("127.0.0.1", 0), http_server(app)
    thread = threading.Thread(target=gateway.run, args=([listening],), daemon=True)
    thread.start()
    try:
        wait_until(lambda: gateway.started, 20, "the gateway started")
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        gateway.should_exit = True
        thread.join(20)
        listening.close()


@pytest.fixture(scope="module")
def triton(request: pytest.FixtureRequest) -> str:
    """The gRPC address of a server on the shipped models."""
    return os.environ.get("TRITOX_URL") or str(request.getfixturevalue("server").grpc_url)


@pytest.fixture(scope="module")
def gateway(triton: str) -> Iterator[str]:
    with running_gateway(triton) as url:
        yield url


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH: apt-get install chromium")
    pytest.importorskip("websocket", reason="the tests drive Chromium by websocket-client")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def page(chromium: Browser, gateway: str) -> Iterator[Browser]:
    chromium.look(1280, 900)
    chromium.asked.clear()
    chromium.complaints.clear()
    chromium.open(gateway)
    yield chromium
    # a busy machine's 503 is asked again by the page, and no fault of its own
    assert not [each for each in chromium.complaints if "503" not in each]


def scored(page: Browser, text: str) -> None:
    """Type a text and wait for its scores and its words."""
    page.run("text.value = ''; text.focus(); update(true)")
    page.type(text)
    page.wait("last && answered === text.value")


def predicted(gateway: str, text: str, **more: Any) -> dict[str, Any]:
    body = json.dumps({"texts": [text], **more}).encode()
    request = urllib.request.Request(f"{gateway}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as reply:
        result: dict[str, Any] = json.load(reply)["results"][0]
    return result


def test_scores_and_verdict_appear_as_one_types(page: Browser, gateway: str) -> None:
    assert page.run("document.activeElement.id") == "text", "one can type at once"
    assert page.run("$('action').textContent") == "Nothing to score yet"
    page.type("You are ")
    page.wait("last")
    assert page.run("$('verdict').dataset.action") == "allow"
    page.type("such an idiot, nobody wants to read this.")
    page.wait("$('verdict').dataset.action === 'block'")
    expected = predicted(gateway, INSULT, policy="standard")
    shown = page.run(
        "[...document.querySelectorAll('#bars li')].map(li => [li.dataset.label, li.textContent, li.className])"
    )
    assert [label for label, _, _ in shown] == list(LABELS)
    for label, says, classes in shown:
        # INT8 takes ranges over a batch, so two requests may differ in the last digits
        assert float(says[-4:]) == pytest.approx(expected["scores"][label], abs=0.02)
        assert ("over" in classes) == (label in expected["flagged"])
    assert expected["decision"]["action"] == "block"
    assert page.run("$('reason').textContent") == "Toxic ≥ 0.9, by the policy “standard”"
    assert "scored in" in page.run("$('facts').textContent")
    # a bar is as long as its score, and its tick stands at the threshold
    box = "document.querySelector('#bars .bar').getBoundingClientRect()"
    fill = "document.querySelector('#bars .fill').getBoundingClientRect()"
    tick = "document.querySelector('#bars .tick.model').getBoundingClientRect()"
    page.wait(f"Math.abs({fill}.width / {box}.width - last.scores.toxic) < 0.02")
    place = page.run(f"(({tick}.left + {tick}.right) / 2 - {box}.left) / {box}.width")
    assert place == pytest.approx(page.run("models.find(m => m.active).thresholds.toxic"), abs=0.01)


def test_the_words_that_made_the_score_are_marked_where_they_stand(page: Browser) -> None:
    text = "🖕🏽 – naïve 👩‍👩‍👧 you idiot!\nThanks"
    scored(page, text)
    assert "idiot" in page.run("[...document.querySelectorAll('mark')].map(m => m.textContent)")
    assert page.run("$('marks').textContent") == text + "\u200b"
    assert "idiot" in page.run("$('words').textContent")
    page.wait("$('said').textContent.includes('idiot')")  # screen readers hear it, once one has stopped typing
    # the mark lies under its word: both layers break lines alike
    same = (
        "['fontSize','lineHeight','paddingLeft','paddingTop','fontFamily','letterSpacing','overflowWrap','whiteSpace']"
    )
    styles = f"[text, $('marks')].map(e => {same}.map(s => getComputedStyle(e)[s]).join('|'))"
    above, below = page.run(styles)
    assert above == below
    for edge in ("left", "top", "width", "height"):
        a, b = page.run(f"[text, $('marks')].map(e => e.getBoundingClientRect().{edge})")
        assert a == pytest.approx(b, abs=0.5)
    # typing before a mark moves it, at once
    page.run("text.setSelectionRange(0, 0); text.focus()")
    page.type("Well, ")
    assert "idiot" in page.run("[...document.querySelectorAll('mark')].map(m => m.textContent)")


def test_marks_for_one_label_alone(page: Browser) -> None:
    scored(page, "You idiot! I will kill you.")
    assert page.run("document.querySelectorAll('mark').length") == 2
    page.run("document.querySelector('#bars li[data-label=threat] button').click()")
    assert page.run("[...document.querySelectorAll('mark')].map(m => m.textContent).join()").find("kill") >= 0
    assert "idiot" not in page.run("$('words').textContent")
    assert (
        page.run("document.querySelector('#bars li[data-label=threat] button').getAttribute('aria-pressed')") == "true"
    )


def test_markup_in_a_comment_stays_text(page: Browser) -> None:
    scored(page, "<img src=x onerror=\"document.title='bad'\"> you idiot <b>now</b>")
    assert page.run("document.querySelectorAll('#marks img, #words img, #marks b').length") == 0
    assert page.run("document.title") == "Tritox: try it"


def test_a_policy_decides_and_without_one_the_thresholds_do(page: Browser) -> None:
    scored(page, "Holy shit, that goal was amazing, well done mate")
    page.run("$('policy').value = ''; $('policy').dispatchEvent(new Event('change'))")
    page.wait("$('action').textContent === 'Flagged'")
    assert "Obscene" in page.run("$('reason').textContent")
    page.run("$('policy').value = 'lenient'; $('policy').dispatchEvent(new Event('change'))")
    page.wait("$('action').textContent === 'Allow'")


def test_many_lines_are_a_table_that_can_be_sorted_and_saved(page: Browser) -> None:
    lines = ["What a lovely day", INSULT, "=1+1, I disagree", "I know where you live and I will kill you.", "Thanks!"]
    page.type("\n".join(lines))
    page.wait("!$('split').hidden")
    page.run("$('split-yes').click()")
    page.wait("document.querySelectorAll('#table tbody tr').length === 5")
    assert page.run("$('one').hidden") is True
    assert page.run("$('summary').textContent").startswith("5 lines: ")
    page.run("[...document.querySelectorAll('#table th button')].find(b => b.textContent === 'Threat').click()")
    assert "kill you" in page.run("document.querySelector('#table tbody tr').textContent")
    assert page.run("document.querySelector('[aria-sort=descending]').textContent") == "Threat"
    assert page.run("document.activeElement.textContent") == "Threat", "the focus stays"
    page.run("$('only').click()")
    assert page.run("document.querySelectorAll('#table tbody tr').length") == 2
    saved = list(csv.reader(io.StringIO(page.run("csv()"))))
    assert saved[0] == ["text", "verdict", *LABELS]
    assert [row[0] for row in saved[1:]] == [lines[0], lines[1], "'" + lines[2], *lines[3:]], "no formula is saved"
    page.run("$('only').click()")
    page.picture("table")
    page.look(390, 844)
    page.picture("table-phone")
    # a change asks for the new line only, as two that are alike are asked once
    page.run(
        "text.focus(); text.setSelectionRange(text.value.length, text.value.length); window.sent = []; "
        "window.before = ask; ask = (path, body, signal) => { if (body) sent.push(body.texts); "
        "return before(path, body, signal); }"
    )
    page.type("\nOne more\nOne more")
    page.wait("document.querySelectorAll('#table tbody tr').length === 7")
    assert page.run("sent") == [["One more"]]


def test_it_works_by_keyboard_and_shows_where_one_is(page: Browser) -> None:
    page.type(INSULT)
    page.wait("last")
    page.run("document.body.focus(); document.activeElement.blur(); window.getSelection().removeAllRanges()")
    seen = []
    page.run("document.querySelector('.skip').focus()")
    for _ in range(30):
        found = page.run(
            "(() => { const e = document.activeElement, ringed = e.matches('.modes input') ? e.nextSibling "
            ": e.id === 'text' ? e.parentNode : e, s = getComputedStyle(ringed); "
            "return [e.id || e.textContent.slice(0, 20), parseFloat(s.outlineWidth), s.outlineStyle]; })()"
        )
        seen.append(found[0])
        assert found[2] != "none" and found[1] >= 2, f"no outline on {found}"
        page.press("Tab", 9)
        if page.run("document.activeElement === document.body"):
            break
    assert {"model", "policy", "text", "Friendly", "toxic", "identity hate", "API"} <= set(seen), seen
    page.run("document.querySelector('#bars button').focus()")
    page.press("Enter", 13)
    assert page.run("document.querySelector('#bars button').getAttribute('aria-pressed')") == "true"


def test_screen_readers_get_names_and_values(page: Browser) -> None:
    scored(page, INSULT)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles: dict[str, list[tuple[str, Any]]] = {}
    for node in nodes:
        if not node.get("ignored"):
            name = node.get("name", {}).get("value", "")
            roles.setdefault(node["role"]["value"], []).append((name, node))
    for role in ("button", "textbox", "combobox", "radio", "link", "meter", "checkbox", "table", "list"):
        for name, node in roles.get(role, []):
            assert name, f"a {role} without a name: {node}"
    assert {name for name, _ in roles["combobox"]} == {"Model", "Policy"}
    assert [name for name, _ in roles["textbox"]] == ["Comment"]
    meters = {name: node for name, node in roles["meter"]}
    assert list(meters) == [label.replace("_", " ") for label in LABELS]
    assert meters["insult"]["value"]["value"] > 0.5
    told = page.run("document.querySelector('[aria-label=insult]').getAttribute('aria-valuetext')")
    assert re.fullmatch(r"0\.\d\d, at or above the threshold of 0\.40", told)
    assert [name for name, _ in roles["heading"]][:1] == ["Tritox"]
    assert "main" in roles and "banner" in roles and "contentinfo" in roles


CONTRAST = """
(() => {
  const style = getComputedStyle;
  const parse = (c) => {
    const [r, g, b, a] = c.match(/[\\d.]+/g).map(Number), most = c.startsWith('color(') ? 255 : 1;
    return [r * most, g * most, b * most, a ?? 1];
  };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const linear = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ratio = (a, b) => {
    const [dark, bright] = [light(a), light(b)].sort((p, q) => p - q);
    return (bright + 0.05) / (dark + 0.05);
  };
  const behind = (e) => {
    const all = [];
    for (; e; e = e.parentElement) all.push(parse(style(e).backgroundColor));
    return all.reverse().reduce((below, c) => over(c, below), [255, 255, 255, 1]);
  };
  const says = (e) => e.matches('textarea, select') || [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  const found = [], parts = [];
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility() || !says(e) || e.closest('.marks, .hidden, option, noscript, .skip')) continue;
    const ground = behind(e);
    found.push([ratio(over(parse(style(e).color), ground), ground), `${e.tagName} ${e.className} ${e.textContent}`]);
  }
  found.push([ratio(parse(style(text, '::placeholder').color), behind(text)), 'placeholder']);
  for (const m of document.querySelectorAll('mark')) {
    const ground = over(parse(style(m).backgroundColor), behind(text));
    found.push([ratio(parse(style(text).color), ground), `marked ${m.textContent}`]);
  }
  for (const e of document.querySelectorAll('.fill, .tick.model'))
    parts.push([ratio(parse(style(e).backgroundColor), behind(e.parentElement)), e.className]);
  for (const e of document.querySelectorAll('.tick.review, .tick.block'))
    parts.push([ratio(parse(style(e).borderBottomColor), behind($('one'))), e.className]);
  for (const e of document.querySelectorAll('select, .paper, .plain'))
    if (e.checkVisibility())
      parts.push([ratio(parse(style(e).borderTopColor), behind(e.parentElement)), `edge of ${e.id} ${e.className}`]);
  return [found, parts];
})()
"""
TOO_SMALL = """
[...document.querySelectorAll('button, select, .modes label, .check')].filter(e => e.checkVisibility())
  .map(e => [e.getBoundingClientRect(), e.textContent])
  .filter(([box]) => Math.min(box.height, box.width) < 24).map(([box, says]) => says)
"""
"""What a finger cannot hit: WCAG 2.2 wants 24 pixels."""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(page: Browser, dark: bool) -> None:
    """WCAG 2.2 AA: 4.5 for text, 3 for what else must be seen."""
    page.look(1280, 900, dark=dark)
    for text in (INSULT, "I hate\nMondays.", "Thank you!", ""):
        if text:
            scored(page, text)
        else:
            page.run("put('')")
        found, parts = page.run(CONTRAST)
        assert len(found) > 25 and len(parts) > 10
        assert min(found)[0] >= 4.5, sorted(found)[:5]
        assert min(parts)[0] >= 3, sorted(parts)[:5]
    page.run("setMode('lines'); text.value = SAMPLE_LINES; update(true)")
    page.wait("document.querySelectorAll('#table tbody tr').length > 4")
    found, _ = page.run(CONTRAST)
    assert len(found) > 60
    assert min(found)[0] >= 4.5, sorted(found)[:5]
    page.run("setMode('one')")
    scored(page, INSULT)
    page.picture("dark" if dark else "light")


@pytest.mark.parametrize("width", [320, 390, 768])
def test_narrow_windows_need_no_scrolling_aside(page: Browser, width: int) -> None:
    page.look(width, 800)
    scored(page, INSULT + " " + "x" * 200)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.picture(f"width-{width}")
    assert page.run(TOO_SMALL) == []
    page.run("setMode('lines'); text.value = SAMPLE_LINES; update(true)")
    page.wait("document.querySelectorAll('#table tbody tr').length > 4")
    assert page.run("document.documentElement.scrollWidth") <= width


def test_motion_is_left_out_where_it_is_not_wanted(page: Browser) -> None:
    scored(page, INSULT)
    duration = "getComputedStyle(document.querySelector('.fill')).transitionDuration"
    assert page.run(duration) == "0s"
    page.look(1280, 900, still=False)
    assert page.run(duration) != "0s"


def test_nothing_is_asked_of_other_places(page: Browser, gateway: str) -> None:
    scored(page, INSULT)
    assert any(url.endswith("/predict") for url in page.asked)
    assert all(url.startswith(gateway) for url in page.asked), page.asked
    assert not [url for url in page.asked if "idiot" in url], "no text in an address"
    assert page.run("fetch('http://127.0.0.1:9/').then(() => 'sent', (e) => 'refused')") == "refused"
    page.complaints.clear()  # the browser reports what it refused
    for file in PAGE.iterdir():
        outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text(encoding="utf-8")))
        assert outside <= {"http://www.w3.org"}, f"{file.name} names {outside}"


def test_a_server_that_is_away_is_said_and_asked_again(page: Browser) -> None:
    page.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    try:
        page.type("What a lovely day")
        page.wait("!$('problem').hidden")
        assert "does not answer" in page.run("$('problem').textContent")
    finally:
        page.call(
            "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
        )
    page.wait("last && $('problem').hidden")
    page.complaints.clear()


def test_a_gateway_with_keys_asks_for_one(chromium: Browser, triton: str) -> None:
    from serve.gateway.gate import Key

    chromium.look(1280, 900)
    with running_gateway(triton, {"a-long-enough-key": Key("page")}) as guarded:
        chromium.call("Page.navigate", url=guarded)
        chromium.wait(f"location.href.startsWith('{guarded}') && typeof $ === 'function' && !$('key-form').hidden")
        chromium.run("$('key').focus()")
        chromium.type("a-wrong-key")
        chromium.press("Enter", 13)
        chromium.wait("$('problem').textContent.includes('not valid')")
        chromium.run("$('key').value = ''; $('key').focus()")
        chromium.type("a-long-enough-key")
        chromium.press("Enter", 13)
        chromium.wait(
            "document.querySelectorAll('#bars li').length === 6 && $('key-form').hidden && $('problem').hidden"
        )
        chromium.call("Page.navigate", url="about:blank")
    chromium.complaints.clear()
