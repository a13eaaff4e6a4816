"""``python -m tru_vlm``: the command ``tru-vlm``."""

import sys

from tru_vlm.cli import main

if __name__ == "__main__":
    sys.exit(main())
