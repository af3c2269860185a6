"""A short soak; ``soak.py`` runs a long one."""

import pytest
from server_process import MeasuredServer
from soak import ENVIRONMENT, Soak


@pytest.mark.slow
def test_many_clients_at_once_all_get_their_answers(fp32_checkpoint, tmp_path):
    with MeasuredServer(fp32_checkpoint, tmp_path / "log.txt", **ENVIRONMENT) as server:
        report = Soak(server, seconds=15, clients=16).run()
    print(*report.lines(), sep="\n")
    assert set(report.counts) == {"answer", "stream", "hang_up", "leave", "bad", "link"}
    assert not report.wrong
    assert not report.lost
    assert report.summary["in_flight"] == 0
