"""A model's provenance is what the source's files and the user say, and nothing else."""

import pytest

from mlx_vlm_moxin.checkpoints.provenance import (
    Provenance,
    check_hub_id,
    hub_source,
    read_provenance,
)

CARD = "---\nlicense: {license}\nbase_model: {base}\n{more}---\n\n# A model\n"


def with_card(directory, license="apache-2.0", base="a/b", more=""):
    (directory / "README.md").write_text(CARD.format(license=license, base=base, more=more))
    return str(directory), directory


def test_without_a_card_nothing_is_known(tmp_path):
    assert read_provenance(str(tmp_path), tmp_path) == Provenance()


def test_base_model_and_license_are_read_from_the_card(tmp_path):
    found = read_provenance(*with_card(tmp_path))
    assert found == Provenance(base_model="a/b", license="apache-2.0")


def test_another_license_has_a_name_and_a_link(tmp_path):
    more = "license_name: llama2\nlicense_link: https://example.org\n"
    found = read_provenance(*with_card(tmp_path, "other", more=more))
    assert (found.license, found.license_name) == ("other", "llama2")
    assert found.license_link == "https://example.org"


@pytest.mark.parametrize(
    ("relation", "kept"), [("finetune", "finetune"), ("merge", "merge"), ("quantized", None)]
)
def test_a_fine_tune_is_one_whatever_its_storage(tmp_path, relation, kept):
    more = f"base_model_relation: {relation}\n"
    assert read_provenance(*with_card(tmp_path, more=more)).relation == kept


def test_a_repository_is_the_base_of_its_conversions(tmp_path):
    with_card(tmp_path, more="base_model_relation: finetune\n")
    found = read_provenance("me/model", tmp_path)
    assert found == Provenance(source="me/model", base_model="me/model", license="apache-2.0")


def test_a_folder_of_a_repository_names_both(tmp_path):
    found = read_provenance("TRI-ML/prismatic-vlms/llama2+7b", tmp_path)
    assert found.base_model == "TRI-ML/prismatic-vlms"
    assert found.source == "TRI-ML/prismatic-vlms/llama2+7b"


def test_what_the_user_says_replaces_the_card(tmp_path):
    more = "license_name: x\nbase_model_relation: finetune\n"
    name, directory = with_card(tmp_path, "other", more=more)
    found = read_provenance(name, directory, base_model="c/d", license="mit")
    assert found == Provenance(base_model="c/d", license="mit")


def test_a_directory_of_the_hubs_cache_is_a_repository(tmp_path):
    snapshot = tmp_path / "models--owner--a-model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    assert hub_source(str(snapshot)) == "owner/a-model"
    assert hub_source(str(tmp_path)) is None


def test_a_relative_path_that_looks_like_a_hub_id_is_local(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "private" / "run").mkdir(parents=True)
    assert read_provenance("private/run", tmp_path) == Provenance()


@pytest.mark.parametrize(
    "text",
    ["", "no metadata", "---\n: :\n---\n", "---\n[1]\n---\n", "---\nbase_model: [1, 2]\n---\n"]
    + ["---\nlicense: {a: b}\nbase_model: " + "x" * 1000 + "\n---\n", "\x00\ufffe"],
)
def test_a_card_that_says_nothing_useful(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert read_provenance(str(tmp_path), tmp_path) == Provenance()


def test_a_card_that_is_a_link_to_elsewhere_is_not_read(tmp_path):
    (tmp_path / "model").mkdir()
    with_card(tmp_path)
    (tmp_path / "model" / "README.md").symlink_to(tmp_path / "README.md")
    assert read_provenance(str(tmp_path / "model"), tmp_path / "model") == Provenance()


@pytest.mark.parametrize("value", ["/home/me/run", "../run", "run", "a/b/c d", ""])
def test_a_base_model_that_is_no_hub_id_is_refused(value):
    with pytest.raises(ValueError, match="--base-model needs a Hub id such as owner/name"):
        check_hub_id("--base-model", value)


def test_a_hub_id_is_allowed():
    check_hub_id("--base-model", "moxin-org/Moxin-7B-VLM")


@pytest.mark.parametrize(("length", "kept"), [(0, False), (1, True), (199, True), (200, False)])
def test_a_license_name_is_neither_empty_nor_a_text(tmp_path, length, kept):
    more = f"license_name: '{'a' * length}'\n"
    found = read_provenance(*with_card(tmp_path, "other", more=more))
    assert found.license_name == ("a" * length if kept else None)
