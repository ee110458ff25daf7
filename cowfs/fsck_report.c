// SPDX-License-Identifier: Apache-2.0
/*
 * fsck_report.c - the kinds of damage in words, findings, progress.
 */
#include "cowfs/fsck_internal.h"

enum {
    TOLD_PER_KIND = 16, /* findings of a kind that are told unless verbose */
    PROGRESS_STEP = 1 << 14,
};

struct kind {
    const char *id;
    const char *text;
    bool leak;
};

static const struct kind kinds[FSCK_KINDS] = {
    [FSCK_SUPERBLOCK] = {"superblock", "damaged superblock", false},
    [FSCK_DATABASE] = {"database", "damaged metadata database", false},
    [FSCK_RECORD_UNDECODABLE] = {"record-undecodable", "damaged records", false},
    [FSCK_RECORD_UNKNOWN] = {"record-unknown", "records of no known type", false},
    [FSCK_META_MISSING] = {"meta-missing", "the store's counters are missing", false},
    [FSCK_META_NEXT] = {"meta-next", "numbers in use that would be given out again", false},
    [FSCK_META_DOMAINS] = {"meta-domains", "domains of content that are not looked at", false},
    [FSCK_META_COUNTERS] = {"meta-counters", "wrong totals of the store", false},

    [FSCK_NODE_MISSING] = {"node-missing", "references to missing nodes", false},
    [FSCK_NODE_LEVEL] = {"node-level", "references to nodes of a wrong level", false},
    [FSCK_NODE_CYCLE] = {"node-cycle", "nodes that contain themselves", false},
    [FSCK_NODE_UNREACHABLE] = {"node-unreachable", "nodes that nothing refers to", true},
    [FSCK_NODE_COUNT_LOW] = {"node-count-low", "nodes with more owners than recorded", false},
    [FSCK_NODE_COUNT_HIGH] = {"node-count-high", "nodes with fewer owners than recorded", true},

    [FSCK_CHUNK_COUNT_LOW] = {"chunk-count-low", "chunks with more owners than recorded", false},
    [FSCK_CHUNK_COUNT_HIGH] = {"chunk-count-high", "chunks with fewer owners than recorded", true},
    [FSCK_CHUNK_MERGES] = {"chunk-merges", "wrong counts of deduplicated owners", true},
    [FSCK_CHUNK_BEYOND_CURSOR] = {"chunk-beyond-cursor",
                                  "chunks in slots that were never handed out", false},
    [FSCK_SEGMENT_MISSING] = {"segment-missing", "mapped segments without a record", false},
    [FSCK_SEGMENT_FILE_MISSING] = {"segment-file-missing", "missing segment files", false},
    [FSCK_SEGMENT_FILE_SHORT] = {"segment-file-short", "chunks behind the end of their file",
                                 false},
    [FSCK_SEGMENT_LIVE] = {"segment-live", "segments with a wrong count of chunks", false},
    [FSCK_SEGMENT_HOME] = {"segment-home", "segments kept for files that do not fill them", true},
    [FSCK_SEGMENT_STRAY_COUNTS] = {"segment-stray-counts",
                                   "counts of chunks in segments without a record", true},
    [FSCK_CHUNK_DATA] = {"chunk-data", "chunks whose bytes have changed", false},
    [FSCK_CHUNK_UNREADABLE] = {"chunk-unreadable", "chunks that cannot be read", false},

    [FSCK_ROOT] = {"root", "missing or wrong root directory", false},
    [FSCK_INODE_MODE] = {"inode-mode", "inodes of no known type", false},
    [FSCK_INODE_NLINK] = {"inode-nlink", "inodes with a wrong count of links", false},
    [FSCK_INODE_UNREACHABLE] = {"inode-unreachable", "inodes without a name", false},
    [FSCK_INODE_SIZE] = {"inode-size", "directories with a wrong count of entries", false},
    [FSCK_INODE_MAP_BEYOND_SIZE] = {"inode-map-beyond-size", "files with data behind their end",
                                    false},
    [FSCK_INODE_HOME] = {"inode-home", "files that are not where they are said to lie flat", false},
    [FSCK_ORPHAN_LINKED] = {"orphan-linked", "files with a name that are due for removal", false},
    [FSCK_ORPHAN_STRAY] = {"orphan-stray", "orphan records of missing inodes", true},
    [FSCK_DIRENT_INODE_MISSING] = {"dirent-inode-missing", "names of missing inodes", false},
    [FSCK_DIRENT_TYPE] = {"dirent-type", "names with another type than their inode", false},
    [FSCK_DIRENT_HASH] = {"dirent-hash", "names under a wrong hash", false},
    [FSCK_DIRENT_NAME] = {"dirent-name", "impossible names", false},
    [FSCK_DIRENT_DUPLICATE] = {"dirent-duplicate", "names that exist twice", false},
    [FSCK_DIRENT_STRAY] = {"dirent-stray", "names in missing or removed directories", false},
    [FSCK_DIR_PARENT] = {"dir-parent", "directories with a wrong parent", false},
    [FSCK_DIR_TWO_NAMES] = {"dir-two-names", "directories with several names", false},
    [FSCK_DIR_CYCLE] = {"dir-cycle", "directories that contain each other", false},
    [FSCK_XATTR_STRAY] = {"xattr-stray", "extended attributes of missing inodes", true},
    [FSCK_XATTR_FLAG] = {"xattr-flag", "extended attributes that their inode denies", false},
    [FSCK_UNSEALED_STRAY] = {"unsealed-stray", "sealing records of missing inodes", true},

    [FSCK_INDEX_UNSEALED] = {"index-unsealed", "content hashes of chunks that may change", false},
    [FSCK_INDEX_DISAGREES] = {"index-disagrees", "content hashes that contradict each other",
                              false},
    [FSCK_INDEX_DEAD_OWNED] = {"index-dead-owned", "chunks recorded as freed that are in use",
                               false},
    [FSCK_INDEX_STRAY] = {"index-stray", "content hashes of chunks that nobody owns", true},
    [FSCK_SEALED_WITHOUT_HASH] = {"sealed-without-hash", "sealed chunks without a content hash",
                                  true},
    [FSCK_DAMAGED_UNSEALED] = {"damaged-unsealed", "chunks marked as damaged that may change",
                               false},
    [FSCK_DAMAGED_STRAY] = {"damaged-stray", "marks of damaged chunks that nobody owns", true},
};

