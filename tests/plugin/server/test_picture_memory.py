"""A server that receives huge pictures needs the picture's size, and only for a while."""

import base64
import io
from pathlib import Path

import pytest
from bodies import CHAT, answer_text, body
from moxin_tiny import CHECKPOINT, DEMO
from PIL import Image
from server_process import MeasuredServer

PROC = Path("/proc/self/clear_refs")
pytestmark = pytest.mark.skipif(not PROC.exists(), reason="needs Linux's /proc")

MB = 2**20
# Pillow uses 4 bytes per pixel (1 for grey and palettes), and 8 for the address of each row.
BYTES_PER_PIXEL, BYTES_PER_ROW = 4, 8
CONSTANT = 60 * MB
KEPT = 45 * MB
# For the largest, one of glibc's arenas of 64 MB may be kept too.
KEPT_OF_LARGEST = KEPT + 64 * MB


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with MeasuredServer(CHECKPOINT, tmp_path_factory.mktemp("memory") / "log.txt") as server:
        small = base64.b64encode(DEMO.read_bytes()).decode()
        for _ in range(3):
            ask(server, small)
        yield server


def ask(server: MeasuredServer, data: str) -> None:
    request = body(CHAT, server.model, "How many shapes are there?", data)
    status, answer = server.post(CHAT, request)
    assert status == 200, answer
    assert answer_text(CHAT, answer)


def resident(server: MeasuredServer, field: str) -> int:
    """Bytes of memory of the server now (``VmRSS``) or at most (``VmHWM``)."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def check(
    server: MeasuredServer, size: tuple[int, int], mode: str, format: str = "PNG", kept: int = KEPT
) -> None:
    """Send a picture twice; it is larger than those that the processor keeps for comparison."""
    file = io.BytesIO()
    Image.new(mode, size).save(file, format)
    data = base64.b64encode(file.getvalue()).decode()
    pixels, rows = size[0] * size[1], size[1]
    copies = 1 if mode == "RGB" else 2  # in its stored mode, and in RGB
    expected = copies * (BYTES_PER_PIXEL * pixels + BYTES_PER_ROW * rows) + CONSTANT
    before = resident(server, "VmRSS")
    for _ in range(2):
        start = resident(server, "VmRSS")
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # resets VmHWM
        ask(server, data)
        assert resident(server, "VmHWM") - start < expected
    assert resident(server, "VmRSS") - before < kept


@pytest.mark.parametrize(
    ("size", "mode"), [((1, 5_000_000), "RGB"), ((4000, 4000), "RGBA")], ids=str
)
def test_memory_is_bounded_by_the_pictures_size_and_returns(tiny, size, mode):
    check(tiny, size, mode)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "mode", "format"),
    [
        ((1, 10_000_000), "RGB", "PNG"),
        ((1, 10_000_000), "RGBA", "PNG"),
        ((13_000, 13_000), "RGB", "PNG"),
        ((13_000, 13_000), "P", "PNG"),
        ((13_000, 13_000), "RGB", "JPEG"),
    ],
    ids=str,
)
def test_memory_of_the_largest_pictures_is_bounded_too(tiny, size, mode, format):
    check(tiny, size, mode, format, KEPT_OF_LARGEST)
