"""The model card: the source, how it was converted, what that cost, and how to run the model."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from mlx_vlm.models.moxin.config import ModelConfig

from mlx_vlm_moxin import __version__
from mlx_vlm_moxin.checkpoints.language_models import licence_note
from mlx_vlm_moxin.checkpoints.provenance import CARD_FILE, Provenance
from mlx_vlm_moxin.checkpoints.published import PACKAGE, install_text

# The path on the card of a model that is not uploaded: the card's directory.
_HERE = "."
_COMMAND = "python -m mlx_vlm generate --model"
_ACTION_COMMAND = "python -m mlx_vlm_moxin act --model"
_MODEL_ARGUMENT = re.compile(rf"^({_COMMAND}|{_ACTION_COMMAND}) (\S+)", re.MULTILINE)
_HEADING = re.compile(r"^# .*$", re.MULTILINE)
TOWERS = {"dino": "DINOv2", "siglip": "SigLIP", "clip": "CLIP", "in1k": "ImageNet ViT"}
DECODERS = {"mistral": "Mistral", "llama": "Llama"}


def link(repository: str) -> str:
    """Markdown link to a Hub repository, or to a folder in one."""
    owner, name, *folder = repository.split("/")
    place = "/".join([owner, name, *(["tree", "main", *folder] if folder else [])])
    return f"[{repository}](https://huggingface.co/{place})"


def _describe_layer(layer: dict[str, Any]) -> str:
    text = f"{layer['bits']} bits, group size {layer['group_size']}"
    return f"{text}, {layer['mode']}" if "mode" in layer else text


def describe_quantization(quantization: dict[str, Any] | None) -> str:
    """One sentence on config.json's ``quantization``, then the layers with other settings."""
    if not quantization:
        return "Not quantised."
    text = f"{_describe_layer(quantization)}."
    others: dict[str, int] = {}
    for layer in quantization.values():
        if isinstance(layer, dict) and _describe_layer(layer) != _describe_layer(quantization):
            others[_describe_layer(layer)] = others.get(_describe_layer(layer), 0) + 1
    for layer, count in sorted(others.items()):
        text += f" {count} {'layer' if count == 1 else 'layers'}: {layer}."
    return text


def describe_model(config: ModelConfig) -> str:
    """One sentence on what the model consists of."""
    towers = " and ".join(TOWERS[name] for name in config.vision_config.towers)
    text = config.text_config
    kind = "vision-language-action model" if config.norm_stats else "vision-language model"
    return (
        f"A {kind} of the Prismatic family: {towers} at {config.vision_config.image_size} pixels, "
        f"and a {DECODERS[text.model_type]} decoder of {text.num_hidden_layers} layers, "
        f"{text.hidden_size} wide."
    )


