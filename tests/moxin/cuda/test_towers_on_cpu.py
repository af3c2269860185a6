"""The towers' kernel for Hopper GPUs, run on the CPU: its tiles, arithmetic and barriers."""

import mlx.core as mx
import pytest
from cuda_support import assert_as_close
from kernels_on_cpu import COMPILER
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.cuda import device, kernel, tower_kernel, tower_tiles, towers
from mlx_vlm.models.moxin.vision import VisionModel
from test_towers import DINO, SIGLIP, make_model
from threads_on_cpu import ThreadsOnCpu

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")

# One layer of DINOv2, two of SigLIP, of which the last output is not used.
SMALL_DINO = DINO | {"num_hidden_layers": 2, "intermediate_size": 256}
SMALL_SIGLIP = SIGLIP | {"num_hidden_layers": 3, "intermediate_size": 264}


ONE, FEW, MANY = tower_tiles.HOPPER_TILES


@pytest.mark.parametrize(
    ("tiles", "batch", "first"),
    [
        pytest.param(ONE, 2, 2, id="one picture"),
        # The second one has no layer of DINOv2.
        pytest.param(ONE, 1, 1, id="two launches"),
        pytest.param(FEW, 4, 2, id="a few pictures", marks=pytest.mark.slow),
        pytest.param(MANY, 4, 2, id="many pictures"),
    ],
)
def test_features_are_as_close_to_float32_as_the_modules(
    tiles, batch, first, kernels_everywhere, monkeypatch, tmp_path
):
    monkeypatch.setattr(VisionModel, "engine_embed", lambda *_: None)
    monkeypatch.setattr(device, "has_warpgroups", lambda: True)
    monkeypatch.setattr(tower_tiles, "HOPPER_TILES", (tiles,))
    monkeypatch.setattr(tower_kernel, "FIRST_LAYERS", first)
    # A launch reads its arrays, which are not there yet while a graph is recorded.
    monkeypatch.setattr(towers, "compile_graph", lambda run, modules: run)
    launch = ThreadsOnCpu(tmp_path, blocks=3)
    launches = []
    monkeypatch.setattr(kernel, "build", lambda *a, **k: launches.append(a[0]) or launch(*a, **k))
    arguments = mx.bfloat16, SMALL_DINO, SMALL_SIGLIP, 126
    with mx.stream(mx.cpu):
        model = make_model(*arguments)
        pixels = mx.random.normal((batch, 6, 126, 126)).astype(mx.bfloat16)
        exact = VisionModel(model.config)
        weights = tree_flatten(model.parameters())
        exact.load_weights([(path, array.astype(mx.float32)) for path, array in weights])
        actual = model(pixels)
        assert launches == ["tower_layers"] * (3 - first)
        monkeypatch.setattr(device, "enabled", lambda: False)
        allowed, expected = make_model(*arguments)(pixels), exact(pixels)
        width = DINO["hidden_size"]
        for tower in (slice(width), slice(width, None)):
            assert_as_close(*(x[..., tower] for x in (actual, allowed, expected)))
