// SPDX-License-Identifier: Apache-2.0
#include "tools/cowfsd_options.h"
#include "cowfs/fuse_rings.h"
#include "tools/cowfs_tool.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* Enough for a sequential reader to keep several requests under way, little
 * enough not to hurt random faults on a mapped memory image (docs/DESIGN.md). */
enum { READ_AHEAD_KB_DEFAULT = 512, THREADS_MAX = 256 };
/* Smaller ones gain nothing from a mapping (docs/DESIGN.md, The transport). */
enum { VIEW_BYTES = 64 * 1024 };

/* What a mount has if no option says: passthrough, or the kernel's writeback cache, which
 * exclude each other (docs/DESIGN.md tells what each is good for). */
enum { PASSTHROUGH_DEFAULT = false };
/* Whether the mount survives its daemon if no option says. */
enum { SUPERVISE_DEFAULT = true };

const char mount_options_help[] =
    "Options of cowfs:\n"
    "  chunk_size=SIZE    4K, 8K, ... 64K: unit of sharing, for making a store (default 4K)\n"
    "  commit=SECONDS     a change is durable after so long at most (default 5); fsync is at once\n"
    "  seal=on|off        find equal content across files in the background (default on)\n"
    "  seal_delay=SECONDS ... in files that nobody wrote for so long (default 30)\n"
    "  seal_rate=SIZE     ... reading at most so much a second (default 0: no limit)\n"
    "  verify             check the hash of sealed data at each read: damage is an error (EIO)\n"
    "                     at once, not when the next scrub finds it\n"
    "  cache_size=SIZE    metadata kept in memory besides what has changed (default 64M)\n"
    "  writeback          cache writes in the kernel (default): small writes are many times\n"
    "                     faster; what must survive a crash of the kernel needs fsync, as ever\n"
    "  nowriteback        each write reaches the daemon before write(2) returns\n"
    "  passthrough        files that lie flat in the store are read past the daemon when opened\n"
    "                     read-only; all clones of one that have not diverged share its pages in\n"
    "                     memory. Excludes the writeback cache. While a file is read so, opening\n"
    "                     it for writing fails with ETXTBSY. Needs root and Linux 6.9\n"
    "  view=DIRECTORY     mount the store a second time there, read-only and with passthrough,\n"
    "                     beside this mount with its writeback cache; ends with this mount\n"
    "  io_uring           talk to the kernel over io_uring: some requests take half the time, but\n"
    "                     those under way do not survive a crash of the daemon. Needs Linux 6.14\n"
    "                     and /sys/module/fuse/parameters/enable_uring; without, goes on as ever\n"
    "  io_uring_depth=N   the same, with room for N requests for each CPU (default 8, 1 MiB each)\n"
    "  supervise          the mount survives its daemon: when that dies, or is upgraded, a new "
    "one\n"
    "                     goes on, and who uses files waits meanwhile (default, where it can be\n"
    "                     had: it needs Linux 6.9, and there is none with io_uring)\n"
    "  nosupervise        the mount ends with its daemon\n"
    "  threads=N          serve at most so many requests at once (default 16)\n"
    "  read_ahead=SIZE    read-ahead of the kernel (default 512K; 0: the kernel's own)\n"
    "  log=LEVEL          error, warning, info (default) or debug; goes to syslog, with -f to\n"
    "                     the standard error\n"
    "\n"
    "Options of mounts in general: ro rw suid nosuid dev nodev exec noexec sync async dirsync\n"
    "noatime nodiratime nosymfollow, of FUSE: allow_other noallow_other allow_root\n"
    "default_permissions auto_unmount max_read=BYTES fsname=NAME, and of SELinux: context=\n"
    "fscontext= defcontext= rootcontext=. What concerns mount(8) and fstab alone (defaults,\n"
    "noauto, nofail, user, _netdev, x-...) is accepted and ignored.\n"
    "\n"
    "Defaults, and why:\n"
    "  default_permissions  always: the kernel checks modes and owners, as on a disk\n"
    "  allow_other          if root mounts: hypervisors run as other users; modes guard the files\n"
    "  nosuid,nodev         images come from anywhere, and a clone keeps owners and modes;\n"
    "                       'suid' and 'dev' lift it, as for a root file system\n"
    "Access times are changed by utimensat(2) only, never by reading.\n";

