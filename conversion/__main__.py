"""``python -m conversion``, from a clone: the same as ``python -m mlx_vlm_moxin convert``."""

import sys

from mlx_vlm_moxin.conversion.command_line import main

if __name__ == "__main__":
    sys.exit(main())
