"""The web page, as people use it: in a real browser, against a server without a model."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataset.records.files import read_records
from dataset.records.record import ChatRecord
from dataset.records.shapes import parse_record
from inference.page import SCRIPTS, page_html
from tests.inference.fake_api import FakeApi, answer_to

INSTALL = "run bash scripts/install_browser.sh"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = pytest.mark.skipif(BROWSER is None, reason=f"no Chromium here: {INSTALL}")
TIMEOUT = 60_000
"""Milliseconds after which a test gives up, on a slow machine too."""
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}

try:
    from playwright.sync_api import Browser, Page, expect, sync_playwright
except ImportError:
    pytest.skip(f"no playwright here: pip install '.[dev]', and {INSTALL}", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=TIMEOUT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    yield from running(FakeApi())


def running(api: FakeApi) -> Iterator[FakeApi]:
    threading.Thread(target=api.serve_forever, daemon=True).start()
    yield api
    api.shutdown()
    api.server_close()


Opener = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, api: FakeApi) -> Iterator[Opener]:
    """Opens the page in a browser of its own. At the end: no error, and no host but the server."""
    contexts, asked, errors = [], [], []

    def open_page(size: dict[str, int] = WIDE, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": size, "locale": "zh-CN", "accept_downloads": True, **options})
        contexts.append(context)
        context.on("request", lambda request: asked.append(request.url))
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.goto(api.address)
        expect(page.locator("#weights option")).to_have_count(len(api.models))
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert asked and all(url.startswith((api.address, "data:", f"blob:{api.address}")) for url in asked)
    assert not errors


def ask(page: Page, question: str) -> None:
    page.fill("#prompt", question)
    page.press("#prompt", "Enter")


def says(page: Page, text: str, column: str = "a") -> None:
    """Waits until a column's newest answer is this."""
    expect(page.locator(f"#answer-{column}")).to_have_text(text)
    expect(page.locator("#send")).to_be_visible()


# --- without a browser ----------------------------------------------------------------------------


def test_the_page_is_one_document_below_60_kilobytes_that_names_no_other_host() -> None:
    page = page_html()
    assert len(page.encode()) < 60_000
    assert set(re.findall(r"\w+://[\w.]+", page)) == {"http://www.w3.org"}  # the name of SVG, never asked for
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'\b(?:src|href)="([^"]*)"', page))
    assert not re.search(r"innerHTML|insertAdjacentHTML|\beval\(|\bFunction\(|document\.write", page)
    assert "{{" not in page.replace("${", "")


