"""``python -m tru_vlm``: the same as ``server.py``, from an installed wheel."""

import sys

from tru_vlm.launch import main

if __name__ == "__main__":
    sys.exit(main())
