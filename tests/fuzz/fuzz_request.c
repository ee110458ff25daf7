// SPDX-License-Identifier: Apache-2.0
/*
 * fuzz_request.c - ioctls as the kernel could send them, through libfuse and all of the daemon's
 * own checks: any command number, sizes that are not those of the struct, any struct, by root and by
 * a plain user, on files, directories and what is gone, on a mount and on its read-only view.
 *
 * Each is answered exactly once. What is no command of ours gets ENOTTY; where the sizes are not
 * those of the command, EINVAL; another version, EPROTO; what changes the store by a view, EROFS;
 * flags that nobody knows never succeed.
 */
#include "tests/fuzz/fuzz.h"

#include "cowfs/delete.h"
#include "cowfs/file.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/fuse_pool.h"
#include "cowfs/names.h"
#include "cowfs/opens.h"
#include "cowfs/reap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/sysmacros.h>

enum { MOUNTS = 2, INOS = 7, IO_BYTES = 1 << _IOC_SIZEBITS, USER = 1000 };

static struct fs *fs;
static struct service service;
static struct mount mounts[MOUNTS]; /* the second is a view */
static uint64_t inos[INOS];
static const struct caller root = {.umask = 0};

static const struct command {
    unsigned number;
    bool changes; /* refused by a view; PUBLIC is, too, where it changes something */
    bool names;   /* makes or removes names */
    bool privileged;
} commands[] = {
    {COWFS_IOC_TOKEN, false, false, false},    {COWFS_IOC_CLONE, true, true, false},
    {COWFS_IOC_STAT, false, false, false},     {COWFS_IOC_DU, false, false, false},
    {COWFS_IOC_DF, false, false, false},       {COWFS_IOC_SEAL, true, false, false},
    {COWFS_IOC_DIFF, false, false, false},     {COWFS_IOC_COMMIT, false, false, false},
    {COWFS_IOC_INFO, false, false, false},     {COWFS_IOC_PACK, true, false, false},
    {COWFS_IOC_SCRUB, false, false, true},     {COWFS_IOC_DAMAGE, false, false, false},
    {COWFS_IOC_PUBLIC, false, false, false},   {COWFS_IOC_DELETE, true, true, false},
    {COWFS_IOC_CLONE_MANY, true, true, false}, {COWFS_IOC_UPGRADE, false, false, true},
};

/* ---- the kernel's side ---- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t came;
    unsigned count; /* answers to the request under way */
    uint64_t unique;
    int error; /* negative errno */
    size_t bytes;
    uint8_t data[IO_BYTES];
} answer = {.lock = PTHREAD_MUTEX_INITIALIZER, .came = PTHREAD_COND_INITIALIZER};

static ssize_t take_reply(int fd, struct iovec *iov, int count, void *userdata)
{
    (void)fd, (void)userdata;
    uint8_t *whole = g_malloc(sizeof(struct fuse_out_header) + IO_BYTES * 2);
    size_t bytes = 0;
    for (int i = 0; i < count; i++) {
        FUZZ_ASSERT(bytes + iov[i].iov_len < sizeof(struct fuse_out_header) + IO_BYTES * 2);
        if (iov[i].iov_len)
            memcpy(whole + bytes, iov[i].iov_base, iov[i].iov_len);
        bytes += iov[i].iov_len;
    }
    struct fuse_out_header out;
    memcpy(&out, whole, sizeof(out));
    FUZZ_ASSERT(out.len == bytes);
    pthread_mutex_lock(&answer.lock);
    if (out.unique) { /* else it tells the kernel something */
        FUZZ_ASSERT(out.unique == answer.unique);
        FUZZ_ASSERT(bytes - sizeof(out) <= sizeof(answer.data));
        answer.count++;
        answer.error = out.error;
        answer.bytes = bytes - sizeof(out);
        memcpy(answer.data, whole + sizeof(out), answer.bytes);
        pthread_cond_signal(&answer.came);
    }
    pthread_mutex_unlock(&answer.lock);
    g_free(whole);
    return (ssize_t)bytes;
}