void mount_options_init(struct mount_options *o)
{
    *o = (struct mount_options){
        .fs = {.create = true, .seal_background = true, .view_bytes = VIEW_BYTES},
        .read_ahead_kb = READ_AHEAD_KB_DEFAULT,
        .log_level = G_LOG_LEVEL_MESSAGE,
        .allow_other = geteuid() == 0,
        /* libfuse forbids the two unless told otherwise; say it anyway. */
        .fuse = g_string_new("default_permissions,nosuid,nodev,subtype=cowfs"),
        .view_fuse = g_string_new(NULL),
        .lists = g_ptr_array_new_with_free_func(g_free),
    };
}

void mount_options_clear(struct mount_options *o)
{
    g_string_free(o->fuse, TRUE);
    g_string_free(o->view_fuse, TRUE);
    g_free(o->view_path);
    g_ptr_array_free(o->lists, TRUE);
    *o = (struct mount_options){0};
}

/* ---- values ---- */

static int bad_value(const char *name, const char *value, const char *wanted, struct errmsg *err)
{
    return errmsg_set(err, -EINVAL, "option %s=%s: %s", name, value, wanted);
}

static int parse_number(const char *name, const char *value, uint64_t min, uint64_t max,
                        uint64_t *out, struct errmsg *err)
{
    if (g_ascii_string_to_unsigned(value, 10, min, max, out, NULL))
        return 0;
    return errmsg_set(err, -EINVAL,
                      "option %s=%s: not a number from %" G_GUINT64_FORMAT " to %" G_GUINT64_FORMAT,
                      name, value, (guint64)min, (guint64)max);
}

/* Seconds, with a fraction, to milliseconds. */
static int parse_seconds(const char *name, const char *value, unsigned *out_ms, struct errmsg *err)
{
    char *end;
    double seconds = g_ascii_strtod(value, &end);
    if (end == value || *end || !(seconds >= 0.001 && seconds <= 86400))
        return bad_value(name, value, "not a number of seconds from 0.001 to 86400", err);
    *out_ms = (unsigned)(seconds * 1000 + 0.5);
    return 0;
}

static int parse_size(const char *name, const char *value, uint64_t *out, struct errmsg *err)
{
    if (tool_parse_size(value, out))
        return 0;
    return bad_value(name, value, "not a size, like 65536, 64K or 1.5G", err);
}

static int set_chunk_size(struct mount_options *o, const char *name, const char *value,
                          struct errmsg *err)
{
    uint64_t bytes;
    if (!tool_parse_size(value, &bytes) || bytes < CHUNK_BYTES_MIN || bytes > CHUNK_BYTES_MAX ||
        (bytes & (bytes - 1)))
        return bad_value(name, value, "not one of 4K, 8K, 16K, 32K, 64K", err);
    o->fs.chunk_bytes = (uint32_t)bytes;
    return 0;
}

static int set_commit(struct mount_options *o, const char *name, const char *value,
                      struct errmsg *err)
{
    return parse_seconds(name, value, &o->fs.commit_interval_ms, err);
}

static int set_seal(struct mount_options *o, const char *name, const char *value,
                    struct errmsg *err)
{
    bool on = strcmp(value, "on") == 0;
    if (!on && strcmp(value, "off") != 0)
        return bad_value(name, value, "neither on nor off", err);
    o->fs.seal_background = on;
    return 0;
}

static int set_seal_delay(struct mount_options *o, const char *name, const char *value,
                          struct errmsg *err)
{
    return parse_seconds(name, value, &o->fs.seal_delay_ms, err);
}

static int set_seal_rate(struct mount_options *o, const char *name, const char *value,
                         struct errmsg *err)
{
    return parse_size(name, value, &o->fs.seal_rate_bytes, err);
}

static int set_cache_size(struct mount_options *o, const char *name, const char *value,
                          struct errmsg *err)
{
    int error = parse_size(name, value, &o->fs.cache_bytes, err);
    /* Below that it would thrash, and 0 means the default further down. */
    o->fs.cache_bytes = MAX(o->fs.cache_bytes, UINT64_C(1) << 20);
    return error;
}

