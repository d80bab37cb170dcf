"""What systemd does for a service with a socket and Restart=always: it keeps the socket, and starts the
command with it again whenever it has ended.

    activate.py NAME COMMAND [ARG]...
"""

import os
import socket
import sys

name, command = sys.argv[1], sys.argv[2:]
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
print("listening on", listener.getsockname()[1], flush=True)
while True:
    child = os.fork()
    if child == 0:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": name}
        os.execvpe(command[0], command, os.environ | passed)
    _, status = os.waitpid(child, 0)
    print("ended with", os.waitstatus_to_exitcode(status), flush=True)
