"""Model inputs: one <s>, placeholders, padding, and the processor's errors."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm.models.moxin import prepared_picture
from mlx_vlm.models.moxin.processing_moxin import MoxinProcessor
from mlx_vlm.utils import prepare_inputs
from PIL import Image
from support import (
    GOLDENS,
    HF_CHECKPOINT,
    PROMPTS,
    REFERENCE,
    image_path,
    preprocessor_config,
    run_python,
)
from transformers import AutoProcessor

PHOTO, TALL = image_path("photo"), image_path("tall")
FIRST, VOCAB_SIZE, COUNT = 513, 576, 4


def ids_of(inputs) -> list[list[int]]:
    return inputs["input_ids"].tolist()


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["message"])
def test_ids_are_bos_placeholders_and_the_rest_of_the_prompt(processor, case):
    (ids,) = ids_of(processor(case["prompt"], [PHOTO]))
    bos, *text = case["input_ids"]
    assert ids[0] == bos
    assert all(FIRST <= token < VOCAB_SIZE for token in ids[1 : 1 + COUNT])
    assert ids[1 + COUNT :] == text


def test_the_last_placeholder_is_the_image_token_and_the_only_one(processor):
    for name in GOLDENS["images"]:
        (ids,) = ids_of(processor("In: a\nOut:", [image_path(name)]))
        assert [i for i, token in enumerate(ids) if token == FIRST] == [COUNT]


def same_inputs(left, right) -> bool:
    assert set(left) == set(right)
    return all(mx.array_equal(left[name], right[name]).item() for name in left)


def test_the_picture_of_the_last_call_is_computed_once(monkeypatch):
    processor = MoxinProcessor.from_pretrained(HF_CHECKPOINT)
    computed = []
    original = processor.image_processor.process
    monkeypatch.setattr(
        type(processor.image_processor),
        "process",
        lambda self, image: computed.append(image.size) or original(image),
    )
    first = processor("In: a\nOut:", [PHOTO])
    assert same_inputs(processor("In: a\nOut:", [PHOTO]), first)
    assert len(computed) == 1
    processor("In: a\nOut:", [TALL])
    assert same_inputs(processor("In: a\nOut:", [PHOTO]), first)
    assert len(computed) == 3


@pytest.mark.parametrize("limit", [0, 2**22])
def test_a_remembered_picture_is_never_taken_for_another(limit, monkeypatch):
    monkeypatch.setattr(prepared_picture, "MAX_REMEMBERED", limit)
    processor = MoxinProcessor.from_pretrained(HF_CHECKPOINT)
    image = Image.new("RGB", (28, 40), (10, 20, 30))

    def is_fresh() -> bool:
        fresh = MoxinProcessor.from_pretrained(HF_CHECKPOINT)
        fresh.image_processor = processor.image_processor
        fresh.vocab_size = processor.vocab_size
        return same_inputs(processor("In: a\nOut:", [image]), fresh("In: a\nOut:", [image]))

    assert is_fresh()
    image.putpixel((27, 39), (11, 20, 30))
    assert is_fresh()
    image = image.resize((40, 28), Image.Resampling.NEAREST)
    assert is_fresh()
    image = Image.frombytes("RGB", (28, 40), image.tobytes())
    assert is_fresh()
    processor.image_processor.image_mean[1][2] += 2**-20
    assert is_fresh()
    processor.vocab_size -= 1
    assert is_fresh()


@pytest.mark.parametrize("add_special_tokens", [True, False])
@pytest.mark.parametrize("images", [None, [PHOTO]])
@pytest.mark.parametrize("prompt", ["In: a\nOut:", "<s>In: a\nOut:", ""])
def test_every_path_yields_exactly_one_bos(processor, prompt, images, add_special_tokens):
    inputs = processor(prompt, images, add_special_tokens=add_special_tokens)
    assert ids_of(inputs)[0].count(1) == 1
    assert ids_of(inputs)[0][0] == 1


def test_text_only_calls_of_mlx_vlm_bypass_the_processor_and_still_get_one_bos(processor):
    inputs = prepare_inputs(processor, prompts=["In: a\nOut:"], add_special_tokens=True)
    assert ids_of(inputs) == ids_of(processor("In: a\nOut:"))


def test_shorter_rows_are_padded_on_the_left_and_masked(processor):
    prompts = [PROMPTS[1]["prompt"], PROMPTS[0]["prompt"]]
    inputs = processor(prompts, [PHOTO, TALL])
    for row, (prompt, image) in enumerate(zip(prompts, (PHOTO, TALL))):
        (alone,) = ids_of(processor(prompt, [image]))
        ids, mask = ids_of(inputs)[row], inputs["attention_mask"].tolist()[row]
        padding = len(ids) - len(alone)
        assert ids == [512] * padding + alone
        assert mask == [0] * padding + [1] * len(alone)
    assert inputs["pixel_values"].shape == (2, 6, 28, 28)


def test_rows_can_be_padded_on_the_right(processor):
    inputs = processor(["In: a\nOut:", "In: a b\nOut:"], padding_side="right")
    assert ids_of(inputs)[0][0] == 1
    assert inputs["attention_mask"].tolist()[0][-1] == 0


def test_pictures_belong_to_the_first_rows(processor):
    prompts = ["In: a\nOut:", "In: b\nOut:"]
    with_image, without = ids_of(processor(prompts, [PHOTO]))
    assert with_image == ids_of(processor(prompts[0], [PHOTO]))[0]
    assert [token for token in without if token != 512] == ids_of(processor(prompts[1]))[0]


def test_another_thread_can_read_the_pixels(processor):
    pictures = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    with ThreadPoolExecutor(1) as pool:
        inputs = pool.submit(processor, ["In: a\nOut:"] * 2, pictures).result()
    for pixels, picture in zip(inputs["pixel_values"], pictures):
        assert np.array_equal(pixels, processor.image_processor(picture)[0])


def test_pixels_that_a_caller_changes_do_not_come_back(processor):
    picture = Image.new("RGB", (30, 20), "red")
    first = processor("In: a\nOut:", picture)["pixel_values"]
    before = np.array(first)
    first[:] = 0
    assert np.array_equal(processor("In: a\nOut:", picture)["pixel_values"], before)


@pytest.mark.parametrize("typed", ["<image>", "<PAD>", "<s>", "[IMG]", "<unk>"])
def test_typed_marks_never_become_placeholders(processor, typed):
    (ids,) = ids_of(processor(f"In: a {typed} b\nOut:"))
    assert all(token < FIRST for token in ids)


@pytest.mark.parametrize(("images", "prompts"), [([PHOTO, TALL], "In: a\nOut:"), ([PHOTO] * 3, 2)])
def test_more_pictures_than_prompts_are_refused(processor, images, prompts):
    text = prompts if isinstance(prompts, str) else ["In: a\nOut:"] * prompts
    with pytest.raises(
        ValueError, match=f"supports one image per prompt, got {len(images)} images"
    ):
        processor(text, images)


def test_a_saved_processor_gives_the_same_inputs(processor, tmp_path):
    shutil.copy(HF_CHECKPOINT / "config.json", tmp_path)
    processor.save_pretrained(tmp_path)
    again = MoxinProcessor.from_pretrained(tmp_path)
    for key, value in processor(PROMPTS[1]["prompt"], [TALL]).items():
        assert mx.array_equal(again(PROMPTS[1]["prompt"], [TALL])[key], value)
    assert again.chat_template == processor.chat_template
    source = json.loads((HF_CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8")) == source


def test_without_a_preprocessor_config_strategy_and_size_come_from_config_json(tmp_path):
    shutil.copytree(HF_CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["image_resize_strategy"] = "letterbox"
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    image_processor = MoxinProcessor.from_pretrained(tmp_path).image_processor
    assert (image_processor.image_size, image_processor.resize_strategy) == (28, "letterbox")


def test_pixels_for_another_number_of_towers_are_refused(tmp_path):
    shutil.copytree(HF_CHECKPOINT, tmp_path, dirs_exist_ok=True)
    one = preprocessor_config(28)
    for name in ("input_sizes", "interpolations", "tvf_normalize_params", "tvf_resize_params"):
        one[name] = one[name][:1]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(one), encoding="utf-8")
    message = r"preprocessor_config\.json is for 1 vision tower, config\.json has 2"
    with pytest.raises(ValueError, match=message):
        MoxinProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["clip", "siglip384"])
def test_without_a_preprocessor_config_constants_are_those_of_the_models_towers(tmp_path, name):
    source = REFERENCE / "family" / name / "hf"
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    (tmp_path / "preprocessor_config.json").unlink()
    ours = MoxinProcessor.from_pretrained(tmp_path)
    theirs = MoxinProcessor.from_pretrained(source)
    assert ours.image_processor.image_size == theirs.image_processor.image_size
    np.testing.assert_allclose(
        ours.image_processor.image_mean, theirs.image_processor.image_mean, rtol=4e-3
    )
    np.testing.assert_allclose(
        ours.image_processor.image_std, theirs.image_processor.image_std, rtol=4e-3
    )
    assert ours.num_image_tokens == theirs.num_image_tokens


def test_auto_processor_returns_ours_and_leaves_other_models_alone(tmp_path):
    assert isinstance(AutoProcessor.from_pretrained(HF_CHECKPOINT), MoxinProcessor)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}', encoding="utf-8")
    with pytest.raises(Exception, match=r"(?i)processor"):
        AutoProcessor.from_pretrained(tmp_path)


def test_an_error_of_our_processor_is_not_swallowed(tmp_path):
    shutil.copytree(HF_CHECKPOINT, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"No tokenizer\.json"):
        AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)


def test_neither_torch_nor_timm_is_imported_to_answer():
    code = """
