"""Every member of the family converts, quantises, loads, answers and batches."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm
import pytest
from comparing import assert_same_parameters
from family_members import AS_STORED, FORMS, IMAGES, Reference, converted
from mlx.utils import tree_flatten
from mlx_vlm import batch_generate, generate
from mlx_vlm.models.moxin.towers import TOWER_NAMES
from mlx_vlm.trainer.peft import get_peft_model
from support import image_path

from mlx_vlm_moxin import load, save_quantized
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.conversion.convert import convert
from mlx_vlm_moxin.conversion.source_files import SourceFiles

PACKED = QuantizeOptions(quantize=True, q_bits=8, q_group_size=32)


# One tower and two, both forms, a linear projector.
BY_DEFAULT = [("dino", "hf"), ("dinoclip", "native"), ("in1k", "native")]
assert set(BY_DEFAULT) <= set(FORMS)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(form, marks=() if form in BY_DEFAULT else pytest.mark.slow) for form in FORMS
    ],
    ids="-".join,
)
def form(request):
    """A member's name and one of its forms."""
    return request.param


@pytest.fixture(scope="module")
def reference(form):
    return Reference(*form)


@pytest.fixture(scope="module")
def plain(form, tmp_path_factory):
    """The stored form, converted."""
    return converted(*form, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def float32(form, tmp_path_factory):
    """The form in float32, converted and loaded; tests must not change either."""
    options = QuantizeOptions(dtype="float32")
    path = converted(*form, tmp_path_factory.mktemp("float32") / "model", options)
    return path, *mlx_vlm.load(str(path))


def answers(model, processor, prompt: str) -> list[str]:
    return [
        generate(model, processor, prompt, [image_path(name)], max_tokens=6).text for name in IMAGES
    ]


def test_a_conversion_is_complete(float32, reference):
    path, model, processor = float32
    config = json.loads((path / "config.json").read_text())
    assert config["model_type"] == "moxin"
    assert config["llm_backbone_id"]
    assert not config.keys() & {"timm_model_ids", "arch_specifier", "image_sizes"}
    towers = [name for name in TOWER_NAMES if name in config["vision_config"]]
    assert towers == reference.goldens["towers"]
    reference.check_prompts(processor, model.config)


def test_a_conversion_is_a_source(float32, tmp_path):
    path, model, _ = float32
    again = convert(SourceFiles(str(path)), tmp_path / "again", AS_STORED, quiet=True).directory
    assert_same_parameters(model, mlx_vlm.load(str(again))[0])
    configs = [json.loads((each / "config.json").read_text()) for each in (path, again)]
    assert configs[0] == configs[1]


def test_batches_give_what_single_questions_give(float32, reference):
    _, model, processor = float32
    prompt = reference.goldens["prompts"][0]["prompt"]
    images = [image_path(name) for name in IMAGES]
    prompts = [prompt] * len(images)
    batch = batch_generate(model, processor, images, prompts=prompts, max_tokens=6, verbose=False)
    assert [text.strip() for text in batch.texts] == answers(model, processor, prompt)


def test_quantised_while_loading_it_is_what_a_conversion_quantises(plain, form, tmp_path):
    packed = converted(*form, tmp_path / "packed", PACKED)
    ours, processor = load(plain, quantize=8, group_size=32)
    theirs, _ = mlx_vlm.load(str(packed))
    assert_same_parameters(ours, theirs)
    save_quantized(ours, processor, tmp_path / "saved")
    assert_same_parameters(ours, mlx_vlm.load(str(tmp_path / "saved"))[0])
    assert all(answers(theirs, processor, "a"))


def test_an_adapter_learns(plain):
    model, processor = mlx_vlm.load(str(plain))
    model = get_peft_model(model, ["q_proj", "v_proj"], rank=4, verbose=False)
    inputs = processor("a", [image_path("photo")])

    def loss(model):
        logits = model(inputs["input_ids"], inputs["pixel_values"]).logits
        return logits[:, -1].astype(mx.float32).square().mean()

    model.train()
    _, gradients = nn.value_and_grad(model, loss)(model)
    found = [mx.abs(value).max().item() for _, value in tree_flatten(gradients)]
    assert len(found) == 2 * 2 * len(model.layers)
    assert max(found) > 0
