"""The page in a real browser: typing, streaming, stopping, editing, keeping, and nothing taken for HTML."""

import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.conftest import World
from tests.serve.test_web import Web, serving

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no chromium here (apt install chromium)")


@pytest.fixture(scope="module")
def browser(talking: World) -> Iterator[tuple[Any, Web]]:
    with serving(talking, "-t", "0", "-m", "1000") as web, sync_playwright() as play:
        one = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield one, web
        one.close()


@pytest.fixture(params=[(1200, 800), (390, 760)], ids=["desk", "phone"])
def page(request: pytest.FixtureRequest, browser: tuple[Any, Web]) -> Iterator[Page]:
    width, height = request.param
    context = browser[0].new_context(viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"])
    one: Page = context.new_page()
    problems: list[str] = []
    one.on("pageerror", lambda error: problems.append(str(error)))
    one.on(
        "console",
        lambda message: problems.append(message.text) if message.type == "error" and "status of 400" not in message.text else None,
    )
    one.goto(browser[1].url)
    expect(one.locator("#name")).to_have_text("talking-sft")
    setting(one, "#temperature", "0")
    yield one
    assert one.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    context.close()
    assert problems == []


def setting(page: Page, field: str, value: str) -> None:
    page.get_by_role("button", name="Settings").click()
    page.locator(field).fill(value)
    page.get_by_role("button", name="Done").click()


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your message").fill(question)
    page.keyboard.press("Enter")


def test_asking_folding_copying_editing_and_keeping(page: Page) -> None:
    ask(page, "Say yes.")
    answers = page.locator("li.assistant .body")
    expect(answers).to_have_text("yes!")
    expect(page.locator("#note")).to_contain_text("a second")
    page.get_by_role("button", name="Copy").last.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "yes!"
    page.get_by_role("button", name="Edit").first.click()
    page.get_by_label("Edit your message").fill("What is 6*7?")
    page.get_by_role("button", name="Send again").click()
    expect(answers).to_contain_text("42!")
    expect(page.locator("details.tool")).not_to_have_attribute("open", "")
    page.get_by_text("Calculator").click()
    expect(page.locator("details.tool pre")).to_have_text("6*7 = 42")
    page.reload()
    expect(page.locator("li.user .body")).to_have_text("What is 6*7?")
    expect(answers).to_contain_text("42!")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.get_by_role("button", name="Regenerate")).to_be_visible()
    expect(answers).to_contain_text("42!")


def test_several_conversations(page: Page) -> None:
    page.get_by_role("button", name="How many r are in strawberry?").click()  # an example, where nothing was said yet
    expect(page.locator("li.user .body")).to_have_text("How many r are in strawberry?")
    page.get_by_role("button", name="Edit").click()
    page.get_by_label("Edit your message").fill("Say yes.")
    page.keyboard.press("Enter")
    expect(page.locator("li.assistant .body")).to_have_text("yes!")
    narrow = page.get_by_role("button", name="Conversations").is_visible()
    if narrow:
        page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="New conversation").click()
    ask(page, "Say no.")
    expect(page.locator("li.assistant .body")).to_have_text("no!")
    if narrow:
        page.get_by_role("button", name="Conversations").click()
    expect(page.locator("#list .title")).to_have_text(["Say no.", "Say yes."])
    page.locator("#list .title", has_text="Say yes.").click()
    expect(page.locator("li.assistant .body")).to_have_text("yes!")
    if narrow:
        page.get_by_role("button", name="Conversations").click()
    page.get_by_role("button", name="Delete the conversation Say yes.").click()
    expect(page.locator("#list .title")).to_have_text(["Say no."])


def test_an_answer_is_stopped(page: Page) -> None:
    setting(page, "#temperature", "2")
    setting(page, "#top-k", "0")
    setting(page, "#max-tokens", "1000")
    page.route("**/v1/chat/completions", lambda route: route.continue_(post_data=_rambling(route.request.post_data or "")))
    ask(page, "Go on.")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("li.assistant .failed")).to_have_text("Stopped.")
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.unroute("**/v1/chat/completions")
    setting(page, "#temperature", "0")
    page.get_by_role("button", name="Regenerate").click()
    expect(page.locator("li.assistant .failed")).to_have_count(0)


