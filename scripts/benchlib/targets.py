# SPDX-License-Identifier: Apache-2.0
"""cowfs and its peers, each as a directory to measure in.

XFS, btrfs and tmpfs run with their own defaults: what their users get;
passthrough_hp in all its modes, of which the best counts. Python never touches
a FUSE mount itself; only children with a time limit do, so a daemon that hangs
costs a row and not the bench.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import time

from .sandbox import CommandFailed, Skip, mount_points, unmount, wait_until


@dataclasses.dataclass
class Target:
    name: str
    sandbox: object
    directory: pathlib.Path
    # Where its bytes are counted: for cowfs and passthrough_hp the tmpfs below.
    volume: pathlib.Path
    fuse: bool = False

    def path(self, name):
        return self.directory / name

    def mkdir(self, name):
        self.sandbox.run("mkdir", self.path(name))
        return self.path(name)

    def remove(self, *names):
        self.sandbox.run("rm", "-rf", "--", *(self.path(n) for n in names))

    def sync(self):
        self.sandbox.run("sync", "-f", self.directory)

    def used_bytes(self):
        """Bytes in use on the volume below, or in the loop's file system."""
        s = os.statvfs(self.volume)
        return (s.f_blocks - s.f_bfree) * s.f_frsize

    def settled_bytes(self, quiet_s=2.0, most_s=15.0):
        """used_bytes once it has stood still for quiet_s: after deferred work."""
        end, last, since = time.monotonic() + most_s, self.used_bytes(), time.monotonic()
        while time.monotonic() < end and time.monotonic() - since < quiet_s:
            time.sleep(0.1)
            now = self.used_bytes()
            if now != last:
                last, since = now, time.monotonic()
        return last

    def pids(self):
        return []


@contextlib.contextmanager
def tmpfs(sandbox, size_bytes):
    if not sandbox.on_tmpfs:
        raise Skip("the work directory is not on tmpfs")
    with sandbox.volume("tmpfs", size_bytes) as volume:
        yield Target("tmpfs", sandbox, volume, volume)


class LoopTarget(Target):
    image = kind = None

    def mount(self):
        self.sandbox.run("mount", "-o", "loop", "-t", self.kind, self.image, self.directory)

    def umount(self):
        self.sandbox.run("umount", self.directory)

    def settled_bytes(self, quiet_s=2.0, most_s=15.0):
        """XFS holds space ahead of copies on write (128 KiB for each 4 KiB, in
        this bench) until it forgets the inode: by df, several times the data.
        That would be an unfair figure of it, so it is counted after a remount."""
        unmount(self.directory)
        self.mount()
        return super().settled_bytes(quiet_s, most_s)


@contextlib.contextmanager
def loop_file_system(sandbox, kind, size_bytes):
    """XFS or btrfs with its mkfs's and its mount's defaults, on a loop device."""
    options = {"xfs": ["-q"], "btrfs": ["-q"]}[kind]
    with sandbox.volume(f"{kind}-image", size_bytes + size_bytes // 8) as volume:
        image, directory = volume / "image", sandbox.new_path(kind)
        directory.mkdir()
        with open(image, "wb") as f:
            f.truncate(size_bytes)
        sandbox.run(f"mkfs.{kind}", *options, image)
        target = LoopTarget({"xfs": "XFS"}.get(kind, kind), sandbox, directory, directory)
        target.image, target.kind = image, kind
        target.mount()
        try:
            yield target
        finally:
            unmount(directory)


# How passthrough_hp can be run without passthrough: each is best at something.
# Without passthrough it asks for the writeback cache, but for --nocache.
PASSTHROUGH_MODES = {
    "splice": (),
    "nosplice": ("--nosplice",),
    "no writeback": ("--nosplice", "--nocache"),
    "direct-io": ("--nosplice", "--direct-io"),
    "io_uring": ("--nosplice", "-o", "io_uring"),
    "io_uring, direct-io": ("--nosplice", "--direct-io", "-o", "io_uring"),
}
PEER = "passthrough_hp"


def passthrough_name(mode):
    """As it stands in the table: with its options, so that it can be repeated."""
    return " ".join([PEER, *PASSTHROUGH_MODES[mode]])


@contextlib.contextmanager
def passthrough_hp(sandbox, binary, volume, mode):
    """libfuse's example without passthrough over a directory: the floor of FUSE
    itself. Several may serve one directory, each with a page cache of its own:
    what a file holds does not matter to those who time it."""
    if not os.access(binary, os.X_OK):
        raise Skip(f"{binary.name} is missing (scripts/deps builds it)")
    name = passthrough_name(mode)
    directory = sandbox.new_path("passthrough")
    directory.mkdir()
    words = [binary, "--nopassthrough", "--foreground", *PASSTHROUGH_MODES[mode], volume, directory]
    with uring_allowed() if "io_uring" in mode else contextlib.nullcontext():
        child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                 stderr=subprocess.DEVNULL)
        wait_until(lambda: str(directory) in mount_points() or child.poll() is not None, 10)
        try:
            if str(directory) not in mount_points() or child.poll() is not None:
                raise Skip(f"{name} did not mount (status {child.returncode})")
            sandbox.run("ls", directory)  # it has begun to serve
        except BaseException:
            _stop_child(child, directory)
            raise
    try:
        target = Target(name, sandbox, directory, volume, fuse=True)
        target.pids = lambda: [child.pid]
        yield target
    finally:
        _stop_child(child, directory)