static int set_threads(struct mount_options *o, const char *name, const char *value,
                       struct errmsg *err)
{
    uint64_t n = 0;
    int error = parse_number(name, value, 1, THREADS_MAX, &n, err);
    o->threads = (unsigned)n;
    return error;
}

static int set_read_ahead(struct mount_options *o, const char *name, const char *value,
                          struct errmsg *err)
{
    uint64_t bytes = 0;
    int error = parse_size(name, value, &bytes, err);
    o->read_ahead_kb = (unsigned)MIN(bytes / 1024, UINT64_C(1) << 20);
    return error;
}

static int set_max_read(struct mount_options *o, const char *name, const char *value,
                        struct errmsg *err)
{
    uint64_t n = 0;
    int error = parse_number(name, value, 4096, 1u << 30, &n, err);
    o->max_read_bytes = (unsigned)n;
    g_string_append_printf(o->fuse, ",max_read=%u", o->max_read_bytes);
    return error;
}

static int set_io_uring(struct mount_options *o, const char *name, const char *value,
                        struct errmsg *err)
{
    uint64_t n = RINGS_DEPTH_DEFAULT;
    int error = value ? parse_number(name, value, 1, RINGS_DEPTH_MAX, &n, err) : 0;
    o->io_uring_depth = (unsigned)n;
    return error;
}

static int set_supervise(struct mount_options *o, const char *name, const char *value,
                         struct errmsg *err)
{
    (void)value, (void)err;
    o->supervise_asked = name[0] != 'n';
    o->nosupervise = !o->supervise_asked;
    return 0;
}

static int set_writeback(struct mount_options *o, const char *name, const char *value,
                         struct errmsg *err)
{
    (void)value;
    (void)err;
    o->writeback = strcmp(name, "writeback") == 0;
    o->nowriteback = !o->writeback;
    return 0;
}

static int set_view(struct mount_options *o, const char *name, const char *value,
                    struct errmsg *err)
{
    if (!*value)
        return bad_value(name, value, "no directory given", err);
    g_free(o->view_path);
    o->view_path = g_strdup(value);
    return 0;
}

static int set_log(struct mount_options *o, const char *name, const char *value, struct errmsg *err)
{
    static const struct {
        const char *name;
        GLogLevelFlags level;
    } levels[] = {
        {"error", G_LOG_LEVEL_CRITICAL},
        {"warning", G_LOG_LEVEL_WARNING},
        {"info", G_LOG_LEVEL_MESSAGE},
        {"debug", G_LOG_LEVEL_DEBUG},
    };
    for (size_t i = 0; i < G_N_ELEMENTS(levels); i++) {
        if (strcmp(value, levels[i].name) == 0) {
            o->log_level = levels[i].level;
            return 0;
        }
    }
    return bad_value(name, value, "not one of error, warning, info, debug", err);
}

/* ---- the table ---- */

enum option_kind {
    OWN,          /* set() gets the value */
    OWN_PLAIN,    /* set(), but there is no value */
    FLAG_ON,      /* the bool at `flag` becomes true */
    FLAG_OFF,     /* ... false */
    PASS,         /* to libfuse as it is, without a value */
    PASS_VALUE,   /* the same with a value */
    IGNORE,       /* mount(8)'s own, or without meaning here */
    IGNORE_VALUE, /* the same with a value */
};

