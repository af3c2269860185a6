"""The server reveals nothing of its disk and networks unless an option allows it."""

import json
import urllib.request
from pathlib import Path

import pytest
from bodies import CHAT, ENDPOINTS, MESSAGES_API, RESPONSES, answer_text, body, picture_data
from picture_server import picture_server
from server_process import Server
from support import GOLDENS, MESSAGES, image_path, run_module

from mlx_vlm_moxin.plugin import server_settings as settings
from mlx_vlm_moxin.plugin.server_command import allow, is_loopback, split

QUESTION = MESSAGES[0]
GOLDEN = GOLDENS["generate"]["hf"]["photo"][0]["text"]


class OurServer(Server):
    command = ("mlx_vlm_moxin", "server")


@pytest.fixture(scope="module")
def web():
    with picture_server() as server:
        yield server


@pytest.fixture(scope="module", params=["our command", "stock with variables"])
def strict(request, fp32_checkpoint, tmp_path_factory):
    """A server that reads no local files or addresses, and serves its own model only."""
    log = tmp_path_factory.mktemp("strict") / "log.txt"
    if request.param == "our command":
        made = OurServer(fp32_checkpoint, log, "--pin-model")
    else:
        variables = {settings.LOCAL_FILES: "0", settings.PRIVATE_ADDRESSES: "0"}
        made = Server(fp32_checkpoint, log, **variables, **{settings.PIN_MODEL: "1"})
    with made as server:
        yield server


def asking(server, endpoint: str, url: str) -> dict:
    part = {"type": "image_url", "image_url": {"url": url}}
    if endpoint == RESPONSES:
        part = {"type": "input_image", "image_url": url}
    if endpoint == MESSAGES_API:
        part = {"type": "image", "source": {"type": "url", "url": url}}
    request = body(endpoint, server.model, QUESTION)
    request["input" if endpoint == RESPONSES else "messages"][0]["content"].insert(0, part)
    return request


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_pictures_on_the_servers_disk_are_refused_in_the_same_words(strict, endpoint):
    paths = (image_path("photo"), "/no/such.png", "/etc/passwd", Path(__file__).as_uri(), "~")
    answers = [strict.post(endpoint, asking(strict, endpoint, path)) for path in paths]
    assert [status for status, _ in answers] == [400] * len(paths)
    (message,) = {answer["error"]["message"] for _, answer in answers}
    assert "Pictures on the server's disk are not read" in message


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_private_addresses_are_refused_in_the_same_words(strict, web, endpoint):
    places = (f"127.0.0.1:{web.server_port}", "127.0.0.1:9", "10.0.0.1", "no-such-name.invalid")
    messages = set()
    for place in places:
        url = f"http://{place}/plain/photo.png"
        status, answer = strict.post(endpoint, asking(strict, endpoint, url))
        assert status == 400
        messages.add(answer["error"]["message"].replace(place, "PLACE"))
    assert len(messages) == 1
    assert "no public address" in messages.pop()
    assert not web.counts


def test_a_picture_in_the_request_is_answered(strict):
    request = body(CHAT, strict.model, QUESTION, picture_data("photo"))
    assert answer_text(CHAT, strict.post(CHAT, request)[1]) == GOLDEN


def test_a_pinned_model_is_the_only_one(strict, tmp_path):
    for path in (CHAT, RESPONSES, MESSAGES_API, "/v1/embeddings"):
        request = {**body(CHAT, str(tmp_path), QUESTION), "input": "a"}
        status, answer = strict.post(path, request)
        assert status == 404, answer
        assert "serves" in json.dumps(answer)
        assert "only" in json.dumps(answer)
    request = body(CHAT, strict.model, QUESTION, adapter_path=str(tmp_path))
    assert strict.post(CHAT, request)[0] == 404
    assert strict.post("/unload", {})[0] == 403
    test_a_picture_in_the_request_is_answered(strict)


def test_only_allowed_origins_get_cors_headers(fp32_checkpoint, tmp_path):
    allowed = ("--allow-origin", "http://a.example", "--allow-local-files")
    with OurServer(fp32_checkpoint, tmp_path / "log.txt", *allowed) as server:
        origins = {}
        for origin in ("http://a.example", "http://b.example"):
            sent = urllib.request.Request(f"{server.url}/health", headers={"Origin": origin})
            with urllib.request.urlopen(sent) as response:
                origins[origin] = response.headers["Access-Control-Allow-Origin"]
                assert response.headers["Access-Control-Allow-Credentials"] is None
        assert origins == {"http://a.example": "http://a.example", "http://b.example": None}
        # An option allows what it names, and nothing else.
        request = asking(server, CHAT, image_path("photo"))
        assert answer_text(CHAT, server.post(CHAT, request)[1]) == GOLDEN
        assert server.post(CHAT, asking(server, CHAT, "http://127.0.0.1:9/a.png"))[0] == 400


@pytest.fixture
def clean(monkeypatch):
    for name in vars(settings).values():
        if isinstance(name, str) and name.startswith("MLX_VLM_MOXIN_"):
            monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_options_set_their_variables(clean):
    variables, stock = split(["--model", "a"])
    assert stock == ["--host", "127.0.0.1", "--model", "a"]
    assert variables[settings.LOCAL_FILES] == variables[settings.PRIVATE_ADDRESSES] == "0"
    assert variables[settings.ALLOW_ORIGINS] == ""
    clean.setenv(settings.LOCAL_FILES, "1")
    variables, stock = split(["--pin-model", "--port", "1", "--max-body-bytes", "7"])
    assert variables[settings.LOCAL_FILES] == variables[settings.PIN_MODEL] == "1"
    assert (variables[settings.MAX_BODY_BYTES], stock[2:]) == ("7", ["--port", "1"])


@pytest.mark.parametrize(
    "wrong",
    [["--max-body-bytes", "-1"], ["--max-picture-pixels", "many"], ["--picture-timeout", "0"]],
    ids=str,
)
def test_a_setting_that_cannot_be_used_is_one_line(clean, capsys, wrong):
    with pytest.raises(SystemExit):
        allow(wrong)
    assert f"={wrong[1]!r} must be" in capsys.readouterr().err


def test_an_open_server_is_warned_about(clean, capsys):
    for quiet in ([], ["--host", "localhost"], ["--host=::1"], ["--host", "::", "--api-key=a"]):
        split(quiet)
    assert not capsys.readouterr().err
    split(["--host", "0.0.0.0"])
    assert "anyone who can reach 0.0.0.0 can use this server" in capsys.readouterr().err
    assert not is_loopback("example.org")


def test_the_options_are_in_the_help():
    shown = run_module("mlx_vlm_moxin", "server", "--help").stdout
    for option in ("--allow-local-files", "--pin-model", "--picture-timeout", "--api-key"):
        assert option in shown


def test_a_wrong_variable_ends_the_start(fp32_checkpoint):
    environment = {settings.LOCAL_FILES: "perhaps"}
    arguments = ("--model", str(fp32_checkpoint), "--host", "127.0.0.1", "--port", "0")
    result = run_module("mlx_vlm.server", *arguments, env=environment)
    assert result.returncode != 0
    assert f"{settings.LOCAL_FILES}='perhaps' must be 1 or 0" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr
