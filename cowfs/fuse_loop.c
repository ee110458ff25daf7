// SPDX-License-Identifier: Apache-2.0
#include "cowfs/fuse_loop.h"
#include "cowfs/fuse_content.h"
#include "cowfs/fuse_ops.h"
#include "cowfs/fuse_rings.h"
#include "cowfs/handover.h"
#include "cowfs/journal.h"

#include <errno.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

/* Wakes a worker out of read(2). */
#define WAKE_SIGNAL SIGUSR2

/* In front of a WRITE's data; the buffer is placed so that the data is aligned
 * to a page, which spares memcpy and O_DIRECT below some trouble. */
enum { WRITE_HEADER_BYTES = sizeof(struct fuse_in_header) + sizeof(struct fuse_write_in) };

/*
 * The kernel wakes those who wait in read(2) in turn, so sixteen of them would
 * take requests that come one by one on sixteen cold stacks. Therefore only a few
 * wait there; others that have nothing to do are parked, last in first out, until
 * one takes a request and leaves nobody waiting. With two instead of four, several
 * synchronous readers had a worker parked and called for nearly every request, at
 * half the speed (docs/DESIGN.md, Scaling).
 */
enum { WAITING_MAX = 4 };

/* linux/fuse.h has it since 7.40, as FUSE_UNIQUE_RESEND. */
#define UNIQUE_RESENT (UINT64_C(1) << 63)

struct worker {
    struct fuse_loop *loop;
    unsigned number; /* 0 ... max_threads - 1 */
    pthread_t thread;
    uint8_t *memory; /* one page, the request, the read buffer */
    size_t memory_bytes;
    uint8_t *request;
    uint8_t *data;
    struct worker *next;
    struct worker *parked_below; /* in the stack of parked ones */
    bool parked;
    pthread_cond_t unpark;
};

struct fuse_loop {
    struct mount *mount;
    struct fuse_session *session;
    struct rings *rings;       /* or NULL */
    struct handover *handover; /* or NULL */
    unsigned max_threads;
    int ended_fd;
    atomic_uint waiting; /* threads in read(2), or about to be */
    atomic_uint running; /* threads that have not ended */
    atomic_int error;
    pthread_mutex_t lock; /* guards all below, and the workers' parking */
    struct worker *parked;
    atomic_uint parked_count;
    struct worker *workers;
    unsigned thread_count;
};

static _Thread_local bool this_resent;

bool fuse_loop_is_resent(void)
{
    return this_resent;
}

static bool is_forget(const struct worker *w)
{
    const struct fuse_in_header *header = (const void *)w->request;
    return header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET;
}

static void add_worker(struct fuse_loop *loop);

/* Waits until it is needed, if enough others wait for requests. */
static void park(struct worker *w)
{
    struct fuse_loop *loop = w->loop;
    pthread_mutex_lock(&loop->lock);
    if (atomic_load(&loop->waiting) >= WAITING_MAX && !fuse_session_exited(loop->session)) {
        w->parked = true;
        w->parked_below = loop->parked;
        loop->parked = w;
        atomic_fetch_add(&loop->parked_count, 1);
        while (w->parked)
            pthread_cond_wait(&w->unpark, &loop->lock);
    }
    pthread_mutex_unlock(&loop->lock);
}

/* False if nobody is parked. */
static bool unpark_one(struct fuse_loop *loop)
{
    if (atomic_load(&loop->parked_count) == 0)
        return false;
    pthread_mutex_lock(&loop->lock);
    struct worker *w = loop->parked;
    if (w) {
        loop->parked = w->parked_below;
        w->parked = false;
        atomic_fetch_sub(&loop->parked_count, 1);
        pthread_cond_signal(&w->unpark);
    }
    pthread_mutex_unlock(&loop->lock);
    return w;
}

static void send_reply(struct worker *w, struct iovec *iov, unsigned count)
{
    /* ENOENT: nobody waits for it any more. */
    if (writev(fuse_session_fd(w->loop->session), iov, (int)count) < 0 && errno != ENOENT &&
        !fuse_session_exited(w->loop->session))
        g_warning("a reply to the kernel: %s", g_strerror(errno));
}

/* The kernel copies from where it lies. If it cannot, it has answered by EIO, as a read would. */
static bool send_read(void *arg, const struct iovec *iov, unsigned count, size_t bytes)
{
    struct worker *w = arg;
    const struct fuse_in_header *in = (const void *)w->request;
    struct fuse_out_header out = {.len = (uint32_t)(sizeof(out) + bytes), .unique = in->unique};
    struct iovec all[FILE_PIECES_MAX + 1] = {{&out, sizeof(out)}};
    g_assert(count < G_N_ELEMENTS(all));
    memcpy(all + 1, iov, count * sizeof(*iov));
    send_reply(w, all, count + 1);
    return true;
}

