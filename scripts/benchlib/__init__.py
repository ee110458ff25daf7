# SPDX-License-Identifier: Apache-2.0
"""What scripts/bench is made of.

sandbox   a workplace that is gone afterwards: tmpfs volumes, mounts, children
targets   cowfs and its peers as one kind of thing: a directory to measure in
measure   the C helpers, fio, medians, memory of a process
report    lines of the table; Markdown and JSON
plot      the picture, from the lines
scale     how big and how often: full and quick
rows_*    the rows, each a function that takes a Bench and adds lines
"""
