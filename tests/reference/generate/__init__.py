"""The PyTorch reference model, and its data sets and goldens.

Run ``python -m generate --help`` in ``tests/reference``, in an environment with its
requirements.txt; the tests only read the stored data.
"""

import torch


def _import_torchvision() -> None:
    """Import torchvision even if its compiled operators do not match PyTorch's build.

    A CPU-only PyTorch with a CUDA torchvision cannot load them, and then importing
    torchvision fails at two operators that it describes but does not have. timm needs
    only its transforms, which are Python and Pillow, so declaring the two is enough.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        import torchvision  # noqa: F401


_import_torchvision()
