"""Action data is encoded as in OpenVLA's training, can be learned, and keeps its statistics."""

import base64
import json
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from action_models import picture
from mlx_vlm import convert as stock_convert
from mlx_vlm import load as stock_load
from mlx_vlm.trainer.datasets.loading import RawSplit
from support import run_module
from training import losses, train

from mlx_vlm_moxin import predict_action
from mlx_vlm_moxin.actions.prompt import prompt_ids
from mlx_vlm_moxin.actions.statistics import scale_of
from mlx_vlm_moxin.actions.tokens import ActionTokenizer
from mlx_vlm_moxin.actions.training import ActionDataset, compute_statistics, is_action_data

INSTRUCTION = "pick up the red cup"
# The picture, the instruction, and the action to be learned.
ROWS = [
    ("photo", INSTRUCTION, [0.1, -0.2, 0.3, 0.0, 0.05, -0.1, 1.0]),
    ("tall", "put the carrot in the bowl", [-0.1, 0.2, -0.3, 0.1, -0.05, 0.1, 0.0]),
]
SETTINGS = ["--train-on-completions", "--optimizer", "adam", "--learning-rate", "0.003"]
SETTINGS += ["--lora-rank", "16", "--lora-alpha", "16", "--iters", "60"]


@pytest.fixture
def data(tmp_path):
    """A folder of action data in the documented form."""
    folder = tmp_path / "my_robot"
    folder.mkdir()
    rows = []
    for name, instruction, action in ROWS:
        picture(name).save(folder / f"{name}.png")
        rows.append({"image": f"{name}.png", "instruction": instruction, "action": action})
    text = "\n".join(map(json.dumps, rows))
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def fp32(action_checkpoint, tmp_path_factory):
    """OpenVLA in float32, converted by stock mlx-vlm."""
    path = tmp_path_factory.mktemp("fp32") / "openvla"
    stock_convert(
        str(action_checkpoint("openvla")), str(path), dtype="float32", trust_remote_code=False
    )
    return path


def rows_of(folder) -> RawSplit:
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return RawSplit(map(json.loads, lines), folder)


def test_statistics_are_openvlas():
    actions = np.random.default_rng(0).normal(size=(500, 3))
    found = compute_statistics(actions)["action"]
    np.testing.assert_allclose(found["q01"], np.quantile(actions, 0.01, axis=0))
    np.testing.assert_allclose(found["q99"], np.quantile(actions, 0.99, axis=0))
    np.testing.assert_allclose(found["mean"], actions.mean(axis=0))
    np.testing.assert_allclose(found["std"], actions.std(axis=0))
    assert (found["min"], found["max"]) == (
        actions.min(axis=0).tolist(),
        actions.max(axis=0).tolist(),
    )


def test_a_row_is_the_prompt_the_actions_ids_and_the_end(fp32, data):
    model, processor = stock_load(str(fp32))
    dataset = ActionDataset(rows_of(data), model.config, processor)
    row = {name: np.array(value) for name, value in dataset[0].items()}
    ids, is_action = row["input_ids"], row["completion_mask"]
    prompt = prompt_ids(processor.tokenizer, model.config, INSTRUCTION)
    patches = model.config.vision_config.num_patches
    assert ids[0] == 1
    assert (ids[1 : 1 + patches] >= model.config.image_token_index).all()
    assert ids[1 + patches :].tolist()[: len(prompt)] == prompt
    assert ids[-1] == 2
    assert is_action.tolist() == [0] * (len(ids) - 8) + [1] * 7 + [0]
    scale = scale_of(model.config.norm_stats, "my_robot")
    decoded = scale.unnormalize(ActionTokenizer.of(model.config).decode(ids[is_action == 1]))
    # A bin is 1/127.5 of the range between the 1 % and 99 % quantiles.
    np.testing.assert_allclose(decoded, ROWS[0][2], atol=0.015)
    assert row["pixel_values"].shape == (1, 6, 28, 28)


def test_pictures_need_no_file_in_the_folder(fp32, data):
    model, processor = stock_load(str(fp32))
    rows, photo = rows_of(data), data / "photo.png"
    expected = ActionDataset(rows, replace(model.config), processor)[0]["pixel_values"]
    as_url = f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}"
    for image in (picture("photo"), as_url, str(photo)):
        changed = [{**rows[0], "image": image}, rows[1]]
        for given in (RawSplit(changed, data), changed):
            dataset = ActionDataset(given, replace(model.config), processor)
            assert mx.array_equal(dataset[0]["pixel_values"], expected)