def _stop_child(child, directory):
    unmount(directory)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(5)
    if child.poll() is None:
        child.kill()
        child.wait()


URING_SWITCH = pathlib.Path("/sys/module/fuse/parameters/enable_uring")


@contextlib.contextmanager
def uring_allowed():
    """FUSE over io_uring is a switch of the whole kernel. A connection that has
    begun keeps what it has, so it is thrown for the time of a mount only."""
    try:
        before = URING_SWITCH.read_text("ascii").strip()
    except OSError:
        raise Skip("this kernel has no FUSE over io_uring") from None
    try:
        URING_SWITCH.write_text("Y", "ascii")
    except OSError as e:
        raise Skip(f"FUSE over io_uring cannot be switched on: {e.strerror}") from None
    try:
        yield
    finally:
        URING_SWITCH.write_text(before, "ascii")


class CowfsTarget(Target):
    binary = store = view = None
    options = ()

    def read_path(self, name):
        """Where to map what is only read: the view, if it has one."""
        return (self.view or self.directory) / name

    def mount(self):
        """Its mount command; returns the seconds that it took."""
        words = ["-o", ",".join(self.options)] if self.options else []
        # Into a file: a daemon that keeps stderr open would keep a pipe
        # open too, and run() would wait for its end.
        log = self.sandbox.new_path("cowfs.log")
        started = time.monotonic()
        try:
            self.sandbox.run("sh", "-c", 'log=$1; shift; exec "$@" >"$log" 2>&1', "sh", log,
                             self.binary, "mount", *words, self.store, self.directory,
                             timeout_s=60)
        except CommandFailed:
            raise CommandFailed([self.binary], "mount failed", log.read_text("utf-8")) from None
        return time.monotonic() - started

    def umount(self):
        self.command("umount", self.directory)

    def kill(self):
        """kill -9 of all that serves it, and the dead mount taken away."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.pids(), 10, 0.01)
        unmount(self.directory)

    def command(self, *words):
        return self.sandbox.run(self.binary, *words)

    def df(self):
        return json.loads(self.command("df", "--json", self.directory))

    def pids(self):
        """Supervisor and daemon: processes that name this very store, whose
        path is like no other's (mkdtemp)."""
        found, wanted = [], os.fsencode(str(self.store))
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                words = pathlib.Path("/proc", entry, "cmdline").read_bytes().split(b"\0")
                if wanted in words:
                    found.append(int(entry))
        return sorted(found)


@contextlib.contextmanager
def cowfs(sandbox, binary, size_bytes, options=()):
    """A new store on a volume of its own, mounted with the defaults + options."""
    with sandbox.volume("store", size_bytes) as volume, \
            cowfs_on(sandbox, binary, volume, options) as target:
        yield target


@contextlib.contextmanager
def cowfs_on(sandbox, binary, volume, options=()):
    """A new store in a directory that is there, mounted. The option view=DIR
    stands for a second mount point beside it."""
    directory = sandbox.new_path("cowfs")
    directory.mkdir()
    name = " ".join(["cowfs", *(["-o", ",".join(options)] if options else [])])
    target = CowfsTarget(name, sandbox, directory, volume, fuse=True)
    target.binary, target.store, target.options = binary, volume / "store", tuple(options)
    if "view=DIR" in options:
        target.view = sandbox.new_path("view")
        target.view.mkdir()
        target.options = tuple(o.replace("DIR", str(target.view)) for o in options)
    try:
        with uring_allowed() if "io_uring" in options else contextlib.nullcontext():
            target.mount()
        yield target
    finally:
        _stop_cowfs(target)


def _stop_cowfs(target):
    if str(target.directory) in mount_points():
        with contextlib.suppress(CommandFailed, Skip):
            target.sandbox.run(target.binary, "umount", target.directory, timeout_s=60)
    unmount(target.directory)
    if target.view:
        unmount(target.view)
    # The daemon outlives a lazy umount for as long as it hangs on something.
    if not wait_until(lambda: not target.pids(), 5, 0.1):
        for pid in target.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not target.pids(), 5, 0.1)


def _bdi(target):
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        for line in f:
            words = line.split()
            if words[4] == str(target.directory):
                return pathlib.Path("/sys/class/bdi", words[2])
    raise Skip(f"{target.name} is not mounted any more")


def bdi_settings(target):
    """How far the kernel lets this mount's page cache go."""
    return {name: int((_bdi(target) / name).read_text())
            for name in ("read_ahead_kb", "max_ratio", "strict_limit")}


def set_bdi(target, settings):
    for name, value in settings.items():
        (_bdi(target) / name).write_text(str(value))
