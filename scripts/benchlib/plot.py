# SPDX-License-Identifier: Apache-2.0
"""The picture: every line that has a goal, as times the goal, cowfs and peers.

On a logarithmic axis: 1 is the goal, to the right of it is better. A peer's
mark is where it would stand in cowfs's place.
"""

import re
import subprocess

from .measure import median
from .report import FORMATS, MORE_IS_BETTER

LEAST, MOST = 0.1, 20.0  # of the axis; what lies beyond is drawn at its edge
LINE_PX, LEFT_PX, RIGHT_PX, PLOT_PX = 17, 560, 250, 560

# Kind of peer: how a name of it begins, mark and colour.
PEERS = [
    ("XFS", "XFS", 'pt 9 lc rgb "#8856a7"'),
    ("btrfs", "btrfs", 'pt 11 lc rgb "#c51b8a"'),
    ("tmpfs", "tmpfs", 'pt 13 lc rgb "#636363"'),
    ("passthrough_hp", "passthrough_hp( .*)?", 'pt 7 lc rgb "#e6851f"'),
    ("qcow2", "qcow2( .*)?", 'pt 5 lc rgb "#a6611a"'),
]


def score(line):
    """How many times the goal: 1 is just met, more is better. None: unknown."""
    if line.lacking or line.ratio == 0:
        return LEAST
    if line.skipped or line.ratio is None or line.ratio < 0:
        return None
    return line.ratio / line.goal[1] if line.goal[0] == ">=" else line.goal[1] / line.ratio


def peer_scores(line, own):
    """Pairs of kind and score, of those names that are a peer's."""
    value = median(line.samples.get(line.subject))
    for kind, pattern, _ in PEERS:
        values = [median(v) for n, v in line.samples.items()
                  if v and re.fullmatch(pattern, n) and n not in line.unshown]
        for other in values:
            if value and other and line.unit != "yes":
                better = other / value if line.unit in MORE_IS_BETTER else value / other
                yield kind, own * better


def inside(value):
    return min(max(value, LEAST), MOST)


def quoted(text):
    # gnuplot's own escapes in double quotes
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def short(text, most=92):
    text = text.replace("`", "")
    return text if len(text) <= most else text[:most - 1] + "…"


def datablock(name, rows):
    return [f"${name} << EOD", *(" ".join(map(str, row)) for row in rows), "EOD"]


def script(report, path):
    lines = [(line, score(line)) for line in report.lines if line.goal]
    lines = [(line, value) for line, value in lines if value is not None]
    count = len(lines)
    bars = {"met": [], "missed": []}
    peers = {kind: [] for kind, _, _ in PEERS}
    texts, row_before = [], None
    for index, (line, value) in enumerate(lines):
        at = count - index
        verdict = "met" if line.verdict() == "met" else "missed"
        bars[verdict].append((f"{inside(value):.4g}", at))
        name = f"{line.row} {line.row_name}: " if line.row != row_before else ""
        row_before = line.row
        texts.append(f"set label {quoted(name + short(line.what))} at graph -0.01, first {at} "
                     "right")
        own = median(line.samples.get(line.subject))
        figure = FORMATS[line.unit](own) if own is not None else "–"
        sign = "≥" if line.goal[0] == ">=" else "≤"
        ratio = "–" if line.ratio is None else f"{line.ratio:.0f}" if line.ratio >= 100 \
            else f"{line.ratio:.2f}"
        texts.append(f"set label {quoted(f'{ratio} (goal {sign} {line.goal[1]:g}), {figure}')} "
                     f"at graph 1.01, first {at} left")
        if not line.lacking:
            for kind, other in peer_scores(line, value):
                peers[kind].append((f"{inside(other):.4g}", at))
    plots = []
    for verdict, colour in (("met", "#4393c3"), ("missed", "#d6604d")):
        # A box from the goal to the value.
        if bars[verdict]:
            plots.append(f'${verdict} using (1):2:(1):1:($2-0.36):($2+0.36) with boxxyerror '
                         f'fs solid 0.8 noborder lc rgb "{colour}" title "cowfs, goal {verdict}"')
    for kind, _, style in PEERS:
        if peers[kind]:
            plots.append(f'${kind} using 1:2 with points ps 0.7 {style} title "{kind}"')
    facts = report.facts
    title = (f"cowfs and its peers, as times the goal of each row (1: just met; right: better)\\n"
             f"{{/*0.75 scripts/bench, commit {facts['commit']}, Linux "
             f"{facts['machine']['kernel']}, {facts['machine']['cores']} cores}}")
    out = []
    for verdict, rows in bars.items():
        out += datablock(verdict, rows)
    for kind, rows in peers.items():
        out += datablock(kind, rows)
    height = count * LINE_PX + 152
    width = LEFT_PX + PLOT_PX + RIGHT_PX
    return "\n".join([
        *out,
        f'set terminal svg size {width},{height} dynamic enhanced font "sans,11" '
        'background "white"',
        f"set output {quoted(str(path))}",
        f'set title "{title}"',
        f"set lmargin at screen {LEFT_PX / width:.4f}",
        f"set rmargin at screen {(LEFT_PX + PLOT_PX) / width:.4f}",
        f"set tmargin at screen {1 - 56 / height:.4f}",
        f"set bmargin at screen {96 / height:.4f}",
        "set logscale x",
        f"set xrange [{LEAST}:{MOST}]",
        f"set yrange [0.4:{count + 0.6}]",
        'set xtics ("≤ 0.1" 0.1, "0.2" 0.2, "0.5" 0.5, "goal" 1, "2" 2, "5" 5, "10" 10, '
        '"≥ 20" 20)',
        "unset ytics",
        'set grid x lc rgb "#dddddd"',
        f"set arrow from 1,0.4 to 1,{count + 0.6} nohead lw 1.5 lc rgb '#333333' front",
        f"set key noenhanced horizontal at screen 0.5,{40 / height:.4f} center",
        *(f"{text} noenhanced font ',9'" for text in texts),
        "plot " + ", \\\n     ".join(plots),
        "",
    ]), count


def draw(report, path):
    """Writes the SVG; OSError where gnuplot is missing or complains."""
    commands, count = script(report, path)
    if not count:
        raise OSError("no row with a goal was measured")
    subprocess.run(["gnuplot"], input=commands, text=True, check=True)
