#!/usr/bin/env bash
# A mount with a supervisor: requests that the kernel sends again, as the daemon has done them and died before it
# could say so; and locks, which are the kernel's. (More of both in supervise.sh; writes, also appending ones, have an
# offset, and are the same when they are done twice: mount_torture.)
# shellcheck source=../../scripts/lib/testlib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/testlib.sh"

why_not_here() { why_no_resume; }

# Each `die()` lets the daemon die over the next change, which must seem to have been made once.
test_system_calls() {
    local first
    export COWFS_DEBUG_FAULTS=1
    mount_up supervise
    first=$(daemon_pid)
    cat >"$WORK/calls.py" <<'PY'
import ctypes, errno, os, sys
top = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, RENAME_EXCHANGE = -100, 2

def die():
    try:
        os.getxattr(top, 'user.cowfs-die')
    except OSError as e:
        assert e.errno == errno.ENODATA, e

def path(name):
    return os.path.join(top, name)

def read(name):
    with open(path(name), 'rb') as f:
        return f.read()

def write(name, data):
    with open(path(name), 'wb') as f:
        f.write(data)
        os.fsync(f.fileno())

def daemon():
    import subprocess
    return subprocess.run(['pgrep', '-P', sys.argv[2], 'cowfsd'], capture_output=True).stdout

def unanswered(change):
    before = daemon()
    die()
    result = change()
    assert daemon() != before, 'no daemon died'
    return result

block = os.urandom(4096)

# A directory is removed, once.
os.mkdir(path('d'))
unanswered(lambda: os.rmdir(path('d')))
assert not os.path.exists(path('d'))

# A file without a name gets one: linkat(2) by its descriptor.
fd = unanswered(lambda: os.open(top, os.O_TMPFILE | os.O_RDWR, 0o600))
os.write(fd, b'nameless')
unanswered(lambda: os.link('/proc/self/fd/%d' % fd, path("named"), src_dir_fd=fd,
                           follow_symlinks=True))
assert read('named') == b'nameless' and os.stat(path('named')).st_nlink == 1
os.close(fd)

# Two that change places would be where they were, if it were done twice.
write('a', b'a')
write('b', b'b')
def exchange():
    if libc.renameat2(AT_FDCWD, path('a').encode(), AT_FDCWD, path('b').encode(), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), 'renameat2')
unanswered(exchange)
assert (read('a'), read('b')) == (b'b', b'a')
# And one that takes the other's.
unanswered(lambda: os.rename(path('a'), path('b')))
assert read('b') == b'b' and not os.path.exists(path('a'))

# Parts of a file onto another, and within it: what is told is what the first time gave.
write('source', block + os.urandom(3 * 4096 + 5))
write('copy', b'')
source, copy = os.open(path('source'), os.O_RDWR), os.open(path('copy'), os.O_RDWR)
total = os.stat(source).st_size
assert unanswered(lambda: os.copy_file_range(source, copy, total, 0, 0)) == total
assert read('copy') == read('source')
old = read('source')
assert unanswered(lambda: os.copy_file_range(source, source, 4096, 0, 4096)) == 4096
assert read('source') == old[:4096] + old[:4096] + old[8192:]

os.close(source)
os.close(copy)
unanswered(lambda: os.mkfifo(path('fifo')))
unanswered(lambda: os.symlink('there', path('symlink')))
assert os.readlink(path('symlink')) == 'there'
PY
    python3 "$WORK/calls.py" "$MNT" "${daemons[$MNT]}"
    is_another "$first" || fail "no daemon died"
    mount_down
}

# POSIX and open-file-description locks of ranges, as flock in mount_torture: who holds one goes on to.
test_locks() {
    mount_up supervise
    cat >"$WORK/locks.py" <<'PY'
import errno, fcntl, os, signal, struct, subprocess, sys, time
path = sys.argv[1]
F_OFD_SETLK = 37
def flock(kind, start, length):
    return struct.pack('hhqqi4x', kind, os.SEEK_SET, start, length, 0)
def taken(command, kind, start, length):
    """By another process, on an open file of its own."""
    pid = os.fork()
    if pid == 0:
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.fcntl(fd, command, flock(kind, start, length))
            os._exit(0)
        except OSError as e:
            os._exit(1 if e.errno in (errno.EAGAIN, errno.EACCES) else 2)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1), status
    return status == 1
def daemon():
    out = subprocess.run(['pgrep', '-P', sys.argv[2], 'cowfsd'], capture_output=True).stdout
    return int(out) if out.strip() else 0
posix = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
ofd = os.open(path, os.O_RDWR)
fcntl.fcntl(posix, fcntl.F_SETLK, flock(fcntl.F_WRLCK, 0, 100))
fcntl.fcntl(ofd, F_OFD_SETLK, flock(fcntl.F_WRLCK, 100, 100))
fcntl.fcntl(ofd, F_OFD_SETLK, flock(fcntl.F_RDLCK, 200, 100))
for i in range(5):
    before = daemon()
    os.kill(before, signal.SIGKILL)
    for command in (fcntl.F_SETLK, F_OFD_SETLK):
        assert taken(command, fcntl.F_RDLCK, 50, 1), 'the POSIX lock is gone'
        assert taken(command, fcntl.F_RDLCK, 150, 1), 'the lock of an open file is gone'
        assert taken(command, fcntl.F_WRLCK, 250, 1), 'the shared lock is gone'
        assert not taken(command, fcntl.F_RDLCK, 250, 1), 'a shared lock is refused'
        assert not taken(command, fcntl.F_WRLCK, 300, 1), 'what is not locked is refused'
    while daemon() in (0, before):
        time.sleep(0.01)
# One that waits for a lock gets it when it is given up after a death.
pid = os.fork()
if pid == 0:
    fd = os.open(path, os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLKW, flock(fcntl.F_WRLCK, 0, 100))
    os._exit(0)
os.kill(daemon(), signal.SIGKILL)
fcntl.fcntl(posix, fcntl.F_SETLK, flock(fcntl.F_UNLCK, 0, 100))
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
PY
    python3 "$WORK/locks.py" "$MNT/lock" "${daemons[$MNT]}"
    mount_down
}

run_tests "$@"