def _rambling(body: str) -> str:
    return json.dumps({**json.loads(body), "temperature": 50, "n": 16})  # as long as the longest of many


HOSTILE = "<img src=x onerror=alert(1)> <script>alert(2)</script> [x](javascript:alert(3)) **bold** `<b>` [ok](https://example.org/)"


def test_nothing_is_taken_for_html(page: Page) -> None:
    asked: list[str] = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    ask(page, HOSTILE)
    expect(page.locator("li.user .body")).to_have_text(HOSTILE)
    expect(page.get_by_role("button", name="Send", exact=True)).to_be_visible()
    page.evaluate(
        """text => { const kept = JSON.parse(localStorage.nanochat); kept.talks[0].messages[1].content = [{type: "text", text}];
        localStorage.nanochat = JSON.stringify(kept); }""",
        f"# T\n\n{HOSTILE}\n\n```html\n<script>alert(4)</script>\n```\n\n- a\n  1. b\n\n| c | d |\n|---|---|\n| <i>e</i> | f |",
    )
    page.reload()
    body = page.locator("li.assistant .body")
    expect(body.locator("strong")).to_have_text("bold")
    expect(body.locator("pre code")).to_have_text("<script>alert(4)</script>")
    body.get_by_role("button", name="Copy the code").click()
    expect(body.get_by_text("Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "<script>alert(4)</script>"
    expect(body.locator("ul ol li")).to_have_text("b")
    expect(body.locator("td").first).to_have_text("<i>e</i>")
    assert body.locator("img, script, i, a[href^=javascript]").count() == 0
    assert body.locator("a").evaluate_all("links => links.map(link => link.href)") == ["https://example.org/"]
    assert asked == []


def test_what_is_nested_without_end_is_shown_all_the_same(page: Page) -> None:
    ask(page, "Say yes.")
    expect(page.locator("#note")).to_contain_text("a second")
    for text in (">" * 20_000, "\n".join(" " * depth + "- x" for depth in range(3000)), "`" * 3000, "|\n" + "-" * 4000 + "x"):
        page.evaluate(
            """text => { const kept = JSON.parse(localStorage.nanochat); kept.talks[0].messages[1].content = [{type: "text", text}];
            localStorage.nanochat = JSON.stringify(kept); }""",
            text,
        )
        page.reload()
        expect(page.locator("#name")).to_have_text("talking-sft")
        expect(page.locator("li.assistant .body")).not_to_be_empty()


def test_two_tabs_keep_what_was_said_in_either(page: Page) -> None:
    other = page.context.new_page()
    other.goto(page.url)
    ask(page, "Say yes.")
    expect(page.locator("li.assistant .body")).to_have_text("yes!")
    ask(other, "Say no.")
    expect(other.locator("li.assistant .body")).to_have_text("no!")
    page.reload()
    expect(page.locator("#list .title")).to_have_count(2)
    other.close()


def test_a_message_is_edited_while_its_answer_comes(page: Page) -> None:
    page.route("**/v1/chat/completions", lambda route: route.continue_(post_data=_rambling(route.request.post_data or "")))
    ask(page, "Go on.")
    expect(page.locator("li.assistant .body")).not_to_be_empty()
    page.get_by_role("button", name="Edit").click()
    page.unroute("**/v1/chat/completions")
    page.wait_for_timeout(300)
    page.get_by_label("Edit your message").fill("Say yes.")
    page.keyboard.press("Enter")
    expect(page.locator("li.assistant .body")).to_have_text("yes!")


def test_errors_are_said_and_the_keyboard_suffices(page: Page) -> None:
    ask(page, "word " * 1500)
    expect(page.locator("li.assistant .failed")).to_contain_text("the model takes 1,024")
    page.keyboard.press("Control+Home")
    names = page.evaluate(
        """[...document.querySelectorAll('button, input, textarea, select')]
        .filter(each => !each.labels?.length && !each.ariaLabel && !each.textContent.trim()).map(each => each.outerHTML)"""
    )
    assert names == []
    page.locator("body").press("Tab")
    expect(page.locator(":focus")).to_have_count(1)
