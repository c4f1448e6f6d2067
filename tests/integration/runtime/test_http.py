"""HTTP requests over real sockets."""

from __future__ import annotations

import threading

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from forecastd.runtime.http import HttpClient, HttpRequestFailed, ResponseTooLarge, TransientHttpError, fetch_url


def test_http_unreachable_host_hides_credentials() -> None:
    with pytest.raises(TransientHttpError) as error:
        fetch_url("http://user:p4ss@127.0.0.1:9/", {}, {})
    assert "p4ss" not in str(error.value)


def test_http_refused_connection_is_named() -> None:
    with pytest.raises(HttpRequestFailed) as error:
        fetch_url("http://127.0.0.1:9/", {}, {})
    assert error.value.connect_error == "Connection refused"


def test_http_client_sends_its_headers_and_the_body(httpserver: HTTPServer) -> None:
    def answer(request: Request) -> Response:
        return Response(f"{request.method} {request.path} {request.headers['X-Key']} {request.get_data(as_text=True)}")

    httpserver.expect_request("/base/path").respond_with_handler(answer)
    client = HttpClient(httpserver.url_for("/base"), headers={"X-Key": "key"})
    assert client.request("POST", "/path", body=b"data").body == b"POST /base/path key data"


def test_http_large_response_keeps_its_status(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/").respond_with_data("x" * 100_000, status=404)
    with pytest.raises(ResponseTooLarge) as error:
        HttpClient(httpserver.url_for("/"), max_bytes=1000).request("GET")
    assert error.value.response.status == 404


def test_http_close_ends_a_request_in_progress(httpserver: HTTPServer) -> None:
    arrived, released = threading.Event(), threading.Event()

    def answer(_: Request) -> Response:
        arrived.set()
        released.wait(10)
        return Response("")

    httpserver.expect_request("/").respond_with_handler(answer)
    client, errors = HttpClient(httpserver.url_for("/")), []

    def send() -> None:
        try:
            client.request("GET", deadline=60.0)
        except HttpRequestFailed as error:
            errors.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    assert arrived.wait(10)
    client.close()
    thread.join(10)
    released.set()
    assert [error.problem for error in errors] == ["did not answer before the connection was closed"]
