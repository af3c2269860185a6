"""What Moxin needs of mlx-vlm's server beyond what it does for every model.

Installed when the model package is loaded in a process that has imported
``mlx_vlm.server``; every change acts only while Moxin is the model that is loaded:

- ``errors``: input that cannot be used is answered with a 4xx and one sentence.
- ``parameters``: request parameters are checked before they reach the model.
- ``models``: a request for a model that does not exist leaves the loaded one alone.
- ``generator``: ``stop``, and sampling settings that belong to one request.
"""

import sys


def install() -> None:
    """Install all of it if this process has imported ``mlx_vlm.server``. Idempotent."""
    if "mlx_vlm.server" not in sys.modules:
        return
    from mlx_vlm_moxin.plugin.server import errors, models, parameters

    errors.install()
    parameters.install()
    models.install()
