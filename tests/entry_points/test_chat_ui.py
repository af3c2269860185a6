"""``mlx_vlm.chat_ui`` in a real browser: a picture is uploaded, asked about, answered.

Needs gradio, selenium and Chromium with its driver; ``make test-ui`` has the first two.
"""

import re
import shutil
from pathlib import Path

import pytest
from mlx_vlm import apply_chat_template, generate, load
from processes import running
from server_process import free_port
from support import GOLDENS, MESSAGES, image_path

pytest.importorskip("gradio", reason="needs mlx-vlm[ui]")
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("needs chromium and chromedriver", allow_module_level=True)

OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000")
TIMEOUT_S = 120
MOXIN_TINY = Path(__file__).parents[1] / "moxin_tiny"
# An answer that ends by itself: the page offers no fewer than 128 tokens.
NAME, INDEX = "tall", 2
GOLDEN = GOLDENS["generate"]["hf"][NAME][INDEX]


@pytest.fixture
def page(request, tmp_path):
    """A browser on the page with a model, its input ready."""
    checkpoint = request.getfixturevalue(request.param)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment |= {"GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "BROWSER": "true"}
    command = ("mlx_vlm.chat_ui", "--model", checkpoint)
    with running(*command, url=url, log=tmp_path / "log.txt", **environment):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        # Waiting for the complete page would mean waiting for fonts from the internet.
        options.page_load_strategy = "none"
        for option in OPTIONS:
            options.add_argument(option)
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            browser.get(url)
            yield browser
        finally:
            browser.quit()


@pytest.fixture(scope="session")
def moxin_tiny():
    return MOXIN_TINY / "checkpoint"


def find(page, selector: str):
    """Wait for the first element, visible or hidden, that matches ``selector``."""
    return WebDriverWait(page, TIMEOUT_S).until(
        lambda page: page.find_elements("css selector", selector)
    )[0]


def be_greedy(page) -> None:
    find(page, "textarea[placeholder='Type a message...']")
    find(page, "button.label-wrap").click()
    temperature = find(page, "input[type=number]")
    temperature.clear()
    temperature.send_keys("0\t")


def show(page, picture: str) -> None:
    find(page, "input[data-testid=file-upload]").send_keys(picture)
    find(page, ".thumbnails img, .thumbnail-item img")


def ask(page, question: str) -> str:
    """The answer with its statistics, which appear below it when it is complete."""
    answers = len(page.find_elements("css selector", "[data-testid=bot] sub"))
    find(page, "textarea.no-label:not([disabled])").send_keys(question)
    find(page, "button[data-testid=submit-button]").click()
    WebDriverWait(page, TIMEOUT_S).until(
        lambda page: len(page.find_elements("css selector", "[data-testid=bot] sub")) > answers
    )
    return page.find_elements("css selector", "[data-testid=bot]")[-1].text


@pytest.mark.parametrize("page", ["fp32_checkpoint"], indirect=True)
def test_a_picture_is_asked_about(page, tmp_path):
    be_greedy(page)
    show(page, image_path(NAME))
    answer = ask(page, MESSAGES[INDEX])
    page.save_screenshot(str(tmp_path / "chat_ui.png"))
    assert answer.startswith(GOLDEN["text"])
    prompt_tokens = len(GOLDENS["prompts"][INDEX]["input_ids"]) + GOLDENS["num_patches"]
    assert re.search(rf"Prompt: {prompt_tokens} tokens", answer)
    assert MESSAGES[INDEX] in find(page, "[data-testid=user] .message-content, .user").text


@pytest.mark.parametrize("page", ["moxin_tiny"], indirect=True)
def test_a_second_question_is_about_the_picture_too(page, tmp_path):
    questions = ("What colour is the circle?", "Where is the star?")
    model, processor = load(str(MOXIN_TINY / "checkpoint"))
    picture, conversation = str(MOXIN_TINY / "demo.png"), []
    be_greedy(page)
    show(page, picture)
    for question in questions:
        conversation.append({"role": "user", "content": question})
        prompt = apply_chat_template(processor, model.config, conversation, num_images=1)
        expected = generate(model, processor, prompt, [picture], max_tokens=64)
        answer = ask(page, question)
        assert answer.splitlines()[0] == expected.text
        assert f"Prompt: {expected.prompt_tokens} tokens" in answer
        conversation.append({"role": "assistant", "content": expected.text})
    page.save_screenshot(str(tmp_path / "chat_ui.png"))
