"""The web page over the real API server, with small models that say nonsense."""

import pytest

pytest.importorskip("playwright", reason="needs: pip install '.[dev]', and bash scripts/install_browser.sh")

from playwright.sync_api import expect, sync_playwright

from tests.inference.serving.live_server import KEY, LiveServer, served, slowly, wait_until
from tests.inference.test_page import BROWSER, NO_BROWSER, TIMEOUT, ask


@NO_BROWSER
def test_a_person_with_the_key_compares_stops_and_sees_the_tokens_of_two_models() -> None:
    models = [served("full_sft_32"), served("rlhf_32", seed=2)]
    with LiveServer(models, api_key=KEY) as server, sync_playwright() as playwright:
        expect.set_options(timeout=TIMEOUT)
        browser = playwright.chromium.launch(executable_path=BROWSER)
        page = browser.new_page(locale="zh-CN")
        page.goto(server.address)
        page.fill("#key", KEY)
        page.press("#key", "Enter")
        expect(page.locator("#weights option")).to_have_text(["full_sft_32 · SFT 微调", "rlhf_32 · DPO 偏好"])
        page.click("#compare")
        page.click("#tune")
        page.fill("#set-max_tokens", "")  # to the end of the context, so that there is time to stop
        page.press("#set-max_tokens", "Tab")

        with server.stepping(slowly, "full_sft_32"), server.stepping(slowly, "rlhf_32"):
            ask(page, "你好")
            for column in "ab":
                expect(page.locator(f"#answer-{column}")).not_to_be_empty()
            page.keyboard.press("Escape")
        expect(page.locator(".meta >> nth=1")).to_contain_text("已停止")
        wait_until(lambda: not any(model.jobs for model in models))

        page.fill("#set-max_tokens", "30")
        page.press("#set-max_tokens", "Tab")
        page.click("#retry")
        expect(page.locator("#send")).to_be_visible()
        texts = [page.locator(f"#answer-{column}").text_content() for column in "ab"]
        assert texts[0] and texts[1] and texts[0] != texts[1]
        page.click("#tokens")
        expect(page.locator("#answer-a .token").first).to_be_visible()
        assert [page.locator(f"#answer-{column}").text_content() for column in "ab"] == texts
        page.click("#answer-b .token >> nth=0")
        assert page.locator("#detail .row").count() >= 5
        assert page.locator(".problem:visible").count() == 0
        browser.close()
