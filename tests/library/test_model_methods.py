"""The model's methods for hand-written loops, and quantising in place."""

import mlx.core as mx
import mlx_vlm
import pytest
from comparing import assert_same_parameters, size, tokens
from mlx_vlm.models.cache import make_prompt_cache
from support import (
    ARRAYS,
    GOLDENS,
    HF_CHECKPOINT,
    LOGITS_TOLERANCE,
    PROMPTS,
    active_memory,
    image_path,
)

from mlx_vlm_moxin import load


def test_a_loop_of_full_forward_and_decode_token_gives_the_references_tokens(model, processor):
    inputs = processor(PROMPTS[0]["prompt"], [image_path("photo")])
    cache = make_prompt_cache(model.language_model)
    golden = GOLDENS["generate"]["hf"]["photo"][0]["tokens"]
    logits = model(inputs["input_ids"], inputs["pixel_values"], cache=cache).logits[:, -1]
    error = mx.abs(logits[0] - mx.array(ARRAYS["hf/logits_last/photo/0"])).max().item()
    assert error < LOGITS_TOLERANCE
    decoded = []
    for _ in golden:
        token = mx.argmax(logits, axis=-1)
        decoded.append(token.item())
        logits = model.decode_token(token, cache).logits[:, -1]
    assert decoded == golden


def test_decode_token_accepts_a_column_as_well(model, processor):
    inputs = processor(PROMPTS[0]["prompt"], [image_path("photo")])

    def decode(token: mx.array) -> mx.array:
        cache = make_prompt_cache(model.language_model)
        model(inputs["input_ids"], inputs["pixel_values"], cache=cache)
        return model.decode_token(token, cache).logits

    assert decode(mx.array([5])).shape == (1, 1, model.config.text_config.vocab_size)
    assert mx.array_equal(decode(mx.array([5])), decode(mx.array([[5]])))


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 32)])
def test_quantising_in_place_is_what_stock_convert_writes(converted, bits, group_size):
    model, processor = load(HF_CHECKPOINT)
    assert model.quantize(group_size, bits) is model
    stock_model, stock_processor = mlx_vlm.load(str(converted(bits, group_size)))
    assert_same_parameters(model, stock_model)
    assert tokens(model, processor) == tokens(stock_model, stock_processor)


def test_quantising_in_place_holds_at_most_a_layer_twice():
    model, _ = load(HF_CHECKPOINT)
    mx.eval(model.parameters())
    whole, layer = size(model), size(model.layers[0])
    before = active_memory()
    model.quantize(64, 8)
    assert mx.get_peak_memory() - before < layer
    # Freed, except for what the allocator rounds up.
    assert before - mx.get_active_memory() > 0.9 * (whole - size(model)) > 0


def test_quantising_a_lazily_loaded_model_never_holds_it_unquantised():
    before = active_memory()
    model, _ = load(HF_CHECKPOINT, lazy=True)
    whole = size(model)
    model.quantize(64, 4)
    mx.eval(model.parameters())
    assert mx.get_peak_memory() - before < whole


@pytest.mark.parametrize("options", [{"group_size": 256}, {"bits": 7}, {"mode": "gguf"}])
def test_settings_that_mlx_does_not_have_leave_the_model_as_it_was(options):
    model, _ = load(HF_CHECKPOINT)
    with pytest.raises(ValueError, match=r"256|\b7\b|gguf"):
        model.quantize(**options)
    assert_same_parameters(model, load(HF_CHECKPOINT)[0])


def test_a_model_that_is_quantised_already_says_so():
    model, _ = load(HF_CHECKPOINT, quantize=8)
    with pytest.raises(ValueError, match="quantised already"):
        model.quantize(64, 4)
