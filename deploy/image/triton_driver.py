"""Compile Triton's one C module while the image is built, so that the image that runs needs no compiler.

Triton compiles ``driver.c`` on the first use of a kernel and keeps the result in its cache, under a key of the
source.  Here is neither a card nor its driver: a library whose functions do nothing stands for ``libcuda.so.1``.
Takes the cache's folder; fails where the module cannot be made or loaded.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def main(cache: Path) -> None:
    """Fill ``cache``."""
    os.environ["TRITON_CACHE_DIR"] = str(cache)
    from triton.backends.nvidia import driver

    names = sorted(set(re.findall(r"\bcu[A-Z]\w+", (Path(driver.__file__).parent / "driver.c").read_text())))
    with tempfile.TemporaryDirectory() as folder:
        # With the functions that the module calls: a linker drops a library that nothing is taken from.
        source, library = Path(folder) / "stub.c", Path(folder) / "libcuda.so.1"
        source.write_text("".join(f"void {name}(void) {{}}\n" for name in names))
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library.name}", "-o", library, source]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        driver.CudaUtils()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
