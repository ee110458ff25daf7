# SPDX-License-Identifier: Apache-2.0
"""A workplace that leaves nothing behind.

Every volume, mount and child lives in a `with` block, so that failures and
signals undo them in order. Beneath that is a mount namespace of the bench's
own, and loop devices come from `mount -o loop`, which frees them with the
mount: what even a SIGKILL leaves behind is gone when the last daemon is.
"""

import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

GIB = 1 << 30
MIB = 1 << 20

# Left alone for the machine: a bench that drives others into the OOM killer
# measures nothing.
RESERVE_BYTES = 2 * GIB

CLONE_NEWNS = 0x00020000


class Skip(Exception):
    """This row (or this peer) cannot be measured here; the text says why."""


class CommandFailed(Exception):
    def __init__(self, argv, status, stderr):
        # The last two: a helper names the command it ran behind that one's words.
        last = "; ".join(stderr.strip().splitlines()[-2:]) or "no message"
        super().__init__(f"{os.path.basename(str(argv[0]))} ended with {status}: {last}")
        self.stderr = stderr


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP: unwinds through every `with`."""


def _interrupt(number, _frame):
    # Once is enough: a second signal must not stop the cleaning up.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(signal.Signals(number).name)


def catch_signals():
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, _interrupt)


def own_mount_namespace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS) != 0:
        raise Skip(f"no mount namespace of its own: {os.strerror(ctypes.get_errno())}")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


def available_bytes():
    with open("/proc/meminfo", encoding="ascii") as f:
        for line in f:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def mount_points():
    """Paths of all mounts, without touching any of them (one may hang)."""
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        return {line.split()[4] for line in f}


def file_system_type(path):
    return subprocess.run(["stat", "-f", "-c", "%T", str(path)], check=True,
                          capture_output=True, text=True).stdout.strip()


class Sandbox:
    """The directory everything lies in, and the ways to run and mount things."""

    def __init__(self, parent, minutes):
        self.deadline = time.monotonic() + minutes * 60
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="cowfs-bench.", dir=parent)).resolve()
        self.on_tmpfs = file_system_type(self.root) == "tmpfs"
        self._count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Anything a broken row left mounted, the deepest first. rmtree must
        # never walk into a mount that is still there.
        for path in sorted(mount_points(), key=len, reverse=True):
            if path.startswith(f"{self.root}/"):
                subprocess.run(["umount", "-l", path], check=False, capture_output=True)
        if not any(p.startswith(f"{self.root}/") for p in mount_points()):
            shutil.rmtree(self.root, ignore_errors=True)

    def run(self, *argv, timeout_s=300, env=None):
        """Runs a command, returns its stdout; raises CommandFailed."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Skip("the time for the whole bench is over (--minutes)")
        argv = [str(a) for a in argv]
        try:
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                     stderr=subprocess.PIPE, text=True, errors="replace",
                                     env={**os.environ, **(env or {})}, process_group=0)
        except FileNotFoundError:
            raise Skip(f"{argv[0]} is not installed") from None
        try:
            out, err = child.communicate(timeout=min(timeout_s, left))
        except subprocess.TimeoutExpired as e:
            raise CommandFailed(argv, f"no end within {e.timeout:.0f} s", "stopped") from None
        finally:
            stop_group(child)
        if child.returncode != 0:
            raise CommandFailed(argv, child.returncode, err)
        return out

    def new_path(self, name):
        self._count += 1
        return self.root / f"{self._count:02d}-{name}"

    @contextlib.contextmanager
    def volume(self, name, size_bytes):
        """A directory; on tmpfs a tmpfs of its own, so that df tells its use."""
        path = self.new_path(name)
        path.mkdir()
        if self.on_tmpfs:
            self.run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0755",
                     "cowfs-bench", path)
        try:
            yield path
        finally:
            if self.on_tmpfs:
                unmount(path)
            if str(path) not in mount_points():
                shutil.rmtree(path, ignore_errors=True)

    @staticmethod
    def need(what, size_bytes):
        free = available_bytes() - RESERVE_BYTES
        if free < size_bytes:
            raise Skip(f"{what} needs {size_bytes / GIB:.1f} GiB of memory, "
                       f"{max(free, 0) / GIB:.1f} GiB may be used")

    @staticmethod
    def fit(size_bytes, times, least_bytes=256 * MIB):
        """size_bytes, halved until `times` times as much fits into memory."""
        free = available_bytes() - RESERVE_BYTES
        while size_bytes > least_bytes and size_bytes * times > free:
            size_bytes //= 2
        Sandbox.need("the smallest form of this row", size_bytes * times)
        return size_bytes


def stop_group(child):
    """Ends a child that still runs, and its own children (a cp that
    bench_spawn times): they would keep the mount busy."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def unmount(path, tries=20):
    """umount, patiently (a writeback may hold it), at last lazily."""
    for _ in range(tries):
        if str(path) not in mount_points():
            return
        if subprocess.run(["umount", str(path)], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "-l", str(path)], check=False, capture_output=True)


def wait_until(condition, seconds, step_s=0.02):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(step_s)
    return bool(condition())
