// SPDX-License-Identifier: Apache-2.0
/*
 * fuse_rings.c - see fuse_rings.h.
 *
 * A *queue* takes the requests that are made on one CPU, and its thread runs there: so nobody
 * has to be woken on another one, which is most of what a small request costs. It has `depth`
 * *slots*, buffers for one request and its reply. A slot goes round:
 *
 *   REGISTER (once) ------> in the kernel ---- completion: a request is in it --.
 *                               ^                                               v
 *                     COMMIT_AND_FETCH <---- finish <---- reply (hook_writev) <- serve
 *
 * libfuse decodes requests and encodes replies as ever. It is given the request in one piece: the
 * payload arrives page-aligned, the headers are copied to right in front of it. Its replies
 * come out at the hook for writev(2) of fuse_session_custom_io; those whose request came here are
 * put into the slot, all else goes to /dev/fuse. A READ is read right into the slot.
 *
 * Only the queue's thread touches its ring. A slot whose reply comes from another thread is put
 * on a list, and the thread is woken by an eventfd that the ring reads.
 *
 * A request may wait for another one: a seek for pages to be written, an open for a close. If
 * all slots of a queue held such, that other one could not come in: so a queue whose slots are
 * all away gets one more.
 */
#include "cowfs/fuse_rings.h"
#include "cowfs/fuse_content.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/fuse_pool.h"
#include "cowfs/fuse_rings_abi.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <linux/fuse.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

/* Reads and writes of that size are worth another thread, if there are several. */
enum { LARGE_BYTES = 128 * 1024 };
/* Replies are handed in together, at most that much data. */
enum { BATCH_BYTES = 64 * 1024 };
enum { REGISTER_TIMEOUT_S = 10, SLOTS_MAX = 4096, CACHE_LINE = 64 };

struct queue;

struct slot {
    struct fuse_job job; /* first: fuse_pool.h */
    struct queue *queue;
    uint8_t *memory; /* a page for the headers of the request, the payload, a page for the ring's */
    uint8_t *payload;
    struct abi_ring_header *header;
    struct iovec iov[2]; /* for the kernel */
    uint64_t commit_id;
    struct fuse_buf request;
    size_t args_bytes;
    atomic_uint_fast64_t unique; /* of the request that is being served; 0: none */
    size_t reply_bytes;
    bool committed;    /* by its queue's thread itself */
    struct slot *next; /* of the queue's; never changes */
    struct slot *next_done;
};

/* What a thread writes for each request lies in its own queue, in cache lines of its own. */
struct queue {
    _Alignas(CACHE_LINE) struct rings *rings;
    uint16_t id; /* the CPU's number */
    pthread_t thread;
    bool has_thread, has_ring;
    struct io_uring ring;
    unsigned slot_count;
    unsigned live; /* slots that the kernel has, or will get back */
    unsigned away; /* slots that other threads serve, and the one that this one does */
    size_t batch_bytes;
    atomic_uint busy; /* slots that are being served */
    int wake_fd;
    uint64_t wake_value;
    pthread_mutex_t lock;         /* of done */
    struct slot *done;            /* replied to by other threads */
    _Atomic(struct slot *) slots; /* only ever grows, at its head */
};

enum state { MADE, AGREED, SERVING };

struct rings {
    struct mount *mount;
    struct fuse_session *session;
    struct fuse_pool *pool;
    unsigned depth, queue_count;
    size_t page_bytes;
    struct queue *queues;
    atomic_int state;
    atomic_bool stopping;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* of what follows, state and stopping */
    unsigned registered;    /* queues that have tried to */
    int error;
};

static _Thread_local struct slot *this_slot;
static _Thread_local struct queue *this_queue;

static size_t slot_memory_bytes(const struct rings *u)
{
    return FUSE_IO_BYTES + 2 * u->page_bytes;
}

/* ---- the ring, in the queue's thread ---- */

