"""The benchmark measures the robot's action in the form that the model has."""

import pytest
from mlx_vlm import load
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from PIL import Image

from mlx_vlm_moxin import load as load_moxin
from mlx_vlm_moxin.bench.act import ActionRun

IMAGE = Image.new("RGB", (40, 30), (9, 99, 199))


@pytest.mark.parametrize("batch", [1, 3])
def test_bench_generates_openvla_tokens_one_after_another(action_checkpoint, batch):
    model, _ = load(str(action_checkpoint("openvla")))
    run = ActionRun(model, IMAGE, MoxinImageProcessor(28), batch)
    assert run().shape == (batch, 7)
    assert (run.passes, run.num_images) == (7, batch)
    assert run.tokens == batch * (4 + 1 + 20)


@pytest.mark.parametrize(("discrete", "shape"), [(False, (2, 8, 7)), (True, (2, 56))])
def test_bench_computes_a_chunk_in_one_pass(action_checkpoint, discrete, shape):
    from mlx_vlm_moxin.checkpoints.action_options import ActionOptions

    options = ActionOptions(preset="libero", discrete=discrete)
    model, _ = load_moxin(action_checkpoint("oft"), actions=options)
    run = ActionRun(model, IMAGE, MoxinImageProcessor(28), 2)
    assert run().shape == shape
    assert (run.passes, run.num_images) == (1, 4)
    assert run.tokens == 4 * 4 + 2 * (1 + 20 + 56)


def test_models_without_actions_are_measured_as_openvla(model):
    run = ActionRun(model, IMAGE, MoxinImageProcessor(28), 1)
    assert run().shape == (1, 7)