static ssize_t no_read(int fd, void *buf, size_t bytes, void *userdata)
{
    (void)fd, (void)buf, (void)bytes, (void)userdata;
    errno = ENODEV;
    return -1;
}

/* Sends what follows the header, and waits for the answer. */
static void ask(struct mount *m, uint32_t opcode, uint64_t ino, uint32_t uid, const void *body,
                size_t bytes)
{
    static uint64_t unique;
    unique += 2;
    struct fuse_in_header header = {
        .len = (uint32_t)(sizeof(header) + bytes),
        .opcode = opcode,
        .unique = unique,
        .nodeid = ino,
        .uid = uid,
        .gid = uid,
        .pid = (uint32_t)getpid(),
    };
    /* Exactly so large, so that what is read behind it is noticed. */
    uint8_t *message = g_malloc(header.len);
    memcpy(message, &header, sizeof(header));
    memcpy(message + sizeof(header), body, bytes);
    pthread_mutex_lock(&answer.lock);
    answer.count = 0;
    answer.unique = header.unique;
    pthread_mutex_unlock(&answer.lock);
    struct fuse_buf buf = {.size = header.len, .mem = message};
    fuse_session_process_buf(m->session, &buf);
    pthread_mutex_lock(&answer.lock);
    while (!answer.count)
        pthread_cond_wait(&answer.came, &answer.lock);
    FUZZ_ASSERT(answer.count == 1);
    pthread_mutex_unlock(&answer.lock);
    g_free(message);
}

/* Returns the negative errno; a struct that was answered is in answer.data, behind its header. */
static int ask_ioctl(struct mount *m, uint64_t ino, uint32_t uid, struct fuse_ioctl_in in,
                     const void *io)
{
    uint8_t *body = g_malloc0(sizeof(in) + in.in_size);
    memcpy(body, &in, sizeof(in));
    memcpy(body + sizeof(in), io, in.in_size);
    ask(m, FUSE_IOCTL, ino, uid, body, sizeof(in) + in.in_size);
    g_free(body);
    return answer.error;
}

/* ---- the store ---- */

static uint64_t make(uint64_t dir, const char *name, uint32_t mode)
{
    static uint8_t data[30000];
    struct inode *inode;
    FUZZ_ASSERT(names_create(fs, dir, name, mode, 0, NULL, &root, &inode) == 0);
    if (S_ISREG(mode)) {
        memset(data, name[0], sizeof(data));
        FUZZ_ASSERT(file_write(inode, data, sizeof(data), 0, (struct file_write_flags){0}) > 0);
    }
    uint64_t ino = inode->ino;
    inode_put(inode);
    return ino;
}

static int keep_name(void *arg, const struct dir_entry *entry)
{
    if (strcmp(entry->name, ".") != 0 && strcmp(entry->name, "..") != 0)
        g_ptr_array_add(arg, g_strdup(entry->name));
    return 0;
}

static void make_files(void)
{
    inos[0] = ROOT_INO;
    inos[1] = make(ROOT_INO, "dir", S_IFDIR | 0777);
    inos[2] = make(inos[1], "a", S_IFREG | 0644);
    inos[3] = make(ROOT_INO, "b", S_IFREG | 0600);
    inos[4] = make(ROOT_INO, "closed", S_IFDIR | 0700);
    inos[5] = make(inos[4], "c", S_IFREG | 0666);
    inos[6] = UINT64_MAX;
}

/* After names have come and gone. */
static void begin_anew(void)
{
    g_autoptr(GPtrArray) names = g_ptr_array_new_with_free_func(g_free);
    FUZZ_ASSERT(names_list(fs, ROOT_INO, 0, keep_name, names) == 0);
    for (guint i = 0; i < names->len; i++) {
        struct cowfs_ioc_delete io = {0};
        g_autoptr(GArray) gone = g_array_new(FALSE, FALSE, sizeof(uint64_t));
        FUZZ_ASSERT(delete_tree(fs, ROOT_INO, names->pdata[i], &root, &io, gone) == 0);
    }
    reaper_wait(fs->reaper);
    make_files();
}

