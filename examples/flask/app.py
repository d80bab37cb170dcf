"""A small Flask app to put behind tidegate.

Its views are the kinds of work that real apps do: think, wait, take an upload, stream.
"""

import hashlib
import os
import time

from flask import Flask, Response, abort, jsonify, request

app = Flask(__name__)


def milliseconds(default, most=60_000):
    """The query's ``ms``, as seconds."""
    text = request.args.get("ms", str(default))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        abort(400, f"ms must be a number from 0 to {most}, not {text!r}")
    return value / 1000


@app.get("/")
def hello():
    return f"Hello from Flask, worker {os.getpid()}.\n"


@app.get("/cpu")
def cpu():
    """Keeps a core busy: /cpu?ms=50. The time is the thread's own, not the wall's."""
    budget = milliseconds(default=50)
    end = time.thread_time() + budget
    rounds = 0
    while time.thread_time() < end:
        hashlib.sha256(b"tidegate" * 128).digest()
        rounds += 1
    return jsonify(worker=os.getpid(), cpu_ms=budget * 1000, rounds=rounds)


@app.get("/io")
def io():
    """Waits, as for a database: /io?ms=100."""
    wait = milliseconds(default=100)
    time.sleep(wait)
    return jsonify(worker=os.getpid(), waited_ms=wait * 1000)


@app.post("/upload")
def upload():
    """Answers with the size and the SHA-256 of the body."""
    digest = hashlib.sha256()
    size = 0
    while chunk := request.stream.read(64 * 1024):
        digest.update(chunk)
        size += len(chunk)
    return jsonify(worker=os.getpid(), bytes=size, sha256=digest.hexdigest())


@app.get("/stream")
def stream():
    """Server-sent events: /stream?n=5&ms=200."""
    count = request.args.get("n", default=5, type=int)
    pause = milliseconds(default=200)

    def events():
        for number in range(1, count + 1):
            if number > 1:
                time.sleep(pause)
            yield f"id: {number}\ndata: tick {number} of {count}\n\n"

    return Response(events(), mimetype="text/event-stream", headers={"Cache-Control": "no-cache"})


@app.get("/headers")
def headers():
    """What the app sees of the request."""
    return jsonify(
        method=request.method,
        target=request.full_path.rstrip("?"),
        remote=request.remote_addr,
        headers=[[name, value] for name, value in request.headers],
    )


@app.get("/healthz")
def healthz():
    return "ok\n"
