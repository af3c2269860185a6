"""Numbers on the pages equal those in the code or stored results, and agree between pages.

A row of ``FACTS`` is a page, a pattern whose groups are numbers, and their sources. Every match on
the page is compared; a pattern without a match fails, since the sentence was rewritten.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest
from mlx_vlm.generate import dispatch
from mlx_vlm.models.moxin.cuda import prompt_pieces
from mlx_vlm.models.moxin.quantization import AFFINE_BITS

from mlx_vlm_moxin.checkpoints.published import MOXIN_7B
from mlx_vlm_moxin.library import models, sizes
from mlx_vlm_moxin.plugin import upstream

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "moxin_tiny"
RESULTS = json.loads((TINY / "results.json").read_text(encoding="utf-8"))
TRAINING = json.loads((TINY / "training.json").read_text(encoding="utf-8"))
FORMATS = {row["name"]: row for row in RESULTS["formats"]}
ACTING = ROOT / "tests" / "openvla_tiny"
ACTING_README = "tests/openvla_tiny/README.md"
ACTING_TRAINING = json.loads((ACTING / "training.json").read_text(encoding="utf-8"))
ACTING_RESULTS = json.loads((ACTING / "results.json").read_text(encoding="utf-8"))
ACTING_FORMATS = {row["name"].partition(",")[0]: row for row in ACTING_RESULTS["formats"]}
ROWS = {row.source: row for row in models.rows()}
PARTS = sizes.part_parameters()
VISION = MOXIN_7B.vision_config
TEXT = MOXIN_7B.text_config
KINDS = ("colour", "shape", "count", "exists", "relation", "place", "size", "describe")


@cache
def text(page: str) -> str:
    """A page on one line, so that sentences are found across line breaks."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


@cache
def part_bytes(bits: int | None) -> dict[str, int]:
    """Bytes of each part of the full-size model, with group size 64."""
    return sizes.part_bytes(MOXIN_7B, bits)


def gigabytes(bits: int | None, parts: tuple[str, ...] = tuple(PARTS), digits: int = 2) -> str:
    """Weights of the full-size model in GB, with group size 64."""
    taken = part_bytes(bits)
    return f"{sum(taken[part] for part in parts) / 1e9:.{digits}f}"


def billions(*parts: str) -> str:
    """Number of weights."""
    return f"{sum(PARTS[part] for part in parts) / 1e9:.2f}"


def share(*parts: str) -> str:
    """Share of all weights, in per cent."""
    return f"{100 * sum(PARTS[part] for part in parts) / sum(PARTS.values()):.1f}"


def right(name: str) -> str:
    """Right answers of a format of moxin-tiny, in per cent."""
    return f"{100 * FORMATS[name]['exact_match']:.1f}"


def success(name: str) -> str:
    """Episodes that OpenVLA-tiny does in a format, in per cent."""
    return f"{100 * ACTING_FORMATS[name]['success']:.1f}"


def acting_row(name: str) -> tuple[str, str, list[str]]:
    """A format's row of OpenVLA-tiny's table: each kind, all of them, the actions' error."""
    row = ACTING_FORMATS[name]
    pattern = rf"\| {name} \| [\d.]+ MB" + r" \| ([\d.]+) %" * 6 + r" \| ([\d.]+) \|"
    shares = [f"{100 * share:.1f}" for share in (*row["by_kind"].values(), row["success"])]
    return ACTING_README, pattern, [*shares, f"{row['action_error']:.4f}"]


def download(source: str) -> str:
    """Size of a published checkpoint in GB."""
    return f"{ROWS[source].download / 1e9:.1f}"


def memory(source: str, bits: int) -> str:
    """Size of a published model's weights at a width in GB."""
    return f"{ROWS[source].memory[bits] / 1e9:.1f}"


