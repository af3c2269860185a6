"""What Moxin needs of mlx-vlm's server beyond what it does for every model.

The rows of :data:`mlx_vlm_moxin.plugin.upstream.UPSTREAM` for ``mlx_vlm.server`` name the
functions here. Every change acts only while Moxin is the model that is loaded:

- ``errors``: input that cannot be used is answered with a 4xx and one sentence.
- ``parameters``: request parameters are checked before they reach the model.
- ``models``: a request for a model that does not exist leaves the loaded one alone.
- ``generator``: ``stop``, and sampling settings that belong to one request.
"""