static struct io_uring_sqe *get_sqe(struct queue *q)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&q->ring);
    if (!sqe) {
        io_uring_submit(&q->ring);
        sqe = io_uring_get_sqe(&q->ring);
    }
    g_assert(sqe);
    return sqe;
}

static void push_command(struct slot *s, uint32_t command)
{
    struct queue *q = s->queue;
    struct io_uring_sqe *sqe = get_sqe(q);
    struct abi_ring_command *req = (void *)sqe->cmd;
    io_uring_prep_rw(IORING_OP_URING_CMD, sqe, 0, NULL, 0, 0);
    sqe->flags = IOSQE_FIXED_FILE; /* number 0 is /dev/fuse */
    sqe->cmd_op = command;
    io_uring_sqe_set_data(sqe, s);
    *req = (struct abi_ring_command){.queue = q->id, .commit_id = s->commit_id};
    if (command == ABI_RING_REGISTER) {
        sqe->addr = (uintptr_t)s->iov;
        sqe->len = G_N_ELEMENTS(s->iov);
    }
}

static void commit(struct slot *s)
{
    struct queue *q = s->queue;
    push_command(s, ABI_RING_COMMIT_AND_FETCH);
    q->batch_bytes += s->reply_bytes;
    if (q->batch_bytes > BATCH_BYTES) {
        io_uring_submit(&q->ring);
        q->batch_bytes = 0;
    }
}

static void await_wake(struct queue *q)
{
    struct io_uring_sqe *sqe = get_sqe(q);
    io_uring_prep_read(sqe, q->wake_fd, &q->wake_value, sizeof(q->wake_value), 0);
    io_uring_sqe_set_data(sqe, NULL);
}

static void commit_done(struct queue *q)
{
    pthread_mutex_lock(&q->lock);
    struct slot *s = q->done;
    q->done = NULL;
    pthread_mutex_unlock(&q->lock);
    while (s) {
        struct slot *next = s->next_done;
        q->away--;
        commit(s);
        s = next;
    }
}

/* ---- replies ---- */

/* The reply is in the slot: back to the kernel with it. */
static void finish(struct slot *s)
{
    struct queue *q = s->queue;
    atomic_store(&s->unique, 0);
    atomic_fetch_sub(&q->busy, 1);
    if (this_queue == q && this_slot == s) {
        s->committed = true;
        commit(s);
        return;
    }
    pthread_mutex_lock(&q->lock);
    bool first = !q->done;
    s->next_done = q->done;
    q->done = s;
    pthread_mutex_unlock(&q->lock);
    if (first)
        eventfd_write(q->wake_fd, 1);
}

static void set_reply(struct slot *s, int32_t error, uint64_t unique, size_t bytes)
{
    struct fuse_out_header *out = (void *)s->header->in_out;
    *out = (struct fuse_out_header){
        .len = (uint32_t)(sizeof(*out) + bytes), .error = error, .unique = unique};
    s->header->payload_bytes = (uint32_t)bytes;
    s->reply_bytes = bytes;
}

/* The slot whose request that is, or NULL: it came over /dev/fuse. */
static struct slot *find_slot(struct rings *u, uint64_t unique)
{
    if (this_slot && atomic_load(&this_slot->unique) == unique)
        return this_slot;
    /* Rare: one who waited for something else has an answer. */
    for (unsigned i = 0; i < u->queue_count; i++)
        for (struct slot *s = atomic_load(&u->queues[i].slots); s; s = s->next)
            if (atomic_load(&s->unique) == unique)
                return s;
    return NULL;
}

static void set_state(struct rings *u, enum state state)
{
    pthread_mutex_lock(&u->lock);
    atomic_store(&u->state, state);
    pthread_cond_broadcast(&u->changed);
    pthread_mutex_unlock(&u->lock);
}

/* Accepts the kernel's offer in our answer to INIT, which libfuse has made without, and
 * then lets the queues begin: the kernel waits for all of them. */
