#!/bin/sh
# Give Triton the driver module that was compiled with the image (there is no compiler in it), then become the server.
set -eu
if [ -d /opt/triton ] && [ ! -e "$TRITON_CACHE_DIR" ]; then
  cp -r /opt/triton "$TRITON_CACHE_DIR"
fi
exec "$@"
