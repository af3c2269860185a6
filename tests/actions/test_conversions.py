"""Converted action models keep everything they need, and their actions do not change."""

import json

import mlx.core as mx
import numpy as np
import pytest
from action_models import (
    ID_MARGIN,
    goldens,
    picture,
    write_native_run,
)
from mlx_vlm import convert as stock_convert
from mlx_vlm import load as stock_load

from mlx_vlm_moxin import load, save_quantized
from mlx_vlm_moxin.actions.policy import predict
from mlx_vlm_moxin.actions.prompt import prompt_ids
from mlx_vlm_moxin.checkpoints.action_options import ActionOptions
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions
from mlx_vlm_moxin.conversion import command_line
from mlx_vlm_moxin.conversion.convert import convert
from mlx_vlm_moxin.conversion.source_files import SourceFiles

INSTRUCTION = goldens("oft")["instructions"][0]
FLOAT32 = QuantizeOptions(dtype="float32")
LIBERO = ActionOptions(preset="libero", center_crop=True)


def converted(source, target, actions=None, **files):
    convert(
        SourceFiles(str(source), actions=actions or ActionOptions(), **files),
        target,
        FLOAT32,
        quiet=True,
    )
    return target


@pytest.fixture(scope="module")
def oft(action_checkpoint, tmp_path_factory):
    """OpenVLA-OFT in float32, converted with a preset."""
    return converted(action_checkpoint("oft"), tmp_path_factory.mktemp("oft") / "model", LIBERO)


def chunk(model, processor, **kwargs):
    images = [picture("photo"), picture("tall")]
    return predict(model, processor, images, INSTRUCTION, state=[0.1] * 8, **kwargs)


def test_settings_and_statistics_are_written_out(oft):
    config = json.loads((oft / "config.json").read_text(encoding="utf-8"))
    assert config["action_config"]["chunk_size"] == 8
    assert config["action_config"]["center_crop"] is True
    assert [*config["norm_stats"]] == ["libero_spatial_no_noops"]
    statistics = json.loads((oft / "dataset_statistics.json").read_text(encoding="utf-8"))
    assert statistics == config["norm_stats"]


def test_stock_mlx_vlm_loads_the_head_with_the_model(oft, action_checkpoint):
    original, processor = load(action_checkpoint("oft"), actions=LIBERO)
    original.set_dtype(mx.float32)
    model, stock_processor = stock_load(str(oft))
    np.testing.assert_allclose(
        chunk(model, stock_processor).action, chunk(original, processor).action, atol=1e-6
    )


def test_stock_convert_keeps_head_settings_and_statistics(oft, tmp_path):
    stock_convert(str(oft), str(tmp_path / "stock"), dtype="float32", trust_remote_code=False)
    expected, actual = (chunk(*stock_load(str(path))) for path in (oft, tmp_path / "stock"))
    np.testing.assert_array_equal(actual.action, expected.action)


def test_converting_again_keeps_the_settings_and_single_options_win(oft, tmp_path):
    model, processor = load(converted(oft, tmp_path / "again"))
    assert model.config.action_config.center_crop
    expected = chunk(*load(oft))
    np.testing.assert_array_equal(chunk(model, processor).action, expected.action)
    options = ActionOptions(center_crop=False, discrete=True)
    model, processor = load(converted(oft, tmp_path / "other", options))
    assert not model.config.action_config.center_crop
    assert "action_head" not in model
    assert chunk(model, processor).token_ids.shape == (8, 7)


def test_a_preset_that_does_not_fit_a_conversion_is_refused(oft):
    load(oft, actions="libero")
    with pytest.raises(ValueError, match="preset aloha has action_dim 14, this checkpoint 7"):
        load(oft, actions="aloha")


def test_saving_a_loaded_model_keeps_everything(oft, tmp_path):
    model, processor = load(oft)
    save_quantized(model, processor, tmp_path / "saved")
    expected = chunk(model, processor)
    actual = chunk(*load(tmp_path / "saved"))
    np.testing.assert_array_equal(actual.action, expected.action)
    assert (tmp_path / "saved" / "dataset_statistics.json").is_file()


def test_openvla_keeps_its_statistics(action_checkpoint, tmp_path):
    model, processor = stock_load(str(converted(action_checkpoint("openvla"), tmp_path / "model")))
    case = goldens("openvla")["cases"][0]
    text = goldens("openvla")["instructions"][case["instruction"]]
    for key, action in case["actions"].items():
        prediction = predict(model, processor, picture(case["image"]), text, key)
        assert [*prediction.token_ids] == case["ids"]
        np.testing.assert_allclose(prediction.action, action, atol=1e-12)


def test_native_runs_give_the_actions_of_their_published_code(tmp_path):
    run, llm = write_native_run(tmp_path)
    model, processor = stock_load(str(converted(run, tmp_path / "model", llm=str(llm))))
    known = goldens("openvla")
    assert known["native"]["cases"]
    for case in known["native"]["cases"]:
        text = known["instructions"][case["instruction"]]
        for key, action in case["actions"].items():
            prediction = predict(model, processor, picture(case["image"]), text, key)
            assert case["min_margin"] < ID_MARGIN["openvla"] or (
                [*prediction.token_ids] == case["ids"]
            )
            np.testing.assert_allclose(prediction.action, action, atol=1e-12)


def test_native_runs_drop_image_markers_from_instructions_as_in_training(tmp_path):
    run, llm = write_native_run(tmp_path)
    model, processor = stock_load(str(converted(run, tmp_path / "model", llm=str(llm))))
    marked, plain = (
        prompt_ids(processor.tokenizer, model.config, text)
        for text in ("close the <image> door", "close the  door")
    )
    assert marked == plain


def test_the_command_accepts_the_options_of_action_models(action_checkpoint, tmp_path, capsys):
    arguments = ["--model", str(action_checkpoint("oft")), "--mlx-path", str(tmp_path / "model")]
    assert command_line.main([*arguments, "--no-verify"]) == 1
    assert "--action-preset libero|aloha|bridge" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    settings = ["--action-preset", "libero", "--action-images", "1", "--center-crop"]
    assert command_line.main([*arguments, "--no-verify", *settings]) == 0
    model, _ = load(tmp_path / "model")
    config = model.config.action_config
    assert (config.chunk_size, config.num_images, config.center_crop) == (8, 1, True)
