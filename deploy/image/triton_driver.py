"""Compile Triton's one C module while the image is built, so that the image that runs needs no compiler.

Triton compiles ``driver.c`` on the first use of a kernel and keeps the result in its cache, under a key of the
source.  Here is neither a card nor its driver: an empty library stands for ``libcuda.so.1`` while linking, and the
module cannot be loaded yet.  Takes the cache's folder; prints the file that it made.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main(cache: Path) -> int:
    """Fill ``cache``; returns the exit status."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    with tempfile.TemporaryDirectory() as stub:
        library = Path(stub) / "libcuda.so.1"
        soname = f"-Wl,-soname,{library.name}"
        subprocess.run(["gcc", "-shared", "-x", "c", soname, "-o", library, os.devnull], check=True)
        os.environ["TRITON_LIBCUDA_PATH"] = stub
        from triton.backends.nvidia import driver

        with contextlib.suppress(ImportError):  # it is compiled and kept; loading it takes the card's driver
            driver.CudaUtils()
    made = sorted(cache.rglob("cuda_utils*.so"))
    sys.stdout.write("".join(f"{path}\n" for path in made))
    return 0 if len(made) == 1 else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
