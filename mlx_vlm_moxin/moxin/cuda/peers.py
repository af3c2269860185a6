"""Shared memory for adding up the parts of a sharded decoder without MLX's all-reduce.

Processes of one machine write into each other's memory through NVLink (CUDA's inter-process
handles). A kernel can then continue after a sum, instead of ending before each (kernels/peers.cuh).
``connect`` is called in all processes, and either all of them use the memory or none does. Without
it MLX computes the sums.
"""

import ctypes
import functools
import logging
import os
import struct
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from . import device

logger = logging.getLogger(__name__)

# Bytes of the parts of one sum, from all processes.
HALF_BYTES = 32 << 20
# Bytes before the first half (peers.cuh).
PARTS = 4096
# Mail of few rows, after the halves (exchange_rows.cu): rows at most, and bytes of one.
MAIL_ROWS = 64
MAIL_BYTES = 32 << 10
# Offset of the token by which a mapping is checked, after the state of peers.cuh.
TOKEN = 512
TOKEN_BYTES = 64
HANDLE_BYTES = 64
# Seconds after which a launch fails if other processes, which may be compiling, do not arrive.
PATIENCE = 120
ENABLE_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class Peers(NamedTuple):
    """Memory of all processes of a group.

    Attributes:
        addresses: uint32 ``[size, 2]``, lower and upper word of each process's address here.
        rank: of this process.
        size: number of processes.
    """

    addresses: mx.array
    rank: int
    size: int

    @property
    def constants(self) -> dict[str, int]:
        """The constants of peers.cuh in namespace ``config``."""
        return {"RANKS": self.size, "PATIENCE": PATIENCE}

    @property
    def scalars(self) -> dict[str, int]:
        """The last parameters of a kernel that uses the memory."""
        return {"rank": self.rank, "half_bytes": HALF_BYTES}

    def has_mail(self, rows: int, row_bytes: int) -> bool:
        """Whether so many rows of a part can be sent without a barrier (exchange_rows.cu)."""
        return rows <= MAIL_ROWS and 2 * row_bytes <= MAIL_BYTES

    def fits(self, part_bytes: int) -> bool:
        """Whether there is room for parts of this many bytes."""
        return self.size * part_bytes <= HALF_BYTES


class _Handle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


class _Offer(NamedTuple):
    """The data that a process sends to the others."""

    is_ready: bool
    machine: bytes = b""  # equal where kernels and their launches are
    handle: bytes = b""
    token: bytes = b""

    LAYOUT = struct.Struct(f"<?200s{HANDLE_BYTES}s{TOKEN_BYTES}s")

    def exchange(self, group: mx.distributed.Group) -> "list[_Offer]":
        """The offers of all processes, in the order of their ranks."""
        row = mx.array([list(self.LAYOUT.pack(*self))], mx.int32)
        rows = mx.distributed.all_gather(row, group=group).tolist()
        return [_Offer(*self.LAYOUT.unpack(bytes(row))) for row in rows]


_connections: dict[mx.distributed.Group, Peers | None] = {}


def of(group: mx.distributed.Group) -> Peers | None:
    """The memory that ``connect`` found for ``group``; None if sums are MLX's."""
    return _connections.get(group)


def can_add_up(group: mx.distributed.Group | None, part_bytes: int) -> bool:
    """Whether kernels add up parts of so many bytes themselves, if there are several processes."""
    if group is None:
        return True
    found = of(group)
    return found is not None and found.fits(part_bytes)


def connect(group: mx.distributed.Group) -> None:
    """Give the processes of ``group`` memory for their sums, if all of them can use it.

    All processes must call it, also those without a GPU. A group of some processes gets none, since
    the memory counts arrivals of all.
    """
    if group in _connections or not 1 < group.size() == mx.distributed.init().size():
        return
    address, offer = _prepare()
    offers = offer.exchange(group)
    addresses = _open(offers, group.rank(), address)
    is_agreed = all(answer.is_ready for answer in _Offer(bool(addresses)).exchange(group))
    if not is_agreed:
        logger.debug("Sums over %d processes are MLX's", group.size())
        _connections[group] = None
        return
    words = [[value & 0xFFFFFFFF, value >> 32] for value in addresses]
    _connections[group] = Peers(mx.array(words, mx.uint32), group.rank(), group.size())


def _prepare() -> tuple[int, _Offer]:
    """Address of this process's memory, and the offer."""
    if not device.enabled():
        return 0, _Offer(False)
    try:
        address, token = _memory()
        handle = _Handle()
        with device.calls() as call:
            call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
    except RuntimeError as error:
        logger.debug("Memory cannot be shared between processes: %s", error)
        return 0, _Offer(False)
    # The kernels of all processes must be the same and have equally many thread blocks.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    parts = boot, device.architecture(), device.multiprocessors(), version("mlx")
    machine = " ".join(map(str, parts)).encode()
    return address, _Offer(True, machine, bytes(handle.reserved), token)


@functools.cache
def _memory() -> tuple[int, bytes]:
    """Address and token of this process's memory, which is kept until the process ends."""
    address, token = ctypes.c_uint64(), os.urandom(TOKEN_BYTES)
    mail_bytes = 2 * mx.distributed.init().size() * MAIL_ROWS * MAIL_BYTES
    size = ctypes.c_size_t(PARTS + 2 * HALF_BYTES + mail_bytes)
    with device.calls() as call:
        call("cuMemAlloc_v2", ctypes.byref(address), size)
        call("cuMemsetD8_v2", address, ctypes.c_ubyte(0), size)
        place, length = ctypes.c_uint64(address.value + TOKEN), ctypes.c_size_t(TOKEN_BYTES)
        call("cuMemcpyHtoD_v2", place, token, length)
        call("cuCtxSynchronize")
    return address.value, token


def _open(offers: list[_Offer], rank: int, own: int) -> list[int]:
    """Addresses in this process of the memory of all; empty if one cannot be used."""
    is_alike = all(offer.is_ready and offer.machine == offers[0].machine for offer in offers)
    if not is_alike:
        return []
    addresses = []
    try:
        for index, offer in enumerate(offers):
            addresses.append(own if index == rank else _map(offer))
    except RuntimeError as error:
        logger.debug("Another process's memory cannot be used: %s", error)
        return []
    return addresses


def _map(offer: _Offer) -> int:
    """Address in this process of another one's memory.

    Raises:
        RuntimeError: if it cannot be mapped or is not the offered memory.
    """
    address, found = ctypes.c_uint64(), ctypes.create_string_buffer(TOKEN_BYTES)
    handle = _Handle((ctypes.c_ubyte * HANDLE_BYTES)(*offer.handle))
    with device.calls() as call:
        flags = ctypes.c_uint(ENABLE_PEER_ACCESS)
        call("cuIpcOpenMemHandle_v2", ctypes.byref(address), handle, flags)
        place = ctypes.c_uint64(address.value + TOKEN)
        call("cuMemcpyDtoH_v2", found, place, ctypes.c_size_t(TOKEN_BYTES))
    if found.raw != offer.token:
        raise RuntimeError("the memory has other contents")
    return address.value