/* ---- what may be answered ---- */

static const struct command *find_command(unsigned number)
{
    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++)
        if (commands[i].number == number)
            return &commands[i];
    return NULL;
}

/* The error that it has to be; 0: none, or one that depends on the store. */
static int expected_error(const struct command *c, bool view, uint32_t uid,
                          const struct fuse_ioctl_in *in, const uint8_t *io)
{
    uint32_t word[2];
    memcpy(word, io, sizeof(word));
    if (!c)
        return -ENOTTY;
    if (in->in_size != _IOC_SIZE(c->number) || in->out_size != _IOC_SIZE(c->number))
        return -EINVAL;
    if (word[0] != COWFS_IOCTL_VERSION)
        return -EPROTO;
    if (view && c->changes)
        return -EROFS;
    if (c->privileged && uid != geteuid())
        return -EPERM;
    if ((c->number == COWFS_IOC_COMMIT && word[1] > 1) ||
        (c->number == COWFS_IOC_UPGRADE && word[1] & ~(uint32_t)COWFS_UPGRADE_GO))
        return -EINVAL;
    if (c->number == COWFS_IOC_PUBLIC && word[1] != COWFS_PUBLIC_TELL)
        return view ? -EROFS : uid != geteuid() ? -EPERM : word[1] > COWFS_PUBLIC_OFF ? -EINVAL : 0;
    return 0;
}

static void check_answer(const struct command *c, int error, int expected)
{
    static const int allowed[] = {EINVAL,       EPERM,  EACCES, ESTALE,  ENOENT,
                                  ENAMETOOLONG, EEXIST, EISDIR, ENOTDIR, EBADF,
                                  EAGAIN,       ENOTTY, EPROTO, EROFS,   ENOTEMPTY};
    FUZZ_ASSERT(error <= 0);
    FUZZ_ASSERT(!expected || error == expected);
    bool known = error == 0;
    for (unsigned i = 0; i < G_N_ELEMENTS(allowed); i++)
        known = known || error == -allowed[i];
    if (!known)
        fprintf(stderr, "command %#x: error %d\n", c ? c->number : 0, error);
    FUZZ_ASSERT(known);
    FUZZ_ASSERT(answer.bytes == (error ? 0 : sizeof(struct fuse_ioctl_out) + _IOC_SIZE(c->number)));
}

/* ---- one request ---- */

/* A token that is good in place of the one that came. */
static void put_token(struct mount *m, unsigned number, uint64_t ino, uint8_t *io)
{
    size_t at = number == COWFS_IOC_CLONE        ? offsetof(struct cowfs_ioc_clone, token)
                : number == COWFS_IOC_CLONE_MANY ? offsetof(struct cowfs_ioc_clone_many, token)
                : number == COWFS_IOC_DIFF       ? offsetof(struct cowfs_ioc_diff, token)
                                                 : 0;
    struct cowfs_ioc_token token = {.version = COWFS_IOCTL_VERSION};
    struct fuse_ioctl_in in = {
        .cmd = COWFS_IOC_TOKEN, .in_size = sizeof(token), .out_size = sizeof(token)};
    if (!at)
        return;
    FUZZ_ASSERT(ask_ioctl(m, ino, 0, in, &token) == 0);
    memcpy(io + at,
           answer.data + sizeof(struct fuse_ioctl_out) + offsetof(struct cowfs_ioc_token, token),
           sizeof(token.token));
}

