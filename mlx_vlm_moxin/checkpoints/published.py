"""What is published: how to install this package, and the config of Moxin-7B VLM."""

from importlib.metadata import PackageNotFoundError, metadata

from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.text_config import TextConfig

PACKAGE = "mlx-vlm-moxin"
# The package is not on an index, so `pip install NAME` could install somebody else's package.
INSTALL_PATH = f"./{PACKAGE}"

MOXIN_7B_ID = "moxin-org/Moxin-7B-VLM"
# From config.json of the HF-converted checkpoint; the rest are the config classes' defaults.
MOXIN_7B = ModelConfig(text_config=TextConfig(num_hidden_layers=36, vocab_size=32064))


def project_url() -> str | None:
    """Where this package's repository can be cloned from: `Repository` in pyproject.toml.

    Returns:
        None if it has no public address, or if the package runs without being installed.
    """
    try:
        urls = metadata(PACKAGE).get_all("Project-URL") or []
    except PackageNotFoundError:
        return None
    return dict(entry.split(", ", 1) for entry in urls).get("Repository")


def install_text() -> str:
    """Markdown on how to install this package."""
    url = project_url()
    clone = "a clone of its repository" if url is None else f"a clone of <{url}>"
    lines = {
        f"pip install {INSTALL_PATH}": "macOS",
        f'pip install "{INSTALL_PATH}[cpu]"': "Linux without a GPU",
        f'pip install "{INSTALL_PATH}[cuda13]"': "Linux with an NVIDIA GPU (or cuda12)",
    }
    width = max(map(len, lines))
    commands = "\n".join(f"{line:<{width}}  # {where}" for line, where in lines.items())
    return (
        f"{PACKAGE} is not on a package index. In the folder that contains {clone}, one of\n\n"
        f"```bash\n{commands}\n```\n\ninstalls it together with mlx-vlm."
    )
