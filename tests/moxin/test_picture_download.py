"""Downloads of pictures: redirects, failures, deadlines, private addresses."""

import threading

import numpy as np
import pytest
from mlx_vlm.models.moxin import picture_download
from mlx_vlm.models.moxin.picture import read_picture
from picture_forms import PIXELS, refusal
from picture_server import picture_server


@pytest.fixture(scope="module")
def web():
    with picture_server() as server:
        yield server


def test_a_download_is_read_once_and_follows_redirects(web):
    for path in ("/plain/photo.png?one", "/once/photo.png", "/to//plain/photo.png?two"):
        image = read_picture(web.url + path)
        np.testing.assert_array_equal(np.asarray(image), PIXELS)
        assert web.counts[path] == 1
    assert web.counts["/plain/photo.png?two"] == 1
    assert "HTTP 404" in refusal(f"{web.url}/once/photo.png")


def test_a_name_in_other_letters_and_a_password_reach_the_server(web):
    host = web.url.removeprefix("http://")
    image = read_picture(f"HTTP://user:pass@{host}/plain/photo.png?ä ö")
    np.testing.assert_array_equal(np.asarray(image), PIXELS)
    assert web.counts["/plain/photo.png?%C3%A4%20%C3%B6"] == 1


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/half/photo.png", "bytes are missing"),
        ("/endless", "larger than the limit of 1000000 bytes"),
        ("/drip/photo.png", "took longer than 0.5 seconds"),
        ("/headers", "took longer than 0.5 seconds"),
        ("/slow/photo.png", "took longer than 0.5 seconds"),
        ("/to/file:///etc/passwd", "file:"),
        ("/to//to//to/ftp://example.org/", "ftp"),
    ],
)
def test_a_failed_download_is_refused_with_its_cause(web, path, part):
    assert part in refusal(web.url + path, max_bytes=10**6, timeout_s=0.5)


def test_an_address_that_does_not_answer_is_waited_for_until_the_deadline(web):
    host, port = web.url.removeprefix("http://").split(":")
    connections = picture_download._Connections(timeout_s=60, private_addresses=True)
    with connections, connections._connect((host, int(port))) as connection:
        assert 0 < connection.gettimeout() <= 60


def test_no_thread_is_left_of_a_download(web):
    read_picture(f"{web.url}/plain/photo.png?thread")
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(2)  # a cancelled one needs a moment to end
    assert not any(timer.is_alive() for timer in timers)


PRIVATE = {"private_addresses": False}


def test_private_addresses_are_refused_before_connecting(web):
    port = web.server_port
    hosts = ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433")
    sentences = {
        refusal(f"http://{host}:{port}/plain/photo.png?private", **PRIVATE).replace(host, "HOST")
        for host in hosts
    }
    sentences |= {
        refusal(f"http://{host}:{port}/plain/photo.png?private", **PRIVATE).replace(host, "HOST")
        for host in ("10.0.0.1", "169.254.169.254", "no-such-name.invalid")
    }
    assert len(sentences) == 1
    assert "no public address" in sentences.pop()
    assert not web.counts["/plain/photo.png?private"]


def test_a_redirect_does_not_lead_to_a_private_address(web, monkeypatch):
    monkeypatch.setattr(picture_download, "is_public", lambda address: address != "127.0.0.2")
    target = f"http://127.0.0.2:{web.server_port}/plain/photo.png?redirected"
    assert "no public address" in refusal(f"{web.url}/to/{target}", **PRIVATE)
    assert not web.counts["/plain/photo.png?redirected"]


def test_a_proxy_is_used_only_where_private_addresses_are_allowed(web, monkeypatch):
    monkeypatch.setenv("http_proxy", web.url)
    refusal("http://example.invalid/plain/photo.png")
    assert sum(path.startswith("http://example.invalid") for path in web.counts) == 1
    assert "no public address" in refusal("http://example.invalid/plain/photo.png", **PRIVATE)
    assert sum(path.startswith("http://example.invalid") for path in web.counts) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_public_addresses_are_public(address, public):
    assert picture_download.is_public(address) == public