static bool serve_content(struct worker *w, const struct fuse_buf *buf)
{
    const struct fuse_in_header *in = (const void *)w->request;
    size_t args_bytes = buf->size - sizeof(*in);
    bool write = in->opcode == FUSE_WRITE && args_bytes >= sizeof(struct fuse_write_in);
    struct content_request request = {
        .header = in,
        .args = in + 1,
        .args_bytes = args_bytes,
        .payload = w->request + WRITE_HEADER_BYTES,
        .payload_bytes = write ? args_bytes - sizeof(struct fuse_write_in) : 0,
        .buffer = w->data,
        .send = send_read,
        .send_arg = w,
    };
    struct content_reply reply;
    if (!content_serve(w->loop->mount, &request, &reply))
        return false;
    if (reply.sent)
        return true;
    struct fuse_out_header out = {
        .len = (uint32_t)(sizeof(out) + reply.bytes), .error = reply.error, .unique = in->unique};
    struct iovec iov[] = {{&out, sizeof(out)}, {reply.data, reply.bytes}};
    send_reply(w, iov, 2);
    return true;
}

static void process(struct worker *w, const struct fuse_buf *buf)
{
    if (!serve_content(w, buf))
        fuse_session_process_buf(w->loop->session, buf);
}

static void refuse(struct worker *w, const struct fuse_in_header *in)
{
    struct fuse_out_header out = {.len = sizeof(out), .error = -EIO, .unique = in->unique};
    if (!is_forget(w) && write(fuse_session_fd(w->loop->session), &out, sizeof(out)) < 0)
        g_debug("the caller of a request that is refused has gone: %s", g_strerror(errno));
}

static void serve(struct worker *w, const struct fuse_buf *buf)
{
    const struct fuse_in_header *in = (const void *)w->request;
    struct handover *h = w->loop->handover;
    /* Even: the view's get another one than the first mount's, of journal and suspects, too. */
    uint64_t unique = (in->unique & ~UNIQUE_RESENT) | w->loop->mount->slot;
    bool again = in->unique & UNIQUE_RESENT;
    unsigned slot = w->number + (w->loop->mount->view ? HANDOVER_IN_SERVICE : 0);
    if (!h) {
        process(w, buf);
        return;
    }
    struct mount *mount = w->loop->mount;
    /* The kernel sends those first. */
    if (!again && !is_forget(w) && !atomic_load(&mount->resent_over))
        atomic_store(&mount->resent_over, true);
    if (handover_request_begin(h, slot, unique, in->opcode, again)) {
        this_resent = again;
        atomic_fetch_add(&mount->resent_in_service, again);
        journal_request_begin(unique);
        process(w, buf);
        journal_request_end();
        atomic_fetch_sub(&mount->resent_in_service, again);
        this_resent = false;
    } else {
        refuse(w, in);
    }
    handover_request_end(h, slot);
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct fuse_loop *loop = w->loop;

    pthread_setname_np(pthread_self(), "cowfs-fuse");
    while (!fuse_session_exited(loop->session)) {
        struct fuse_buf buf = {.mem = w->request};
        if (atomic_load(&loop->waiting) >= WAITING_MAX) {
            park(w);
            if (fuse_session_exited(loop->session))
                break;
        }
        atomic_fetch_add(&loop->waiting, 1);
        int got = fuse_session_receive_buf(loop->session, &buf);
        unsigned others = atomic_fetch_sub(&loop->waiting, 1) - 1;
        if (got == -EINTR || got == -EAGAIN)
            continue;
        if (got <= 0) {
            /* 0: unmounted. libfuse has flagged that; errors it leaves to us. */
            int expected = 0;
            if (got < 0)
                atomic_compare_exchange_strong(&loop->error, &expected, got);
            fuse_session_exit(loop->session);
            break;
        }
        /* A burst of forgets is over before a new thread would be of use. */
        if (others == 0 && !is_forget(w) && !unpark_one(loop))
            add_worker(loop);
        serve(w, &buf);
    }
    atomic_fetch_sub(&loop->running, 1);
    eventfd_write(loop->ended_fd, 1);
    return NULL;
}