enum {
    BY_VIEW = 1,
    BY_USER = 2,
    OTHER_SIZES = 4,
    OTHER_NUMBER = 8,
    GOOD_TOKEN = 16,
    GOOD_VERSION = 32
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t io[IO_BYTES];
    static const uint32_t version = COWFS_IOCTL_VERSION;
    struct rbuf r = rbuf_of(data, size);
    unsigned command = (unsigned)take(&r, 1), ino = (unsigned)take(&r, 1) % INOS;
    unsigned other = (unsigned)take(&r, 1) % INOS, how = (unsigned)take(&r, 1);
    uint32_t mask = (uint32_t)take(&r, 4);
    unsigned sizes[2] = {(unsigned)take(&r, 2), (unsigned)take(&r, 2)};
    struct mount *m = &mounts[how & BY_VIEW ? 1 : 0];
    uint32_t uid = how & BY_USER ? USER : 0;
    struct fuse_ioctl_in in = {.cmd = commands[command % G_N_ELEMENTS(commands)].number};
    in.in_size = in.out_size = _IOC_SIZE(in.cmd);
    memset(io, 0, sizeof(io));
    memcpy(io, data + MIN(size, 12), MIN(size - MIN(size, 12), sizeof(io)));
    if (how & GOOD_VERSION)
        memcpy(io, &version, sizeof(version));
    if (how & GOOD_TOKEN)
        put_token(m, in.cmd, inos[other], io);
    if (how & OTHER_NUMBER)
        in.cmd ^= mask;
    if (how & OTHER_SIZES) {
        in.in_size = sizes[0] % IO_BYTES;
        in.out_size = sizes[1] % IO_BYTES;
    }
    /* What a handle says, the daemon has said before: only files are open for writing. */
    bool regular = ino == 2 || ino == 3 || ino == 5;
    in.fh = regular && how & 64 && m == &mounts[0] ? OPEN_WRITER : OPEN_READER;
    in.flags = regular ? 0 : FUSE_IOCTL_DIR;
    const struct command *c = find_command(in.cmd);
    int expected = expected_error(c, m->view, uid, &in, io);
    int error = ask_ioctl(m, inos[ino], uid, in, io);
    check_answer(c, error, expected);
    if (error == 0 && c->names)
        begin_anew();
    return 0;
}

/* ---- two mounts that the kernel does not know ---- */

static void mount_begin(struct mount *m, bool view)
{
    static const struct fuse_custom_io custom = {.writev = take_reply, .read = no_read};
    struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
    g_autofree char *option = g_strdup_printf("-omax_read=%u", FUSE_IO_BYTES);
    fuse_opt_add_arg(&args, "cowfs");
    fuse_opt_add_arg(&args, option);
    *m = (struct mount){
        .service = &service, .fs = fs, .view = view, .slot = view, .max_read_bytes = FUSE_IO_BYTES};
    /* No mount has it, so none of them is read-only. */
    m->dev = makedev(0, 0xfffff);
    sem_init(&m->initialised, 0, 0);
    m->costly = ioctl_pool_new();
    m->table = mount_table_new();
    m->session = fuse_session_new(&args, &mount_ops, sizeof(mount_ops), m);
    fuse_opt_free_args(&args);
    FUZZ_ASSERT(m->session);
    FUZZ_ASSERT(fuse_session_custom_io(m->session, &custom, sizeof(custom),
                                       open("/dev/null", O_RDWR | O_CLOEXEC)) == 0);
    m->notifier = notifier_new(m);
    struct fuse_init_in init = {.major = FUSE_KERNEL_VERSION,
                                .minor = FUSE_KERNEL_MINOR_VERSION,
                                .flags = FUSE_INIT_EXT | FUSE_HAS_IOCTL_DIR};
    ask(m, FUSE_INIT, 0, 0, &init, sizeof(init));
    FUZZ_ASSERT(answer.error == 0);
}

static void end(void)
{
    for (unsigned i = 0; i < MOUNTS; i++) {
        fuse_pool_free(mounts[i].costly);
        notifier_free(mounts[i].notifier);
        fuse_session_destroy(mounts[i].session);
        mount_table_free(mounts[i].table);
        sem_destroy(&mounts[i].initialised);
    }
    token_table_free(service.tokens);
    FUZZ_ASSERT(fs_close(fs) == 0);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    struct fs_config config = {.create = true};
    struct errmsg err;
    FUZZ_ASSERT(fs_open(make_scratch(), &config, &fs, &err) == 0);
    service = (struct service){.fs = fs, .tokens = token_table_new(), .upgrade_fd = -1};
    for (unsigned i = 0; i < MOUNTS; i++)
        mount_begin(&mounts[i], i == 1);
    atexit(end);
    make_files();
    return 0;
}
