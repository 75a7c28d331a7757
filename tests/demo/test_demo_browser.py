"""The demo in a real browser (headless Chromium): upload, paste, drop, camera, ask, why, switch, download, choose, mistakes."""

# ruff: noqa: E402 (what needs the extra is imported after it was looked for)

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium here (Debian: apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytest.importorskip("uvicorn", reason="the demo extra is not installed")

import skimage.data
from axe_playwright_python.sync_playwright import Axe
from running import file_of

ASTRONAUT = skimage.data.astronaut()
PORTRAIT = {"name": "portrait.png", "mimeType": "image/png", "buffer": file_of(ASTRONAUT)}
SMALL_FILE = file_of(ASTRONAUT, "JPEG")
# Set to a folder to keep the screenshots that the tests make.
SCREENSHOTS = os.environ.get("FI_JAX_SCREENSHOTS")
PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A camera that shows a test picture.
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
# Milliseconds; a busy machine takes its time.
PATIENCE = 240_000
# WCAG 2.1 A and AA, and what axe holds good practice.
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]

pytestmark = pytest.mark.slow
expect = sync_api.expect
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    """A fresh profile; what the page says on its console, and every address it asks for, is kept."""
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("profile")), executable_path=CHROMIUM, headless=True, args=FLAGS,
            viewport=DESKTOP, accept_downloads=True,
        )  # fmt: skip
        opened.set_default_timeout(PATIENCE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visited(context, server, service):
    """The page, the messages on its console and the addresses it asked for."""
    # As the command does before it opens: no visitor waits for the compiler.
    service.warm_up()
    page = context.new_page()
    messages, addresses = [], []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: addresses.append(request.url))
    page.goto(f"http://127.0.0.1:{server.port}/")
    yield page, messages, addresses
    page.close()


@pytest.fixture
def page(visited, server):
    """The page as a visitor finds it."""
    visited[1].clear()
    visited[0].set_viewport_size(DESKTOP)
    visited[0].goto(f"http://127.0.0.1:{server.port}/")
    return visited[0]


def upload(page, file=PORTRAIT) -> None:
    """Gives a picture and waits for the answers about it."""
    page.get_by_label("Choose, drop or paste a picture").set_input_files(file)
    answered(page)


def answered(page) -> None:
    # `expect` polls from outside: the page's policy forbids what `wait_for_function` needs (eval).
    expect(page.locator("#status")).to_have_text(re.compile(r"^(Answered|No answer)\.$"))


def keep(page, name: str) -> None:
    if SCREENSHOTS:
        Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)


def bars(page) -> list[str]:
    return page.locator("#answers meter").evaluate_all("all => all.map(m => m.getAttribute('aria-label'))")


def complaints(page) -> list[str]:
    found = Axe().run(page, options={"runOnly": RULES}).response["violations"]
    return [f"{v['id']}: {v['help']} {[n['target'] for n in v['nodes']]}" for v in found]


def test_upload_shows_the_map_and_grouped_answers_with_probabilities(page, visited):
    upload(page)
    assert page.locator("#error").inner_text() == ""
    titles = page.locator("#answers h3").all_inner_texts()
    assert titles[0].startswith("Gender") and any(t.startswith("Hair") for t in titles)
    assert not any("Race" in t for t in titles), "race is not volunteered"
    shown = bars(page)
    assert len(shown) > 40 and all("percent" in words for words in shown)
    assert page.locator("#map").evaluate("m => m.naturalWidth") > 0
    boxes = page.get_by_role("radiogroup", name="Which face?").locator("label")
    (box,), photo = [boxes.nth(i).bounding_box() for i in range(boxes.count())], page.locator("#whole").bounding_box()
    assert 0.3 < box["width"] / photo["width"] < 0.7 and photo["x"] < box["x"], "the face is framed in the whole photo"
    keep(page, "answers")
    _, messages, addresses = visited
    assert messages == []
    own = page.url.rstrip("/")
    assert all(a.startswith((own, "data:", "blob:")) for a in addresses), "the page asks its own server alone"


