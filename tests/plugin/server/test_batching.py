"""Rows of a batch do not influence each other, for any pictures and lengths."""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
from bodies import CHAT, ENDPOINTS, MESSAGES_API, RESPONSES, answer_text, body, picture_data
from mlx_vlm import apply_chat_template, batch_generate, generate
from support import ARRAYS, GOLDENS, IMAGE_NAMES, MESSAGES, image_path

GOLDEN = GOLDENS["generate"]["hf"]
TOKENS = GOLDENS["new_tokens"]
# 18 rows; neighbours differ in picture, in prompt length and in the length of the answer.
CASES = [(IMAGE_NAMES[n % 6], (n + n // 6) % 3) for n in range(18)]


@pytest.fixture
def batches(monkeypatch) -> list[dict[int, list[int]]]:
    """The tokens of each row, in order, of every batch that is run."""
    batches = []
    ar = import_module("mlx_vlm.generate.ar")

    class Recorder(ar.BatchGenerator):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.rows = defaultdict(list)
            batches.append(self.rows)

        def next(self):
            prompts, responses = super().next()
            for response in responses:
                self.rows[response.uid].append(response.token)
            return prompts, responses

    monkeypatch.setattr(ar, "BatchGenerator", Recorder)
    return batches


@pytest.mark.parametrize("rows", range(1, 17))
def test_each_row_gets_the_tokens_that_it_gets_alone(model, processor, batches, rows):
    cases = CASES[:rows] if rows % 2 else CASES[-rows:]
    response = batch_generate(
        model,
        processor,
        images=[image_path(name) for name, _ in cases],
        prompts=[MESSAGES[index] for _, index in cases],
        max_tokens=TOKENS,
        # Pictures of different sizes would be in separate batches.
        group_by_shape=False,
    )
    (batch,) = batches
    assert [batch[uid] for uid in sorted(batch)] == [GOLDEN[n][i]["tokens"] for n, i in cases]
    assert [text.strip() for text in response.texts] == [GOLDEN[n][i]["text"] for n, i in cases]


def test_pictures_grouped_by_size_come_back_in_order(model, processor, batches):
    response = batch_generate(
        model,
        processor,
        images=[image_path(name) for name, _ in CASES],
        prompts=[MESSAGES[index] for _, index in CASES],
        max_tokens=TOKENS,
    )
    assert len(batches) > 1
    assert [text.strip() for text in response.texts] == [GOLDEN[n][i]["text"] for n, i in CASES]


def test_rows_without_a_picture_may_follow_those_with_one(model, processor):
    prompts = [MESSAGES[0], MESSAGES[2], MESSAGES[0], MESSAGES[1]]
    response = batch_generate(
        model, processor, images=[image_path("tall")], prompts=prompts, max_tokens=TOKENS
    )
    for row, message in enumerate(prompts):
        prompt = apply_chat_template(processor, model.config, message, num_images=int(row == 0))
        picture = [image_path("tall")] if row == 0 else None
        alone = generate(model, processor, prompt, picture, max_tokens=TOKENS)
        assert response.texts[row].strip() == alone.text


def ask_all(server, requests: list[tuple[str, dict]], at_once: int) -> list[str]:
    """Texts of requests, ``at_once`` of which run at any time."""

    def ask(request: tuple[str, dict]) -> str:
        status, answer = server.post(*request)
        assert status == 200, answer
        return answer_text(request[0], answer)

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, requests))


@pytest.mark.parametrize("at_once", [3, 16])
def test_requests_at_once_get_the_answers_that_they_get_alone(server, at_once):
    requests = [
        (ENDPOINTS[n % 3], body(ENDPOINTS[n % 3], server.model, MESSAGES[i], picture_data(name)))
        for n, (name, i) in enumerate(CASES)
    ]
    expected = [GOLDEN[name][index]["text"] for name, index in CASES]
    assert ask_all(server, requests, at_once) == expected


def test_requests_with_and_without_a_picture_may_mix(server, ask_alone):
    requests, expected = [], []
    for name, index in CASES[:8]:
        requests.append((CHAT, body(CHAT, server.model, MESSAGES[index], picture_data(name))))
        requests.append((RESPONSES, body(RESPONSES, server.model, MESSAGES[index])))
        expected += [GOLDEN[name][index]["text"], ask_alone(MESSAGES[index])]
    assert ask_all(server, requests, 16) == expected


def test_requests_at_once_keep_their_own_sampling(server):
    picture = picture_data("photo")
    settings = [
        {},
        {"temperature": 1, "seed": 1},
        {"temperature": 1, "seed": 2},
        {"temperature": 0.7, "seed": 1, "top_p": 0.8},
        {"temperature": 1.5, "seed": 1, "top_k": 20},
        {"temperature": 0, "stop": "tu"},
        {"temperature": 1, "seed": 1, "repetition_penalty": 1.5},
        {"temperature": 0, "logit_bias": {"5": 100}, "max_tokens": 3},
    ]
    requests = [(CHAT, body(CHAT, server.model, MESSAGES[0], picture, **s)) for s in settings]
    alone = [ask_all(server, [request], 1)[0] for request in requests]
    assert alone[0] == GOLDEN["photo"][0]["text"]
    assert len(set(alone)) == len(settings)
    for first in (0, 1, 4):
        order = requests[first:] + requests[:first]
        assert ask_all(server, order, len(order)) == alone[first:] + alone[:first]


def logprobs_of(answer: dict) -> list[float]:
    return [entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"]]


def test_log_probabilities_are_right_while_other_requests_have_none(server):
    picture = picture_data("photo")
    asking = body(CHAT, server.model, MESSAGES[0], picture, logprobs=True)
    alone = logprobs_of(server.post(CHAT, asking)[1])
    logits = ARRAYS["hf/logits_last/photo/0"]
    expected = logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert alone[0] == pytest.approx(expected, abs=1e-3)
    endless = body(CHAT, server.model, MESSAGES[0], picture, max_tokens=400, logit_bias={"2": -100})
    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(server.post, CHAT, endless) for _ in range(2)]
        beside = list(pool.map(lambda _: server.post(CHAT, asking)[1], range(4)))
    assert [future.result()[0] for future in running] == [200, 200]
    for answer in beside:
        np.testing.assert_allclose(logprobs_of(answer), alone, rtol=0, atol=1e-4)


def test_a_long_answer_goes_on_while_others_come_and_go(server):
    long = body(MESSAGES_API, server.model, MESSAGES[0], picture_data("tall"), max_tokens=150)
    expected = ask_all(server, [(MESSAGES_API, long)], 1)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ask_all, server, [(MESSAGES_API, long)] * 3, 3)
        short = [(CHAT, body(CHAT, server.model, MESSAGES[i], picture_data(n))) for n, i in CASES]
        texts = ask_all(server, short, 4)
    assert running.result() == expected * 3
    assert texts == [GOLDEN[name][index]["text"] for name, index in CASES]