static const struct option_rule {
    const char *name;
    enum option_kind kind;
    int (*set)(struct mount_options *o, const char *name, const char *value, struct errmsg *err);
    size_t flag;
} rules[] = {
#define FLAG(member) NULL, offsetof(struct mount_options, member)
    {"chunk_size", OWN, set_chunk_size, 0},
    {"commit", OWN, set_commit, 0},
    {"seal", OWN, set_seal, 0},
    {"seal_delay", OWN, set_seal_delay, 0},
    {"seal_rate", OWN, set_seal_rate, 0},
    {"cache_size", OWN, set_cache_size, 0},
    {"threads", OWN, set_threads, 0},
    {"io_uring", OWN_PLAIN, set_io_uring, 0},
    {"io_uring_depth", OWN, set_io_uring, 0},
    {"read_ahead", OWN, set_read_ahead, 0},
    {"max_read", OWN, set_max_read, 0},
    {"log", OWN, set_log, 0},
    {"view", OWN, set_view, 0},
    {"supervise", OWN_PLAIN, set_supervise, 0},
    {"nosupervise", OWN_PLAIN, set_supervise, 0},
    {"writeback", OWN_PLAIN, set_writeback, 0},
    {"nowriteback", OWN_PLAIN, set_writeback, 0},
    {"passthrough", FLAG_ON, FLAG(passthrough)},
    {"verify", FLAG_ON, FLAG(fs.verify)},
    {"noverify", FLAG_OFF, FLAG(fs.verify)},
    {"ro", FLAG_ON, FLAG(fs.read_only)},
    {"rw", FLAG_OFF, FLAG(fs.read_only)},
    {"allow_other", FLAG_ON, FLAG(allow_other)},
    {"noallow_other", FLAG_OFF, FLAG(allow_other)},
#undef FLAG
    {"allow_root", PASS, NULL, 0},
    {"auto_unmount", PASS, NULL, 0},
    {"suid", PASS, NULL, 0},
    {"nosuid", PASS, NULL, 0},
    {"dev", PASS, NULL, 0},
    {"nodev", PASS, NULL, 0},
    {"exec", PASS, NULL, 0},
    {"noexec", PASS, NULL, 0},
    {"sync", PASS, NULL, 0},
    {"async", PASS, NULL, 0},
    {"dirsync", PASS, NULL, 0},
    {"noatime", PASS, NULL, 0},
    {"nodiratime", PASS, NULL, 0},
    {"symfollow", PASS, NULL, 0},
    {"nosymfollow", PASS, NULL, 0},
    {"context", PASS_VALUE, NULL, 0},
    {"fscontext", PASS_VALUE, NULL, 0},
    {"defcontext", PASS_VALUE, NULL, 0},
    {"rootcontext", PASS_VALUE, NULL, 0},
    {"fsname", PASS_VALUE, NULL, 0},
    {"default_permissions", IGNORE, NULL, 0}, /* always on */
    {"subtype", IGNORE_VALUE, NULL, 0},       /* always cowfs */
    {"atime", IGNORE, NULL, 0},
    {"diratime", IGNORE, NULL, 0},
    {"relatime", IGNORE, NULL, 0},
    {"norelatime", IGNORE, NULL, 0},
    {"strictatime", IGNORE, NULL, 0},
    {"nostrictatime", IGNORE, NULL, 0},
    {"lazytime", IGNORE, NULL, 0},
    {"nolazytime", IGNORE, NULL, 0},
    {"silent", IGNORE, NULL, 0},
    {"loud", IGNORE, NULL, 0},
    {"defaults", IGNORE, NULL, 0},
    {"auto", IGNORE, NULL, 0},
    {"noauto", IGNORE, NULL, 0},
    {"nofail", IGNORE, NULL, 0},
    {"_netdev", IGNORE, NULL, 0},
    {"user", IGNORE, NULL, 0},
    {"nouser", IGNORE, NULL, 0},
    {"users", IGNORE, NULL, 0},
    {"nousers", IGNORE, NULL, 0},
    {"owner", IGNORE, NULL, 0},
    {"noowner", IGNORE, NULL, 0},
    {"group", IGNORE, NULL, 0},
    {"nogroup", IGNORE, NULL, 0},
    {"comment", IGNORE_VALUE, NULL, 0},
};

static const struct option_rule *find_rule(const char *name)
{
    for (size_t i = 0; i < G_N_ELEMENTS(rules); i++)
        if (strcmp(rules[i].name, name) == 0)
            return &rules[i];
    return NULL;
}

/* libfuse splits at commas; in values it wants them, and backslashes, escaped. */
static void append_escaped(GString *list, const char *value)
{
    for (; *value; value++) {
        if (*value == ',' || *value == '\\')
            g_string_append_c(list, '\\');
        g_string_append_c(list, *value);
    }
}

static int apply(struct mount_options *o, const struct option_rule *rule, const char *value,
                 struct errmsg *err)
{
    switch (rule->kind) {
    case OWN:
    case OWN_PLAIN:
        return rule->set(o, rule->name, value, err);
    case FLAG_ON:
    case FLAG_OFF:
        *(bool *)((char *)o + rule->flag) = rule->kind == FLAG_ON;
        return 0;
    case PASS:
        g_string_append_printf(o->fuse, ",%s", rule->name);
        break;
    case PASS_VALUE:
        g_string_append_printf(o->fuse, ",%s=", rule->name);
        append_escaped(o->fuse, value);
        break;
    case IGNORE:
    case IGNORE_VALUE:
        return 0;
    }
    if (strcmp(rule->name, "allow_root") == 0)
        o->allow_other = false; /* libfuse adds it, and checks */
    else if (strcmp(rule->name, "fsname") == 0)
        o->own_fsname = true;
    return 0;
}

