"""mlx-vlm's FastAPI application with this package's additions."""

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from starlette.middleware import Middleware

from mlx_vlm_moxin.plugin.server import garbage, log
from mlx_vlm_moxin.plugin.server.act import add_act_routes
from mlx_vlm_moxin.plugin.server.answer_headers import use_answer_headers
from mlx_vlm_moxin.plugin.server.completions import add_completions
from mlx_vlm_moxin.plugin.server.errors import add_exception_handlers
from mlx_vlm_moxin.plugin.server.gate import Gate
from mlx_vlm_moxin.plugin.server.model_list import add_model_route
from mlx_vlm_moxin.plugin.server_settings import ServerSettings


def extended(app: FastAPI) -> FastAPI:
    """``app`` itself, extended.

    Raises:
        ValueError: naming a setting in the environment that cannot be used.
    """
    settings = ServerSettings.from_environment()
    add_exception_handlers(app)
    add_model_route(app)
    add_act_routes(app)
    add_completions(app)
    use_answer_headers(app)
    # The innermost middleware, so that its answers get the headers of the others.
    app.user_middleware.append(Middleware(Gate))
    if settings.allow_origins is not None:
        for middleware in app.user_middleware:
            if middleware.cls is CORSMiddleware:
                middleware.kwargs["allow_origins"] = list(settings.allow_origins)
                middleware.kwargs["allow_credentials"] = False
    log.install()
    # Built when the server started; the next request builds it again with the additions.
    app.middleware_stack = None
    garbage.exempt_imports()
    return app
