"""A daemon as the main thing of a process: what its main thread waits for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import signal, sys, threading
from types import SimpleNamespace
from leptonstore.daemon import running

class Quiet:
    settings, failure, stuck = SimpleNamespace(name="store"), "", False

    def start(self, on_failure):
        pass

    def stop(self):
        print("drained")

def elsewhere():
    # As when the signal comes while the main thread is on its way into its wait: nothing interrupts that.
    main = threading.main_thread().ident
    while sys._current_frames()[main].f_code.co_name != "get":
        pass
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    ended.wait()

ended = threading.Event()
sys.exit(running.run(Quiet(), lambda: threading.Thread(target=elsewhere, daemon=True).start(), lambda: None))
"""


def test_a_signal_that_does_not_interrupt_the_main_thread_ends_its_wait() -> None:
    """A daemon that was told to end while its main thread let another have the interpreter went on as if nothing had been."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "drained\n"), done.stderr