static const struct kind *kind_of(enum fsck_kind kind)
{
    g_assert(kind >= 0 && kind < FSCK_KINDS && kinds[kind].id);
    return &kinds[kind];
}

const char *fsck_kind_id(enum fsck_kind kind)
{
    return kind_of(kind)->id;
}

const char *fsck_kind_text(enum fsck_kind kind)
{
    return kind_of(kind)->text;
}

bool fsck_kind_is_leak(enum fsck_kind kind)
{
    return kind_of(kind)->leak;
}

void fsck_found(struct fsck *f, enum fsck_kind kind, uint64_t n, const char *format, ...)
{
    bool tell = f->options->verbose || f->told_of[kind] < TOLD_PER_KIND;
    f->report->count[kind] += n;
    f->told_of[kind]++;
    if (!tell || !f->options->message)
        return;
    va_list args;
    va_start(args, format);
    char *text = g_strdup_vprintf(format, args);
    va_end(args);
    f->options->message(f->options->arg, kind, text);
    g_free(text);
}

void fsck_phase(struct fsck *f, const char *phase, uint64_t total)
{
    f->phase = phase;
    f->done = f->told = 0;
    f->total = total;
    if (f->options->progress)
        f->options->progress(f->options->arg, phase, 0, total);
}

void fsck_step(struct fsck *f, uint64_t n)
{
    f->done += n;
    if (f->done - f->told < PROGRESS_STEP)
        return;
    f->told = f->done;
    if (f->options->progress)
        f->options->progress(f->options->arg, f->phase, f->done, f->total);
}

void fsck_finish_report(struct fsck *f)
{
    struct fsck_report *report = f->report;
    report->errors = report->leaks = 0;
    for (enum fsck_kind kind = 0; kind < FSCK_KINDS; kind++)
        *(kinds[kind].leak ? &report->leaks : &report->errors) += report->count[kind];
    report->leaks_unchecked = f->names_incomplete || f->maps_incomplete || f->nodes_incomplete;
    report->bytes = report->chunks * f->sb.chunk_bytes;
}
