#!/bin/sh
# waitress behind tidegate: sh waitress.sh PORT
set -eu
cd "$(dirname "$0")/../flask"
# A connection that tidegate makes is a request: waitress needs no more of them than fit in its queue.
exec waitress-serve --listen="127.0.0.1:$1" --threads=4 --connection-limit=1000 \
    --trusted-proxy=127.0.0.1 --trusted-proxy-headers="x-forwarded-for x-forwarded-proto" \
    --clear-untrusted-proxy-headers app:app
