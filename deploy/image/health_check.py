"""The image's health check: exits with 0 when the server in this container is ready on PORT of the loopback address."""

from __future__ import annotations

import os
import sys
import urllib.request

host = "[::1]" if os.environ["HOST"] == "::" else "127.0.0.1"
try:
    with urllib.request.urlopen(f"http://{host}:{os.environ['PORT']}/v1/health/ready", timeout=4):
        pass
except OSError as error:
    sys.exit(str(error))