@dataclass(frozen=True)
class Card:
    """What is known about a model when its card is written.

    Attributes:
        provenance: where it comes from.
        config: its config.
        quantization: config.json's; None if it is not quantised.
        made: what was done to the source, such as "Converted to MLX" or "Saved as MLX weights".
        notes: further sentences on how the weights were made.
        verification: Markdown about the accuracy that the conversion cost; None if not measured.
        evaluation: Markdown about what it cost on benchmarks; None if not measured.
        model_type: config.json's ``model_type``, which selects mlx-vlm's model package.
    """

    provenance: Provenance
    config: ModelConfig
    quantization: dict[str, Any] | None
    made: str = "Converted to MLX"
    notes: tuple[str, ...] = ()
    verification: str | None = None
    evaluation: str | None = None
    model_type: str = "moxin"

    def write(self, directory: Path, upload_repo: str | None = None) -> None:
        """Write ``README.md``.

        Args:
            directory: the model's directory.
            upload_repo: Hub repository that the model will be uploaded to; None if it stays in
                ``directory``, in which case the card's command is to be run there.
        """
        text = f"---\n{self._metadata().to_yaml()}\n---\n\n{self._text()}"
        ModelCard(text).save(Path(directory) / CARD_FILE)
        if upload_repo is not None:
            name_repository(directory, upload_repo)

    def _metadata(self) -> ModelCardData:
        known = self.provenance
        relation = known.relation or ("quantized" if self.quantization else None)
        bits = [f"{self.quantization['bits']}-bit"] if self.quantization else []
        return ModelCardData(
            base_model=known.base_model,
            base_model_relation=relation if known.base_model else None,
            library_name="mlx",
            pipeline_tag="robotics" if self.config.norm_stats else "image-text-to-text",
            license=known.license,
            license_name=known.license_name,
            license_link=known.license_link,
            tags=["mlx", self._family(), *bits],
        )

    def _family(self) -> str:
        """The Hub's tag for models of this family."""
        if "moxin" in f"{self.provenance.base_model} {self.config.llm_backbone_id}".lower():
            return "moxin"
        return "openvla" if self.config.norm_stats else "prismatic"

    def _origin(self) -> str:
        known = self.provenance
        source = "a local directory" if known.source is None else link(known.source)
        text = f"{self.made} from {source} with {PACKAGE} {__version__}."
        if known.relation == "finetune" and known.base_model:
            text += f" It is a fine-tune of {link(known.base_model)}."
        elif known.base_model and known.base_model != "/".join((known.source or "").split("/")[:2]):
            text += f" Its base model is {link(known.base_model)}."
        return text

    def _command(self) -> str:
        if self.config.norm_stats:
            return self._action_command()
        return (
            f"{_COMMAND} {_HERE} --max-tokens 100 --temperature 0.0 \\\n"
            '    --prompt "Describe this image." --image photo.jpg'
        )

    def _action_command(self) -> str:
        """With everything that the model needs: its cameras, state and one of its data sets."""
        actions, data_sets = self.config.action_config, sorted(self.config.norm_stats)
        cameras = ["photo", *(f"camera{n}" for n in range(2, actions.num_images + 1))]
        command = f"{_ACTION_COMMAND} {_HERE} {' '.join(f'--image {name}.jpg' for name in cameras)}"
        options = ['--instruction "pick up the red cup"']
        if actions.proprio_dim is not None:
            options.append(f'--state "{",".join("0" * actions.proprio_dim)}"')
        if len(data_sets) > 1:
            options.append(f"--unnorm-key {shlex.quote(data_sets[0])}")
        return f"{command} \\\n    {' '.join(options)}"

    def _text(self) -> str:
        name = (self.provenance.base_model or "/A model of the Prismatic family").rpartition("/")[2]
        cost = "Not measured."
        if self.verification is not None:
            cost = (
                "Compared with its source on the source's own greedy answers about pictures, "
                f"token by token:\n\n{self.verification}"
            )
        quantization = " ".join((describe_quantization(self.quantization), *self.notes))
        note = licence_note(self.config.llm_backbone_id)
        terms = f"\n## Licence\n\n{note}\n" if note else ""
        benchmarks = ""
        if self.evaluation is not None:
            benchmarks = f"\n## Benchmarks\n\n{self.evaluation}\n"
        return f"""# {name} for MLX

{self._origin()} {describe_model(self.config)}

## Use

It runs with mlx-vlm once {PACKAGE} is installed. Without it, mlx-vlm says
`Model type {self.model_type} not supported`. {install_text()}

```bash
{self._command()}
```
{terms}
## Quantisation

{quantization}

## Verification

{cost}
{benchmarks}"""


def name_repository(directory: Path, repository: str) -> None:
    """Put the name of a Hub repository on the card in ``directory``, if ``Card`` wrote that card.

    The heading and the command that runs the model are changed, whatever they named before.
    """
    path = Path(directory) / CARD_FILE
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    if _MODEL_ARGUMENT.search(text) is None:
        return
    text = _MODEL_ARGUMENT.sub(lambda match: f"{match[1]} {repository}", text)
    path.write_text(_HEADING.sub(f"# {repository}", text, count=1), encoding="utf-8")
