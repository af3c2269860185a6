"""``python -m mlx_vlm_moxin act``."""

import json

import numpy as np
import pytest
from action_models import HIDDEN_TOLERANCE, arrays, goldens, picture
from support import HF_CHECKPOINT, run_module

from mlx_vlm_moxin.actions.command import main

INSTRUCTION = goldens("openvla")["instructions"][0]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    picture("photo").save(path)
    return str(path)


def act(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_json_is_one_line_with_ids_and_values(action_checkpoint, photo):
    result = run_module(
        "mlx_vlm_moxin",
        "act",
        *("--model", action_checkpoint("openvla"), "--image", photo, "--dtype", "float32"),
        *("--instruction", INSTRUCTION, "--unnorm-key", "bridge_orig", "--json"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    case = goldens("openvla")["cases"][0]
    answer = json.loads(result.stdout)
    assert [*answer] == ["token_ids", "normalized", "action"]
    assert answer["token_ids"] == case["ids"]
    np.testing.assert_allclose(answer["action"], case["actions"]["bridge_orig"], atol=1e-12)


def test_text_is_a_line_for_each_action(action_checkpoint, photo, capsys):
    common = ("--image", photo, "--instruction", INSTRUCTION)
    status, out, _ = act(
        capsys, "--model", action_checkpoint("openvla"), *common, "--unnorm-key", "bridge_orig"
    )
    assert (status, len(out.splitlines()), len(out.split())) == (0, 1, 7)
    status, out, err = act(
        capsys, "--model", action_checkpoint("oft"), *common, "--action-preset", "libero"
    )
    assert (status, len(out.splitlines()), len(out.split())) == (0, 8, 56)
    assert "without --state" in err
    assert "see 2 pictures, not 1" in err


@pytest.mark.parametrize("name", ["oft", "moxin"])
def test_a_chunk_from_two_cameras_and_the_state(action_checkpoint, tmp_path, capsys, name):
    known = goldens(name)
    case = next(
        case
        for case in known["cases"]
        if len(case["images"]) == 2 and case["head"] and case["state"] is not None
    )
    images = []
    for image in case["images"]:
        picture(image).save(tmp_path / f"{image}.png")
        images += ["--image", tmp_path / f"{image}.png"]
    state = ",".join(map(str, known["states"][case["state"]]))
    status, out, err = act(
        capsys,
        *("--model", action_checkpoint(name), *images, "--state", state, "--json"),
        *("--instruction", known["instructions"][case["instruction"]]),
        *("--action-preset", "libero", "--dtype", "float32"),
    )
    assert (status, err) == (0, "")
    answer = json.loads(out)
    assert answer["token_ids"] is None
    expected = arrays(name)[f"{case['key']}/actions"]
    np.testing.assert_allclose(answer["action"], expected, atol=HIDDEN_TOLERANCE)


def test_a_state_may_begin_with_a_minus(action_checkpoint, photo, capsys):
    status, _, err = act(
        capsys,
        *("--model", action_checkpoint("oft"), "--image", photo, "--instruction", INSTRUCTION),
        *("--action-preset", "libero", "--action-images", 1, "--state", "-1,-1,-1,0,0,0,0,0"),
    )
    assert status == 0
    assert "state" not in err


def test_discrete_gives_ids(action_checkpoint, photo, capsys):
    status, out, _ = act(
        capsys,
        *("--model", action_checkpoint("oft"), "--image", photo, "--instruction", INSTRUCTION),
        *("--action-preset", "libero", "--discrete", "--json"),
    )
    assert status == 0
    assert np.shape(json.loads(out)["token_ids"]) == (8, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "bridge_orig, fractal20220817_data"),
        (["--unnorm-key", "nonsense"], "bridge_orig, fractal20220817_data"),
        (["--unnorm-key", "bridge_orig", "--state", "1,b"], "--state takes numbers"),
        (["--unnorm-key", "bridge_orig", "--image", "nowhere.png"], "2 given"),
        (["--action-preset", "libero"], "--discrete"),
        (["--group-size", "64"], "quantize"),
        (["--quantize", "8"], "group size (64)"),
        (["--model", str(HF_CHECKPOINT)], "gives no actions"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_used_ends_with_one_line(
    action_checkpoint, photo, capsys, arguments, message
):
    status, out, err = act(
        capsys,
        *("--model", action_checkpoint("openvla"), "--image", photo),
        *("--instruction", INSTRUCTION, *arguments),
    )
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
