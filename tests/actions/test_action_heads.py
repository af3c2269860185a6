"""OpenVLA-OFT's files next to a checkpoint, and the options that they need."""

import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm import load as stock_load
from support import HF_CHECKPOINT
from torch_files import tensor, write_pt

from mlx_vlm_moxin import load, predict_action
from mlx_vlm_moxin.checkpoints.action_options import ActionOptions
from mlx_vlm_moxin.checkpoints.sources import open_source
from mlx_vlm_moxin.plugin import quantize_on_load

LIBERO = ActionOptions(preset="libero")


def config_of(directory, **options):
    return open_source(str(directory), actions=ActionOptions(**options)).config.action_config


@pytest.fixture
def oft_copy(action_checkpoint, tmp_path):
    return shutil.copytree(action_checkpoint("oft"), tmp_path / "oft")


def test_a_preset_and_the_files_give_the_settings(action_checkpoint):
    config = config_of(action_checkpoint("oft"), preset="libero")
    assert (config.decoding, config.chunk_size, config.num_images) == ("parallel", 8, 2)
    assert (config.head, config.head_hidden_size, config.action_dim) == ("l1", 16, 7)
    assert config.proprio_dim == 8
    assert not config.causal


def test_moxins_decoder_runs_causal(action_checkpoint):
    assert config_of(action_checkpoint("moxin"), preset="libero").causal
    assert not config_of(action_checkpoint("moxin"), preset="libero", attention="full").causal


def test_single_options_win_over_the_preset(action_checkpoint):
    config = config_of(
        action_checkpoint("oft"),
        preset="libero",
        chunk_size=4,
        num_images=1,
        normalization="bounds",
        append_token="none",
        center_crop=True,
        policy_resize=False,
    )
    assert (config.chunk_size, config.num_images, config.normalization) == (4, 1, "bounds")
    assert config.append_token_id is None
    assert config.center_crop
    assert not config.policy_resize


def test_openvla_needs_no_options(action_checkpoint):
    config = config_of(action_checkpoint("openvla"))
    assert (config.decoding, config.chunk_size, config.head) == ("autoregressive", 1, None)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("oft", {}, r"--action-preset libero\|aloha\|bridge"),
        ("oft", {"chunk_size": 8}, "--action-images"),
        ("oft", {"preset": "aloha"}, "action_dim 14, this checkpoint 7"),
        ("oft", {"preset": "bridge"}, "proprio_dim 7, this checkpoint 8"),
        ("oft", {"preset": "kitchen"}, "libero, aloha, bridge"),
        ("oft", {"preset": "libero", "append_token": "x"}, "--append-token"),
        ("oft", {"preset": "libero", "chunk_size": 0}, "action_config.chunk_size is 0"),
        ("openvla", {"preset": "libero"}, "--discrete"),
        ("openvla", {"num_images": 2}, "--action-images .* no effect"),
        ("openvla", {"attention": "full"}, "--action-attention would have no effect"),
        ("openvla", {"append_token": "40000"}, "ids of text are 0 to 32000"),
        ("oft", {"preset": "libero", "append_token": "32001"}, "ids of text are 0 to 32000"),
    ],
)
def test_options_that_are_missing_or_do_not_fit_are_refused(
    action_checkpoint, name, options, message
):
    with pytest.raises(ValueError, match=message):
        config_of(action_checkpoint(name), **options)


def test_options_for_a_model_without_actions_are_refused():
    with pytest.raises(ValueError, match="not an action model"):
        config_of(HF_CHECKPOINT, preset="libero")


def test_load_accepts_a_preset_or_options_for_actions(action_checkpoint):
    with pytest.raises(ValueError, match="a preset's name or ActionOptions, got dict"):
        load(action_checkpoint("oft"), actions={"preset": "libero"})


def test_discrete_leaves_the_head_out(action_checkpoint):
    source = open_source(
        str(action_checkpoint("oft")), actions=ActionOptions(preset="libero", discrete=True)
    )
    assert source.config.action_config.head is None
    assert not any(name.startswith("action_head.") for name in source.tensors)