static ssize_t accept_offer(struct rings *u, int fd, const struct iovec *iov, int count)
{
    struct fuse_out_header out = *(const struct fuse_out_header *)iov[0].iov_base;
    struct fuse_init_out init;
    if (out.error || count != 2 || iov[1].iov_len != sizeof(init)) {
        set_state(u, MADE);
        return writev(fd, iov, count);
    }
    memcpy(&init, iov[1].iov_base, sizeof(init));
    init.flags |= FUSE_INIT_EXT;
    init.flags2 |= ABI_INIT_FLAGS2_OVER_IO_URING;
    struct iovec changed[] = {iov[0], {&init, sizeof(init)}};
    ssize_t done = writev(fd, changed, 2);
    set_state(u, SERVING);
    return done;
}

static ssize_t hook_writev(int fd, struct iovec *iov, int count, void *userdata)
{
    struct rings *u = ((struct mount *)userdata)->rings;
    const struct fuse_out_header *out = iov[0].iov_base;
    if (!u || out->unique == 0) /* a notification */
        return writev(fd, iov, count);
    if (atomic_load(&u->state) == AGREED)
        return accept_offer(u, fd, iov, count);
    struct slot *s = find_slot(u, out->unique);
    if (!s)
        return writev(fd, iov, count);
    size_t bytes = 0;
    int32_t error = out->error;
    for (int i = 1; i < count && !error; i++) {
        if (iov[i].iov_len > FUSE_IO_BYTES - bytes) {
            error = -EIO;
            bytes = 0;
        } else {
            if (iov[i].iov_base != s->payload + bytes)
                memmove(s->payload + bytes, iov[i].iov_base, iov[i].iov_len);
            bytes += iov[i].iov_len;
        }
    }
    set_reply(s, error, out->unique, bytes);
    finish(s);
    return (ssize_t)out->len;
}

static ssize_t hook_read(int fd, void *buffer, size_t bytes, void *userdata)
{
    (void)userdata;
    return read(fd, buffer, bytes);
}

/* ---- slots ---- */

