"""The kernels' pixels equal Pillow's bit by bit."""

import contextlib
import ctypes
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from cuda_support import forget_kernels, needs_gpu, picture
from kernels_on_cpu import COMPILER, KernelsOnCpu
from mlx_vlm.models.moxin.cuda import (
    device,
    host_memory,
    kernel,
    pictures,
    resize_kernels,
)
from mlx_vlm.models.moxin.image_processing_moxin import MoxinImageProcessor
from mlx_vlm.models.moxin.image_settings import RESIZE_STRATEGIES
from mlx_vlm.models.moxin.picture_sources import PictureError
from PIL import Image

SIDE = 28
# Width and height.
SHAPES = [(64, 48), (SIDE, SIDE), (1, 1), (1, 90), (90, 1), (3, 7), (201, 97), (SIDE, 50), (50, 14)]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return KernelsOnCpu(tmp_path_factory.mktemp("kernels"))


@pytest.fixture
def on_cpu(build, monkeypatch):
    """The kernels computed by the CPU, in memory of this process."""
    kept = []

    def allocate(size):
        kept.append(ctypes.create_string_buffer(size))
        return ctypes.addressof(kept[-1])

    monkeypatch.setattr(host_memory, "_allocate", allocate)
    monkeypatch.setattr(host_memory, "buffers", host_memory.Buffers())
    monkeypatch.setattr(kernel, "build", build)
    monkeypatch.setattr(resize_kernels, "THREADS", 1)
    monkeypatch.setattr(device, "reason_off", lambda: None)
    forget_kernels()
    yield kept
    forget_kernels()


def assert_equal_to_pillow(processor, images):
    result = pictures.process(processor, images)
    alone = pictures.pixels(processor, images)
    assert not device._failures
    pixels, squares = processor._preprocess(images)
    np.testing.assert_array_equal(result.squares, squares)
    assert result.pixel_values.dtype == mx.float32
    np.testing.assert_array_equal(np.array(result.pixel_values), pixels)
    np.testing.assert_array_equal(np.array(alone), pixels)


@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
def test_the_kernels_code_gives_pillows_pixels(strategy, on_cpu):
    processor = MoxinImageProcessor(SIDE, strategy, letterbox_fill=[[9, 120, 250]] * 2)
    images = [picture(*shape, seed) for seed, shape in enumerate(SHAPES)]
    for image in images:
        assert_equal_to_pillow(processor, [image])
    # More than fit into memory at the same time.
    assert len(images) > pictures.PICTURES_AT_ONCE
    assert_equal_to_pillow(processor, images)


def test_one_tower_and_memory_that_is_used_again(on_cpu):
    processor = MoxinImageProcessor(SIDE, image_mean=[[0.1, 0.2, 0.3]], image_std=[[0.5, 1, 2]])
    for seed in range(3):
        assert_equal_to_pillow(processor, [picture(40, 30, seed)])
    assert len(on_cpu) == 1


def test_process_uses_the_kernels_and_equals_preprocess(on_cpu, monkeypatch):
    processor, image = MoxinImageProcessor(SIDE), picture(64, 48)
    expected = processor(image)
    monkeypatch.setattr(processor, "_preprocess", None)
    np.testing.assert_array_equal(np.array(processor.process(image).pixel_values), expected)


def test_pixels_alone_are_not_waited_for(on_cpu, monkeypatch):
    processor, image = MoxinImageProcessor(SIDE), picture(64, 48)
    waits, wait = [], mx.eval
    processor.pixels(image)  # its tables are computed once
    expected = processor(image)
    monkeypatch.setattr(processor, "_preprocess", None)
    monkeypatch.setattr(mx, "eval", lambda arrays: waits.append(list(arrays)) or wait(arrays))
    first, second = processor.pixels(image), processor.pixels(image)
    # Only for the kernels that have used the memory before.
    assert [len(arrays) for arrays in waits] == [1, 1]
    assert waits[1][0] is first
    assert len(on_cpu) == 1
    for pixels in (first, second):
        np.testing.assert_array_equal(np.array(pixels), expected)


def test_another_thread_uses_pixels_that_are_not_waited_for(on_cpu):
    processor, images = MoxinImageProcessor(SIDE), [picture(64, 48, seed) for seed in range(12)]
    with ThreadPoolExecutor(1) as pool:
        results = [pool.submit(processor.pixels, image) for image in images]
        doubled = [mx.array(2) * result.result() for result in results]
    for image, pixels in zip(images, doubled):
        np.testing.assert_array_equal(np.array(pixels), 2 * processor(image))


def test_memory_of_pixels_for_this_thread_is_used_until_the_end_of_the_context(on_cpu):
    processor, images = MoxinImageProcessor(SIDE), [picture(64, 48, seed) for seed in range(3)]
    with contextlib.ExitStack() as until:
        pixels = [processor.pixels(images[0], until), processor.pixels(images[1])]
        assert len(on_cpu) == 2
    pixels.append(processor.pixels(images[2]))
    assert len(on_cpu) == 2
    for image, result in zip(images, pixels):
        np.testing.assert_array_equal(np.array(result), processor(image))


