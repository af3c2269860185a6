"""``/act``, used like a robot's client with requests and json-numpy."""

import json
import re
import shutil
import socket
import threading
from pathlib import Path

import json_numpy
import numpy as np
import pytest
import requests
from action_models import ID_MARGIN, goldens, picture
from mlx_vlm import convert
from server_process import Server
from support import run_python

from mlx_vlm_moxin import load
from mlx_vlm_moxin.actions.policy import predict
from mlx_vlm_moxin.checkpoints.action_options import ActionOptions
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.conversion.convert import convert as convert_moxin
from mlx_vlm_moxin.conversion.source_files import SourceFiles

CASES = [case for case in goldens("openvla")["cases"] if case["min_margin"] >= ID_MARGIN["openvla"]]
KEY = "bridge_orig"


def case_id(case: dict) -> str:
    return f"{case['image']}-{case['instruction']}"


@pytest.fixture(scope="module")
def server(action_checkpoint, tmp_path_factory):
    """Stock mlx-vlm's server with OpenVLA in float32."""
    place = tmp_path_factory.mktemp("act")
    convert(
        str(action_checkpoint("openvla")),
        str(place / "openvla"),
        dtype="float32",
        trust_remote_code=False,
    )
    with Server(place / "openvla", place / "log.txt") as server:
        yield server


@pytest.fixture(scope="module")
def oft_model(action_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("oft") / "model"
    files = SourceFiles(str(action_checkpoint("oft")), actions=ActionOptions(preset="libero"))
    convert_moxin(files, path, QuantizeOptions(dtype="float32"), quiet=True)
    return path


class OwnServer(Server):
    command = ("mlx_vlm_moxin", "server")


@pytest.fixture(scope="module")
def oft_server(oft_model):
    with Server(oft_model, oft_model.parent / "log.txt") as server:
        yield server


def image(name: str) -> np.ndarray:
    return np.asarray(picture(name))


def observation(**changes) -> dict:
    return {
        "image": image("photo"),
        "instruction": "pick up the red cup",
        "unnorm_key": KEY,
        **changes,
    }


def post(server, payload, encoded=False) -> requests.Response:
    """The body as OpenVLA's clients send it, encoded as by their ``json_numpy.patch()``."""
    text = json_numpy.dumps(payload)
    body = json.dumps({"encoded": text}) if encoded else text
    headers = {"Content-Type": "application/json"}
    return requests.post(f"{server.url}/act", data=body, headers=headers, timeout=60)


@pytest.mark.parametrize(
    "case", CASES[::4], ids=lambda case: f"{case['image']}-{case['instruction']}"
)
@pytest.mark.parametrize("encoded", [False, True])
def test_openvlas_form_is_answered_with_the_action(server, case, encoded):
    text = goldens("openvla")["instructions"][case["instruction"]]
    for key, action in case["actions"].items():
        payload = observation(image=image(case["image"]), instruction=text, unnorm_key=key)
        response = post(server, payload, encoded)
        assert response.status_code == 200, response.text
        answer = json_numpy.loads(response.text)
        if encoded:
            answer = json_numpy.loads(answer)
        assert answer.dtype == np.float64
        np.testing.assert_allclose(answer, action, atol=1e-12)


@pytest.mark.parametrize("encoded", [False, True])
def test_ofts_form_is_answered_with_a_list_of_actions(oft_server, oft_model, encoded):
    state = goldens("oft")["states"][0]
    payload = {
        "full_image": image("photo.policy224"),
        "wrist_image": image("tall.policy224"),
        "state": np.array(state),
        "instruction": "pick up the black bowl and place it on the plate",
    }
    response = post(oft_server, payload, encoded)
    assert response.status_code == 200, response.text
    answer = json_numpy.loads(response.text)
    actions = json_numpy.loads(answer) if encoded else answer
    assert isinstance(actions, list)
    expected = predict(
        *load(oft_model),
        [picture("photo.policy224"), picture("tall.policy224")],
        payload["instruction"],
        state=state,
    )
    np.testing.assert_allclose(actions, expected.action, atol=1e-5)


def test_what_is_loaded_is_described(server, oft_server):
    answer = requests.get(f"{server.url}/act", timeout=60).json()
    assert answer["model"] == server.model
    assert answer["unnorm_keys"] == ["bridge_orig", "fractal20220817_data"]
    assert (answer["chunk_size"], answer["num_images"], answer["proprio_dim"]) == (1, 1, None)
    answer = requests.get(f"{oft_server.url}/act", timeout=60).json()
    assert (answer["chunk_size"], answer["num_images"], answer["proprio_dim"]) == (8, 2, 8)
    assert answer["head"] == "l1"
    assert requests.get(f"{server.url}/health", timeout=60).json()["loaded_model"] == server.model


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (observation(unnorm_key=None), "bridge_orig, fractal20220817_data"),
        (observation(unnorm_key="nonsense"), "bridge_orig, fractal20220817_data"),
        (observation(unnorm_key=5), "unnorm_key must be a text"),
        (observation(unnorm_key="k" * 100_000), "bridge_orig, fractal20220817_data"),
        (observation(instruction="a " * 50_000), "context of 4096 tokens"),
        (observation(instruction="\ud800"), "surrogates"),
        (observation(instruction=None), "instruction"),
        (observation(image="photo.png"), "image must be an array"),
        (observation(image=np.zeros((0, 5, 3), np.uint8)), "empty"),
        (observation(image=np.zeros((5, 5, 7), np.uint8)), "image"),
        ({"instruction": "x"}, "neither image nor full_image"),
        ([], "JSON object"),
    ],
)
def test_what_cannot_be_used_is_a_4xx_with_a_sentence(server, payload, message):
    response = post(server, payload)
    assert response.status_code == 400
    assert message in response.json()["detail"]
    assert "\n" not in response.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff",
        b'{"encoded": "{"}',
        b'{"image": {"__numpy__": "!", "dtype": "|u1", "shape": [1]}}',
    ],
)
def test_bodies_that_are_no_json_numpy_are_a_4xx(server, body):
    status, answer = server.post("/act", body)
    assert status == 400
    assert "json_numpy" in answer["detail"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": None}, "give state with 8 values"),
        ({"state": np.zeros(7)}, r"shape [8], got [7]"),
        ({"wrist_image": None}, "wrist_image must be an array"),
    ],
)
def test_requests_that_do_not_fit_the_model_are_a_4xx(oft_server, change, message):
    payload = {
        "full_image": image("photo.policy224"),
        "wrist_image": image("tall.policy224"),
        "state": np.zeros(8),
        "instruction": "pick up the black bowl",
        **change,
    }
    response = post(oft_server, payload)
    assert response.status_code == 400
    assert message in response.json()["detail"]


