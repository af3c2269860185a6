"""Comparison of source and result, for the reference checkpoint and for damaged copies."""

import json
import shutil
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_vlm import convert
from PIL import Image
from source_checkpoints import copy_checkpoint, edit_json, load_weights
from support import GOLDENS, HF_CHECKPOINT, IMAGES, MESSAGES, image_path

from mlx_vlm_moxin.conversion.verify.compare import ANSWER_TOKENS, verify
from mlx_vlm_moxin.conversion.verify.samples import BUNDLED_PICTURES, PROMPTS, Sample, find_samples
from mlx_vlm_moxin.conversion.verify.teacher_forcing import loaded


@pytest.fixture(scope="module")
def one_picture(tmp_path_factory):
    """A directory with one picture, for tests that need only one."""
    directory = tmp_path_factory.mktemp("pictures")
    shutil.copy(IMAGES / "photo.png", directory / "holiday.png")
    return directory


@pytest.fixture(scope="module")
def quantized(source, tmp_path_factory):
    """The source quantised to a number of bits by stock mlx-vlm."""

    def make(bits):
        path = tmp_path_factory.mktemp("quantized") / f"{bits}bit"
        convert(str(source), str(path), quantize=True, q_bits=bits, q_group_size=32)
        return path

    return make


@pytest.fixture(scope="module")
def source(fp32_checkpoint):
    """In float32: several times faster on a CPU, and one pass rounds as single steps do."""
    return fp32_checkpoint


@pytest.fixture(scope="module")
def itself():
    """The stored checkpoint compared with itself on the bundled pictures."""
    return verify(HF_CHECKPOINT, HF_CHECKPOINT, quiet=True)


@pytest.fixture
def copy(source, tmp_path):
    """A copy of the source, to be damaged."""
    return copy_checkpoint(source, tmp_path / "copy")


def damage(directory, change):
    weights = {name: change(name, value) for name, value in load_weights(directory).items()}
    mx.eval(weights)
    mx.save_safetensors(str(directory / "model.safetensors"), weights, {"format": "mlx"})


def test_a_model_equals_itself_on_every_bundled_picture(itself):
    total = itself.total
    assert (total.kl_max, total.top1_agreement, total.perplexity_ratio) == (0, 1, 1)
    assert itself.warning is None
    assert len(itself.samples) == len(list(BUNDLED_PICTURES.glob("*.png"))) * len(PROMPTS)


def test_fewer_bits_cost_more_accuracy_and_less_space(source, quantized, one_picture):
    eight, three = (verify(source, quantized(bits), one_picture, quiet=True) for bits in (8, 3))
    assert 0 < eight.total.kl_mean < three.total.kl_mean
    assert eight.total.top1_agreement > three.total.top1_agreement
    assert 1 < eight.total.perplexity_ratio < three.total.perplexity_ratio
    assert eight.result.bits_per_weight > three.result.bits_per_weight
    assert eight.result.size_bytes > three.result.size_bytes
    assert eight.warning is None
    assert "3 bits are too few" in three.warning


def test_sizes_are_those_of_the_files(source, quantized, one_picture):
    result = quantized(8)
    verification = verify(source, result, one_picture, quiet=True)
    assert verification.result.size_bytes == (result / "model.safetensors").stat().st_size
    sizes = [file.stat().st_size for file in source.glob("*.safetensors")]
    assert verification.source.size_bytes == sum(sizes)
    assert verification.source.bits_per_weight == pytest.approx(32, abs=0.1)


def test_the_answer_is_what_the_source_says_and_its_positions_predict_it(source):
    """In the source's distributions, the likeliest token at each position is the answer's."""
    with loaded(source) as forcing:
        for sample in find_samples()[:3]:
            inputs = forcing.inputs(sample)
            answer = forcing.greedy_answer(inputs, ANSWER_TOKENS)
            log_probs = forcing.log_probs(inputs, answer)
            assert log_probs.shape == (len(answer), 576)
            assert log_probs.argmax(axis=-1).tolist() == answer


