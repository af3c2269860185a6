"""Sizes from tensor headers, and damaged checkpoint files."""

import json
import shutil

import mlx.core as mx
import pytest
from mlx_vlm.models.moxin.checkpoint import INDEX_FILE, tensor_shapes, vision_sizes
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.moxin import Model
from mlx_vlm.models.moxin.prismatic import tower_models
from mlx_vlm.models.moxin.towers import TIMM_MODELS, TOWER_NAMES
from mlx_vlm.models.moxin.weights import convert_weights, moxin_name
from support import HF_CHECKPOINT

PRISMATIC = json.loads((HF_CHECKPOINT / "config.json").read_text(encoding="utf-8"))
SHARD = "model-00002-of-00003.safetensors"


def config_at(path) -> ModelConfig:
    config = ModelConfig.from_dict(PRISMATIC)
    config.model_path = str(path)
    return config


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(HF_CHECKPOINT, tmp_path / "checkpoint")


def assert_tiny_sizes(config: ModelConfig) -> None:
    vision = config.vision_config
    assert (vision.image_size, vision.patch_size, vision.num_patches) == (28, 14, 4)
    assert (vision.dino.hidden_size, vision.dino.num_hidden_layers) == (64, 4)
    assert (vision.dino.num_register_tokens, vision.dino.layer_scale) == (4, True)
    assert (vision.siglip.hidden_size, vision.siglip.num_hidden_layers) == (64, 5)
    assert (vision.siglip.intermediate_size, vision.siglip.class_token) == (239, False)
    projector = config.projector_config
    assert (projector.input_size, projector.intermediate_size) == (128, 512)
    assert projector.output_size == 128


def test_sizes_follow_the_tensors_of_a_source_checkpoint():
    config = config_at(HF_CHECKPOINT)
    assert_tiny_sizes(config)


def test_sizes_follow_the_tensors_of_a_converted_checkpoint(fp32_checkpoint):
    config = config_at(fp32_checkpoint)
    assert_tiny_sizes(config)


def test_a_picture_size_that_the_config_leaves_out_follows_the_position_embedding():
    config = ModelConfig.from_dict({**PRISMATIC, "image_sizes": None})
    config.model_path = str(HF_CHECKPOINT)
    assert_tiny_sizes(config)


def test_without_a_path_a_prismatic_config_is_the_real_model():
    config = ModelConfig.from_dict(PRISMATIC)
    assert config.vision_config.hidden_size == 2176


def test_an_export_of_the_real_tower_without_its_last_block_keeps_the_real_depth(tmp_path):
    config = config_at(HF_CHECKPOINT)
    weights = {}
    for file in sorted(HF_CHECKPOINT.glob("*.safetensors")):
        weights.update(mx.load(str(file)))
    block = "vision_backbone.featurizer.blocks."
    first = {k.removeprefix(block + "0."): v for k, v in weights.items() if block + "0." in k}
    used = TIMM_MODELS[config.timm_model_ids[0]].tower_config().num_blocks
    for index in range(used):
        weights.update({f"{block}{index}.{name}": value for name, value in first.items()})
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    config = config_at(tmp_path)
    assert config.vision_config.dino.num_blocks == used
    kept = convert_weights(weights, config.vision_config)
    assert f"vision_tower.dino.blocks.{used - 1}.norm1.weight" in kept


def test_a_shard_that_the_index_names_but_is_not_there_is_named(checkpoint):
    (checkpoint / SHARD).unlink()
    with pytest.raises(FileNotFoundError, match=f"{INDEX_FILE} names {SHARD}"):
        tensor_shapes(checkpoint)


@pytest.mark.parametrize("keep", [0, 5, 100, 700_000])
def test_a_shard_cut_short_is_named(checkpoint, keep):
    data = (checkpoint / SHARD).read_bytes()
    (checkpoint / SHARD).write_bytes(data[:keep])
    with pytest.raises(ValueError, match=f"{SHARD} is damaged .*download it again"):
        tensor_shapes(checkpoint)


@pytest.mark.parametrize(
    "gone", ["vision_backbone.fused_featurizer.pos_embed", "projector.fc1.weight"]
)
def test_a_tensor_that_decides_sizes_must_be_there(tmp_path, gone):
    weights = {}
    for file in sorted(HF_CHECKPOINT.glob("*.safetensors")):
        weights.update(mx.load(str(file)))
    del weights[gone]
    mx.save_safetensors(str(tmp_path / "model.safetensors"), weights)
    with pytest.raises(ValueError, match="This checkpoint has no"):
        config_at(tmp_path)


def test_building_a_model_reads_no_file(checkpoint):
    config = config_at(checkpoint)
    shutil.rmtree(checkpoint)
    assert Model(config).config.vision_config.num_patches == 4


def test_a_picture_size_that_the_position_embedding_is_not_for_is_refused(checkpoint):
    params = {**PRISMATIC, "image_sizes": [42, 42]}
    config = ModelConfig.from_dict(params)
    with pytest.raises(ValueError, match=r"has pictures of 42 pixels, but .* has 4 positions"):
        config.model_path = str(checkpoint)


class TestSizes:
    """Patch and picture sizes are those of the last tower; the other tower's patches match them."""

    @pytest.fixture
    def shapes(self):
        """Of the small checkpoint, but with 3 x 3 patches in the last tower."""
        shapes = tensor_shapes(HF_CHECKPOINT)
        shapes = {moxin_name(name, TOWER_NAMES): shape for name, shape in shapes.items()}
        positions = "vision_tower.siglip.pos_embed"
        return {**shapes, positions: (1, 9, shapes[positions][2])}

    @pytest.fixture
    def models(self):
        return tower_models(PRISMATIC["timm_model_ids"], PRISMATIC["timm_override_act_layers"])

    @pytest.mark.parametrize("image_size", [None, 42])
    def test_positions_times_patch_size_are_the_picture(self, shapes, models, image_size):
        config = vision_sizes(shapes, models, image_size, is_converted=False)
        assert (config.image_size, config.patch_size, config.num_patches) == (42, 14, 9)

    def test_a_picture_side_may_be_no_multiple_of_the_patch(self, shapes, models):
        assert vision_sizes(shapes, models, 50, is_converted=False).image_size == 50

    def test_the_patch_size_is_the_last_towers(self, shapes, models):
        name = "vision_tower.dino.patch_embed.proj.weight"
        shapes[name] = (*shapes[name][:2], 7, 7)
        assert vision_sizes(shapes, models, None, is_converted=False).patch_size == 14

    def test_the_published_size_is_chosen_before_the_smallest(self, shapes, models):
        positions = "vision_tower.siglip.pos_embed"
        size, patch = models[-1].image_size, models[-1].patch_size
        shapes[positions] = (1, (size // patch) ** 2, shapes[positions][2])
        assert vision_sizes(shapes, models, None, is_converted=False).image_size == size
