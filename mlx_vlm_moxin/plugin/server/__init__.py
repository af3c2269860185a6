"""Moxin's additions to mlx-vlm's server.

The rows of ``upstream.UPSTREAM`` for ``mlx_vlm.server`` name the
functions here. Every change applies only while Moxin is the loaded model.

A request passes, in this order:

- ``gate``: the middleware before the endpoints, with
  ``json_body`` (limits and checks), ``picture_parts`` (where pictures are),
  ``context`` (the limit of the model's context), ``models`` (loading another model),
  ``pictures`` (reading), ``client`` (detecting that it has disconnected) and
  ``request_threads`` (where endpoints wait).
- ``parameters`` and ``structured``: refuse what is not supported.
- ``generator``, with ``sampling`` and ``stopping``: settings that belong to one request;
  with ``picture_features``, what joining requests compute together, ``token_blocks``, what
  a stream sends together, and ``arrivals``, which wakes those that wait for tokens.
- ``first_use``: what MLX compiles for batches, while weights are read.
- ``errors``, ``log``, ``logprobs`` and ``answer_headers``: the answer and the log.
- ``garbage``: less frequent garbage collection.

``settings`` are environment variables, ``command`` the options of
``python -m mlx_vlm_moxin server``, ``application`` installs all of it.
"""

# Either import installs functions of the modules below, which need both; done here, before one of
# them is partly imported.
import mlx_vlm.models.moxin
import mlx_vlm.server  # noqa: F401