def test_the_joined_script_keeps_all_code_lines() -> None:
    folder = Path(__file__).parents[2] / "inference" / "page"
    lines = [line.strip() for name in SCRIPTS for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    code = [line for line in lines if line and not line.startswith(("//", "/*", "* "))]
    joined = page_html().partition('<script type="module">')[2].partition("</script>")[0]
    assert [line for line in joined.split("\n") if line] == code


# --- with one -------------------------------------------------------------------------------------


@NO_BROWSER
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1280", "390"])
def test_a_person_talks_stops_retries_edits_and_comes_back(api: FakeApi, opened: Opener, size: dict[str, int]) -> None:
    page = opened(size)
    expect(page.locator("#examples button")).to_have_count(4)
    page.fill("#system", "请简短回答。")
    page.click("#examples button >> nth=1")
    says(page, answer_to("full_sft_192", "法国的首都是哪里？"))
    assert api.bodies[0]["messages"][0] == {"role": "system", "content": "请简短回答。"}

    ask(page, "慢慢说")
    expect(page.locator("#answer-a")).to_contain_text("一二三")  # while it still goes on
    expect(page.locator("#retry")).to_be_disabled()
    page.click("#stop")
    expect(page.locator(".meta >> nth=1")).to_contain_text("已停止")
    stopped = page.inner_text("#answer-a")
    assert 10 < len(stopped) < 400
    assert [m["role"] for m in api.bodies[1]["messages"]] == ["system", "user", "assistant", "user"]

    page.click(".turn:nth-of-type(2) .edit")
    page.fill(".question textarea", "快快说")
    page.click(".question form .main")
    says(page, answer_to("full_sft_192", "快快说"))
    expect(page.locator(".turn")).to_have_count(2)

    page.click("#retry")
    says(page, answer_to("full_sft_192", "快快说"))
    assert api.bodies[3]["messages"] == api.bodies[2]["messages"]
    assert api.bodies[3]["seed"] != api.bodies[2]["seed"]

    page.reload()
    says(page, answer_to("full_sft_192", "快快说"))
    expect(page.locator(".turn")).to_have_count(2)
    assert page.input_value("#system") == "请简短回答。"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@NO_BROWSER
def test_the_server_sees_that_an_answer_was_stopped(api: FakeApi, opened: Opener) -> None:
    page = opened()
    ask(page, "慢慢说")
    expect(page.locator("#answer-a")).to_contain_text("一二三")
    page.keyboard.press("Escape")
    expect(page.locator("#send")).to_be_visible()
    for _ in range(100):
        if api.left:
            break
        page.wait_for_timeout(50)
    assert api.left == 1


@NO_BROWSER
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1280", "390"])
def test_two_weights_answer_one_question_each_with_its_own_past(
    api: FakeApi, opened: Opener, size: dict[str, int]
) -> None:
    page = opened(size)
    page.click("#compare")
    assert (page.input_value("#weights"), page.input_value("#weights-b")) == ("full_sft_192", "rlhf_192")
    for question in ("一", "二"):
        ask(page, question)
        for column, model in (("a", "full_sft_192"), ("b", "rlhf_192")):
            says(page, answer_to(model, question), column)
    later = {body["model"]: body for body in api.bodies[2:]}
    assert {model: body["messages"][1]["content"] for model, body in later.items()} == {
        model: answer_to(model, "一") for model in api.models
    }
    assert later["full_sft_192"]["seed"] == later["rlhf_192"]["seed"]
    page.reload()
    says(page, answer_to("rlhf_192", "二"), "b")
    expect(page.locator("#weights-b")).to_be_visible()  # the choice is kept too
    boxes = [page.locator(f"#answer-{column}").bounding_box() for column in "ab"]
    assert boxes[0] and boxes[1] and (boxes[0]["y"] == boxes[1]["y"]) == (size is WIDE)


@NO_BROWSER
def test_each_token_has_its_colour_and_a_click_shows_the_five_likeliest(opened: Opener) -> None:
    page = opened()
    ask(page, "早🙂")
    whole = answer_to("full_sft_192", "早🙂")
    says(page, whole)
    page.click("#tokens")
    says(page, whole)  # the same text, now made of tokens
    tokens = page.locator("#answer-a .token")
    expect(tokens).to_have_count(len(whole))  # four tokens of one byte are one character
    assert [tokens.nth(place).get_attribute("class") for place in range(5)] == [f"token p{n}" for n in (5, 4, 3, 2, 1)]
    page.click("#answer-a .token >> nth=3")
    rows = page.locator("#detail .row")
    expect(rows).to_have_count(5)
    expect(rows.first).to_have_text("l40.0%")
    expect(rows.nth(1)).to_have_text("，2.0%")
    page.click(f"#answer-a .token >> nth={whole.index('🙂')}")
    expect(page.locator("#detail p")).to_have_count(4)
    expect(page.locator("#detail p").first).to_contain_text("\\xf0")
    page.keyboard.press("Escape")
    expect(page.locator("#detail")).to_be_hidden()
    ask(page, "再来")  # tokens are coloured as they stream
    says(page, answer_to("full_sft_192", "再来"))
    expect(tokens).to_have_count(len(answer_to("full_sft_192", "再来")))


@NO_BROWSER
def test_history_is_kept_apart_for_each_conversation_and_can_be_deleted(opened: Opener) -> None:
    page = opened()
    ask(page, "第一段")
    says(page, answer_to("full_sft_192", "第一段"))
    page.click("#new")
    expect(page.locator("#empty")).to_be_visible()
    second = page.context.new_page()  # another tab, with a conversation of its own
    second.goto(page.url)
    ask(second, "第二段")
    says(second, answer_to("full_sft_192", "第二段"))
    expect(page.locator("#history .open")).to_have_text(["第二段", "第一段"])
    page.click("#history .open >> nth=1")
    says(page, answer_to("full_sft_192", "第一段"))
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#history .item.now .remove")
    expect(page.locator("#history .open")).to_have_text(["第二段"])
    expect(page.locator("#empty")).to_be_visible()


@NO_BROWSER
def test_an_answer_goes_on_while_another_conversation_is_read(opened: Opener) -> None:
    page = opened()
    ask(page, "慢慢说")
    expect(page.locator("#answer-a")).to_contain_text("一二三")
    page.click("#new")
    ask(page, "快")
    says(page, answer_to("full_sft_192", "快"))
    page.click("#history .open >> nth=1")
    expect(page.locator("#stop")).to_be_visible()
    before = len(page.inner_text("#answer-a"))
    expect(page.locator("#answer-a")).to_have_text(re.compile(f"^.{{{before + 5},}}$"))
    page.click("#stop")


@NO_BROWSER
def test_a_conversation_is_exported_to_read_and_to_train_on(opened: Opener, tmp_path: Path) -> None:
    page = opened()
    page.click("#compare")
    ask(page, "早")
    says(page, answer_to("rlhf_192", "早"), "b")
    page.click("#export summary")
    with page.expect_download() as markdown:
        page.click("#export-markdown")
    text = markdown.value.path().read_text(encoding="utf-8")
    assert markdown.value.suggested_filename == "早.md"
    assert f"## rlhf_192\n\n{answer_to('rlhf_192', '早')}" in text
    page.click("#export summary")
    with page.expect_download() as download:
        page.click("#export-json")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    (data,) = read_records(file)
    record = parse_record(data)
    assert isinstance(record, ChatRecord) and [m["role"] for m in record.messages] == ["user", "assistant"]
    question = {"role": "user", "content": "早"}
    for name, model in (("conversations", "full_sft_192"), ("compared", "rlhf_192")):
        assert data[name] == [question, {"role": "assistant", "content": answer_to(model, "早")}]
    assert len(data["turns"][0]["answers"][0]["tokens"]) == len(answer_to("full_sft_192", "早"))


@NO_BROWSER
@pytest.mark.parametrize("has_clipboard", [True, False])
def test_an_answer_is_copied_also_where_the_browser_has_no_clipboard(opened: Opener, has_clipboard: bool) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    if not has_clipboard:  # as over plain HTTP from another machine
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    ask(page, "早")
    says(page, answer_to("full_sft_192", "早"))
    page.click(".answer .copy")
    expect(page.locator("#notice")).to_have_text("已复制")
    page.focus("#prompt")
    page.keyboard.press("Control+V")
    assert page.input_value("#prompt") == answer_to("full_sft_192", "早")


@NO_BROWSER
def test_language_and_colours_follow_the_browser_and_can_be_changed(opened: Opener) -> None:
    page = opened(locale="en-GB", color_scheme="dark")
    expect(page.locator("#new")).to_have_text("New conversation")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.click("#language")
    expect(page.locator("#new")).to_have_text("新对话")
    page.click("#theme")
    assert page.evaluate(background) != dark
    page.reload()
    expect(page.locator("#new")).to_have_text("新对话")
    assert page.evaluate(background) != dark
    assert page.get_attribute("html", "lang") == "zh-CN"


@NO_BROWSER
def test_everything_can_be_reached_by_the_keyboard(api: FakeApi, opened: Opener) -> None:
    page = opened()
    keys = page.keyboard
    focused = "document.activeElement.id || document.activeElement.className"
    assert page.evaluate(focused) == "prompt"
    keys.insert_text("早")
    keys.press("Shift+Enter")
    keys.insert_text("安")
    keys.press("Enter")
    says(page, answer_to("full_sft_192", "早\n安"))
    keys.press("Tab")
    assert page.evaluate(focused) == "retry"
    keys.press("Tab")
    keys.press("Enter")
    expect(page.locator("#tokens")).to_have_attribute("aria-pressed", "true")
    for _ in range(12):
        keys.press("Shift+Tab")
        if "token " in str(page.evaluate(focused)):
            break
    keys.press("ArrowRight")
    keys.press("Enter")
    expect(page.locator("#detail .row.taken")).to_have_text("u80.0%")
    keys.press("ArrowRight")
    expect(page.locator("#detail .row.taken")).to_have_text("l60.0%")
    keys.press("Escape")
    page.focus("#prompt")
    keys.press("ArrowUp")
    keys.insert_text("！")
    keys.press("Enter")
    says(page, answer_to("full_sft_192", "早\n安！"))
    reached = set()
    for _ in range(40):
        keys.press("Tab")
        reached.add(page.evaluate("document.activeElement.id"))
    assert {"prompt", "retry", "tokens", "system", "weights", "compare", "tune", "new", "language", "theme"} <= reached


@NO_BROWSER
def test_on_a_phone_the_panels_open_and_close_by_the_keyboard_and_keep_it(opened: Opener) -> None:
    page = opened(PHONE)
    for button, panel in (("menu", "sidebar"), ("tune", "settings")):
        page.focus(f"#{button}")
        page.keyboard.press("Enter")
        expect(page.locator(f"#{panel}")).to_be_visible()
        for _ in range(30):
            page.keyboard.press("Tab")
            assert not page.evaluate("document.querySelector('main').contains(document.activeElement)")
        page.keyboard.press("Escape")
        expect(page.locator(f"#{panel}")).to_be_hidden()
        assert page.evaluate("document.activeElement.id") == button


@NO_BROWSER
def test_the_enter_that_ends_a_chinese_word_does_not_send(api: FakeApi, opened: Opener) -> None:
    page = opened()
    page.fill("#prompt", "ni hao")
    page.evaluate(
        "document.getElementById('prompt').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    page.wait_for_timeout(100)
    assert not api.bodies and page.input_value("#prompt") == "ni hao"


@NO_BROWSER
@pytest.mark.parametrize("tokens", [False, True])
def test_markup_in_an_answer_stays_text(opened: Opener, tokens: bool) -> None:
    page = opened()
    if tokens:
        page.click("#tokens")
    ask(page, "<b>HTML</b>")
    says(page, answer_to("", "HTML"))
    assert page.locator("#turns img, #turns b").count() == 0
    assert page.title() == "MiniLLM"
    expect(page.locator(".bubble")).to_have_text("<b>HTML</b>")


@NO_BROWSER
def test_the_policy_lets_nothing_else_run_and_no_other_host_be_asked(opened: Opener) -> None:
    page = opened()
    blocked = "new Promise(done => addEventListener('securitypolicyviolation', e => done(e.effectiveDirective)))"
    for tried, directive in (
        ("fetch('http://127.0.0.1:9/').catch(() => 0)", "connect-src"),
        ("document.body.insertAdjacentHTML('beforeend', '<b onclick=\"ran = 1\">')", "script-src-attr"),
        ("document.body.append(Object.assign(document.createElement('script'), {text: 'ran = 1'}))", "script-src-elem"),
        ("document.body.insertAdjacentHTML('beforeend', '<img src=/a.png>')", "img-src"),
    ):
        assert page.evaluate(f"Promise.all([{blocked}, {tried}])")[0] == directive
    assert page.evaluate("window.ran") is None


@NO_BROWSER
def test_programs_that_drive_the_page_can_wait_for_a_condition(opened: Opener) -> None:
    page = opened()
    ask(page, "早")
    page.wait_for_function("document.getElementById('answer-a').textContent.endsWith('十')")


@NO_BROWSER
def test_the_key_is_asked_for_once_and_kept_for_the_tab(api: FakeApi, opened: Opener) -> None:
    page = opened()
    api.key = "geheim"
    page.click("#compare")
    ask(page, "早")
    page.fill("#key", "falsch")
    page.press("#key", "Enter")
    expect(page.locator("#key-text")).to_contain_text("密钥不对")
    page.fill("#key", "geheim")
    page.click("#key-send")
    says(page, answer_to("rlhf_192", "早"), "b")
    says(page, answer_to("full_sft_192", "早"), "a")
    page.reload()
    ask(page, "晚")
    says(page, answer_to("full_sft_192", "晚"))
    assert "geheim" not in page.evaluate("JSON.stringify(localStorage)")
    another = page.context.new_page()
    another.goto(api.address)
    expect(another.locator("#key-dialog")).to_be_visible()
    another.click("#key-cancel")
    expect(another.locator("#notice")).to_contain_text("需要密钥")
    ask(another, "午")  # asks for the key again, then sends what was typed
    another.fill("#key", "geheim")
    another.press("#key", "Enter")
    says(another, answer_to("full_sft_192", "午"))
    assert another.input_value("#prompt") == ""


@NO_BROWSER
def test_every_setting_reaches_the_server(api: FakeApi, opened: Opener) -> None:
    page = opened()
    ask(page, "早")
    says(page, answer_to("full_sft_192", "早"))
    plain = {"model", "messages", "stream", "logprobs", "top_logprobs", "seed", "temperature", "top_p", "max_tokens"}
    assert set(api.bodies[0]) == plain
    page.click("#tune")
    page.click("#more summary")
    values = {
        "temperature": 0.8, "top_p": 0.7, "max_tokens": 40, "seed": 7, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2,
        "presence_penalty": 0.5, "frequency_penalty": -0.5, "no_repeat_ngram_size": 3,
    }  # fmt: skip
    for name, value in values.items():
        page.fill(f"#set-{name}", str(value))
        page.press(f"#set-{name}", "Tab")
    page.fill("#set-stop", "。\n完")
    page.select_option("#set-thinking", "on")
    page.click("#retry")
    says(page, answer_to("full_sft_192", "早"))
    sent = api.bodies[1]
    assert {name: sent[name] for name in values} == values
    assert sent["stop"] == ["。", "完"] and sent["chat_template_kwargs"] == {"enable_thinking": True}
    page.fill("#set-temperature", "99")  # out of range: the nearest value, and it shows
    page.press("#set-temperature", "Tab")
    assert page.input_value("#set-temperature") == "2"
    page.reload()
    assert page.input_value("#set-top_k") == "5"
    page.click("#reset")
    assert page.input_value("#set-top_k") == "0"


@NO_BROWSER
def test_thoughts_are_folded_above_the_answer(opened: Opener) -> None:
    page = opened()
    ask(page, "想一想")
    says(page, answer_to("full_sft_192", "想一想"))
    thought = page.locator(".thought div")
    expect(thought).to_be_hidden()
    page.click(".thought summary")
    expect(thought).to_have_text("先想一想")


@NO_BROWSER
def test_a_broken_stream_and_a_server_that_is_gone_are_told_and_can_be_retried(api: FakeApi, opened: Opener) -> None:
    page = opened()
    ask(page, "断")
    expect(page.locator(".problem")).to_contain_text("连接中断")
    assert page.inner_text("#answer-a") == answer_to("full_sft_192", "断")[:5]
    page.route("**/v1/chat/completions", lambda route: route.abort())
    page.click("#retry")
    expect(page.locator(".problem")).to_contain_text("服务器没有响应")
    page.unroute("**/v1/chat/completions")
    ask(page, "好了吗")
    says(page, answer_to("full_sft_192", "好了吗"))


@NO_BROWSER
def test_the_oldest_turns_stay_out_of_a_conversation_that_is_too_long(api: FakeApi, opened: Opener) -> None:
    page = opened()
    api.longest = 3
    for question in ("一", "二", "三"):
        ask(page, question)
        says(page, answer_to("full_sft_192", question))
    assert [m["content"][:1] for m in api.bodies[-1]["messages"]] == ["二", "f", "三"]
    expect(page.locator(".note >> nth=2")).to_contain_text("最早的 1 轮")
    api.longest = 0
    ask(page, "太长")
    expect(page.locator(".problem:visible")).to_contain_text("模型读不下")


@NO_BROWSER
def test_a_full_storage_costs_probabilities_of_old_conversations_but_no_text(opened: Opener) -> None:
    page = opened()
    ask(page, "旧")
    says(page, answer_to("full_sft_192", "旧"))
    page.click("#new")
    page.evaluate(
        "() => { for (let size = 4e6, number = 0; size > 50; number++)"
        "try { localStorage.setItem('filler' + number, 'x'.repeat(size)); } catch { size >>= 1; } }"
    )
    ask(page, "新")
    says(page, answer_to("full_sft_192", "新"))
    expect(page.locator("#notice")).to_contain_text("文字都还在")
    page.reload()
    says(page, answer_to("full_sft_192", "新"))
    page.click("#history .open >> nth=1")
    says(page, answer_to("full_sft_192", "旧"))


@NO_BROWSER
def test_eight_people_at_once_get_their_own_answers(opened: Opener) -> None:
    pages = [opened(PHONE) for _ in range(8)]
    for number, page in enumerate(pages):
        page.fill("#prompt", f"我是第{number}个人")
    for page in pages:
        page.press("#prompt", "Enter")
    for number, page in enumerate(pages):
        says(page, answer_to("full_sft_192", f"我是第{number}个人"))


@NO_BROWSER
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["1280", "390"])
def test_the_ids_that_other_programs_know_are_there(opened: Opener, size: dict[str, int]) -> None:
    page = opened(size)
    for name in ("prompt", "send", "stop", "retry", "system", "weights", "answer-a", "answer-b"):
        assert page.locator(f"#{name}").count() == 1, name
