// SPDX-License-Identifier: Apache-2.0
/*
 * bench_spawn - times commands from posix_spawn to the end of waitpid.
 *
 *     bench_spawn COUNT FIRST -- COMMAND... [-- COMMAND...]
 *
 * Runs every command COUNT times, in turn (A B A B …), so that a slow moment
 * of the machine meets all of them. "{}" in a word becomes FIRST, FIRST+1, ….
 * Prints "INDEX COMMAND_NUMBER MICROSECONDS" for each run. posix_spawn is a
 * vfork: the timer's own size is no part of the figure. A command's stdout is
 * thrown away; a command that fails ends everything.
 */
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_common.h"

extern char **environ;

static const char usage[] = "bench_spawn COUNT FIRST -- COMMAND... [-- COMMAND...]";

static char *with_number(const char *word, uint64_t number)
{
    const char *mark = strstr(word, "{}");
    char *result = NULL;
    int length = mark ? asprintf(&result, "%.*s%llu%s", (int)(mark - word), word,
                                 (unsigned long long)number, mark + 2)
                      : asprintf(&result, "%s", word);
    if (length < 0)
        die("memory for a command");
    return result;
}

static double run_once(char **words, uint64_t number, const posix_spawn_file_actions_t *actions)
{
    size_t count = 0;
    while (words[count])
        count++;
    char **argv = calloc(count + 1, sizeof(*argv));
    if (!argv)
        die("memory for a command");
    for (size_t i = 0; i < count; i++)
        argv[i] = with_number(words[i], number);

    double start = now_us();
    pid_t pid;
    int error = posix_spawnp(&pid, argv[0], actions, NULL, argv, environ);
    if (error) {
        errno = error;
        die("%s", argv[0]);
    }
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            die("waiting for %s", argv[0]);
    double took = now_us() - start;

    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "bench_spawn: run %llu of '%s' ended with status 0x%x\n",
                (unsigned long long)number, argv[0], (unsigned)status);
        exit(1);
    }
    for (size_t i = 0; i < count; i++)
        free(argv[i]);
    free(argv);
    return took;
}

int main(int argc, char **argv)
{
    enum { MOST_COMMANDS = 16 };
    char **commands[MOST_COMMANDS];
    size_t command_count = 0;
    if (argc < 5 || strcmp(argv[3], "--") != 0)
        misused(usage);
    uint64_t count = parse_u64(argv[1], usage), first = parse_u64(argv[2], usage);
    for (int i = 3; i < argc; i++) {
        if (strcmp(argv[i], "--") != 0)
            continue;
        if (command_count == MOST_COMMANDS || !argv[i + 1])
            misused(usage);
        argv[i] = NULL; /* ends the command before */
        commands[command_count++] = &argv[i + 1];
    }

    posix_spawn_file_actions_t actions;
    int error = posix_spawn_file_actions_init(&actions);
    if (!error)
        error = posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_WRONLY, 0);
    if (error) {
        errno = error;
        die("stdout to /dev/null");
    }
    for (uint64_t n = first; n < first + count; n++)
        for (size_t c = 0; c < command_count; c++)
            printf("%llu %zu %.1f\n", (unsigned long long)n, c, run_once(commands[c], n, &actions));
    posix_spawn_file_actions_destroy(&actions);
    return 0;
}
