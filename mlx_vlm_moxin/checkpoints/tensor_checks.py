"""Checks that a source's tensors fit the model: names, shapes, dtypes and values."""

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.moxin import Model
from mlx_vlm.models.moxin.weights import check_weights

from mlx_vlm_moxin.checkpoints.layer_settings import PACKED_PARTS, LayerSettings, split_name
from mlx_vlm_moxin.checkpoints.tensors import FORMAT_NAMES, LazyTensor, is_floating


def _check_packed(
    tensors: dict[str, LazyTensor], packed: dict[str, LayerSettings], model: Model
) -> None:
    """Compare packed tensors with the layers of ``model`` quantised with their settings."""
    shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    for path, settings in packed.items():
        try:
            parts = mx.quantize(mx.zeros(shapes[f"{path}.weight"]), **settings)
        except ValueError as error:
            raise ValueError(f"`quantization` does not fit {path}: {error}") from error
        for part, value in zip(PACKED_PARTS, parts):
            tensor = tensors.get(f"{path}.{part}")
            if tensor is None:
                raise ValueError(f"{path}.{part} is missing")
            same_kind = is_floating(tensor) if is_floating(value) else tensor.dtype == value.dtype
            if tensor.shape != value.shape or not same_kind:
                raise ValueError(
                    f"{path}.{part} is {FORMAT_NAMES[tensor.dtype]} of shape {tensor.shape}, "
                    f"expected {FORMAT_NAMES[value.dtype]} of shape {value.shape} for {settings}"
                )


def _check_projector(model: Model) -> None:
    """Compare the projector's widths with those of the towers and the decoder."""
    config = model.config
    found = (config.projector_config.input_size, config.projector_config.output_size)
    expected = (config.vision_config.hidden_size, config.text_config.hidden_size)
    if found != expected:
        raise ValueError(
            f"The projector maps width {found[0]} to {found[1]}, but towers and decoder have "
            f"widths {expected[0]} and {expected[1]}"
        )


def check_depth(config: ModelConfig, num_tensors: int) -> None:
    """Refuse more layers than tensors, before a huge model is built.

    Raises:
        ValueError: naming the number of layers.
    """
    for part in (config.text_config, *config.vision_config.towers.values()):
        if part.num_hidden_layers > num_tensors:
            raise ValueError(
                f"config.json names {part.num_hidden_layers} layers, but the checkpoint has only "
                f"{num_tensors} tensors"
            )


def check_tensors(
    tensors: dict[str, LazyTensor], packed: dict[str, LayerSettings], model: Model
) -> None:
    """Check everything about a source's tensors except their values.

    Args:
        tensors: the source's tensors under our names.
        packed: settings of the quantised layers, by path.
        model: the unquantised model.

    Raises:
        ValueError: naming what is missing, unknown, or of a wrong shape or dtype.
    """
    check_weights(tensors, model)
    _check_projector(model)
    _check_packed(tensors, packed, model)
    for name, tensor in tensors.items():
        if split_name(name)[0] not in packed and not is_floating(tensor):
            raise ValueError(
                f"{name} is {FORMAT_NAMES[tensor.dtype]}, expected floating-point values"
            )


def check_finite(name: str, value: mx.array, what: str) -> mx.array:
    """Return ``value`` if all of it is finite.

    Raises:
        ValueError: ``name`` and ``what``, if it contains NaN or infinity.
    """
    # A sum is ten times as fast as isfinite. It is not finite if any value is not, but it may also
    # overflow.
    if (
        is_floating(value)
        and not mx.isfinite(value.sum()).item()
        and not mx.isfinite(value).all().item()
    ):
        raise ValueError(f"{name} {what}")
    return value
