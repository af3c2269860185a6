"""The model card: what was converted from what, how, at what cost, and how to run it."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from mlx_vlm.models.moxin.config import ModelConfig

from mlx_vlm_moxin import __version__
from mlx_vlm_moxin.checkpoints.provenance import provenance
from mlx_vlm_moxin.checkpoints.sources.files import is_repository, split_repository


def _is_hub_id(name: str) -> bool:
    """Whether ``name`` is a Hub repository, or the folder of a model in one, and no local path."""
    if not is_repository(name):
        return False
    try:
        validate_repo_id(split_repository(name)[0])
    except HFValidationError:
        return False
    return True


def _link(name: str) -> str:
    """A link to a Hub repository or to the folder of a model in one."""
    repository, folder = split_repository(name)
    place = f"{repository}/tree/main/{folder}" if folder else repository
    return f"[{name}](https://huggingface.co/{place})"


def _describe(layer: dict) -> str:
    text = f"{layer['bits']} bits, group size {layer['group_size']}"
    return f"{text}, {layer['mode']}" if "mode" in layer else text


def _quantization_text(quantization: dict | None) -> str:
    """One paragraph on config.json's ``quantization``, with what single layers have instead."""
    if not quantization:
        return "Not quantised."
    text = f"{_describe(quantization)}."
    others = {}
    for layer in quantization.values():
        if isinstance(layer, dict) and _describe(layer) != _describe(quantization):
            others[_describe(layer)] = others.get(_describe(layer), 0) + 1
    for layer, count in sorted(others.items()):
        text += f" {count} {'layer' if count == 1 else 'layers'}: {layer}."
    return text


def _text(
    name: str,
    command: str,
    origin: str,
    licence: str,
    quantization: str,
    verification: str,
    evaluation: str | None,
) -> str:
    terms = f"\n## Licence\n\n{licence}\n" if licence else ""
    benchmarks = "" if evaluation is None else f"\n## Benchmarks\n\n{evaluation}\n"
    return f"""# {name}

{origin} It runs on stock mlx-vlm once mlx-vlm-moxin is installed.

## Use

```bash
pip install mlx-vlm-moxin
{command}
```

On Linux, install `"mlx-vlm-moxin[cpu]"`, `"mlx-vlm-moxin[cuda12]"` or `"mlx-vlm-moxin[cuda13]"`.
{terms}
## Quantisation

{quantization}

## Verification

{verification}
{benchmarks}"""


def write_card(
    directory: Path,
    *,
    source: str,
    base_model: str | None,
    config: ModelConfig,
    quantization: dict | None,
    verification: str | None,
    upload_repo: str | None,
    evaluation: str | None = None,
) -> None:
    """Write ``README.md`` of a converted model.

    Args:
        directory: where the converted model lies.
        source: Hub id or local path of what was converted; a path is not written down.
        base_model: Hub id of the model that the weights come from; None for the published
            one that ``config`` tells.
        config: the model's.
        quantization: config.json's ``quantization``, None if not quantised.
        verification: Markdown that says what it cost, None if it was not measured.
        upload_repo: Hub id that the model goes to, None if it stays here; the command on
            the card is then to be run in ``directory``, whatever its name.
        evaluation: Markdown that says what it cost on benchmarks, None if that was not
            measured.

    Raises:
        ValueError: if ``base_model`` is no Hub id (the Hub refuses such a card).
    """
    origins = provenance(config)
    base_model = base_model or origins.base_model
    if not _is_hub_id(base_model):
        raise ValueError(
            f"The model card needs a Hub id as base_model (such as moxin-org/Moxin-7B-VLM), "
            f"got {base_model!r}"
        )
    tags = ["mlx", origins.tag]
    if quantization:
        tags.append(f"{quantization['bits']}-bit")
    data = ModelCardData(
        base_model=base_model,
        base_model_relation="quantized" if quantization else None,
        library_name="mlx",
        pipeline_tag=origins.pipeline_tag,
        license=origins.licence.hub_id,
        tags=tags,
    )
    converted_from = _link(source) if _is_hub_id(source) else f"a local copy of {_link(base_model)}"
    origin = f"Converted to MLX from {converted_from} with mlx-vlm-moxin {__version__}."
    if verification is None:
        cost = "Not measured."
    else:
        cost = (
            "Compared with its source on the source's own greedy answers about pictures, "
            f"token by token:\n\n{verification}"
        )
    text = _text(
        name=upload_repo or f"{base_model.rpartition('/')[2]} for MLX",
        command=origins.command.format(model=upload_repo or "."),
        origin=origin,
        licence=origins.licence.note,
        quantization=_quantization_text(quantization),
        verification=cost,
        evaluation=evaluation,
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(Path(directory) / "README.md")