def test_discrete_chunks_need_no_head_file(oft_copy):
    (oft_copy / "action_head--150000_checkpoint.pt").unlink()
    config = config_of(oft_copy, preset="libero", discrete=True)
    assert (config.decoding, config.head, config.chunk_size) == ("parallel", None, 8)


def test_the_files_of_the_last_step_are_read(oft_copy):
    zeros = {"module.fc1.weight": tensor(np.zeros((16, 8), np.float32))}
    zeros["module.fc2.weight"] = tensor(np.zeros((16, 16), np.float32))
    zeros |= {f"module.fc{i}.bias": tensor(np.zeros(16, np.float32)) for i in (1, 2)}
    write_pt(oft_copy / "proprio_projector--99999_checkpoint.pt", zeros)
    model, _ = load(oft_copy, actions="libero")
    assert mx.abs(model.proprio_projector.fc1.weight).max() > 0
    write_pt(oft_copy / "proprio_projector--150001_checkpoint.pt", zeros)
    model, _ = load(oft_copy, actions="libero")
    assert mx.abs(model.proprio_projector.fc1.weight).max() == 0


def test_the_files_of_a_run_that_kept_its_last_checkpoint_are_read(oft_copy):
    for part in ("action_head", "proprio_projector"):
        path = oft_copy / f"{part}--150000_checkpoint.pt"
        path.rename(oft_copy / f"{part}--latest_checkpoint.pt")
    model, _ = load(oft_copy, actions="libero")
    assert "action_head" in model
    assert "proprio_projector" in model
    write_pt(oft_copy / "action_head--200000_checkpoint.pt", {})
    load(oft_copy, actions="libero")


@pytest.mark.parametrize("step", ["150000", "latest"])
@pytest.mark.parametrize(
    ("part", "message"),
    [("vision_backbone", "FiLM"), ("noisy_action_projector", "diffusion head")],
)
def test_parts_that_are_not_run_are_refused(oft_copy, part, message, step):
    write_pt(oft_copy / f"{part}--{step}_checkpoint.pt", {})
    with pytest.raises(ValueError, match=message):
        open_source(str(oft_copy), actions=LIBERO)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has no fc1.weight"),
        ({"module.fc1.weight": 5}, "does not contain a state dict"),
        ({"module.fc1.weight": tensor(np.zeros((2, 2), np.float32))}, "has no fc2.weight"),
    ],
)
def test_files_that_are_no_head_are_refused(oft_copy, content, message):
    write_pt(oft_copy / "action_head--150000_checkpoint.pt", content)
    with pytest.raises(ValueError, match=message):
        open_source(str(oft_copy), actions=LIBERO)


def test_a_damaged_head_is_refused(oft_copy):
    path = oft_copy / "action_head--150000_checkpoint.pt"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=str(path)):
        open_source(str(oft_copy), actions=LIBERO)


def test_quantizing_leaves_head_and_projector_alone(action_checkpoint):
    model, _ = load(action_checkpoint("oft"), actions="libero")
    paths = [
        path for path, _ in model.named_modules() if "action_head" in path or "proprio" in path
    ]
    assert len(paths) > 8
    assert not any(model.quant_predicate(path, None) for path in paths)


def test_a_model_that_stock_mlx_vlm_has_loaded_without_its_head_gives_no_actions(
    action_checkpoint,
):
    model, processor = stock_load(str(action_checkpoint("oft")))
    assert "action_head" not in model
    with pytest.raises(ValueError, match="stock mlx-vlm does not load: convert it"):
        predict_action(model, processor, "photo.png", "pick up the cup")


def test_parts_of_a_hub_repository_are_downloaded_by_commands_too(monkeypatch, tmp_path):
    fetched = []
    monkeypatch.setattr(quantize_on_load, "fetch", lambda *arguments: fetched.append(arguments))
    commit = tmp_path / "models--some-lab--openvla--tuned" / "snapshots" / "0123abc"
    quantize_on_load.fetch_action_parts(commit, "openvla")
    quantize_on_load.fetch_action_parts(commit, "prismatic")
    quantize_on_load.fetch_action_parts(tmp_path, "openvla")
    assert fetched == [("some-lab/openvla--tuned", ["*_checkpoint.pt"], "0123abc")]
