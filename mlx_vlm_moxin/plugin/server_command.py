"""``python -m mlx_vlm_moxin server``: mlx-vlm's server with restrictive defaults.

Unless options allow more, it listens on this machine only, reads no pictures from its disk or
private networks for a request, and allows no scripts of web pages.
"""

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence

from mlx_vlm_moxin.plugin import server_settings as settings

DEFAULT_HOST = "127.0.0.1"


def parser() -> argparse.ArgumentParser:
    """This package's options, and mlx-vlm's options with another default."""
    made = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin server",
        usage="%(prog)s [options below] [options of mlx_vlm]",
        add_help=False,
        allow_abbrev=False,
    )
    add = made.add_argument_group("What the server allows").add_argument
    add("--host", default=DEFAULT_HOST, help="address to listen at (default: %(default)s)")
    add(
        "--allow-local-files",
        action="store_true",
        help="requests may name pictures on the server's disk",
    )
    add(
        "--allow-private-addresses",
        action="store_true",
        help="URLs of pictures may lead to this machine and to private networks",
    )
    add(
        "--pin-model",
        action="store_true",
        help="requests get the loaded model only, and none can unload it",
    )
    add(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="web page whose scripts may use the server, * for all; repeat it for several",
    )
    add(
        "--max-body-bytes",
        metavar="N",
        help=f"largest request (default: {settings.ServerSettings.max_body_bytes})",
    )
    add("--max-picture-pixels", metavar="N", help="largest picture (default: Pillow's limit)")
    add("--picture-timeout", metavar="S", help="seconds for a download (default: 30)")
    return made


def environment(options: argparse.Namespace) -> dict[str, str]:
    """The environment variables for ``options``; an option that is not given keeps its variable."""
    strict = {
        settings.LOCAL_FILES: "1" if options.allow_local_files else None,
        settings.PRIVATE_ADDRESSES: "1" if options.allow_private_addresses else None,
        settings.PIN_MODEL: "1" if options.pin_model else None,
        settings.ALLOW_ORIGINS: " ".join(options.allow_origin) or None,
    }
    defaults = {name: os.environ.get(name, "0") for name in strict}
    defaults[settings.ALLOW_ORIGINS] = os.environ.get(settings.ALLOW_ORIGINS, "")
    chosen = {name: value or defaults[name] for name, value in strict.items()}
    given = {
        settings.MAX_BODY_BYTES: options.max_body_bytes,
        settings.MAX_PIXELS: options.max_picture_pixels,
        settings.PICTURE_TIMEOUT: options.picture_timeout,
    }
    return chosen | {name: value for name, value in given.items() if value is not None}


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def split(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The environment variables of the added options, and the arguments for mlx-vlm's server.

    Exits with a line on standard error for a value that cannot be used.
    """
    made = parser()
    options, stock = made.parse_known_args(arguments)
    variables = environment(options)
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        settings.ServerSettings.from_environment().picture_limits()
    except ValueError as error:
        made.error(str(error))
    finally:
        os.environ.clear()
        os.environ.update(before)
    if {"-h", "--help"} & {*stock}:
        made.print_help()
        print()
    elif not is_loopback(options.host) and not _has_key(stock):
        print(
            f"warning: anyone who can reach {options.host} can use this server; give it an "
            "--api-key, and read docs/serving.md",
            file=sys.stderr,
        )
    return variables, ["--host", options.host, *stock]


def _has_key(arguments: Sequence[str]) -> bool:
    names = {argument.partition("=")[0] for argument in arguments}
    return "--api-key" in names or bool(os.environ.get("MLX_VLM_SERVER_API_KEY"))


def allow(arguments: Sequence[str]) -> list[str]:
    """Store the settings in ``arguments`` in the environment.

    Returns:
        The arguments for mlx-vlm's server.
    """
    variables, stock = split(arguments)
    os.environ.update(variables)
    return stock
