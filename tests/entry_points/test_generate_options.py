"""``mlx_vlm generate``: each option has its effect, and only the answer is printed."""

import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_vlm import apply_chat_template, generate, load
from mlx_vlm.models.cache import QuantizedKVCache, make_prompt_cache
from mlx_vlm.models.moxin.language import ONE_PASS_TOKENS
from mlx_vlm.utils import resize_image
from PIL import Image
from server_process import data_uri
from support import GOLDENS, IMAGES, MESSAGES, PROMPTS, image_path, run_module

TOKENS = GOLDENS["new_tokens"]
GOLDEN = GOLDENS["generate"]["hf"]["photo"][0]
PROMPT = PROMPTS[0]["prompt"]
PHOTO = image_path("photo")
# <s>, the picture and the rest of the prompt.
PROMPT_TOKENS = len(PROMPTS[0]["input_ids"]) + GOLDENS["num_patches"]
KV_BITS = ("--quantized-kv-start", "0", "--kv-bits")


def run(model, *arguments: str, image: str | None = PHOTO):
    """The finished command; greedy, about the photo, unless ``arguments`` say otherwise."""
    picture = [] if image is None else ["--image", image]
    prompt = [] if "--prompt" in arguments else ["--prompt", MESSAGES[0]]
    length = [] if "--max-tokens" in arguments else ["--max-tokens", str(TOKENS)]
    options = [*prompt, *length, *picture, *arguments]
    return run_module("mlx_vlm", "generate", "--model", model, *options)


def printed(model, *arguments: str, **kwargs) -> str:
    """Standard output, which must be the answer and one line end."""
    result = run(model, *arguments, **kwargs)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n")
    return result.stdout[:-1]


