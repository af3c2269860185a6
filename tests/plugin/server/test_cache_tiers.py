"""Prefix cache and feature cache, each tier: reused for the same picture only."""

import time
from pathlib import Path

import pytest
from bodies import get
from mlx_vlm import apc, generate
from mlx_vlm.server.generation import GenerationArguments, ResponseGenerator
from mlx_vlm.vision_cache import VisionFeatureCache
from PIL import Image
from server_process import Server, user_message
from support import GOLDENS, MESSAGES, PROMPTS, image_path

from mlx_vlm_moxin.plugin.server.generator import adopt

GOLDEN = GOLDENS["generate"]["hf"]
TOKENS = GOLDENS["new_tokens"]
# <s> and the picture.
PREFIX = 1 + GOLDENS["num_patches"]


def ask(server, name: str, index: int = 0) -> tuple[str, int]:
    """Text of an answer, and the number of prompt tokens that came from a cache."""
    answer = server.chat(user_message(MESSAGES[index], image_path(name)), max_tokens=TOKENS)
    usage = answer["usage"]
    assert usage["prompt_tokens"] == len(PROMPTS[index]["input_ids"]) + GOLDENS["num_patches"]
    text = answer["choices"][0]["message"]["content"].strip()
    return text, usage["prompt_tokens_details"]["cached_tokens"]


def wait_until_written(server) -> None:
    """Wait for the disk tier, which is written in the background and lost when the server ends."""
    for _ in range(100):
        if get(server, "/v1/cache/stats")["disk_pending_bytes"] == 0:
            return
        time.sleep(0.1)
    raise AssertionError("The disk tier was not written")


# Tokens per block of the prefix cache: the first block ends inside the picture.
BLOCK = GOLDENS["num_patches"]


def test_the_disk_tier_survives_a_restart_and_knows_its_pictures(fp32_checkpoint, tmp_path):
    tier = {
        "APC_ENABLED": "1",
        "APC_BLOCK_SIZE": str(BLOCK),
        "APC_DISK_PATH": str(tmp_path / "apc"),
    }
    # The last token of a prompt is always computed.
    cached = (len(PROMPTS[0]["input_ids"]) + GOLDENS["num_patches"] - 1) // BLOCK * BLOCK
    asked = ["photo", "rgba", "gray"]
    with Server(fp32_checkpoint, tmp_path / "first.txt", **tier) as server:
        for name in asked:
            assert ask(server, name) == (GOLDEN[name][0]["text"], 0)
        for name in asked:
            assert ask(server, name) == (GOLDEN[name][0]["text"], cached)
        wait_until_written(server)
    assert list((tmp_path / "apc").rglob("*.safetensors"))
    with Server(fp32_checkpoint, tmp_path / "second.txt", **tier) as server:
        for name in ("tall", "tiny", "palette"):
            assert ask(server, name) == (GOLDEN[name][0]["text"], 0)
        for name in asked:
            # Another question about the same picture shares <s>, the picture and "In:".
            assert ask(server, name, 2) == (GOLDEN[name][2]["text"], (PREFIX + 2) // BLOCK * BLOCK)
            assert ask(server, name) == (GOLDEN[name][0]["text"], cached)
        assert get(server, "/v1/cache/stats")["disk_hits"] > 0


def apc_manager(tier: str, path: Path) -> apc.APCManager | None:
    settings = {"enabled": True, "block_size": 4, "num_blocks": 64, "disk_path": str(path)}
    settings["disk_enabled"] = tier == "memory and disk"
    return None if tier == "none" else apc.from_env("test", settings)


@pytest.fixture(params=["none", "memory", "memory and disk"])
def generator(request, fp32_checkpoint, tmp_path):
    """The server's generator in this process, with each tier of prefix cache."""
    generator = ResponseGenerator(
        str(fp32_checkpoint),
        vision_cache=VisionFeatureCache(),
        apc_manager=apc_manager(request.param, tmp_path),
    )
    generator.wait_until_ready()
    yield generator
    generator.stop_and_join()


def answer_of(generator, image, index: int) -> tuple[str, int]:
    """Text, and number of cached tokens, of a greedy answer."""
    arguments = GenerationArguments(max_tokens=TOKENS, temperature=0)
    _, stream = generator.generate(PROMPTS[index]["prompt"], [image], args=arguments)
    tokens = list(stream)
    return "".join(token.text for token in tokens).strip(), max(t.cached_tokens for t in tokens)


def test_a_feature_cache_without_room_is_not_used(fp32_checkpoint):
    cache = VisionFeatureCache(max_size=0)
    generator = ResponseGenerator(str(fp32_checkpoint), vision_cache=cache)
    generator.wait_until_ready()
    adopt(generator)
    try:
        for _ in range(2):
            text, _ = answer_of(generator, image_path("photo"), 0)
            assert text == GOLDEN["photo"][0]["text"]
    finally:
        generator.stop_and_join()


def test_a_second_question_about_a_picture_skips_the_towers(generator, monkeypatch):
    calls, tower = [], type(generator.model.vision_tower)
    run = tower.__call__

    def counted(self, pixel_values):
        calls.append(pixel_values.shape[0])
        return run(self, pixel_values)

    monkeypatch.setattr(tower, "__call__", counted)
    asked = [("photo", 0), ("photo", 2), ("tall", 0), ("photo", 1), ("tall", 0), ("photo", 0)]
    for name, index in asked:
        text, _ = answer_of(generator, image_path(name), index)
        assert text == GOLDEN[name][index]["text"]
    assert calls == [1, 1]


def test_a_picture_that_differs_in_one_bit_is_another_picture(generator, model, processor):
    size = (model.config.vision_config.image_size,) * 2
    picture = Image.open(image_path("photo")).convert("RGB").resize(size)
    changed = picture.copy()
    red, green, blue = changed.getpixel((3, 4))
    changed.putpixel((3, 4), (red ^ 1, green, blue))
    for image in (picture, changed):
        text, cached = answer_of(generator, image, 0)
        alone = generate(model, processor, PROMPTS[0]["prompt"], [image], max_tokens=TOKENS)
        assert (text, cached) == (alone.text, 0)
