"""Makes processes until it is refused one; prints how many it got and why there are no more."""

import errno
import os
import signal

count = 0
try:
    while True:
        if os.fork() == 0:
            signal.pause()
        count += 1
except OSError as error:
    print(count, errno.errorcode[error.errno or 0], flush=True)
signal.pause()
