"""Opens a device that the sandbox must not use, once someone outside has made a node for it."""

import errno
import time
from pathlib import Path

Path("/dev/null").write_text("a device that it may use")
forbidden = Path("/dev/forbidden")
while not forbidden.exists():
    time.sleep(0.01)
try:
    forbidden.open("wb", buffering=0).close()
    print("opened", flush=True)
except OSError as error:
    print(errno.errorcode[error.errno or 0], flush=True)