static struct worker *worker_new(struct fuse_loop *loop)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t request_bytes = round_up_u64(FUSE_IO_BYTES + page + WRITE_HEADER_BYTES, page);
    size_t bytes = page + request_bytes + FUSE_IO_BYTES;
    /* Fresh pages: what a worker never uses costs nothing. */
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    /* If the daemon is killed while the kernel copies a request to a page that is not there,
     * the kernel gives the caller an error and does not send it again: so they are there. */
    if (loop->handover && (madvise(memory, page + request_bytes, MADV_POPULATE_WRITE) != 0 ||
                           mlock(memory, page + request_bytes) != 0))
        g_debug("a buffer for requests is not locked into memory: %s", g_strerror(errno));
    struct worker *w = g_new0(struct worker, 1);
    w->loop = loop;
    w->number = loop->thread_count;
    pthread_cond_init(&w->unpark, NULL);
    w->memory = memory;
    w->memory_bytes = bytes;
    w->request = w->memory + page - WRITE_HEADER_BYTES;
    w->data = w->memory + page + request_bytes;
    return w;
}

static void worker_free(struct worker *w)
{
    pthread_cond_destroy(&w->unpark);
    munmap(w->memory, w->memory_bytes);
    g_free(w);
}

/* Failure is no disaster: those that are there go on. */
static void add_worker(struct fuse_loop *loop)
{
    pthread_mutex_lock(&loop->lock);
    if (loop->thread_count < loop->max_threads && !fuse_session_exited(loop->session)) {
        struct worker *w = worker_new(loop);
        atomic_fetch_add(&loop->running, 1);
        if (w && pthread_create(&w->thread, NULL, worker_main, w) == 0) {
            w->next = loop->workers;
            loop->workers = w;
            loop->thread_count++;
        } else {
            atomic_fetch_sub(&loop->running, 1);
            if (w)
                worker_free(w);
            loop->max_threads = MAX(loop->thread_count, 1);
            g_warning("cannot start more than %u threads", loop->thread_count);
        }
    }
    pthread_mutex_unlock(&loop->lock);
}

static void wake_up(int number)
{
    (void)number;
}

struct fuse_loop *fuse_loop_start(struct mount *mount, unsigned max_threads, int ended_fd)
{
    /* Without SA_RESTART: read(2) is to end with EINTR. */
    struct sigaction action = {.sa_handler = wake_up};
    sigemptyset(&action.sa_mask);
    sigaction(WAKE_SIGNAL, &action, NULL);

    struct fuse_loop *loop = g_new0(struct fuse_loop, 1);
    loop->mount = mount;
    loop->session = mount->session;
    loop->rings = mount->rings;
    loop->handover = mount->handover;
    loop->max_threads = max_threads;
    loop->ended_fd = ended_fd;
    pthread_mutex_init(&loop->lock, NULL);
    add_worker(loop);
    pthread_mutex_lock(&loop->lock);
    bool started = loop->thread_count > 0;
    pthread_mutex_unlock(&loop->lock);
    if (!started) {
        pthread_mutex_destroy(&loop->lock);
        g_free(loop);
        return NULL;
    }
    return loop;
}

static bool all_quiet(struct fuse_loop *loop)
{
    struct pollfd fd = {.fd = fuse_session_fd(loop->session), .events = POLLIN};
    if (atomic_load(&loop->waiting) + atomic_load(&loop->parked_count) <
        atomic_load(&loop->running))
        return false;
    if (loop->rings && !rings_quiet(loop->rings))
        return false;
    return poll(&fd, 1, 0) == 0;
}

bool fuse_loop_drain(struct fuse_loop *loop, unsigned timeout_ms)
{
    /* A request in the kernel's background queue becomes visible when one
     * before it ends, so one look is not enough. */
    unsigned quiet = 0;
    for (unsigned waited_ms = 0; waited_ms < timeout_ms; waited_ms += 5) {
        if (fuse_session_exited(loop->session))
            return true;
        quiet = all_quiet(loop) ? quiet + 1 : 0;
        if (quiet >= 5)
            return true;
        usleep(5000);
    }
    return false;
}

int fuse_loop_stop(struct fuse_loop *loop)
{
    fuse_session_exit(loop->session);
    /* A worker may be between its look at the flag and read(2) when the signal
     * comes: so again, until all have gone. */
    while (atomic_load(&loop->running) > 0) {
        while (unpark_one(loop))
            ;
        pthread_mutex_lock(&loop->lock);
        for (struct worker *w = loop->workers; w; w = w->next)
            pthread_kill(w->thread, WAKE_SIGNAL);
        pthread_mutex_unlock(&loop->lock);
        usleep(2000);
    }
    while (loop->workers) {
        struct worker *w = loop->workers;
        loop->workers = w->next;
        pthread_join(w->thread, NULL);
        worker_free(w);
    }
    rings_stop(loop->rings);
    int error = atomic_load(&loop->error);
    pthread_mutex_destroy(&loop->lock);
    g_free(loop);
    return error;
}