@pytest.fixture(scope="module")
def url():
    """Address of the reference pictures on a web server of this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=IMAGES)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_url_and_a_data_uri_are_pictures(fp32_checkpoint, url):
    assert printed(fp32_checkpoint, image=f"{url}/photo.png") == GOLDEN["text"]
    tiny = GOLDENS["generate"]["hf"]["tiny"][0]["text"]
    assert printed(fp32_checkpoint, image=data_uri(image_path("tiny"))) == tiny


@pytest.mark.parametrize(
    "options",
    [["--prefill-step-size", "3"], ["--max-kv-size", str(PROMPT_TOKENS + TOKENS)]],
    ids=["a step, which a short prompt does not need", "a window that is large enough"],
)
def test_options_that_change_no_answer(fp32_checkpoint, options):
    assert printed(fp32_checkpoint, *options) == GOLDEN["text"]


def test_a_long_prompt_in_steps_has_the_answer_of_one_pass(fp32_checkpoint, model, processor):
    question = "Is there a dog on the left? " * 40
    prompt = apply_chat_template(processor, model.config, question, num_images=1)
    ids = processor(prompt, [PHOTO])["input_ids"]
    assert ids.shape[1] > ONE_PASS_TOKENS
    expected = generate(
        model, processor, prompt, [PHOTO], max_tokens=TOKENS, prefill_step_size=ids.shape[1]
    )
    options = ["--prompt", question, "--prefill-step-size", "100"]
    assert printed(fp32_checkpoint, *options) == expected.text


def test_max_tokens_ends_the_answer(fp32_checkpoint, processor):
    expected = processor.decode(GOLDEN["tokens"][:5], skip_special_tokens=True)
    assert printed(fp32_checkpoint, "--max-tokens", "5") == expected


def test_a_system_message_comes_first_with_and_without_a_picture(fp32_checkpoint, model, processor):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": MESSAGES[0]}]
    for image in (PHOTO, None):
        prompt = apply_chat_template(processor, model.config, turns, num_images=int(bool(image)))
        assert prompt == f"In: Be brief.\n{MESSAGES[0]}\nOut:"
        expected = generate(model, processor, prompt, image and [image], max_tokens=TOKENS)
        assert printed(fp32_checkpoint, "--system", "Be brief.", image=image) == expected.text


def test_a_seed_gives_the_same_sample_again(fp32_checkpoint):
    def sample(seed: int) -> str:
        # The command seeds first too: making the model draws random numbers.
        mx.random.seed(seed)
        options = {"max_tokens": TOKENS, "temperature": 0.8, "top_p": 0.9}
        return generate(*load(str(fp32_checkpoint)), PROMPT, [PHOTO], **options).text

    options = ["--temperature", "0.8", "--top-p", "0.9", "--seed", "7"]
    assert printed(fp32_checkpoint, *options) == sample(7) == sample(7)
    assert len({sample(7), sample(8), GOLDEN["text"]}) == 3


def test_a_small_top_p_leaves_only_the_likeliest_token(model, processor):
    options = {"max_tokens": TOKENS, "temperature": 1.0, "top_p": 1e-6}
    result = generate(model, processor, PROMPT, [PHOTO], **options)
    assert result.token_ids == GOLDEN["tokens"]


@pytest.mark.parametrize("shape", [["20"], ["30", "20"]])
def test_resize_shape_shrinks_the_picture_first(fp32_checkpoint, model, processor, shape):
    width, height = int(shape[0]), int(shape[-1])
    small = resize_image(Image.open(PHOTO).convert("RGB"), (width, height))
    expected = generate(model, processor, PROMPT, [small], max_tokens=TOKENS).text
    assert printed(fp32_checkpoint, "--resize-shape", *shape) == expected != GOLDEN["text"]


def test_a_resize_shape_of_three_numbers_is_refused(fp32_checkpoint):
    result = run(fp32_checkpoint, "--resize-shape", "1", "2", "3")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.endswith("resize_shape must contain 1 or 2 integers")


@pytest.fixture(scope="module")
def wide_checkpoint(fp32_checkpoint, tmp_path_factory) -> Path:
    """The checkpoint with heads of 64 channels, since MLX quantises groups of at least 32."""
    path = shutil.copytree(fp32_checkpoint, tmp_path_factory.mktemp("wide") / "checkpoint")
    config = (path / "config.json").read_text(encoding="utf-8")
    for name, old, new in (
        ("head_dim", 16, 64),
        ("num_attention_heads", 8, 2),
        ("num_key_value_heads", 2, 1),
    ):
        assert f'"{name}": {old}' in config
        config = config.replace(f'"{name}": {old}', f'"{name}": {new}')
    (path / "config.json").write_text(config, encoding="utf-8")
    (file,) = path.glob("*.safetensors")
    weights = mx.load(str(file))
    for name, weight in weights.items():
        if name.endswith(("self_attn.k_proj.weight", "self_attn.v_proj.weight")):
            weights[name] = mx.concatenate([weight, weight[::-1]])
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    return path


def test_a_quantised_key_value_cache_answers_about_the_picture(wide_checkpoint):
    model, processor = load(str(wide_checkpoint))
    plain = generate(model, processor, PROMPT, [PHOTO], max_tokens=TOKENS).text
    # By default it is quantised from 5,000 tokens on.
    assert printed(wide_checkpoint, "--kv-bits", "8") == plain
    assert printed(wide_checkpoint, *KV_BITS, "8") == plain
    assert printed(wide_checkpoint, *KV_BITS, "4") != plain
    cache = make_prompt_cache(model.language_model)
    options = {"kv_bits": 4, "quantized_kv_start": 0, "prompt_cache": cache, "max_tokens": 2}
    generate(model, processor, PROMPT, [PHOTO], **options)
    assert {(type(layer), layer.bits) for layer in cache} == {(QuantizedKVCache, 4)}


def test_a_quantised_cache_with_a_window_is_refused(wide_checkpoint):
    model, processor = load(str(wide_checkpoint))
    options = {"kv_bits": 8, "quantized_kv_start": 0, "max_kv_size": 100, "max_tokens": 2}
    with pytest.raises(NotImplementedError, match="RotatingKVCache Quantization NYI"):
        generate(model, processor, PROMPT, [PHOTO], **options)


def test_a_window_that_cuts_into_the_picture_is_named(fp32_checkpoint):
    result = run(fp32_checkpoint, "--max-kv-size", str(PROMPT_TOKENS - 5))
    assert "max-kv-size" in result.stderr.replace("_", "-")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
