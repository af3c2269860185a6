"""``python -m mlx_vlm_moxin generate ...``: a stock mlx-vlm command, plugin registered.

For environments where Python reads no ``.pth`` files; elsewhere the stock command does
the same.
"""

import runpy

from mlx_vlm_moxin import register


def main() -> None:
    """Run ``python -m mlx_vlm`` with the same arguments after registering Moxin."""
    register()
    runpy.run_module("mlx_vlm", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    main()
