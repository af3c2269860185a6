"""Two processes, each with half of the decoder, give the tokens of one process."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from mlx_vlm import convert, generate, load
from server_process import free_port
from support import GOLDENS, PROMPTS, image_path

SCRIPT = Path(__file__).with_name("sharded_generate.py")
PROMPT = PROMPTS[0]["prompt"]
TOKENS = GOLDENS["new_tokens"]


def launch(processes: int, *checkpoints: Path) -> subprocess.CompletedProcess:
    """Stock ``mlx.launch`` with the ring backend on this machine."""
    command = [Path(sysconfig.get_path("scripts")) / "mlx.launch", "-n", processes]
    command += ["--backend", "ring", "--starting-port", free_port(), "--", sys.executable, SCRIPT]
    command += [PROMPT, TOKENS, image_path("photo"), *checkpoints]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )


@pytest.fixture(scope="module")
def quantised(fp32_checkpoint, tmp_path_factory) -> dict[int, Path]:
    """The float32 checkpoint with the decoder in 8 and in 4 bits."""
    folder = tmp_path_factory.mktemp("quantised")
    for bits in (8, 4):
        options = {"quantize": True, "q_bits": bits, "q_group_size": 32}
        convert(str(fp32_checkpoint), str(folder / str(bits)), trust_remote_code=False, **options)
    return {bits: folder / str(bits) for bits in (8, 4)}


@pytest.mark.slow
def test_two_processes_give_the_tokens_of_one(fp32_checkpoint, quantised, model, processor):
    expected = [GOLDENS["generate"]["hf"]["photo"][0]["tokens"]]
    for path in quantised.values():
        alone = generate(*load(str(path)), PROMPT, [image_path("photo")], max_tokens=TOKENS)
        expected.append(alone.token_ids)
    expected.append(generate(model, processor, PROMPT, max_tokens=TOKENS).token_ids)
    result = launch(2, fp32_checkpoint, *quantised.values())
    answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [answer["token_ids"] for answer in answers] == expected, result.stderr
    assert len({tuple(tokens) for tokens in expected}) == 4
    assert {(answer["processes"], answer["heads"]) for answer in answers} == {(2, 4)}