def test_a_client_that_disconnects_while_it_sends_leaves_no_traceback(server):
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    # The server answers others after it, and writes its log in the same order.
    assert post(server, observation()).status_code == 200
    assert "Traceback" not in server.log


def test_a_model_without_actions_is_a_409(fp32_checkpoint, tmp_path):
    with Server(fp32_checkpoint, tmp_path / "log.txt") as server:
        response = post(server, observation())
    assert response.status_code == 409
    assert "gives no actions" in response.json()["detail"]


def test_actions_and_chats_at_the_same_time_are_those_of_one_after_another(server):
    message = {"role": "user", "content": "What is this?"}
    expected = server.answer(message, max_tokens=48)
    answers, actions = [], []

    def chat():
        answers.append(server.answer(message, max_tokens=48))

    def act(case):
        text = goldens("openvla")["instructions"][case["instruction"]]
        response = post(server, observation(image=image(case["image"]), instruction=text))
        actions.append((case, json_numpy.loads(response.text)))

    threads = [threading.Thread(target=chat) for _ in range(4)]
    threads += [threading.Thread(target=act, args=(case,)) for case in CASES[:12]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [expected] * 4
    assert len(actions) == 12
    for case, action in actions:
        np.testing.assert_allclose(action, case["actions"][KEY], atol=1e-12)


def test_the_servers_options_say_what_files_and_requests_do_not(action_checkpoint, tmp_path):
    """An OpenVLA-OFT checkpoint in its published form, heads in .pt files; here with one camera."""
    options = ["--action-preset", "libero", "--action-images", "1", "--discrete"]
    options += ["--unnorm-key", "libero_spatial", "--action-ids-only"]
    payload = {
        "full_image": image("photo.policy224"),
        "wrist_image": image("tall.policy224"),
        "state": np.zeros(8),
        "instruction": "pick up the black bowl",
    }
    checkpoint = shutil.copytree(action_checkpoint("oft"), tmp_path / "oft")
    # Other ids are those of actions than the ones that the model prefers.
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "pad_to_multiple_of": 20_000})
    (checkpoint / "config.json").write_text(text, encoding="utf-8")
    with OwnServer(checkpoint, tmp_path / "log.txt", *options) as server:
        described = requests.get(f"{server.url}/act", timeout=60).json()
        response = post(server, payload)
    assert (described["head"], described["unnorm_key"]) == (None, "libero_spatial")
    assert response.status_code == 200, response.text
    model, processor = load(
        checkpoint, actions=ActionOptions(preset="libero", num_images=1, discrete=True)
    )
    expected, anything = (
        predict(
            model,
            processor,
            picture("photo.policy224"),
            payload["instruction"],
            "libero_spatial",
            state=payload["state"],
            action_ids_only=action_ids_only,
        )
        for action_ids_only in (True, False)
    )
    np.testing.assert_allclose(json_numpy.loads(response.text), expected.action)
    assert (anything.token_ids != expected.token_ids).all()


def test_the_guides_client_runs(server):
    """In a separate process, because ``json_numpy.patch()`` cannot be undone."""
    guide = (Path(__file__).parents[3] / "docs" / "actions.md").read_text(encoding="utf-8")
    (block,) = [b for b in re.findall(r"```python\n(.*?)```", guide, re.S) if "requests" in b]
    block = block.replace("http://127.0.0.1:8000", server.url)
    block = block.replace("image = ...", "import numpy; image = numpy.zeros((48, 64, 3), 'uint8')")
    assert run_python(block + "print(action.dtype, action.shape)") == "float64 (7,)\n"
