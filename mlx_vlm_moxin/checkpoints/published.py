"""What is published: how to install this package, and the config of Moxin-7B VLM."""

from mlx_vlm.models.moxin.config import ModelConfig
from mlx_vlm.models.moxin.text_config import TextConfig

PACKAGE = "mlx-vlm-moxin"
# Where this package's repository can be cloned from. None until it has a public address. Model
# cards name it; README's clone line and `Repository` in [project.urls] of pyproject.toml are
# compared with it by tests, which fail with what to write there.
PROJECT_URL: str | None = None
# The package is not on an index, so `pip install NAME` could install somebody else's package.
INSTALL_PATH = f"./{PACKAGE}"

MOXIN_7B_ID = "moxin-org/Moxin-7B-VLM"
# From config.json of the HF-converted checkpoint; the rest are the config classes' defaults.
MOXIN_7B = ModelConfig(text_config=TextConfig(num_hidden_layers=36, vocab_size=32064))


def clone_command() -> str:
    """The line of README that gets the repository; without an address, with a word for it."""
    return f"git clone {PROJECT_URL or 'ADDRESS'} {PACKAGE} && cd {PACKAGE}"


def install_text() -> str:
    """Markdown on how to install this package."""
    clone = "a clone of its repository" if PROJECT_URL is None else f"a clone of <{PROJECT_URL}>"
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