def test_answers_are_the_reference_implementations_up_to_the_end_token(source):
    ends = 0
    with loaded(source) as forcing:
        for name, cases in GOLDENS["generate"]["hf"].items():
            for case in cases:
                sample = Sample(Path(image_path(name)), MESSAGES[case["prompt"]])
                answer = forcing.greedy_answer(forcing.inputs(sample), GOLDENS["new_tokens"])
                assert answer == case["tokens"]
                ends += len(answer) < GOLDENS["new_tokens"]
    assert ends


def test_positions_are_computed_as_in_generation(source, monkeypatch):
    """Token by token with a cache, not in one pass over prompt and answer."""
    with loaded(source) as forcing:
        model = forcing._model.language_model
        calls = []
        original = type(model).__call__

        def call(self, inputs, *arguments, cache=None, **kwargs):
            calls.append((inputs.shape[1], cache[0].offset))
            return original(self, inputs, *arguments, cache=cache, **kwargs)

        monkeypatch.setattr(type(model), "__call__", call)
        inputs = forcing.inputs(find_samples()[0])
        forcing.log_probs(inputs, [7, 8, 9])
    length = inputs["input_ids"].shape[1]
    assert calls[:3] == [(length, 0), (1, length), (1, length + 1)]


def test_answers_with_ids_of_visual_placeholders_are_compared_as_text(source):
    """The random weights generate such ids, and the picture must not replace them."""
    with loaded(source) as forcing:
        inputs = forcing.inputs(find_samples()[0])
        log_probs = forcing.log_probs(inputs, [513, 540, 575] * 16)
    assert np.isfinite(log_probs).all()


def test_nan_weights_are_a_warning_that_says_so(source, copy, one_picture, tmp_path):
    def change(name, value):
        return value * float("nan") if name.endswith("lm_head.weight") else value

    damage(copy, change)
    verification = verify(source, copy, one_picture, quiet=True)
    assert "not finite" in verification.warning
    verification.save(tmp_path / "verification.json")
    content = json.loads((tmp_path / "verification.json").read_text())
    assert content["kl_mean"] is None
    assert content["top1_agreement"] == 0


def test_shuffled_weights_are_a_warning_that_says_so(source, copy, one_picture):
    damage(copy, lambda name, value: value[::-1] if "self_attn" in name else value)
    warning = verify(source, copy, one_picture, quiet=True).warning
    assert "not quantised" in warning
    assert "damaged or mixed up" in warning


def test_a_changed_setting_is_named(source, copy, one_picture):
    text_config = json.loads((copy / "config.json").read_text())["text_config"]
    edit_json(copy / "config.json", text_config={**text_config, "rope_theta": 5.0})
    assert "text_config.rope_theta" in verify(source, copy, one_picture, quiet=True).warning


def test_a_changed_picture_processor_is_named(source, copy, one_picture):
    edit_json(copy / "preprocessor_config.json", image_mean=[[0.1] * 3, [0.2] * 3])
    edit_json(copy / "preprocessor_config.json", image_std=[[0.01] * 3, [0.02] * 3])
    warning = verify(source, copy, one_picture, quiet=True).warning
    assert "tokenizer or picture processor" in warning


def test_a_source_that_is_not_finite_is_an_error(source, copy):
    damage(copy, lambda name, value: value * float("inf"))
    with pytest.raises(ValueError, match="is damaged, so there is nothing to compare with"):
        verify(copy, source, quiet=True)


@pytest.mark.parametrize("missing", ["source", "result"])
def test_a_missing_directory_is_not_looked_up_on_the_hub(source, missing, one_picture, tmp_path):
    paths = {"source": source, "result": source, missing: tmp_path / "no"}
    with pytest.raises(FileNotFoundError, match="No model directory"):
        verify(**paths, images=one_picture, quiet=True)