static bool takes_value(const struct option_rule *rule)
{
    return rule->kind == OWN || rule->kind == PASS_VALUE || rule->kind == IGNORE_VALUE;
}

static int parse_one(struct mount_options *o, char *option, bool sloppy, struct errmsg *err)
{
    if (!*option || g_str_has_prefix(option, "x-") || g_str_has_prefix(option, "X-"))
        return 0;
    char *value = strchr(option, '=');
    if (value)
        *value++ = '\0';
    if (strcmp(option, "remount") == 0)
        return errmsg_set(err, -EINVAL, "option remount: unmount and mount again instead");
    const struct option_rule *rule = find_rule(option);
    if (!rule) {
        if (sloppy)
            return 0;
        return errmsg_set(err, -EINVAL, "unknown option '%s%s%s'", option, value ? "=" : "",
                          value ? value : "");
    }
    /* mount(8) writes user=NAME into its table, and may hand it back. */
    if (!value && takes_value(rule))
        return errmsg_set(err, -EINVAL, "option %s needs a value", option);
    if (value && !takes_value(rule) && rule->kind != IGNORE)
        return errmsg_set(err, -EINVAL, "option %s takes no value", option);
    return apply(o, rule, value, err);
}

int mount_options_parse(struct mount_options *o, const char *list, bool sloppy, struct errmsg *err)
{
    GString *option = g_string_new(NULL);
    bool quoted = false;
    g_ptr_array_add(o->lists, g_strdup(list));
    o->sloppy = sloppy;
    int error = 0;
    for (const char *p = list;; p++) {
        if (*p == '\0' || (*p == ',' && !quoted)) {
            error = parse_one(o, option->str, sloppy, err);
            g_string_truncate(option, 0);
            if (error || *p == '\0')
                break;
        } else if (*p == '"') {
            quoted = !quoted;
        } else {
            if (*p == '\\' && p[1])
                p++;
            g_string_append_c(option, *p);
        }
    }
    g_string_free(option, TRUE);
    return error;
}

int mount_options_settle(struct mount_options *o, struct errmsg *err)
{
    if (o->passthrough && o->writeback)
        return errmsg_set(err, -EINVAL,
                          "options passthrough and writeback: the kernel does not have both on one"
                          " mount; view=DIRECTORY gives passthrough a mount of its own");
    if (o->fs.verify && (o->passthrough || o->view_path))
        return errmsg_set(err, -EINVAL,
                          "options verify and %s: what is read past the daemon cannot be verified",
                          o->passthrough ? "passthrough" : "view");
    if (o->view_path && o->fs.read_only)
        return errmsg_set(err, -EINVAL,
                          "options view and ro: a view is for what another mount writes; ro and"
                          " passthrough go together on one mount");
    if (o->supervise_asked && o->io_uring_depth)
        return errmsg_set(err, -EINVAL,
                          "options supervise and io_uring: the kernel does not send again what is"
                          " under way over io_uring when the daemon dies, so those who wait for it"
                          " would hang");
    o->supervise =
        o->supervise_asked || (SUPERVISE_DEFAULT && !o->nosupervise && !o->io_uring_depth);
    o->passthrough |= PASSTHROUGH_DEFAULT && !o->writeback;
    o->writeback = !o->passthrough && !o->nowriteback;
    return 0;
}

void mount_options_finish(struct mount_options *o, const char *store_path)
{
    if (o->allow_other)
        g_string_append(o->fuse, ",allow_other");
    if (!o->own_fsname) {
        g_string_append(o->fuse, ",fsname=");
        append_escaped(o->fuse, store_path);
    }
    g_string_printf(o->view_fuse, "%s,ro", o->fuse->str);
    if (o->fs.read_only) {
        g_string_append(o->fuse, ",ro");
        o->fs.create = false;
    }
}
