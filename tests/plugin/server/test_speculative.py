"""A drafter changes the speed of an answer, never the answer."""

import json
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import pytest
from bodies import CHAT, answer_text, body, picture_data
from mlx.utils import tree_flatten
from mlx_vlm import batch_generate, generate
from mlx_vlm.speculative.drafters import load_drafter
from mlx_vlm.speculative.drafters.eagle3 import Model, ModelConfig
from server_process import Server
from support import GOLDENS, IMAGE_NAMES, MESSAGES, PROMPTS, image_path, run_module

GOLDEN = GOLDENS["generate"]["hf"]
TOKENS = GOLDENS["new_tokens"]
CASES = [(name, index) for name in IMAGE_NAMES for index in range(len(MESSAGES))]
BLOCK = 4


@pytest.fixture(scope="module")
def drafter_path(model, tmp_path_factory):
    """An EAGLE-3 drafter for the reference model, with random weights."""
    text = model.config.text_config
    config = {
        "model_type": "eagle3",
        "target_hidden_size": text.hidden_size,
        "draft_vocab_size": text.vocab_size,
        "block_size": BLOCK,
        "eagle_aux_hidden_state_layer_ids": [1, 2, 3],
        "transformer_layer_config": {
            "hidden_size": text.hidden_size,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "vocab_size": text.vocab_size,
        },
    }
    path = tmp_path_factory.mktemp("drafter")
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    mx.random.seed(0)
    weights = dict(tree_flatten(Model(ModelConfig.from_dict(config)).parameters()))
    mx.save_safetensors(str(path / "model.safetensors"), weights, {"format": "mlx"})
    return path


@pytest.fixture
def drafter(drafter_path):
    drafter, kind = load_drafter(str(drafter_path))
    assert kind == "eagle3"
    return drafter


def speculative_tokens(model, processor, drafter, name: str, index: int) -> list[int]:
    result = generate(
        model,
        processor,
        PROMPTS[index]["prompt"],
        [image_path(name)],
        max_tokens=TOKENS,
        draft_model=drafter,
        draft_kind="eagle3",
    )
    return result.token_ids


def test_a_random_drafter_changes_no_token(model, processor, drafter):
    for name, index in CASES:
        tokens = speculative_tokens(model, processor, drafter, name, index)
        assert tokens == GOLDEN[name][index]["tokens"]
        assert len(drafter.draft_lens) > 1


@pytest.mark.parametrize("wrong_every", [2, 3, 5, 1000])
def test_accepted_drafts_change_no_token(model, processor, drafter, monkeypatch, wrong_every):
    """A drafter that is right except at every ``wrong_every``-th token."""
    golden, position = [], 0
    accept = drafter.accept_verified_tokens

    def draft_block(last, hidden, cache, block_size, sampler, token_dtype=mx.int32, **kwargs):
        drafts = [
            (golden + [0] * BLOCK)[n] ^ int(n % wrong_every == wrong_every - 1)
            for n in range(position, position + block_size - 1)
        ]
        return mx.array([drafts], dtype=token_dtype)

    def accept_verified_tokens(hidden, drafts, accepted, new_tokens, *args, **kwargs):
        nonlocal position
        position += len(new_tokens)
        accept(hidden, drafts, accepted, new_tokens, *args, **kwargs)

    monkeypatch.setattr(drafter, "draft_block", draft_block)
    monkeypatch.setattr(drafter, "accept_verified_tokens", accept_verified_tokens)
    for name, index in CASES[:6]:
        golden, position = GOLDEN[name][index]["tokens"], 1
        assert speculative_tokens(model, processor, drafter, name, index) == golden
        assert sum(drafter.accept_lens) >= len(golden) // 4


def test_a_batch_with_a_drafter_changes_no_answer(model, processor, drafter):
    response = batch_generate(
        model,
        processor,
        images=[image_path(name) for name, _ in CASES[:7]],
        prompts=[MESSAGES[index] for _, index in CASES[:7]],
        max_tokens=TOKENS,
        draft_model=drafter,
        draft_kind="eagle3",
        # Pictures of different sizes would be in separate batches.
        group_by_shape=False,
    )
    expected = [GOLDEN[name][index]["text"] for name, index in CASES[:7]]
    assert [text.strip() for text in response.texts] == expected


def test_the_command_accepts_a_drafter(fp32_checkpoint, drafter_path):
    result = run_module(
        *("mlx_vlm.generate", "--model", fp32_checkpoint, "--draft-model", drafter_path),
        *("--image", image_path("photo"), "--prompt", MESSAGES[0], "--max-tokens", TOKENS),
    )
    assert result.returncode == 0, result.stderr
    assert GOLDEN["photo"][0]["text"] in result.stdout


@pytest.mark.slow
def test_the_server_accepts_a_drafter(fp32_checkpoint, drafter_path, tmp_path):
    options = ("--draft-model", str(drafter_path))
    with Server(fp32_checkpoint, tmp_path / "log.txt", *options) as server:
        assert "Drafter ready" in (tmp_path / "log.txt").read_text()

        def ask(case: tuple[str, int]) -> str:
            name, index = case
            request = body(CHAT, server.model, MESSAGES[index], picture_data(name))
            return answer_text(CHAT, server.post(CHAT, request)[1])

        with ThreadPoolExecutor(6) as pool:
            texts = list(pool.map(ask, CASES))
        assert texts == [GOLDEN[name][index]["text"] for name, index in CASES]
        sampled = body(CHAT, server.model, MESSAGES[0], picture_data("photo"), temperature=1)
        assert server.post(CHAT, sampled)[0] == 200
        assert ask(CASES[0]) == GOLDEN["photo"][0]["text"]