@pytest.mark.slow
def test_nothing_stays_in_the_temporary_directory(source, copy, one_picture, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    verify(source, source, one_picture, quiet=True)
    with pytest.raises(FileNotFoundError):
        verify(source, tmp_path / "no", one_picture, quiet=True)
    damage(copy, lambda name, value: value * float("inf"))
    with pytest.raises(ValueError, match="damaged"):
        verify(copy, source, one_picture, quiet=True)
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.fixture(scope="module")
def verification(source, quantized, one_picture):
    return verify(source, quantized(4), one_picture, quiet=True)


class TestReport:
    def test_json_holds_every_position_and_the_summary_follows_from_them(
        self, verification, tmp_path
    ):
        verification.save(tmp_path / "verification.json")
        content = json.loads((tmp_path / "verification.json").read_text())
        kl = [value for sample in content["samples"] for value in sample["kl"]]
        agrees = [value for sample in content["samples"] for value in sample["agrees"]]
        assert content["positions"] == len(kl) == len(agrees)
        assert content["kl_mean"] == pytest.approx(np.mean(kl))
        assert content["kl_max"] == max(kl)
        assert content["top1_agreement"] == pytest.approx(np.mean(agrees))
        assert content["warning"] == verification.warning

    def test_names_of_ones_own_pictures_are_shown_but_not_saved(self, verification, capsys):
        verification.print_table()
        assert "holiday.png" in capsys.readouterr().out
        assert "holiday" not in json.dumps(verification.to_dict())
        assert "holiday" not in verification.markdown()

    def test_names_of_bundled_pictures_are_saved(self, itself):
        assert {sample["picture"] for sample in itself.to_dict()["samples"]} == {
            file.name for file in BUNDLED_PICTURES.glob("*.png")
        }

    def test_the_table_has_a_row_per_answer_and_one_for_all(
        self, verification, capsys, monkeypatch
    ):
        monkeypatch.setenv("COLUMNS", "200")
        verification.print_table()
        lines = capsys.readouterr().out.splitlines()
        total = verification.total
        assert lines[0].split()[:3] == ["picture", "prompt", "tokens"]
        assert [line.split()[0] for line in lines[1:4]] == ["holiday.png", "holiday.png", "all"]
        assert f"{total.kl_mean:.5f}" in lines[3]
        assert f"{total.top1_agreement:.1%}" in lines[3]
        assert lines[-1] == f"warning: {verification.warning}"

    def test_markdown_is_a_table_with_the_totals(self, verification):
        text = verification.markdown()
        assert text.startswith("| Measure | Value |\n|---|---|\n")
        assert f"{verification.total.kl_max:.5f} nats" in text
        assert f"{verification.result.bits_per_weight:.2f} bits per weight" in text
        assert verification.warning in text

    @pytest.mark.slow
    def test_progress_is_shown_unless_quiet(self, source, one_picture, capsys):
        verify(source, source, one_picture)
        assert "Source answers: 100%" in capsys.readouterr().err
        verify(source, source, one_picture, quiet=True)
        assert capsys.readouterr().err == ""


class TestPictures:
    def test_every_picture_of_a_directory_is_used_with_every_prompt(self):
        samples = find_samples(IMAGES)
        assert {sample.picture for sample in samples} == set(IMAGES.glob("*.png"))
        assert len(samples) == len(PROMPTS) * len(list(IMAGES.glob("*.png")))

    def test_other_files_are_passed_over(self, tmp_path):
        (tmp_path / "notes.txt").write_text("text")
        Image.new("RGB", (4, 4)).save(tmp_path / "a.JPG", format="JPEG")
        assert {sample.picture.name for sample in find_samples(tmp_path)} == {"a.JPG"}

    def test_a_broken_picture_is_named_before_a_model_is_loaded(self, tmp_path):
        (tmp_path / "broken.png").write_bytes((IMAGES / "photo.png").read_bytes()[:200])
        with pytest.raises(ValueError, match=r"broken\.png"):
            verify(tmp_path / "no", tmp_path / "no", tmp_path)

    def test_a_directory_without_pictures_is_named(self, tmp_path):
        with pytest.raises(ValueError, match="No pictures in"):
            find_samples(tmp_path)

    def test_a_missing_directory_is_named(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="leave it out"):
            find_samples(tmp_path / "no")

    def test_the_bundled_pictures_are_small(self):
        assert sum(file.stat().st_size for file in BUNDLED_PICTURES.iterdir()) < 100_000
