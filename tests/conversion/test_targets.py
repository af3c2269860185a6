"""After any failure the target is exactly as it was before."""

import mlx.core as mx
import pytest
from source_checkpoints import converted, copy_checkpoint, load_weights, with_weights
from support import HF_CHECKPOINT

from mlx_vlm_moxin.checkpoints import tensor_values
from mlx_vlm_moxin.checkpoints.quantize_options import QuantizeOptions


@pytest.fixture
def place(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    return place


def test_an_existing_target_is_kept_unless_overwritten(place):
    target = converted(HF_CHECKPOINT, place / "x", QuantizeOptions())
    before = (target / "config.json").stat()
    with pytest.raises(ValueError, match="exists; choose another --mlx-path or give --over"):
        converted(HF_CHECKPOINT, target)
    assert (target / "config.json").stat() == before
    converted(HF_CHECKPOINT, target, overwrite=True)
    weights = load_weights(target)
    assert {value.dtype for value in weights.values()} == {mx.float32}
    assert [path.name for path in place.iterdir()] == ["x"]


def test_a_broken_source_leaves_the_old_model(tmp_path, place):
    target = converted(HF_CHECKPOINT, place / "x", QuantizeOptions())
    before = load_weights(target)
    name = "language_model.lm_head.weight"
    broken = with_weights(tmp_path / "b", lambda w: w.update({name: w[name] * float("nan")}))
    with pytest.raises(ValueError, match="not finite"):
        converted(broken, target, overwrite=True)
    assert mx.array_equal(load_weights(target)[name], before[name])
    assert [path.name for path in place.iterdir()] == ["x"]


def test_the_source_is_never_replaced(place):
    source = copy_checkpoint(HF_CHECKPOINT, place / "model" / "source")
    (place / "model" / "config.json").write_text("{}")
    for target in (source, place / "model"):
        with pytest.raises(ValueError, match=r"holds the source .*choose another"):
            converted(source, target, overwrite=True)
    assert load_weights(source)


def test_too_little_space_is_found_first(place, monkeypatch):
    usage = type("usage", (), {"free": 10_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"needs \d\d\.\d\d MB, but .* has 10\.00 MB left; free"):
        converted(HF_CHECKPOINT, place / "x")
    assert not any(place.iterdir())


def test_a_failing_read_in_the_middle_leaves_nothing(tmp_path, place, monkeypatch):
    directory = copy_checkpoint(HF_CHECKPOINT, tmp_path / "source")
    compute = tensor_values.compute_layer

    def cut_then_compute(source, skeleton, names):
        if names[0].endswith("layers.1.self_attn.q_proj.weight"):
            for file in directory.glob("*.safetensors"):
                file.write_bytes(b"")
        return compute(source, skeleton, names)

    monkeypatch.setattr(tensor_values, "compute_layer", cut_then_compute)
    with pytest.raises(OSError, match="too early; download it again"):
        converted(directory, place / "x")
    assert not any(place.iterdir())


def test_output_that_mlx_vlm_cannot_load_is_discarded(place, monkeypatch):
    def write_nothing(*arguments):
        pass

    monkeypatch.setattr("mlx_vlm_moxin.conversion.convert.write_settings", write_nothing)
    with pytest.raises(RuntimeError, match="is unusable and was discarded"):
        converted(HF_CHECKPOINT, place / "x")
    assert not any(place.iterdir())
