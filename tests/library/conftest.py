"""The reference checkpoint as other programs quantise it."""

from pathlib import Path

import mlx_vlm
import pytest
from support import HF_CHECKPOINT


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """Directory of the reference checkpoint quantised by stock ``mlx_vlm.convert``."""
    directories = {}

    def convert(bits: int = 8, group_size: int = 64, mode: str = "affine") -> Path:
        key = (bits, group_size, mode)
        if key not in directories:
            path = tmp_path_factory.mktemp("converted") / "checkpoint"
            mlx_vlm.convert(
                str(HF_CHECKPOINT),
                str(path),
                quantize=True,
                q_bits=bits,
                q_group_size=group_size,
                q_mode=mode,
            )
            directories[key] = path
        return directories[key]

    return convert


@pytest.fixture(scope="session")
def ominix(tmp_path_factory):
    """The reference checkpoint in the layout of OminiX-MLX's ``save_quantized``."""
    from source_checkpoints import write_ominix

    return write_ominix(tmp_path_factory.mktemp("ominix") / "checkpoint")
