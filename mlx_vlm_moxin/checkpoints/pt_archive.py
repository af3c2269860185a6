"""The zip archive of a ``torch.save`` file: locates its members without decompressing them.

torch.save stores members uncompressed, so tensors can be read in place. A compressed member is
refused, since a few kilobytes could expand to gigabytes.
"""

import io
import struct
import zipfile
from pathlib import Path
from types import TracebackType

from mlx_vlm_moxin.checkpoints.regular_files import check_regular

_SIGNATURE = b"PK\3\4"
_LOCAL_HEADER = struct.Struct("<4s22xHH")
# The zip directory of a checkpoint with 2,000 tensors has about 200 kB.
_MAX_DIRECTORY_BYTES = 4 << 20


class _BoundedFile(io.FileIO):
    """A file whose reads are limited to the largest size allowed for the zip directory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of members of {size} bytes")
        return super().read(_MAX_DIRECTORY_BYTES if size is None or size < 0 else size)


class PtArchive:
    """The members of a file that ``torch.save`` wrote, as a context manager.

    Attributes:
        path: the file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not such an archive.
    """

    def __init__(self, path: Path):
        check_regular(path)
        self.path = path
        self._size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(len(_SIGNATURE))
        if start != _SIGNATURE:
            raise ValueError(
                f"{path} is not in PyTorch's zip format; if PyTorch before 1.6 wrote it, load it "
                "with torch.load(..., weights_only=True) and save it again with torch.save"
            )
        self._file = _BoundedFile(path)
        try:
            self._archive = zipfile.ZipFile(self._file)
        # A damaged zip directory can raise many types of errors.
        except Exception as error:
            self._file.close()
            raise ValueError(f"{path} is cut short or damaged; download it again") from error
        names = self._archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        self._pickles = len(pickles)
        self._root = pickles[0].removesuffix("data.pkl") if pickles else ""

    def __enter__(self) -> "PtArchive":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._archive.close()
        self._file.close()

    def has(self, name: str) -> bool:
        """Whether there is a member ``name`` next to ``data.pkl``."""
        return f"{self._root}{name}" in self._archive.NameToInfo

    def span(self, name: str) -> tuple[int, int]:
        """Locate the bytes of a member.

        Args:
            name: relative to the folder that contains ``data.pkl``.

        Returns:
            Offset in the file and size, both in bytes.

        Raises:
            ValueError: if the member is missing, compressed or encrypted, or outside the file.
        """
        if self._pickles != 1:
            raise ValueError(f"{self._pickles} members called data.pkl instead of one")
        if not self.has(name):
            raise ValueError(f"no member {self._root[:100]}{name}, which it refers to")
        info = self._archive.getinfo(f"{self._root}{name}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"a compressed or encrypted member {info.filename[:100]}")
        with open(self.path, "rb") as file:
            file.seek(max(info.header_offset, 0))
            header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise ValueError(f"a member {info.filename[:100]} that is outside of the file")
        signature, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        if signature != _SIGNATURE or start + info.file_size > self._size:
            raise ValueError(f"a member {info.filename[:100]} that is outside of the file")
        return start, info.file_size

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of a member.

        Raises:
            ValueError: see ``span``, or if there are more than ``limit``.
        """
        start, size = self.span(name)
        if size > limit:
            raise ValueError(f"a {name} of {size} bytes")
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(size)
