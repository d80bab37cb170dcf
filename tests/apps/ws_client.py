"""A WebSocket client for the tests: `ws_client.py ADDRESS SCENARIO`.

It prints "open" when the connection is there, does what the scenario says, and prints how it ended:
"closed CODE", or "broken" if the connection went without a Close frame.
"""

import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def say(text):
    print(text, flush=True)


def echo(ws):
    """Texts, bytes of all sizes, pings; then closes."""
    for message in ["", "hello", "tidegate \u2014 \U0001f30a" * 1000, b"", bytes(range(256)) * 5000]:
        ws.send(message)
        assert ws.recv() == message
    ws.send(["in ", "three ", "fragments"])
    assert ws.recv() == "in three fragments"
    assert ws.ping(b"there?").wait(10)
    say("echoed")
    ws.close(1000)


def closed_by_app(ws):
    """Has the application close."""
    ws.send("close")
    for _ in ws:
        pass


def stay(ws):
    """Echoes line by line what it is told, for as long as both sides last."""
    for line in sys.stdin:
        ws.send(line.strip())
        say(ws.recv())


def wait(ws):
    """Waits for the other side to end it."""
    for _ in ws:
        pass


def main():
    address, scenario = sys.argv[1:]
    with connect(f"ws://{address}/ws", max_size=None, ping_interval=None) as ws:
        say("open")
        try:
            globals()[scenario](ws)
        except ConnectionClosed:
            pass
        code = ws.protocol.close_rcvd and ws.protocol.close_rcvd.code
        say(f"closed {code}" if code else "broken")


main()