import sys
for name in ("torch", "timm", "torchvision"):
    sys.modules[name] = None
from mlx_vlm import apply_chat_template, generate, load
model, processor = load(sys.argv[1])
prompt = apply_chat_template(processor, model.config, "What is shown?", num_images=1)
generate(model, processor, prompt, [sys.argv[2]], max_tokens=2)
print([name for name in sys.modules if name.split(".")[0] in ("torch", "timm", "torchvision")
       and sys.modules[name] is not None])
"""
    assert run_python(code, HF_CHECKPOINT, PHOTO).strip() == "[]"


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["message"])
def test_tokens_are_counted_without_the_picture(processor, case):
    (text,) = ids_of(processor(case["prompt"]))
    (both,) = ids_of(processor(case["prompt"], [PHOTO]))
    assert processor.count_tokens(case["prompt"]) == len(text)
    assert processor.count_tokens(case["prompt"], 1) == len(both)


def test_decoding_is_the_tokenizers(processor):
    ids = processor.tokenizer("In: a\nOut:")["input_ids"]
    for options in ({}, {"skip_special_tokens": True}):
        text = processor.tokenizer.decode(ids, **options)
        assert processor.decode(ids, **options) == text
        assert processor.batch_decode([ids, ids], **options) == [text, text]
    assert processor.clean_output("  an answer\n") == "an answer"
