"""An adapter is compared with its base, and what is compared is what mlx-vlm reads."""

import json
import re

import mlx.core as mx
import pytest
from mlx_vlm import load, utils
from mlx_vlm.models.moxin.config import STATISTICS_FILE
from mlx_vlm.trainer.peft.utils import get_peft_model, save_adapter
from support import HF_CHECKPOINT

from mlx_vlm_moxin.plugin.adapters import WEIGHTS_FILES

LAYER = "language_model.model.layers.0.self_attn.q_proj"


def base():
    return load(str(HF_CHECKPOINT), lazy=True)[0]


@pytest.fixture
def save(tmp_path):
    """Write an adapter to a directory of that name and return it, after a change of its tensors."""

    def saved(name, change=lambda tensors: None, file=WEIGHTS_FILES[0], **options):
        directory = tmp_path / name
        directory.mkdir(exist_ok=True)
        model = get_peft_model(base(), rank=2, verbose=False, **options)
        save_adapter(model, str(directory / file))
        tensors = mx.load(str(directory / file))
        mx.eval(tensors)
        change(tensors)
        mx.save_safetensors(str(directory / file), tensors)
        return directory

    return saved


def set_marker(value: float):
    """Give the first layer's second matrix one value, which tells adapters apart."""
    name = f"{LAYER}.lora_b"

    def change(tensors):
        tensors[name] = mx.full(tensors[name].shape, value)

    return change


def marker(model) -> float:
    return model.layers[0].self_attn.q_proj.lora_b[0, 0].item()


@pytest.mark.parametrize("present", [WEIGHTS_FILES, WEIGHTS_FILES[:1], WEIGHTS_FILES[1:]])
def test_the_file_that_is_checked_is_the_one_that_is_loaded(save, present):
    for value, file in enumerate(present):
        directory = save("adapter", set_marker(float(value + 1)), file)
    assert marker(utils.apply_lora_layers(base(), directory)) == 1
    assert marker(utils.apply_lora_layers(base(), str(directory / present[-1]))) == len(present)


def test_statistics_next_to_the_weights_are_used_for_any_form_of_the_path(save):
    directory = save("adapter")
    action = {"q01": [0.0], "q99": [1.0], "mask": [True]}
    statistics = {"mine": {"action": action}}
    (directory / STATISTICS_FILE).write_text(json.dumps(statistics), encoding="utf-8")
    for path in (directory, directory / WEIGHTS_FILES[0]):
        assert utils.apply_lora_layers(base(), path).config.norm_stats == statistics


@pytest.mark.parametrize("shape", [(1,), (27,), (1, 28), ()])
def test_magnitudes_of_another_shape_are_refused(save, shape):
    def change(tensors):
        assert tensors[f"{LAYER}.m"].ndim == 1
        tensors[f"{LAYER}.m"] = mx.ones(shape)

    directory = save("adapter", change, use_dora=True)
    message = f"{LAYER}.m has the shape {list(shape)}, while the base model and rank 2"
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        utils.apply_lora_layers(base(), directory)
    assert len(str(error.value)) < 400


def test_magnitudes_that_are_missing_are_refused(save):
    directory = save("adapter", lambda tensors: tensors.pop(f"{LAYER}.m"), use_dora=True)
    with pytest.raises(ValueError, match=re.escape(f"lacks {LAYER}.m")):
        utils.apply_lora_layers(base(), directory)


def test_an_adapter_of_magnitudes_that_fit_is_loaded(save):
    utils.apply_lora_layers(base(), save("adapter", use_dora=True))


def test_without_weights_the_error_names_the_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        utils.apply_lora_layers(base(), tmp_path)
