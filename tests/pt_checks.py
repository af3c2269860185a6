"""Reads files of ``torch_files``, for tests of values and of errors."""

import numpy as np
import pytest
from torch_files import write_pt

from mlx_vlm_moxin.checkpoints.pt_file import read_pt

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def read(path, *arguments, **kwargs):
    """The contents of a file that ``write_pt`` writes with these arguments."""
    return read_pt(write_pt(path / "file.pt", *arguments, **kwargs))


def refused(path, *arguments, **kwargs) -> str:
    """The one-line error for such a file."""
    with pytest.raises(ValueError, match=r"file\.pt") as error:
        read(path, *arguments, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)