def test_paste_and_drop(page):
    for event, target in (("paste", "document"), ("drop", "document.querySelector('#drop')")):
        page.reload()
        page.evaluate(
            f"""async ([bytes, kind]) => {{
                const held = new DataTransfer();
                held.items.add(new File([Uint8Array.from(bytes)], "x.jpg", {{ type: "image/jpeg" }}));
                const options = {{ bubbles: true, cancelable: true }};
                const event = kind === "paste" ? new ClipboardEvent("paste", {{ clipboardData: held, ...options }})
                                               : new DragEvent("drop", {{ dataTransfer: held, ...options }});
                {target}.dispatchEvent(event);
            }}""",
            [list(SMALL_FILE), event],
        )
        answered(page)
        assert page.locator("#status").inner_text() == "Answered." and len(bars(page)) > 40, event


def test_a_conversation_keeps_its_questions_and_open_answers_stream_in(page):
    upload(page)
    page.evaluate(
        """() => { window.seen = []; const log = document.querySelector('#log');
        new MutationObserver(() => window.seen.push(log.lastElementChild.querySelector('.reply').textContent))
            .observe(log, { childList: true, subtree: true }); }"""
    )
    field, entries = page.get_by_label("Your question"), page.locator("#log > div")
    field.fill("Is this person smiling?")
    # By keyboard: no mouse is needed to ask.
    field.press("Enter")
    expect(entries.nth(0).locator(".reply")).to_have_text(re.compile("^(Yes|No) "))
    yes = entries.nth(0).locator(".reply").inner_text()
    assert "%" in yes and entries.nth(0).locator(".faint").inner_text() == "answered: Is this person smiling?"
    field.fill("Isn't this person smiling?")
    field.press("Enter")
    expect(entries.nth(1).locator(".faint")).to_contain_text("not smiling: ")
    opposite = entries.nth(1).locator(".reply").inner_text()
    assert opposite.split()[0] != yes.split()[0], "the opposite question has the opposite answer"
    page.evaluate("window.seen.length = 0")
    page.get_by_role("button", name="Describe this face.").click()
    expect(page.locator("#log")).to_have_attribute("aria-busy", "false")
    seen = [text for text in page.evaluate("window.seen") if text != "…"]
    assert len(set(seen)) > 2, f"the answer grows while it is made: {seen}"
    assert entries.count() == 3 and entries.nth(0).locator(".question").inner_text() == "Is this person smiling?"
    assert entries.nth(2).get_by_role("button").count() == 0, "free text has no answer to attribute"
    keep(page, "asked")
    field.fill("   ")
    field.press("Enter")
    assert page.get_by_role("alert").inner_text() == "Write a question first."
    page.get_by_label("segmentation map").uncheck()
    answered(page)
    expect(page.locator("#log > p")).to_contain_text("was changed here")