def test_pixels_that_nobody_computed_are_submitted_at_the_end_of_the_context(on_cpu, monkeypatch):
    processor, image = MoxinImageProcessor(SIDE), picture(64, 48)
    submitted, submit = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda new: submitted.append(list(new)) or submit(new))
    with contextlib.ExitStack() as until:
        left = processor.pixels(image, until)
        assert not submitted
    # Another thread could not submit them, and waits for them before it uses the memory.
    assert [array is left for arrays in submitted for array in arrays] == [True]
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(processor.pixels, image).result()
    np.testing.assert_array_equal(np.array(result), processor(image))
    assert len(on_cpu) == 1


def test_kernels_of_several_pictures_are_submitted_together(on_cpu, monkeypatch):
    count = pictures.SUBMITTED_AT_ONCE + 1
    processor, images = MoxinImageProcessor(SIDE), [picture(64, 48, i) for i in range(count)]
    submitted, submit = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda new: submitted.append(list(new)) or submit(new))
    with contextlib.ExitStack() as until:
        pixels = processor.pixels(images, until)
        assert [len(arrays) for arrays in submitted] == [pictures.SUBMITTED_AT_ONCE]
    np.testing.assert_array_equal(np.array(pixels), processor(images))


@pytest.mark.parametrize(
    ("strategy", "shape"),
    [
        ("resize-naive", (resize_kernels.MAX_WIDTH + 1, 1)),
        ("resize-naive", (2048, 2049)),
        ("resize-crop", (1, 700_000)),
        ("letterbox", (64, 48)),  # in a colour for each tower
    ],
)
def test_other_pictures_are_left_to_pillow(strategy, shape, on_cpu):
    processor, image = MoxinImageProcessor(SIDE, strategy), Image.new("RGB", shape)
    assert pictures.process(processor, [image]) is None
    assert pictures.pixels(processor, [image]) is None
    assert not device._failures
    assert processor.process(image).pixel_values.shape == (1, 6, SIDE, SIDE)
    np.testing.assert_array_equal(np.array(processor.pixels(image)), processor(image))


def test_no_picture_gives_an_empty_batch(on_cpu):
    result = MoxinImageProcessor(SIDE).process([])
    assert result.pixel_values.shape == (0, 6, SIDE, SIDE)
    assert MoxinImageProcessor(SIDE).pixels([]).shape == (0, 6, SIDE, SIDE)


def test_without_memory_for_the_gpu_pillow_resizes(on_cpu, monkeypatch):
    def fail(name, *arguments):
        raise RuntimeError(f"{name}: out of memory (2)")

    monkeypatch.undo()
    monkeypatch.setattr(device, "reason_off", lambda: None)
    monkeypatch.setattr(device, "calls", lambda: contextlib.nullcontext(fail))
    monkeypatch.setattr(host_memory, "buffers", host_memory.Buffers())
    assert pictures.process(MoxinImageProcessor(SIDE), [picture(64, 48)]) is None
    assert not device._failures


def test_a_letterbox_over_the_limit_is_refused_as_without_kernels(on_cpu, monkeypatch):
    monkeypatch.setenv("MLX_VLM_MOXIN_MAX_PIXELS", "3000")
    processor = MoxinImageProcessor(SIDE, "letterbox", letterbox_fill=[[0, 0, 0]] * 2)
    with pytest.raises(PictureError, match="cannot be letterboxed"):
        processor.process(picture(90, 30))


def test_memory_is_returned_after_an_error(on_cpu, monkeypatch):
    monkeypatch.setattr(pictures, "_launch", lambda *arguments: 1 / 0)
    processor = MoxinImageProcessor(SIDE)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            pictures.process(processor, [picture(64, 48)])
    assert len(on_cpu) == 1


@needs_gpu
@pytest.mark.parametrize("side", [224, 98])
@pytest.mark.parametrize("strategy", RESIZE_STRATEGIES)
def test_the_gpu_gives_pillows_pixels(strategy, side):
    processor = MoxinImageProcessor(side, strategy, letterbox_fill=[[9, 120, 250]] * 2)
    shapes = [*SHAPES, (640, 480), (1280, 720), (333, 1001)]
    if strategy == "resize-naive":
        shapes += [(1, 3000), (8192, 9)]  # of which the others would make too large a picture
    images = [picture(*shape, seed) for seed, shape in enumerate(shapes)]
    for image in images:
        assert_equal_to_pillow(processor, [image])
    assert_equal_to_pillow(processor, images)


@needs_gpu
@pytest.mark.parametrize("is_alone", [False, True])
def test_threads_prepare_pictures_at_once(is_alone):
    processor = MoxinImageProcessor()
    images = [picture(320 + seed, 240, seed) for seed in range(12)]

    def prepare(image):
        return processor.pixels(image) if is_alone else processor.process(image).pixel_values

    with ThreadPoolExecutor(4) as pool:
        results = [1 * pixels for pixels in pool.map(prepare, images)]
    for image, result in zip(images, results):
        np.testing.assert_array_equal(np.array(result), processor(image))
