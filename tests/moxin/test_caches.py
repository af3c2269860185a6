"""A cache is reused for the same picture only."""

import pytest
from mlx_vlm import PromptCacheState, apply_chat_template, generate, load, stream_generate
from mlx_vlm.chat import MLXVisionChat
from server_process import Server, user_message
from support import GOLDENS, MESSAGES, PROMPTS, image_path

GOLDEN = GOLDENS["generate"]["hf"]
TOKENS = GOLDENS["new_tokens"]


def ask(model, processor, state, name: str, prompt: str):
    """Last chunk of an answer that may reuse ``state``."""
    (*_, last) = stream_generate(
        model,
        processor,
        prompt,
        [image_path(name)],
        max_tokens=TOKENS,
        prompt_cache_state=state,
    )
    return last


def test_one_prompt_cache_never_mixes_pictures(model, processor):
    state = PromptCacheState()
    for name in ("photo", "tall", "photo", "gray", "rgba"):
        result = ask(model, processor, state, name, PROMPTS[0]["prompt"])
        assert result.token_ids == GOLDEN[name][0]["tokens"]
        assert result.cached_tokens == 0


def test_a_follow_up_on_the_same_picture_reuses_the_cache(model, processor):
    state = PromptCacheState()
    first = ask(model, processor, state, "photo", PROMPTS[0]["prompt"])
    answer = processor.tokenizer.decode(first.token_ids)
    turns = [("user", MESSAGES[0]), ("assistant", answer), ("user", MESSAGES[2])]
    conversation = [{"role": role, "content": content} for role, content in turns]
    prompt = apply_chat_template(processor, model.config, conversation, num_images=1)
    second = ask(model, processor, state, "photo", prompt)
    # At least <s>, the picture and the first question.
    assert second.cached_tokens >= 1 + GOLDENS["num_patches"] + 10
    fresh = generate(model, processor, prompt, [image_path("photo")], max_tokens=TOKENS)
    assert second.token_ids == fresh.token_ids


def test_another_picture_in_the_same_conversation_starts_afresh(model, processor):
    state = PromptCacheState()
    ask(model, processor, state, "photo", PROMPTS[0]["prompt"])
    prompt = PROMPTS[0]["prompt"] + " yes</s>" + PROMPTS[2]["prompt"]
    second = ask(model, processor, state, "tall", prompt)
    assert second.cached_tokens == 0
    fresh = generate(model, processor, prompt, [image_path("tall")], max_tokens=TOKENS)
    assert second.token_ids == fresh.token_ids


def test_one_chat_about_two_pictures_equals_fresh_runs(fp32_checkpoint):
    chat = MLXVisionChat(str(fp32_checkpoint), temperature=0.0, max_tokens=8, verbose=False)
    model, processor = load(str(fp32_checkpoint))
    for name, message in (("photo", MESSAGES[0]), ("tall", MESSAGES[0]), ("photo", MESSAGES[2])):
        chat.handle_command("/image", image_path(name))
        chat.add_to_history("user", message)
        prompt = apply_chat_template(processor, model.config, chat.history, num_images=1)
        fresh = generate(model, processor, prompt, [image_path(name)], max_tokens=8)
        answer = chat.generate_response()
        assert answer.strip() == fresh.text
        chat.add_to_history("assistant", answer)


@pytest.fixture(scope="module")
def server(fp32_checkpoint, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with Server(fp32_checkpoint, log, APC_ENABLED="1", APC_BLOCK_SIZE="4") as server:
        yield server


def test_one_server_with_its_prefix_cache_never_mixes_pictures(server):
    for name in ("photo", "tall", "photo", "gray", "photo"):
        message = user_message(MESSAGES[0], image_path(name))
        answer = server.answer(message, max_tokens=TOKENS)
        assert answer.strip() == GOLDEN[name][0]["text"]


def test_the_server_reuses_the_cache_for_the_same_picture_and_text(server):
    message = user_message(MESSAGES[1], image_path("tall"))
    server.answer(message, max_tokens=TOKENS)
    second = server.chat(message, max_tokens=TOKENS)
    assert second["choices"][0]["message"]["content"].strip() == GOLDEN["tall"][1]["text"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