def test_why_shows_what_moved_an_answer(page):
    upload(page)
    page.locator("#answers").get_by_role("button", name="Smiling", exact=True).click()
    expect(page.locator("#whydrawn")).to_be_visible()
    assert page.locator("#whydrawn").evaluate("d => d.naturalWidth") > 500
    assert "Orange speaks for the answer" in page.locator("#whytext").inner_text()
    keep(page, "why")
    assert complaints(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Is this person smiling?").click()
    page.locator("#log").get_by_role("button", name="Why?").click()
    expect(page.locator("#whydrawn")).to_be_visible()


def test_examples_and_the_camera(page):
    for name in ("a drawn face with hat and glasses", "NASA portrait"):
        page.get_by_role("button", name=f"Example: {name}").click()
        answered(page)
        assert len(bars(page)) > 40 and page.locator("#error").inner_text() == ""
    page.get_by_role("button", name="Use the camera").click()
    expect(page.locator("#video")).to_be_visible()
    expect(page.locator("#video")).to_have_js_property("readyState", 4)  # It has pictures to show.
    page.get_by_role("button", name="Take the picture").click()
    # Chromium's test picture holds no face; the page says so and offers the whole of it.
    expect(page.get_by_role("alert")).to_contain_text("No face was found")
    assert page.locator("#video").is_hidden() and page.get_by_role("button", name="Use the camera").is_visible()


def test_switches_change_the_answers_and_say_by_how_much(page):
    upload(page)
    whole = bars(page)
    for name, words in (("segmentation map", "not shown to the model"), ("label graph (correlation)", None)):
        page.get_by_label(name).uncheck()
        answered(page)
        assert bars(page) != whole and page.locator("#compared").is_visible()
        assert page.locator("#answers td.number", has_text="(").count() > 0
        assert words is None or words in page.locator("#mapnote").inner_text()
        keep(page, f"without {name.split()[0]}")
        page.get_by_label(name).check()
        answered(page)
        assert bars(page) == whole and page.locator("#compared").is_hidden()
    page.get_by_label("the alignment head (faster)").check()
    answered(page)
    assert bars(page) != whole
    page.get_by_label("the language model").check()
    page.get_by_label("answers that break no rule (logic)").check()
    answered(page)
    # Random answers break rules, so some must have changed.
    assert page.locator("#changed").inner_text().startswith("Changed so that no rule is broken: ")
    page.get_by_label("also race, as annotators label it").check()
    answered(page)
    assert page.locator("#answers h3", has_text="Race").count() == 1


def test_downloads(page):
    upload(page)
    with page.expect_download() as waited:
        page.get_by_role("button", name="Download JSON").click()
    record = json.loads(Path(waited.value.path()).read_text())
    assert waited.value.suggested_filename == "answers.json" and len(record["answers"]) > 40
    with page.expect_download() as waited:
        page.get_by_role("button", name="Download figure").click()
    drawn = Path(waited.value.path()).read_bytes()
    assert waited.value.suggested_filename == "answers.png" and drawn.startswith(b"\x89PNG")


def test_of_several_faces_one_is_chosen_by_keyboard(page):
    two = {
        "name": "two.png",
        "mimeType": "image/png",
        "buffer": file_of(np.concatenate([ASTRONAUT, ASTRONAUT[:, ::-1]], 1)),
    }
    upload(page, two)
    choice = page.get_by_role("radiogroup", name="Which face?")
    assert choice.get_by_role("radio").count() == 2
    first = page.locator("#crop").get_attribute("src")
    choice.get_by_role("radio", name="face 1").focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#crop")).not_to_have_attribute("src", first)
    answered(page)
    assert choice.get_by_role("radio", name="face 2").is_checked()
    keep(page, "two faces")
    assert complaints(page) == []


def test_mistakes_are_said_where_a_screen_reader_hears_them(page, visited):
    field, error = page.get_by_label("Choose, drop or paste a picture"), page.get_by_role("alert")
    field.set_input_files({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"not a picture"})
    expect(error).to_contain_text("not an image")
    assert page.locator("#shown").is_hidden()
    keep(page, "not an image")
    blank = {"name": "blank.png", "mimeType": "image/png", "buffer": file_of(np.full((90, 120, 3), 255, np.uint8))}
    field.set_input_files(blank)
    expect(error).to_contain_text("No face was found")
    keep(page, "no face")
    assert complaints(page) == []
    page.get_by_role("button", name="Use the whole picture").click()
    answered(page)
    assert len(bars(page)) > 40 and error.inner_text() == ""
    assert not [m for m in visited[1] if "422" not in m], "nothing on the console but the two refusals"


def test_keyboard_reaches_everything_and_the_page_passes_axe(page):
    assert complaints(page) == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the answers"
    upload(page)
    assert complaints(page) == []
    reached = set()
    for _ in range(26):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.switch || ''"))
    assert {
        "file",
        "camera",
        "log",
        "segmentation",
        "correlation",
        "consistent",
        "race",
        "question",
        "json",
        "figure",
    } <= reached


def test_phone(page):
    page.set_viewport_size(PHONE)
    upload(page)
    # The page scrolls there smoothly.
    for name in ("status", "crop"):
        expect(page.locator(f"#{name}")).to_be_in_viewport(ratio=1)
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1], "nothing sticks out sideways"
    small = page.evaluate(
        """() => [...document.querySelectorAll('button, fieldset label, #file')].filter(e => e.offsetParent)
        .map(e => [e.textContent || e.id, e.getBoundingClientRect().height]).filter(([, h]) => h < 24)"""
    )
    assert small == [], "targets are large enough for a finger (WCAG 2.2: 24 pixels)"
    assert complaints(page) == []
    keep(page, "phone")
