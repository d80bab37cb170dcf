"""Servers that run inside of the app's own program: python serve.py NAME PORT.

Also the app behind ASGI, for servers that speak nothing else: `serve:asgi`.
"""

import sys


def bjoern(port):
    import bjoern
    from app import app

    bjoern.run(app, "127.0.0.1", port)


def gevent(port):
    from gevent import monkey

    monkey.patch_all()
    from app import app
    from gevent.pywsgi import WSGIServer

    WSGIServer(("127.0.0.1", port), app, log=None).serve_forever()


def eventlet(port):
    import eventlet
    from eventlet import wsgi

    eventlet.monkey_patch()
    from app import app

    wsgi.server(eventlet.listen(("127.0.0.1", port)), app, log_output=False)


def __getattr__(name):
    if name != "asgi":
        raise AttributeError(name)
    from a2wsgi import WSGIMiddleware
    from app import app

    return WSGIMiddleware(app)


if __name__ == "__main__":
    {"bjoern": bjoern, "gevent": gevent, "eventlet": eventlet}[sys.argv[1]](int(sys.argv[2]))
