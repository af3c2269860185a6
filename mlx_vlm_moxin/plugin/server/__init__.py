"""What Moxin needs of mlx-vlm's server beyond what it does for every model.

The rows of ``upstream.UPSTREAM`` for ``mlx_vlm.server`` name the
functions here. Every change acts only while Moxin is the model that is loaded.

A request passes, in this order:

- ``gate``: the middleware before the endpoints, with
  ``json_body`` (limits and checks), ``picture_parts`` (where pictures are),
  ``context`` (what fits into the model's context), ``models`` (loading another model),
  ``pictures`` (reading) and ``client`` (noticing that it has hung up).
- ``parameters`` and ``structured``: what cannot be done is refused.
- ``generator``, with ``sampling`` and ``stopping``: settings that belong to one request.
- ``errors``, ``log`` and ``logprobs``: what comes back, and what is written down.

``settings`` are environment variables, ``command`` the options of
``python -m mlx_vlm_moxin server``, ``application`` puts all of it in place.
"""

# Either import puts functions of the modules below in place, which need both: here, before
# one of them is imported half.
import mlx_vlm.models.moxin
import mlx_vlm.server  # noqa: F401
