"""Checkpoints of random weights and the measurements with them, in small sizes."""

import json
import time

import pytest

from bench import conversion, full_size, serve, start


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full-size")
    full_size.main([str(folder), "--bits", "8", "--qwen2-vl", "--small"])
    return folder / "8"


@pytest.mark.slow
def test_a_start_is_timed_in_parts(checkpoint, tmp_path, capsys):
    file = tmp_path / "start.json"
    start.main([str(checkpoint), "--kernels", "on", "--warm", "1", "--json", str(file)])
    (found,) = json.loads(file.read_text(encoding="utf-8")).values()
    assert [parts["caches"] for parts in found] == ["cold", "warm"]
    for parts in found:
        whole = sum(parts[stage] for stage in start.STAGES[:-1])
        assert parts["all"] == pytest.approx(whole, abs=1e-3)
    assert "| 8 | on | cold |" in capsys.readouterr().out


def test_measurements_after_a_failed_process_go_on(tmp_path, capsys):
    file = tmp_path / "start.json"
    start.main([str(tmp_path / "none"), "--kernels", "on", "--warm", "1", "--json", str(file)])
    (found,) = json.loads(file.read_text(encoding="utf-8")).values()
    assert [parts["caches"] for parts in found] == ["cold", "warm"]
    assert all("The command failed after imported" in parts["error"] for parts in found)
    assert capsys.readouterr().out.count("stopped after: imported") == 2


def test_a_command_that_fails_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="The command failed"):
        start.run(tmp_path / "none", tmp_path / "none.png", tmp_path, True)


def test_a_process_that_takes_too_long_ends_and_says_where_it_was(checkpoint, tmp_path):
    with pytest.raises(RuntimeError, match=r"(?s)Timeout.* in child"):
        start.run(checkpoint, tmp_path / "none.png", tmp_path, True, limit_s=0.01)


def test_clients_get_tokens_from_a_server(checkpoint, tmp_path):
    with serve.MoxinServer(checkpoint, tmp_path / "log.txt") as server:
        load = serve.Load(server, 1, seconds=1e6, max_tokens=6)
        load.ask(serve.picture(0), time.monotonic())
        assert load.tokens > 0
        assert len(load.first_token) == 1
        load.max_tokens = -1
        with pytest.raises(RuntimeError, match="HTTP 4"):
            load.ask(serve.picture(0), time.monotonic())


@pytest.mark.slow
def test_mlx_vlms_own_model_answers_from_the_stock_server(checkpoint, tmp_path):
    with serve.MeasuredServer(checkpoint.parent / "qwen2-vl", tmp_path / "log.txt") as server:
        load = serve.Load(server, 1, seconds=1e6, max_tokens=4)
        load.ask(serve.picture(0), time.monotonic())
        assert load.tokens > 0


@pytest.mark.slow
def test_a_conversion_is_timed_together_with_reading_its_source(tmp_path, capsys):
    conversion.main([str(tmp_path), "--small", "--layers", "2", "--rounds", "1", "--to", "4"])
    assert "times reading alone" in capsys.readouterr().out


def test_a_server_is_loaded_for_as_long_as_stated_for_each_number_of_clients(monkeypatch, capsys):
    loads = []

    def measure(kind, checkpoint, environment, args):
        loads.append((args.clients, args.seconds))
        return []

    monkeypatch.setattr(serve, "measure", measure)
    for seconds in (["3"], ["3", "15"]):
        serve.main(["none", "--clients", "1", "32", "--kernels", "on", "--seconds", *seconds])
    assert loads == [([1, 32], [3, 3]), ([1, 32], [3, 15])]
    with pytest.raises(SystemExit):
        serve.main(["none", "--clients", "1", "--seconds", "3", "4"])
    assert "as many as --clients" in capsys.readouterr().err
