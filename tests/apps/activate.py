"""What systemd does for a service with sockets and Restart=always: it keeps them, and starts the command
with them again whenever it has ended.

    activate.py NAME[:NAME]... COMMAND [ARG]...
"""

import os
import socket
import sys

names, command = sys.argv[1], sys.argv[2:]
listeners = [socket.create_server(("127.0.0.1", 0), backlog=1024) for _ in names.split(":")]
print("listening on", listeners[0].getsockname()[1], flush=True)
while True:
    child = os.fork()
    if child == 0:
        # Above all that is to come, so that none is overwritten.
        for number, listener in enumerate(listeners):
            os.dup2(listener.fileno(), 100 + number)
        for number in range(len(listeners)):
            os.dup2(100 + number, 3 + number)
        os.closerange(3 + len(listeners), 200)
        passed = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(listeners)),
            "LISTEN_FDNAMES": names,
        }
        os.execvpe(command[0], command, os.environ | passed)
    _, status = os.waitpid(child, 0)
    print("ended with", os.waitstatus_to_exitcode(status), flush=True)
