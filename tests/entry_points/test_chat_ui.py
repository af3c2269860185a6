"""``mlx_vlm.chat_ui`` in a real browser: a picture is uploaded, asked about, answered.

Needs gradio, selenium and Chromium with its driver; ``make test-ui`` has the first two.
"""

import re
import shutil

import pytest
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
# An answer that ends by itself: the page offers no fewer than 128 tokens.
NAME, INDEX = "tall", 2
GOLDEN = GOLDENS["generate"]["hf"][NAME][INDEX]


@pytest.fixture
def page(fp32_checkpoint, tmp_path):
    """A browser on the running page, its input ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    environment |= {"GRADIO_TEMP_DIR": str(tmp_path / "gradio"), "BROWSER": "true"}
    command = ("mlx_vlm.chat_ui", "--model", fp32_checkpoint)
    with running(*command, url=url, log=tmp_path / "log.txt", **environment):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        # Complete loading would wait for fonts from the internet.
        options.page_load_strategy = "none"
        for option in OPTIONS:
            options.add_argument(option)
        browser = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        try:
            browser.get(url)
            yield browser
        finally:
            browser.quit()


def find(page, selector: str):
    """The first visible or hidden element that ``selector`` names, once it is there."""
    return WebDriverWait(page, TIMEOUT_S).until(
        lambda page: page.find_elements("css selector", selector)
    )[0]


def test_a_picture_is_asked_about(page, tmp_path):
    message = find(page, "textarea[placeholder='Type a message...']")
    find(page, "button.label-wrap").click()
    temperature = find(page, "input[type=number]")
    temperature.clear()
    temperature.send_keys("0\t")
    find(page, "input[data-testid=file-upload]").send_keys(image_path(NAME))
    find(page, ".thumbnails img, .thumbnail-item img")
    message.send_keys(MESSAGES[INDEX])
    find(page, "button[data-testid=submit-button]").click()
    find(page, "[data-testid=bot] sub")
    answer = find(page, "[data-testid=bot]").text
    page.save_screenshot(str(tmp_path / "chat_ui.png"))
    assert answer.startswith(GOLDEN["text"])
    prompt_tokens = len(GOLDENS["prompts"][INDEX]["input_ids"]) + GOLDENS["num_patches"]
    assert re.search(rf"Prompt: {prompt_tokens} tokens", answer)
    assert MESSAGES[INDEX] in find(page, "[data-testid=user] .message-content, .user").text
