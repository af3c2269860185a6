"""The bar: the PyTorch reference's pixels, features, logits, tokens and text."""

import reference_checks as checks


def test_pixels_equal_the_reference_to_the_last_bit():
    checks.check_pixels()


def test_features_equal_the_reference(model, processor):
    checks.check_features(model, processor)


def test_logits_equal_the_reference(model, processor):
    checks.check_logits(model, processor)


def test_greedy_tokens_and_text_equal_the_reference(model, processor):
    checks.check_answers(model, processor)


def test_bfloat16_is_as_close_to_the_reference_as_pytorch_in_bfloat16(bf16_model, processor):
    checks.check_bf16(bf16_model, processor)