static int slot_new(struct queue *q, struct slot **out)
{
    struct rings *u = q->rings;
    /* Fresh pages: what a slot never uses costs nothing. */
    void *memory = mmap(NULL, slot_memory_bytes(u), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    struct slot *s = g_new0(struct slot, 1);
    s->queue = q;
    s->memory = memory;
    s->payload = s->memory + u->page_bytes;
    s->header = (void *)(s->payload + FUSE_IO_BYTES);
    s->iov[0] = (struct iovec){s->header, sizeof(*s->header)};
    s->iov[1] = (struct iovec){s->payload, FUSE_IO_BYTES};
    s->next = atomic_load(&q->slots);
    atomic_store(&q->slots, s);
    q->slot_count++;
    *out = s;
    return 0;
}

/* Failure is no disaster, as a rule: those that are away come back. */
static void add_slot(struct queue *q)
{
    struct slot *s;
    if (q->slot_count >= SLOTS_MAX || slot_new(q, &s) != 0)
        return;
    q->live++;
    push_command(s, ABI_RING_REGISTER);
}

static void free_slots(struct queue *q)
{
    struct slot *s = atomic_load(&q->slots);
    while (s) {
        struct slot *next = s->next;
        munmap(s->memory, slot_memory_bytes(q->rings));
        g_free(s);
        s = next;
    }
}

/* ---- requests ---- */

/* Read right into the slot's payload, or written from there. */
static bool serve_content(struct slot *s)
{
    const struct fuse_in_header *in = s->request.mem;
    struct content_request request = {
        .header = in,
        .args = in + 1,
        .args_bytes = s->args_bytes,
        .payload = s->payload,
        .payload_bytes = s->header->payload_bytes,
        .buffer = s->payload,
    };
    struct content_reply reply;
    if (!content_serve(s->queue->rings->mount, &request, &reply))
        return false;
    if (reply.data != s->payload)
        memcpy(s->payload, reply.data, reply.bytes);
    set_reply(s, reply.error, in->unique, reply.bytes);
    finish(s);
    return true;
}

static void serve(struct slot *s)
{
    this_slot = s;
    if (!serve_content(s))
        fuse_session_process_buf(s->queue->rings->session, &s->request);
    this_slot = NULL;
}

static void serve_job(struct fuse_job *job)
{
    serve((struct slot *)job);
}

/* May take long, or make us wait for others. */
static bool is_long(const struct fuse_in_header *in, const void *args, size_t bytes)
{
    switch (in->opcode) {
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
    case FUSE_IOCTL:
    case FUSE_COPY_FILE_RANGE:
    case ABI_OP_COPY_FILE_RANGE_64:
    case FUSE_FALLOCATE:
        return true;
    case FUSE_SETATTR:
        return bytes >= sizeof(uint32_t) &&
               ((const struct fuse_setattr_in *)args)->valid & FATTR_SIZE;
    case FUSE_OPEN:
        return bytes >= sizeof(uint32_t) && ((const struct fuse_open_in *)args)->flags & O_TRUNC;
    default:
        return false;
    }
}

static bool is_large(const struct fuse_in_header *in, const void *args, size_t bytes)
{
    if (in->opcode == FUSE_WRITE)
        return in->len >= LARGE_BYTES;
    return in->opcode == FUSE_READ && bytes >= sizeof(struct fuse_read_in) &&
           ((const struct fuse_read_in *)args)->size >= LARGE_BYTES;
}

/* A request has come. `more`: others are there already. */
static void take(struct slot *s, bool more)
{
    struct queue *q = s->queue;
    uint32_t payload_bytes = s->header->payload_bytes;
    struct fuse_in_header in;
    memcpy(&in, s->header->in_out, sizeof(in));
    s->commit_id = s->header->commit_id;
    atomic_fetch_add(&q->busy, 1);
    atomic_store(&s->unique, in.unique);
    size_t args = (size_t)in.len - sizeof(in) - payload_bytes;
    if (in.len < sizeof(in) + payload_bytes || args > sizeof(s->header->args) ||
        payload_bytes > FUSE_IO_BYTES) {
        g_critical("a request from the kernel makes no sense: operation %u, %u bytes, payload %u",
                   in.opcode, in.len, payload_bytes);
        this_slot = s;
        set_reply(s, -EIO, in.unique, 0);
        finish(s);
        this_slot = NULL;
        return;
    }
    uint8_t *start = s->payload - args - sizeof(in);
    memcpy(start, &in, sizeof(in));
    memcpy(start + sizeof(in), s->header->args, args);
    s->request = (struct fuse_buf){.mem = start, .size = in.len};
    s->args_bytes = args;

    bool hand_over = is_long(&in, start + sizeof(in), args) ||
                     ((more || q->away > 0) && is_large(&in, start + sizeof(in), args));
    q->away++;
    s->committed = false;
    if (!hand_over || !fuse_pool_add(q->rings->pool, &s->job))
        serve(s);
    if (s->committed)
        q->away--;
    else if (q->away == q->slot_count)
        add_slot(q); /* somebody else replies, some time */
}

static void completed(struct queue *q, struct slot *s, int result, bool more)
{
    if (!s) {
        await_wake(q);
    } else if (result == 0) {
        take(s, more);
    } else if ((result == -EAGAIN || result == -EINTR) && !atomic_load(&q->rings->stopping)) {
        push_command(s, s->commit_id ? ABI_RING_COMMIT_AND_FETCH : ABI_RING_REGISTER);
    } else {
        q->live--;
        /* -ENOTCONN: the session is over, which the readers of /dev/fuse tell. */
        if (result != -ENOTCONN && !atomic_load(&q->rings->stopping)) {
            pthread_mutex_lock(&q->rings->lock);
            if (!q->rings->error)
                q->rings->error = result;
            pthread_mutex_unlock(&q->rings->lock);
            g_critical("FUSE over io_uring, queue %u: %s", q->id, g_strerror(-result));
        }
    }
}

static void *queue_main(void *arg)
{
    struct queue *q = arg;
    struct rings *u = q->rings;
    char name[16];

    snprintf(name, sizeof(name), "cowfs-cpu%u", q->id % 10000u);
    pthread_setname_np(pthread_self(), name);
    pthread_mutex_lock(&u->lock);
    while (atomic_load(&u->state) != SERVING && !atomic_load(&u->stopping))
        pthread_cond_wait(&u->changed, &u->lock);
    pthread_mutex_unlock(&u->lock);
    if (atomic_load(&u->stopping))
        return NULL;

    /* Not possible for a CPU that is off, or not ours: then it runs wherever it may. */
    cpu_set_t cpu;
    CPU_ZERO(&cpu);
    if (q->id < CPU_SETSIZE) {
        CPU_SET(q->id, &cpu);
        sched_setaffinity(0, sizeof(cpu), &cpu);
    }
    this_queue = q;
    /* Spares the kernel looking the ring up at each call; goes without, too. */
    io_uring_register_ring_fd(&q->ring);
    for (struct slot *s = atomic_load(&q->slots); s; s = s->next)
        push_command(s, ABI_RING_REGISTER);
    await_wake(q);
    q->live = q->slot_count;
    int error = io_uring_submit(&q->ring);
    bool told = false;
    while (q->live > 0 && !atomic_load(&u->stopping)) {
        struct io_uring_cqe *cqe;
        if (told)
            error = io_uring_submit_and_wait(&q->ring, 1);
        q->batch_bytes = 0;
        if (error < 0 && error != -EINTR && error != -EAGAIN && error != -EBUSY)
            break;
        while (!atomic_load(&u->stopping) && io_uring_peek_cqe(&q->ring, &cqe) == 0) {
            struct slot *s = io_uring_cqe_get_data(cqe);
            int result = cqe->res;
            io_uring_cqe_seen(&q->ring, cqe);
            completed(q, s, result, io_uring_cq_ready(&q->ring) > 0);
        }
        /* Last: whoever puts a slot there from now on wakes us, if he has not done so before
         * we waited for that again. */
        commit_done(q);
        if (!told) {
            pthread_mutex_lock(&u->lock);
            u->registered++;
            pthread_cond_broadcast(&u->changed);
            pthread_mutex_unlock(&u->lock);
            told = true;
        }
    }
    if (error < 0 && !atomic_load(&u->stopping)) {
        g_critical("FUSE over io_uring, queue %u: %s", q->id, g_strerror(-error));
        fuse_session_exit(u->session);
    }
    return NULL;
}

/* ---- making and ending ---- */

/* The kernel wants a queue for each CPU that there could be, not only those that are. */
static unsigned possible_cpus(void)
{
    char text[64] = "";
    int fd = open("/sys/devices/system/cpu/possible", O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        ssize_t n = read(fd, text, sizeof(text) - 1);
        text[n > 0 ? n : 0] = '\0';
        close(fd);
    }
    /* "0-3", or "0", or in theory "0,2-3": the last number counts. */
    g_strchomp(text);
    const char *last = text + strlen(text);
    while (last > text && g_ascii_isdigit(last[-1]))
        last--;
    uint64_t number;
    if (g_ascii_string_to_unsigned(last, 10, 0, G_MAXUINT16, &number, NULL))
        return (unsigned)number + 1;
    return (unsigned)MAX(sysconf(_SC_NPROCESSORS_CONF), 1);
}

static int queue_init(struct queue *q, struct rings *u, unsigned id)
{
    /* Completions are for the thread that waits for them: no need to interrupt it. */
    struct io_uring_params params = {
        .flags = IORING_SETUP_SQE128 | IORING_SETUP_CQSIZE | IORING_SETUP_SUBMIT_ALL |
                 IORING_SETUP_COOP_TASKRUN,
        .cq_entries = 4 * (u->depth + 1),
    };
    int device = fuse_session_fd(u->session);
    q->rings = u;
    q->id = (uint16_t)id;
    pthread_mutex_init(&q->lock, NULL);
    q->wake_fd = eventfd(0, EFD_CLOEXEC);
    if (q->wake_fd < 0)
        return -errno;
    for (unsigned i = 0; i < u->depth; i++) {
        struct slot *s;
        int error = slot_new(q, &s);
        if (error)
            return error;
    }
    int error = io_uring_queue_init_params(u->depth + 1, &q->ring, &params);
    if (error)
        return error;
    q->has_ring = true;
    error = io_uring_register_files(&q->ring, &device, 1);
    if (error)
        return error;
    error = -pthread_create(&q->thread, NULL, queue_main, q);
    q->has_thread = !error;
    return error;
}

static void queue_fini(struct queue *q)
{
    struct rings *u = q->rings;
    if (!u)
        return;
    if (q->has_ring)
        io_uring_queue_exit(&q->ring);
    if (q->wake_fd >= 0)
        close(q->wake_fd);
    free_slots(q);
    pthread_mutex_destroy(&q->lock);
}

int rings_new(struct mount *mount, unsigned depth, unsigned max_threads, struct rings **out)
{
    static const struct fuse_custom_io hooks = {.writev = hook_writev, .read = hook_read};
    *out = NULL;
    struct rings *u = g_new0(struct rings, 1);
    u->mount = mount;
    u->session = mount->session;
    u->depth = depth;
    u->queue_count = possible_cpus();
    u->page_bytes = (size_t)sysconf(_SC_PAGESIZE);
    u->queues = g_aligned_alloc0(u->queue_count, sizeof(*u->queues), CACHE_LINE);
    u->pool = fuse_pool_new(max_threads, serve_job);
    pthread_mutex_init(&u->lock, NULL);
    pthread_cond_init(&u->changed, NULL);
    int error = 0;
    for (unsigned i = 0; i < u->queue_count && !error; i++)
        error = queue_init(&u->queues[i], u, i);
    if (!error &&
        fuse_session_custom_io(u->session, &hooks, sizeof(hooks), fuse_session_fd(u->session)))
        error = -EINVAL;
    if (error) {
        rings_stop(u);
        rings_free(u);
        return error;
    }
    *out = u;
    return 0;
}

void rings_init(struct rings *u, bool offered)
{
    if (offered)
        atomic_store(&u->state, AGREED);
}

bool rings_serves(const struct rings *u)
{
    return u && atomic_load(&u->state) == SERVING;
}

int rings_wait(struct rings *u)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += REGISTER_TIMEOUT_S;
    int error = 0;
    pthread_mutex_lock(&u->lock);
    /* Agreed to, the answer is on its way; see fuse_ops.c's order. */
    while (!error && (atomic_load(&u->state) == AGREED ||
                      (atomic_load(&u->state) == SERVING && u->registered < u->queue_count)))
        error = -pthread_cond_timedwait(&u->changed, &u->lock, &until);
    if (u->error)
        error = u->error;
    pthread_mutex_unlock(&u->lock);
    return error;
}

bool rings_quiet(const struct rings *u)
{
    unsigned busy = 0;
    for (unsigned i = 0; i < u->queue_count; i++)
        busy += atomic_load(&u->queues[i].busy);
    return busy == 0;
}

void rings_stop(struct rings *u)
{
    if (!u)
        return;
    pthread_mutex_lock(&u->lock);
    atomic_store(&u->stopping, true);
    pthread_cond_broadcast(&u->changed);
    pthread_mutex_unlock(&u->lock);
    for (unsigned i = 0; i < u->queue_count; i++) {
        struct queue *q = &u->queues[i];
        if (!q->has_thread)
            continue;
        eventfd_write(q->wake_fd, 1);
        pthread_join(q->thread, NULL);
        q->has_thread = false;
    }
    fuse_pool_free(u->pool);
    u->pool = NULL;
}

void rings_free(struct rings *u)
{
    if (!u)
        return;
    for (unsigned i = 0; i < u->queue_count; i++)
        queue_fini(&u->queues[i]);
    pthread_cond_destroy(&u->changed);
    pthread_mutex_destroy(&u->lock);
    g_aligned_free(u->queues);
    g_free(u);
}
