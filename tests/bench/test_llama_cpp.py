"""The comparison with llama.cpp, as far as it runs without its libraries."""

import pytest

from bench import llama_cpp


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_libraries_that_cannot_be_loaded_are_an_error_in_one_line(tmp_path, content):
    (tmp_path / "Q4_0.gguf").touch()
    if content is not None:
        (tmp_path / "libggml-base.so").write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        llama_cpp.main([str(tmp_path), "--small", "--kinds", "Q4_0", "--folder", str(tmp_path)])
    assert str(stopped.value.code).startswith("error: ")
    assert "libggml-base.so" in stopped.value.code
    assert "\n" not in stopped.value.code
