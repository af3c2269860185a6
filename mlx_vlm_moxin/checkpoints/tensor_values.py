"""Computes the values of a conversion's tensors from the source's, layer by layer."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import mlx.core as mx

from mlx_vlm_moxin.checkpoints.layer_settings import PACKED_PARTS, split_name
from mlx_vlm_moxin.checkpoints.skeleton import Skeleton
from mlx_vlm_moxin.checkpoints.sources import Source
from mlx_vlm_moxin.checkpoints.tensor_checks import check_finite
from mlx_vlm_moxin.checkpoints.tensors import is_floating

# Number of layers computed concurrently. Each needs memory for its values as read and as written;
# the largest (token embeddings of a 7B model) needs 1.3 GB.
THREADS = 2
_NOT_FINITE = "has values that are not finite (NaN, infinity); the source is damaged"
_TOO_LARGE = "has values beyond the range of float16; use --dtype bfloat16"


def _read(source: Source, name: str) -> mx.array:
    return check_finite(name, source.tensors[name].load(), _NOT_FINITE)


def _cast(name: str, value: mx.array, dtype: mx.Dtype) -> mx.array:
    if value.dtype == dtype:
        return value
    value = value.astype(dtype)
    return check_finite(name, value, _TOO_LARGE) if dtype == mx.float16 else value


def _carry_over(source: Source, skeleton: Skeleton, name: str) -> mx.array:
    """A part of a packed layer with unchanged settings: as it is, or cast to another dtype."""
    value = _read(source, name)
    return _cast(name, value, skeleton.tensors[name].dtype) if is_floating(value) else value


def _unpacked(source: Source, skeleton: Skeleton, name: str) -> mx.array:
    """A parameter before quantising, in its stored dtype."""
    path, part = split_name(name)
    if path in source.packed_layers and part == "weight":
        names = [f"{path}.{part}" for part in PACKED_PARTS]
        parts = [_read(source, name) for name in names if name in source.tensors]
        value = mx.dequantize(*parts, **source.packed_layers[path])
    else:
        value = _read(source, name)
    return _cast(name, value, skeleton.dtypes[name])


def compute_layer(
    source: Source, skeleton: Skeleton, names: tuple[str, ...]
) -> dict[str, mx.array]:
    """Compute the values of tensors that belong together.

    Args:
        source: the tensors to read.
        skeleton: what to compute.
        names: the packed parts of one quantised layer, or a single tensor.

    Returns:
        Name -> value, in the order of ``names``.

    Raises:
        OSError: if the source cannot be read.
        ValueError: naming a tensor with values that are not finite.
    """
    path, _ = split_name(names[0])
    if not _is_packed(skeleton, names[0]):
        return {name: _unpacked(source, skeleton, name) for name in names}
    settings = skeleton.layers[path]
    if source.packed_layers.get(path) == settings:
        return {name: _carry_over(source, skeleton, name) for name in names}
    parts = mx.quantize(_unpacked(source, skeleton, f"{path}.weight"), **settings)
    values = {f"{path}.{part}": value for part, value in zip(PACKED_PARTS, parts)}
    return {name: values[name] for name in names}


def _is_packed(skeleton: Skeleton, name: str) -> bool:
    path, part = split_name(name)
    return path in skeleton.layers and part in PACKED_PARTS


def group_by_layer(skeleton: Skeleton) -> list[tuple[str, ...]]:
    """Names of all tensors, grouped into tuples that are computed together.

    The packed parts of a layer are adjacent in the skeleton's order.
    """
    groups: list[list[str]] = []
    for name in skeleton.tensors:
        same_layer = groups and split_name(groups[-1][0])[0] == split_name(name)[0]
        if same_layer and _is_packed(skeleton, name) and _is_packed(skeleton, groups[-1][0]):
            groups[-1].append(name)
        else:
            groups.append([name])
    return [tuple(group) for group in groups]


def _compute_ahead(
    source: Source, skeleton: Skeleton, groups: Iterable[tuple[str, ...]]
) -> Iterator[dict[str, mx.array]]:
    """Yield the values of each group in order, while threads compute the next groups.

    One thread reads, casts and quantises a whole layer, since an array's graph can only be
    evaluated by the thread that built it. The operations release the GIL.
    """

    def compute(names: tuple[str, ...]) -> dict[str, mx.array]:
        values = compute_layer(source, skeleton, names)
        values = {name: mx.contiguous(value) for name, value in values.items()}
        mx.eval(values)
        return values

    # One thread keeps a GPU busy.
    threads = THREADS if mx.default_device().type == mx.DeviceType.cpu else 1
    executor = ThreadPoolExecutor(threads, "moxin-convert")
    pending: deque[Future[dict[str, mx.array]]] = deque()
    try:
        for names in groups:
            pending.append(executor.submit(compute, names))
            if len(pending) > threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        # If the caller stops, do not wait for more layers than are already being computed.
        executor.shutdown(wait=True, cancel_futures=True)


def compute_tensors(
    source: Source, skeleton: Skeleton, on_progress: Callable[[int], None] = lambda _: None
) -> Iterator[tuple[str, mx.array]]:
    """Yield every tensor of the skeleton with its value, in the skeleton's order.

    A few layers are in memory at a time: the next ones are read and quantised while the caller
    writes. What was read for a layer is freed once the layer is computed.

    Args:
        source: the tensors to read.
        skeleton: what to compute.
        on_progress: called with the number of bytes of each finished layer.

    Raises:
        OSError, ValueError: see ``compute_layer``.
    """
    groups = group_by_layer(skeleton)
    with contextlib.closing(_compute_ahead(source, skeleton, groups)) as computed:
        for names, values in zip(groups, computed):
            mx.clear_cache()
            on_progress(sum(value.nbytes for value in values.values()))
            for name in names:
                yield name, values.pop(name)