def visual_tokens() -> list[int]:
    """Numbers of visual tokens of the family's models, each once."""
    configs = [models.config_of(each.model) for each in models.PUBLISHED.values()]
    return sorted({config.vision_config.num_patches for config in configs})


def pixels() -> list[int]:
    """Sides of the family's pictures, each once."""
    return sorted({row.pixels for row in ROWS.values()})


def two_bits() -> list[str]:
    """The lowest and the highest share of right answers at 2 bits."""
    shares = sorted(right(name) for name in FORMATS if name.startswith("2 bits"))
    return [shares[0], shares[-1]]


HF, NATIVE = "bobchenyx/Moxin-7B-VLM-hf", "moxin-org/Moxin-7B-VLM"
TOWERS = ("DINOv2 tower", "SigLIP tower")
SIZE = f"{VISION.image_size} x {VISION.image_size}"
COMING, GUIDE = "docs/coming-from-ominix.md", "docs/quantisation.md"
FACTS = [
    ("README.md", r"projects (\d+) visual tokens", [VISION.num_patches]),
    ("README.md", r"(\d+ x \d+) pixels and (\d+) visual", [SIZE, VISION.num_patches]),
    ("README.md", r"\| 4 bits \|(?: [\d.]+ GB \|){2} ([\d.]+) GB", [gigabytes(4, digits=1)]),
    ("README.md", r"\| 8 bits \|(?: [\d.]+ GB \|){2} ([\d.]+) GB", [gigabytes(8, digits=1)]),
    ("README.md", r"\| bf16 \| [\d.]+ GB \| ([\d.]+) GB \|", [download(HF)]),
    ("README.md", r"\| 4 bits \| [\d.]+ GB \| ([\d.]+) GB \|", [download(HF)]),
    ("README.md", r"\| 8 bits \| [\d.]+ GB \| ([\d.]+) GB \|", [gigabytes(8, digits=1)]),
    ("README.md", r"download of ([\d.]+) GB to a server", [download("openvla/openvla-7b")]),
    ("docs/actions.md", r"([\d.]+) GB for OpenVLA at 8 bits", [memory("openvla/openvla-7b", 8)]),
    ("docs/limits.md", r"(\d+ x \d+) pixels and (\d+) visual", [SIZE, VISION.num_patches]),
    ("docs/limits.md", r"have (\d+) to (\d+) pixels", [pixels()[0], pixels()[-1]]),
    (
        "docs/limits.md",
        r"(\d+) to (\d+) visual tokens\.",
        [visual_tokens()[0], visual_tokens()[-1]],
    ),
    ("docs/limits.md", r"Moxin's have (\d+)", [TEXT.hidden_size // TEXT.num_attention_heads]),
    ("docs/speed.md", r"Prompts \(in pieces of up to (\d+) tokens\)", [prompt_pieces.MAX_TOKENS]),
    ("docs/text-only.md", r"heads \((\d+) for Moxin", [TEXT.num_key_value_heads]),
    ("docs/conversion.md", r"native, ([\d.]+) GB fp32", [download(NATIVE)]),
    ("docs/conversion.md", r"HF-converted, ([\d.]+) GB", [download(HF)]),
    ("docs/conversion.md", r"\| 8 bits \| ([\d.]+) GB \|", [gigabytes(8)]),
    ("docs/conversion.md", r"\| 4 bits \| ([\d.]+) GB \|", [gigabytes(4)]),
    ("docs/conversion.md", r"\| bf16 \(`-d`\) \| ([\d.]+) GB \|", [gigabytes(None)]),
    ("docs/conversion.md", r"\| kept \| ([\d.]+) GB \|", [gigabytes(8)]),
    (
        GUIDE,
        r"([\d.]+) of ([\d.]+) billion weights",
        [billions(*sizes.QUANTIZED_PARTS), billions(*PARTS)],
    ),
    (GUIDE, r"SigLIP's MLP is (\d+) wide", [VISION.siglip.intermediate_size]),
    (GUIDE, r"It is ([\d.]+) % of the weights", [share("projector")]),
    (GUIDE, r"shapes \(([\d.]+) GB in bfloat16", [gigabytes(None)]),
    (GUIDE, r"\(\.\.\., quantize=8\)` \| ([\d.]+) GB", [gigabytes(8)]),
    (GUIDE, r"\(\.\.\., quantize=4\)` \| ([\d.]+) GB", [gigabytes(4)]),
    (GUIDE, r"on ([\d,]+) held-out", [f"{RESULTS['pairs']:,}"]),
    (GUIDE, r"A picture is (\d+) tokens", [VISION.num_patches]),
    (
        "mlx_vlm_moxin/moxin/moxin.py",
        r"projector are ([\d.]+) % of the weights",
        [share(*TOWERS, "projector")],
    ),
    (COMING, r"\[1, (\d+), (\d+), 3\]", [VISION.image_size] * 2),
    (COMING, r"\[B, (\d+), (\d+)\]`", [VISION.num_patches, TEXT.hidden_size]),
    (COMING, r"contain (\d+) placeholders", [VISION.num_patches]),
    (COMING, r"once, ([\d.]+) GB in bf16", [gigabytes(None, sizes.QUANTIZED_PARTS)]),
    (COMING, r"and ([\d.]+) GB at 8 bits", [gigabytes(8, sizes.QUANTIZED_PARTS)]),
    (
        COMING,
        r"`--max-tokens N` \(\d+\) \| `--max-tokens N` \((\d+)\)",
        [dispatch.DEFAULT_MAX_TOKENS],
    ),
    (COMING, r'`--prompt TEXT` \("([^"]+)"\): without', [dispatch.DEFAULT_PROMPT]),
    ("docs/accuracy.md", r"same ([\d,]+) held-out", [f"{RESULTS['pairs']:,}"]),
    ("docs/accuracy.md", r"about (\d+) pictures", [RESULTS["pictures"]]),
    ("docs/accuracy.md", r"(\d+) of each kind", [RESULTS["pairs"] // len(KINDS)]),
    (
        "docs/accuracy.md",
        r"it gives ([\d.]+) %",
        [f"{100 * RESULTS['training_kind_bf16']['exact_match']:.2f}"],
    ),
    ("tests/moxin_tiny/README.md", r"([\d.]+) million", [f"{TRAINING['parameters'] / 1e6:.2f}"]),
    ("tests/moxin_tiny/README.md", r"([\d,]+) steps of", [f"{TRAINING['steps']:,}"]),
    ("tests/moxin_tiny/README.md", r"steps of (\d+) pictures", [TRAINING["pictures_per_step"]]),
    ("tests/moxin_tiny/README.md", r"pictures with (\d+)", [TRAINING["questions_per_picture"]]),
    ("tests/moxin_tiny/README.md", r"each, (\d+) s on", [TRAINING["seconds"]]),
    (
        "tests/moxin_tiny/README.md",
        r"([\d.]+) % of ([\d,]+) answers are right in bf16",
        [right("bf16"), f"{RESULTS['pairs']:,}"],
    ),
    ("tests/moxin_tiny/README.md", r"([\d.]+) % at 4 bits", [right("4 bits, group 64")]),
    ("tests/moxin_tiny/README.md", r"([\d.]+) to ([\d.]+) % at 2 bits", two_bits()),
    (ACTING_README, r"([\d,]+) steps, [\d.]+ per second", [f"{ACTING_TRAINING['steps']:,}"]),
    (ACTING_README, r"--seconds (\d+) --pictures", [ACTING_TRAINING["seconds"]]),
    (ACTING_README, r"--pictures (\d+) --", [ACTING_TRAINING["pictures_per_step"]]),
    (ACTING_README, r"bf16 reaches ([\d.]+) %", [success("bf16")]),
    ("README.md", r"In bf16, ([\d.]+) % of [\d,]+ held-out episodes", [success("bf16")]),
    *map(acting_row, ACTING_FORMATS),
    ("CHANGELOG.md", r"stock mlx-vlm ([\d.]+) to", [upstream.MLX_VLM[2:].split(",")[0]]),
]
# Measured numbers, which are not in code: pages and patterns that must all give one number.
SAME = {
    "lines that the tests cover": [
        ("README.md", r"\[Coverage ([\d.]+)%\]"),
        ("README.md", r"badge/coverage-([\d.]+)%25"),
        ("CONTRIBUTING.md", r"servers that it starts: ([\d.]+) % of [\d,]+ lines"),
    ],
    "seconds a token takes on two cores": [
        ("README.md", r"measured: (\d+) s a token"),
        ("README.md", r"full-size model takes (\d+) s"),
        ("docs/speed.md", r"(\d+)\.\d s for a token of the full-size"),
    ],
    "seconds a token takes with llama.cpp": [
        ("README.md", r"some (0\.\d) s for a decoder"),
        ("docs/speed.md", r"about (0\.\d) s of one x86-64 core"),
    ],
    "minutes that the evaluation takes": [
        ("docs/accuracy.md", r"\((\d+) minutes on two"),
        ("tests/moxin_tiny/README.md", r"took (\d+) minutes on two"),
    ],
    "oldest Python": [
        ("README.md", r"python3 \((3\.\d+) or newer"),
        ("CONTRIBUTING.md", r"python3 \((3\.\d+) or newer"),
        ("pyproject.toml", r'requires-python = ">=(3\.\d+)"'),
        ("Makefile", r"Python (3\.\d+) or newer is needed"),
        ("Makefile", r"--python-version (3\.\d+)"),
    ],
}


def found(page: str, pattern: str) -> list[tuple[str, ...]]:
    """The groups of every match; there must be at least one."""
    matches = [match.groups() for match in re.finditer(pattern, text(page))]
    assert matches, f"{page} has nothing like {pattern}"
    return matches


@pytest.mark.parametrize(("page", "pattern", "expected"), FACTS)
def test_a_number_on_a_page_is_its_sources(page, pattern, expected):
    assert {*found(page, pattern)} == {tuple(map(str, expected))}


@pytest.mark.parametrize("what", SAME)
def test_a_measured_number_is_the_same_on_every_page(what):
    numbers = {group for place in SAME[what] for groups in found(*place) for group in groups}
    assert len(numbers) == 1, numbers


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_the_accuracy_table_is_that_of_the_stored_results():
    lines = (ROOT / "docs/accuracy.md").read_text(encoding="utf-8").splitlines()
    shown = [cells(line) for line in lines if line.startswith("| ")][1:]
    expected = [
        [
            name,
            f"{row['bytes'] / 1e6:.2f}",
            right(name),
            *(f"{100 * row['by_kind'][kind]:.1f}" for kind in KINDS),
            f"{row['kl']:.2g}" if row["kl"] else "",
        ]
        for name, row in FORMATS.items()
    ]
    assert shown == expected


@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_the_guides_accuracy_at_a_width_is_that_of_the_stored_results(bits):
    ((accuracy, divergence),) = found(GUIDE, rf"\| {bits} bits \| ([\d.]+) % \| ([\d.]+) \|")
    assert accuracy == right(f"{bits} bits, group 64")
    assert f"{float(divergence):.2g}" == f"{FORMATS[f'{bits} bits, group 64']['kl']:.2g}"


def test_the_widths_that_the_guide_lists_are_those_of_the_option():
    listed = found(GUIDE, r"\| affine \| (\d) \| 64 \|")
    assert [int(bits) for (bits,) in listed] == sorted(AFFINE_BITS, reverse=True)


def test_the_tested_range_of_mlx_vlm_is_the_required_one():
    assert f'"mlx-vlm{upstream.MLX_VLM}"' in text("pyproject.toml")
