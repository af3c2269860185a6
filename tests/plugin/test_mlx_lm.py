"""The decoder in stock mlx-lm: its commands, and the same values as in mlx-vlm."""

import itertools
import json
import math
import re
import shutil
import urllib.error
import urllib.request

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import mlx_vlm
import numpy as np
import pytest
from mlx_lm.models import moxin
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache
from mlx_vlm import apply_chat_template, convert, generate
from processes import running
from server_process import free_port, user_message
from support import GOLDENS, HF_CHECKPOINT, MESSAGES, image_path, run_module, run_python

import mlx_vlm_moxin

SMALL = {
    "model_type": "mistral",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 64,
    "sliding_window": 4,
}
TOKENS = GOLDENS["new_tokens"]
CLOSE = {"rtol": 0, "atol": 1e-4}
SENTENCES = "Is there a dog on the left? There are many people in front of the house. " * 4


@pytest.fixture(scope="module")
def lm(fp32_checkpoint):
    """(model, tokenizer), loaded by mlx-lm."""
    return mlx_lm.load(str(fp32_checkpoint))


@pytest.fixture(scope="module")
def answers(model, processor):
    """mlx-vlm's answer to each message without a picture."""
    prompts = [apply_chat_template(processor, model.config, message) for message in MESSAGES]
    return [generate(model, processor, prompt, max_tokens=TOKENS).text for prompt in prompts]


