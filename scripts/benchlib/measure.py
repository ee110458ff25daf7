# SPDX-License-Identifier: Apache-2.0
"""The C helpers, fio and /proc as functions. Times are in seconds."""

import json
import pathlib
import statistics


def helper(bench, name, *args):
    """Runs a helper, returns its "name value" lines as a dict of floats."""
    out = bench.sandbox.run(bench.helpers / name, *args, timeout_s=600)
    return {k: float(v) for k, v in (line.split() for line in out.splitlines())}


def fill(bench, path, size_bytes, seed):
    return helper(bench, "bench_io", "fill", path, size_bytes, seed)


def scatter(bench, path, count, seed):
    return helper(bench, "bench_io", "write", path, count, seed)


def read_speed(bench, path, pattern, count, seed, mode):
    """Bytes a second of a cold read. Pages that could not be dropped would be
    a warm read in disguise, so the report then carries a warning."""
    got = helper(bench, "bench_io", "read", path, pattern, count, seed, mode)
    if mode == "buffered" and got["resident_pages"] > 0:
        bench.report.warn(f"{got['resident_pages']:.0f} pages of {path.name} could not be dropped "
                          "before a buffered read")
    return got["bytes"] / (got["read_us"] / 1e6)


def spawn_seconds(bench, count, first, *commands):
    """Times of each command, run in turn, `{}` counting up from `first`."""
    words = [w for c in commands for w in ("--", *c)]
    out = bench.sandbox.run(bench.helpers / "bench_spawn", count, first, *words, timeout_s=900)
    times = [[] for _ in commands]
    for line in out.splitlines():
        _, which, microseconds = line.split()
        times[int(which)].append(float(microseconds) / 1e6)
    return times


def fio(bench, path, pattern, block, engine, depth, direct, amount_bytes, size_bytes, seed,
        warm_seconds=0):
    """One fio job over an existing file. A writing job ends with an fsync that
    is part of its time: what is only in the page cache is not written.
    warm_seconds: leave the page cache as it is, and go on for so long."""
    length = ([f"--runtime={warm_seconds}", "--time_based", "--invalidate=0"] if warm_seconds else
              [f"--io_size={amount_bytes}", "--runtime=20", "--invalidate=1"])
    out = bench.sandbox.run(
        "fio", "--name=bench", f"--filename={path}", f"--rw={pattern}", f"--bs={block}",
        f"--ioengine={engine}", f"--iodepth={depth}", f"--direct={int(direct)}",
        f"--size={size_bytes}", *length, f"--randseed={seed}",
        "--allrandrepeat=0", "--end_fsync=1",
        "--allow_file_create=0", "--eta=never", "--output-format=json", timeout_s=120)
    # fio may put warnings before the JSON.
    job = json.loads(out[out.index("{"):])["jobs"][0]
    side = job["write" if "write" in pattern else "read"]
    return {"bytes_per_s": side["io_bytes"] / (side["runtime"] / 1e3), "iops": side["iops"]}


def random_io(bench, kind, mode, ms, seed, *files):
    """bench_rand: a thread a file."""
    return helper(bench, "bench_rand", kind, mode, ms, seed, *files)


def race(targets, jobs, rounds, measure, peers=(), kind=lambda name: "", higher=True):
    """Every target does every job, in turn; the samples as {job: {name: [...]}}.
    Of `peers`, which are one peer in several modes, all run in the first round
    and the best two of each kind in the others, job by job. A failure is the
    caller's. measure(target, job, round number) gives a figure."""
    samples = {job: {t.name: [] for t in targets} for job in jobs}
    kinds = {}
    for peer in peers:
        kinds.setdefault(kind(peer.name), []).append(peer.name)
    for round_number in range(rounds):
        for job, found in samples.items():
            resting = set()
            for names in kinds.values() if round_number else ():
                order = sorted(names, key=lambda n, of=found: of[n][0], reverse=higher)
                resting.update(order[2:])
            for target in rotated(targets, round_number):
                if target.name not in resting:
                    found[target.name].append(measure(target, job, round_number))
    return samples


def best_of(samples, names, higher=True):
    """Which of them has the best median; "" when none has any."""
    medians = {n: median(samples[n]) for n in names if samples.get(n)}
    return (max if higher else min)(medians, key=medians.get) if medians else ""


def process_memory(pids):
    """Rss, Pss, of that tmpfs's pages (Pss_Shmem), and Anonymous of some processes together, in
    bytes."""
    total = {"Rss": 0, "Pss": 0, "Pss_Shmem": 0, "Anonymous": 0}
    for pid in pids:
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines():
            name, _, rest = line.partition(":")
            if name in total:
                total[name] += int(rest.split()[0]) * 1024
    return total


def median(samples):
    return statistics.median(samples) if samples else None


def rotated(items, by):
    """Who goes first changes from round to round."""
    items = list(items)
    by %= max(len(items), 1)
    return items[by:] + items[:by]
