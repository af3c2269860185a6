"""Answers in batches equal those one by one and those of mlx-vlm's generation."""

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm import apply_chat_template, generate
from moxin_tiny import CHECKPOINT
from small_data import asked, picture
from support import REFERENCE

from mlx_vlm_moxin.evals import answering
from mlx_vlm_moxin.evals.answering import Answering, Question
from mlx_vlm_moxin.evals.run import MAX_TOKENS
from mlx_vlm_moxin.library.load import load

STRINGS = ("Yes", "No", "A", "B", "C")


@pytest.fixture(scope="module")
def questions():
    """Questions of different lengths, some of them about one picture."""
    kinds = ("colour", "exists", "relation", "describe")
    return [Question(q.text, picture(index), str(index)) for index, q in asked(*kinds, count=8)]


def batched(questions, size: int):
    return (questions[start : start + size] for start in range(0, len(questions), size))


def texts(model, questions, size: int) -> list[str]:
    model = Answering(*model)
    return [t for batch in batched(questions, size) for t in model.texts(batch, MAX_TOKENS)]


def probabilities(model, questions, size: int) -> np.ndarray:
    model = Answering(*model)
    rows = [
        row for batch in batched(questions, size) for row in model.probabilities(batch, STRINGS)
    ]
    return np.array(rows)


@pytest.fixture(scope="module")
def single_texts(words_model, questions):
    """Answers one by one."""
    return texts(words_model, questions, 1)


@pytest.fixture(scope="module")
def single_probabilities(words_model, questions):
    """Probabilities one by one."""
    return probabilities(words_model, questions, 1)


def test_the_questions_differ_in_length(words_model, questions):
    _, processor = words_model
    assert len({len(processor.tokenizer.encode(q.prompt)) for q in questions}) > 3


@pytest.mark.parametrize("size", [3, 8])
def test_generated_answers_of_a_batch_are_those_one_by_one(
    words_model, questions, single_texts, size
):
    assert texts(words_model, questions, size) == single_texts


def test_generated_answers_are_those_of_mlx_vlm(words_model, questions, single_texts):
    model, processor = words_model

    def ask(question: Question) -> str:
        prompt = apply_chat_template(processor, model.config, question.prompt, num_images=1)
        options = {"max_tokens": MAX_TOKENS, "temperature": 0.0}
        return generate(model, processor, prompt, [question.image], **options).text

    assert single_texts == [ask(question) for question in questions]


@pytest.mark.parametrize("size", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_probabilities_of_a_batch_are_those_one_by_one(
    words_model, questions, single_probabilities, size
):
    single, many = single_probabilities, probabilities(words_model, questions, size)
    np.testing.assert_allclose(many, single, rtol=0, atol=1e-5)
    assert np.ptp(single, axis=0).max() > 0.5
    np.testing.assert_allclose(single.sum(axis=1), 1, atol=1e-6)


def test_probabilities_are_those_of_the_next_token_among_the_strings(
    words_model, questions, single_probabilities
):
    model, processor = words_model
    question = questions[0]
    prompt = apply_chat_template(processor, model.config, question.prompt, num_images=1)
    inputs = processor(text=[prompt], images=[question.image])
    logits = model(inputs["input_ids"], inputs["pixel_values"]).logits[0, -1]
    every = mx.softmax(logits.astype(mx.float32))
    ids = [processor.tokenizer.encode(text, add_special_tokens=False)[0] for text in STRINGS]
    chosen = np.array(every)[ids]
    np.testing.assert_allclose(single_probabilities[0], chosen / chosen.sum(), atol=1e-5)


def test_a_picture_is_encoded_once(words_model, questions, monkeypatch):
    model, processor = words_model
    encoded = []
    original = type(model).encode_image

    def count(self, pixels):
        encoded.append(pixels.shape[0])
        return original(self, pixels)

    monkeypatch.setattr(type(model), "encode_image", count)
    same = [Question(q.prompt, questions[0].image, "one") for q in questions[:5]]
    answers = Answering(model, processor)
    first, second = (
        answers.probabilities(same[:3], STRINGS),
        answers.probabilities(same[3:], STRINGS),
    )
    assert encoded == [1]
    expected = [Question(q.prompt, questions[0].image, str(n)) for n, q in enumerate(same)]
    apart = probabilities(words_model, expected, 5)
    np.testing.assert_allclose([*first, *second], apart, atol=1e-5)


def test_a_long_prompt_loses_its_end(words_model, questions, monkeypatch):
    model, processor = words_model
    question = questions[0]
    prompt = apply_chat_template(processor, model.config, question.prompt, num_images=1)
    length = processor(text=[prompt], images=[question.image])["input_ids"].shape[1]
    limit = length - processor.num_image_tokens
    long = Question(question.prompt + " How many are there?", question.image, "long")
    short = Question("Where?", question.image, "short")
    whole = probabilities(words_model, [long, short], 2)
    monkeypatch.setattr(answering, "MAX_PROMPT_TOKENS", limit - 2)
    cut = probabilities(words_model, [long, short], 2)
    assert abs(cut[0] - whole[0]).max() > 1e-3
    np.testing.assert_allclose(cut[1], whole[1], atol=1e-5)
    # Only the start of the prompt remains; its "Out:" is cut off too.
    prompt = apply_chat_template(processor, model.config, long.prompt, num_images=1)
    ids = processor(text=[prompt], images=[question.image])
    kept = ids["input_ids"][:, : processor.num_image_tokens + limit - 2]
    logits = model(kept, ids["pixel_values"]).logits[0, -1]
    tokens = [processor.tokenizer.encode(text, add_special_tokens=False)[0] for text in STRINGS]
    expected = mx.softmax(logits[mx.array(tokens)].astype(mx.float32))
    np.testing.assert_allclose(cut[0], np.array(expected), atol=1e-5)


def test_a_word_of_several_tokens_is_refused(words_model):
    with pytest.raises(ValueError, match="probability of 'Perhaps' is needed, which is"):
        Answering(*words_model).token_ids(["Yes", "Perhaps"])


@pytest.mark.parametrize(
    "name", ["clip", "dino", "dinoclip", pytest.param("siglip384", marks=pytest.mark.slow)]
)
def test_the_familys_other_models_answer_the_same_in_batches(questions, name):
    model, processor = load(REFERENCE / "family" / name / "hf")
    model.set_dtype(mx.float32)
    answering, few = Answering(model, processor), questions[:2]
    apart = [answering.probabilities([question], "AB")[0] for question in few]
    np.testing.assert_allclose(answering.probabilities(few, "AB"), apart, rtol=0, atol=1e-5)
    texts_apart = [answering.texts([question], 4)[0] for question in few]
    assert answering.texts(few, 4) == texts_apart


def test_a_checkpoint_in_bfloat16_answers_the_same_in_batches(questions):
    model = load(CHECKPOINT)
    assert texts(model, questions[:4], 4) == texts(model, questions[:4], 1)
