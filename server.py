"""Start the server: ``python server.py``.  Settings come from the environment and ``.env`` (see env.template)."""

import sys

from tru_vlm.launch import main

if __name__ == "__main__":
    sys.exit(main())
