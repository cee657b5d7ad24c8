"""What a process does that will fork others for builds, before the first of them."""

from __future__ import annotations

import os
import signal

import prctl

from sandbox import syscalls

_HIGHEST_SIGNAL = 64


def become_clean_parent() -> None:
    """Leave signals, keyring, umask and mounts of whoever started this process behind."""
    # An interpreter ignores two, whoever started us perhaps more; programs must not inherit that.
    for number in range(1, _HIGHEST_SIGNAL + 1):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            syscalls.reset_signal(number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    prctl.set_dumpable(0)
    syscalls.join_new_session_keyring()
    os.umask(0o022)
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
    # New mounts of the host still arrive here; nothing goes the other way.
    syscalls.mount(b"none", b"/", b"", syscalls.MS_REC | syscalls.MS_SLAVE)