def test_statistics_in_the_folder_count(fp32, data):
    given = {"my_robot": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7}}}
    (data / "dataset_statistics.json").write_text(json.dumps(given), encoding="utf-8")
    model, processor = stock_load(str(fp32))
    ActionDataset(rows_of(data), model.config, processor)
    assert model.config.norm_stats == given


def test_rows_for_validation_are_scaled_as_those_for_training(fp32, data):
    model, processor = stock_load(str(fp32))
    rows = rows_of(data)
    training = ActionDataset(rows, model.config, processor)
    validation = ActionDataset(RawSplit(rows[:1], data), model.config, processor)
    assert mx.array_equal(training[0]["input_ids"], validation[0]["input_ids"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": "up"}, "Row 2 .* action must be a list of numbers"),
        ({"action": []}, "Row 2 .* action must be a list of numbers"),
        ({"action": [float("nan")] * 7}, "Row 2 .* action must be a list of numbers"),
        ({"action": [10**400] * 7}, "Row 2 .* action must be a list of numbers"),
        ({"action": [0.0] * 6}, "Row 2 .* 6 values, the rows before 7"),
        ({"instruction": None}, "Row 2 .* instruction must be a text"),
        ({"image": None}, "Row 2 .* image is missing"),
    ],
)
def test_rows_that_cannot_be_used_are_named(fp32, data, change, message):
    rows = rows_of(data)
    rows[1] = {**rows[1], **change}
    model, processor = stock_load(str(fp32))
    with pytest.raises(ValueError, match=message):
        ActionDataset(rows, model.config, processor)


def test_conversations_are_no_action_data():
    assert not is_action_data([])
    assert not is_action_data([{"messages": [], "images": []}])
    assert not is_action_data([{"question": "?", "answer": "!"}])
    assert is_action_data([{"image": "", "instruction": "", "action": []}])


def check_learned(model, processor) -> None:
    """The ids that were taught, decoded with the data's own statistics."""
    tokenizer = ActionTokenizer.of(model.config)
    scale = scale_of(model.config.norm_stats, "my_robot")
    for name, instruction, action in ROWS:
        taught = scale.unnormalize(tokenizer.decode(tokenizer.encode(scale.normalize(action))))
        predicted = predict_action(model, processor, picture(name), instruction)
        np.testing.assert_allclose(predicted, taught)


def test_training_lowers_the_loss_and_writes_the_statistics(fp32, data, tmp_path):
    few = [*SETTINGS[: SETTINGS.index("--iters")], "--iters", "20"]
    learned = losses(train(fp32, tmp_path / "adapter", "--data", data, *few))
    assert learned[-1] < learned[0] / 2
    statistics = json.loads((tmp_path / "adapter" / "dataset_statistics.json").read_text())
    assert [*statistics] == ["my_robot"]
    model, _ = stock_load(str(fp32), adapter_path=str(tmp_path / "adapter"))
    assert [*model.config.norm_stats] == ["my_robot"]


@pytest.mark.slow
def test_an_adapter_learns_actions_and_keeps_their_statistics(fp32, data, tmp_path):
    learned = losses(train(fp32, tmp_path / "adapter", "--data", data, *SETTINGS))
    assert learned[-1] < learned[0] / 20
    statistics = json.loads((tmp_path / "adapter" / "dataset_statistics.json").read_text())
    assert [*statistics] == ["my_robot"]
    check_learned(*stock_load(str(fp32), adapter_path=str(tmp_path / "adapter")))
    result = run_module(
        "mlx_vlm_moxin",
        "fuse",
        *("--model", fp32, "--adapter-path", tmp_path / "adapter"),
        *("--save-path", tmp_path / "fused"),
    )
    assert result.returncode == 0, result.stderr
    model, processor = stock_load(str(tmp_path / "fused"))
    assert [*model.config.norm_stats] == ["my_robot"]
    check_learned(model, processor)


def test_training_without_completions_only_is_refused(fp32, data, tmp_path):
    result = run_module(
        "mlx_vlm.train", "--model", fp32, "--data", data, "--output-path", tmp_path / "adapter"
    )
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: Action data needs")
    assert "Traceback" not in result.stderr
