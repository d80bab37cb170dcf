"""The Flask application of the end-to-end tests.

APP_DIR names a directory; every request leaves two lines in its file `events`: "+ PATH" when a view
begins and "- PATH" when it has ended. A test reads from it how many ran at once.
"""

import hashlib
import json
import os
import time

from flask import Flask, Response, request
from flask_sock import Sock

app = Flask(__name__)
sock = Sock(app)

EVENTS = os.path.join(os.environ.get("APP_DIR", "."), "events")


def note(sign):
    """Appends one line; a short write to a file opened for appending is atomic."""
    line = f"{sign} {request.path}\n".encode()
    file = os.open(EVENTS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)


@app.before_request
def begin():
    note("+")


@app.teardown_request
def end(_error):
    note("-")


@app.route("/")
def index():
    return "hello\n"


@app.route("/echo", methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@app.route("/echo/<path:rest>", methods=["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def echo(rest=""):
    digest = hashlib.sha256()
    size = 0
    while chunk := request.stream.read(65536):
        digest.update(chunk)
        size += len(chunk)
    document = {
        "method": request.method,
        "path": request.path,
        "raw_uri": request.environ.get("RAW_URI"),
        "query": request.query_string.decode(),
        "headers": dict(request.headers),
        "size": size,
        "sha256": digest.hexdigest(),
        "content_length": request.headers.get("Content-Length"),
        "transfer_encoding": request.headers.get("Transfer-Encoding"),
        "rest": rest,
        "environ": {
            name: str(request.environ.get(name, "none"))
            for name in (
                "PATH_INFO",
                "QUERY_STRING",
                "REMOTE_ADDR",
                "REQUEST_METHOD",
                "SCRIPT_NAME",
                "SERVER_NAME",
                "SERVER_PORT",
                "wsgi.url_scheme",
            )
        },
    }
    return Response(json.dumps(document), mimetype="application/json")


@app.route("/sleep", methods=["GET", "POST"])
def sleep():
    time.sleep(int(request.args.get("ms", "100")) / 1000)
    return "slept\n"


@app.route("/cpu")
def cpu():
    """Burns CPU, by the thread's own clock: on a busy machine it takes longer, but costs the same."""
    until = time.thread_time() + float(request.args.get("ms", "10")) / 1000
    rounds = 0
    while time.thread_time() < until:
        rounds += sum(range(100)) > 0
    return f"{rounds > 0}\n"


@app.route("/memory")
def memory():
    """Holds `mb` of touched memory for `ms`."""
    held = bytearray(os.urandom(4096)) * (256 * int(request.args.get("mb", "10")))
    time.sleep(int(request.args.get("ms", "100")) / 1000)
    return f"{len(held)}\n"


@app.route("/slow-body")
def slow_body():
    """A declared length, in ten pieces."""
    pause = int(request.args.get("ms", "100")) / 1000 / 10

    def pieces():
        for _ in range(10):
            time.sleep(pause)
            yield b"0123456789"

    return Response(pieces(), headers={"Content-Length": "100"})


@app.route("/size")
def size():
    block = bytes(range(256)) * 256
    left = int(request.args.get("n", "1000"))
    total = left

    def blocks(left):
        while left > 0:
            yield block[: min(left, len(block))]
            left -= len(block)

    return Response(
        blocks(left),
        mimetype="application/octet-stream",
        headers={"Content-Length": str(total)},
    )


@app.route("/chunked")
def chunked():
    count = int(request.args.get("n", "3"))
    return Response((f"piece {i}\n" for i in range(count)), mimetype="text/plain")


@app.route("/stream")
def stream():
    """Server-sent events: `n` of them, one every `ms`."""
    count = int(request.args.get("n", "3"))
    pause = int(request.args.get("ms", "200")) / 1000

    def events():
        for i in range(count):
            if i:
                time.sleep(pause)
            yield f"data: {i}\n\n"

    return Response(events(), mimetype="text/event-stream")


@sock.route("/ws")
def socket(ws):
    """A WebSocket: every message comes back, `close` closes from this side."""
    while (message := ws.receive()) != "close":
        ws.send(message)


@app.route("/status", methods=["GET", "POST"])
def status():
    code = int(request.args.get("code", "200"))
    body = b"" if code in (204, 304) else f"status {code}\n"
    return Response(body, status=code)


@app.route("/hints")
def hints():
    """What a browser may fetch meanwhile, in an interim answer."""
    request.environ["wsgi.early_hints"]([("Link", "</style.css>; rel=preload")])
    return "hinted\n"


@app.route("/pid")
def pid():
    time.sleep(int(request.args.get("ms", "0")) / 1000)
    return f"{os.getpid()}\n"


@app.route("/die")
def die():
    os._exit(1)
