"""An S3 server in this process, on a free port of 127.0.0.1, whose requests a test may follow, spoil or cut off."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socket import SHUT_RDWR
from threading import Thread
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import WSGIRequestHandler, make_server


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


class S3Server:
    """The running server.

    `hook` is called with each request's method and path before it is served; where it is true, the connection is cut.
    """

    def __init__(self) -> None:
        self.hook: Callable[[str, str], object] = lambda method, path: False
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self.options = f"?endpoint_override=127.0.0.1:{self._server.server_port}&scheme=http&region=us-east-1"
        Thread(target=self._server.serve_forever, daemon=True).start()

    def files(self) -> Any:
        """A client of its own."""
        host = f"127.0.0.1:{self._server.server_port}"
        return fs.S3FileSystem(endpoint_override=host, scheme="http", region="us-east-1", allow_bucket_creation=True)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self.hook(environ["REQUEST_METHOD"], environ["PATH_INFO"]):
            environ["werkzeug.socket"].shutdown(SHUT_RDWR)
            raise ConnectionAbortedError("cut")
        answer: Iterable[bytes] = self._moto(environ, start_response)
        return answer


@contextmanager
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
