#!/bin/sh
# Apache with mod_wsgi behind tidegate: sh mod_wsgi.sh PORT (mod_wsgi-express, of the Python package
# mod_wsgi). One thread for each process, as with gunicorn's sync workers.
set -eu
cd "$(dirname "$0")/../flask"
port=$1
shift
# Apache does not serve as root.
[ "$(id -u)" != 0 ] || set -- --user www-data --group www-data
exec mod_wsgi-express start-server --application-type module app --callable-object app \
    --working-directory . --host 127.0.0.1 --port "$port" --processes 4 --threads 1 \
    --server-root "${MOD_WSGI_ROOT:-/tmp/mod_wsgi}" --log-to-terminal "$@"
