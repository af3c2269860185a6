"""A stock server for these tests, its official clients, and a web server for pictures."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import anthropic
import openai
import pytest
from mlx_vlm import apply_chat_template, generate
from server_process import Server
from support import IMAGES, image_path


@pytest.fixture(scope="session")
def server_log(tmp_path_factory):
    """File that ``server`` writes its log to."""
    return tmp_path_factory.mktemp("server") / "log.txt"


@pytest.fixture(scope="session")
def server(fp32_checkpoint, server_log):
    """The server as users start it. Tests must not change it."""
    with Server(fp32_checkpoint, server_log) as server:
        yield server


@pytest.fixture(scope="session")
def openai_client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def anthropic_client(server):
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def pictures_url():
    """Address of a web server, on this machine, that has the reference pictures."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = partial(Quiet, directory=str(IMAGES))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


@pytest.fixture(scope="session")
def ask_alone(model, processor):
    """The greedy answer of ``mlx_vlm.generate``, which a server must give too."""

    def ask(conversation: str | list[dict], image: str | None = None, max_tokens: int = 24) -> str:
        if isinstance(conversation, str):
            conversation = [{"role": "user", "content": conversation}]
        prompt = apply_chat_template(processor, model.config, conversation, num_images=bool(image))
        pictures = [image_path(image)] if image else None
        return generate(model, processor, prompt, pictures, max_tokens=max_tokens).text

    return ask