def test_the_command_prints_what_mlx_vlm_answers(fp32_checkpoint, answers):
    options = ["--prompt", MESSAGES[0], "--max-tokens", str(TOKENS), "--verbose", "False"]
    result = run_module("mlx_lm", "generate", "--model", fp32_checkpoint, *options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == answers[0]


def test_every_text_is_mlx_vlms_ids_above_pad_included(lm, model, processor):
    above_pad = 0
    for message in (*MESSAGES, "  two  spaces", "line\nline"):
        prompt = apply_chat_template(processor, model.config, message)
        expected = generate(model, processor, prompt, max_tokens=64)
        chat = [{"role": "user", "content": message}]
        ids = lm[1].apply_chat_template(chat, add_generation_prompt=True)
        chunks = list(mlx_lm.stream_generate(*lm, ids, max_tokens=64))
        assert "".join(chunk.text for chunk in chunks).strip() == expected.text
        above_pad += sum(chunk.token > GOLDENS["pad_token_id"] for chunk in chunks)
    assert above_pad


def test_a_source_checkpoints_ids_are_the_references_whatever_its_template(tmp_path):
    path = shutil.copytree(HF_CHECKPOINT, tmp_path / "checkpoint")
    (path / "chat_template.jinja").write_text("[INST]", encoding="utf-8")
    tokenizer = mlx_lm.load(str(path), lazy=True)[1]
    for prompt in GOLDENS["prompts"]:
        chat = [{"role": "user", "content": prompt["message"]}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
        assert ids == prompt["input_ids"]
    for case in GOLDENS["tokenize"]:
        assert tokenizer.encode(case["text"]) == case["ids"]


@pytest.mark.parametrize("window", [None, 5, 4096])
def test_logits_are_mlx_vlms_beyond_the_sliding_window(tmp_path, fp32_checkpoint, window):
    path = shutil.copytree(fp32_checkpoint, tmp_path / "checkpoint")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["sliding_window"] = window
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    decoder, _ = mlx_lm.load(str(path))
    reference, _ = mlx_vlm.load(str(path))
    ids = mx.random.randint(0, 512, (2, 12), key=mx.random.key(0))
    expected = reference.language_model(ids).logits
    np.testing.assert_allclose(decoder(ids), expected, **CLOSE)
    cache, steps = make_prompt_cache(decoder), (3, 1, 6, 2)
    starts = np.cumsum((0, *steps))
    parts = [decoder(ids[:, a:b], cache=cache) for a, b in itertools.pairwise(starts)]
    np.testing.assert_allclose(mx.concatenate(parts, axis=1), expected, **CLOSE)


def test_a_quantised_cache_keeps_the_sliding_window():
    config = {"model_type": "moxin", "pad_token_id": 60, "text_config": SMALL}
    decoder = moxin.Model(moxin.ModelArgs.from_dict(config))
    ids = mx.random.randint(0, 60, (1, 10), key=mx.random.key(0))
    changed = mx.array(ids)
    changed[0, 0] = (ids[0, 0] + 1) % 60
    logits = []
    for tokens in (ids, changed):
        cache = [QuantizedKVCache(group_size=32, bits=8) for _ in decoder.layers]
        for token in mx.split(tokens, 10, axis=1):
            output = decoder(token, cache=cache)
        logits.append(output)
    assert mx.array_equal(*logits)


def test_a_quantised_checkpoint_gives_the_same_logits(tmp_path, fp32_checkpoint):
    path = tmp_path / "moxin"
    convert(str(fp32_checkpoint), str(path), quantize=True, q_bits=4, trust_remote_code=False)
    decoder, _ = mlx_lm.load(str(path))
    reference, _ = mlx_vlm.load(str(path))
    assert isinstance(decoder.layers[0].self_attn.q_proj, nn.QuantizedLinear)
    ids = mx.random.randint(0, 512, (1, 12), key=mx.random.key(0))
    np.testing.assert_allclose(decoder(ids), reference.language_model(ids).logits, **CLOSE)


def test_towers_and_projector_are_not_read(fp32_checkpoint):
    code = """
import json, sys
import mlx.core as mx
import mlx_lm
from mlx.utils import tree_flatten
model, _ = mlx_lm.load(sys.argv[1])
parameters = dict(tree_flatten(model.parameters()))
names = sorted({name.split(".")[0] for name in parameters})
print(json.dumps([names, sum(p.nbytes for p in parameters.values()), mx.get_peak_memory()]))
"""
    names, decoder_bytes, peak = json.loads(run_python(code, fp32_checkpoint))
    (file,) = fp32_checkpoint.glob("*.safetensors")
    assert names == ["language_model"]
    assert decoder_bytes <= peak < decoder_bytes * 1.1 < file.stat().st_size


def test_max_kv_size_keeps_its_meaning(lm):
    assert make_prompt_cache(lm[0], max_kv_size=8)[0].max_size == 8


def test_the_server_answers_as_mlx_vlm_does(fp32_checkpoint, answers, tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    options = ["--model", fp32_checkpoint, "--port", port]
    with running("mlx_lm", "server", *options, url=f"{url}/health", log=tmp_path / "log.txt"):

        def post(*messages):
            body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0}
            headers = {"Content-Type": "application/json"}
            return urllib.request.urlopen(
                urllib.request.Request(
                    f"{url}/v1/chat/completions", json.dumps(body).encode(), headers
                ),
                timeout=60,
            )

        for message, answer in zip(MESSAGES, answers):
            content = json.load(post(user_message(message)))["choices"][0]["message"]["content"]
            assert content.strip() == answer
        with pytest.raises(urllib.error.HTTPError, match="404") as error:
            post(user_message(MESSAGES[0], image_path("photo")))
        assert "Only 'text' content type is supported" in error.value.read().decode()


def test_perplexity_is_that_of_mlx_vlms_logits(fp32_checkpoint, model, processor, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(json.dumps({"text": SENTENCES}), encoding="utf-8")
    ids = processor.tokenizer(SENTENCES)["input_ids"]
    samples = len(ids) // 16
    options = ["--data-path", data, "--sequence-length", "16", "--num-samples", str(samples)]
    result = run_module("mlx_lm", "perplexity", "--model", fp32_checkpoint, *options)
    assert result.returncode == 0, result.stderr
    printed = float(re.search(r"Perplexity: ([\d.]+)", result.stdout)[1])
    rows = mx.array(ids[: samples * 16]).reshape(-1, 16)
    logits = model.language_model(rows[:, :-1]).logits
    loss = nn.losses.cross_entropy(logits, rows[:, 1:], reduction="mean").item()
    assert printed == pytest.approx(math.exp(loss), abs=2e-3)


def test_the_benchmark_command_runs(fp32_checkpoint):
    options = ["--prompt-tokens", "8", "--generation-tokens", "4", "--num-trials", "1"]
    result = run_module("mlx_lm", "benchmark", "--model", fp32_checkpoint, *options)
    assert result.returncode == 0, result.stderr
    assert "Averages: prompt_tps=" in result.stdout


def test_other_models_keep_mlx_lms_own_tokenizer(tmp_path):
    code = """
import mlx_lm.models.moxin
from mlx_lm.models import moxin, prismatic
from mlx_lm.utils import load_tokenizer
from pathlib import Path
import sys
print(moxin is prismatic, type(load_tokenizer(Path(sys.argv[1]))._detokenizer).__name__)
"""
    path = shutil.copytree(HF_CHECKPOINT, tmp_path / "other")
    (path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    assert run_python(code, path).strip() == "True SPMStreamingDetokenizer"


def test_an_import_that_fails_names_mlx_lm():
    code = """
import mlx_lm.models.llama
del mlx_lm.models.llama.LlamaModel
from mlx_lm.utils import _get_classes
try:
    _get_classes({"model_type": "prismatic"})
except RuntimeError as error:
    print(error)
"""
    message = run_python(code)
    assert f"mlx-vlm-moxin {mlx_vlm_moxin.__version__} cannot be loaded into mlx-lm " in message
    assert "LlamaModel" in message
