"""Sets how long a thread keeps the interpreter, in whatever server is started with this first."""

import os
import sys

sys.setswitchinterval(float(os.environ["BENCH_SWITCH_INTERVAL"]))
