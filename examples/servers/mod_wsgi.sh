#!/bin/sh
# Apache with mod_wsgi behind tidegate: sh mod_wsgi.sh PORT (mod_wsgi-express, from the package mod_wsgi)
set -eu
cd "$(dirname "$0")/../flask"
# One thread for each process, as with gunicorn's sync workers. It refuses to run as root unless it is
# told whom to be.
exec mod_wsgi-express start-server --application-type module app --callable-object app \
    --host 127.0.0.1 --port "$1" --processes 4 --threads 1 \
    --server-root "${MOD_WSGI_ROOT:-/tmp/mod_wsgi}" --log-to-terminal
