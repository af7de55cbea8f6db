/* A domU's agent: runs the bash scripts that dom0 sends, several at a time if need be. See job.h. */
#define _GNU_SOURCE
#include "job.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static struct xs_handle *connect_xenstore(void)
{
    struct xs_handle *xs = xs_open(0);

    if (!xs)
        fail(1, "no xenstore: %s", strerror(errno));
    return xs;
}

static void fetch_script(struct xs_handle *xs, const char *id, const char *file)
{
    char path[128];
    FILE *script = fopen(file, "we");

    if (!script)
        fail(1, "%s: %s", file, strerror(errno));
    snprintf(path, sizeof path, "data/rig/jobs/%s/start", id);
    long pieces = node_number(xs, path, 0);
    for (long i = 0; i < pieces; i++) {
        unsigned len;

        snprintf(path, sizeof path, "data/rig/jobs/%s/script/%ld", id, i);
        char *piece = xs_read(xs, XBT_NULL, path, &len);
        if (!piece)
            fail(1, "job %s has lost its piece %ld", id, i);
        fwrite(piece, 1, len, script);
        free(piece);
    }
    fclose(script);
}

static pid_t start(const char *file, int output)
{
    pid_t pid = fork();

    if (pid != 0)
        return pid;
    int null = open("/dev/null", O_RDONLY);
    dup2(null, 0);
    dup2(output, 1);
    dup2(output, 2);
    /* A session of its own: a job's signals to its group must not reach other jobs. */
    setsid();
    execlp("bash", "bash", file, NULL);
    _exit(127);
}

static void send_piece(struct xs_handle *xs, const char *id, long number, const char *data, size_t len)
{
    char path[128];
    struct pollfd event = { .fd = xs_fileno(xs), .events = POLLIN };

    for (;;) {
        snprintf(path, sizeof path, "data/rig/jobs/%s/ack", id);
        if (number - node_number(xs, path, 0) < PIECES_AHEAD)
            break;
        poll(&event, 1, 1000);
        drain_watches(xs);
    }
    snprintf(path, sizeof path, "data/rig/jobs/%s/out/%ld", id, number);
    if (!xs_write(xs, XBT_NULL, path, data, (unsigned)len))
        fail(1, "job %s: cannot write its output: %s", id, strerror(errno));
}

static void run_job(const char *id)
{
    struct xs_handle *xs = connect_xenstore();
    char file[64], path[128], piece[PIECE];
    size_t fill = 0;
    long pieces = 0;
    int output[2], status = 0;
    bool ended = false;

    snprintf(file, sizeof file, "/run/job-%s", id);
    fetch_script(xs, id, file);
    snprintf(path, sizeof path, "data/rig/jobs/%s/ack", id);
    xs_watch(xs, path, "ack");

    if (pipe2(output, O_CLOEXEC) < 0)
        fail(1, "pipe: %s", strerror(errno));
    pid_t pid = start(file, output[1]);
    close(output[1]);
    fcntl(output[0], F_SETFL, O_NONBLOCK);
    int child = (int)syscall(SYS_pidfd_open, pid, 0);

    /* Until the script itself has ended and all that was printed till then is sent; what it left in
     * the background may keep the pipe open for longer. */
    for (bool open = true; open || !ended;) {
        struct pollfd fds[] = {
            { .fd = open ? output[0] : -1, .events = POLLIN },
            { .fd = ended ? -1 : child, .events = POLLIN },
        };
        int ready = poll(fds, 2, ended ? 0 : fill ? 10 : -1);

        if (ready < 0 && errno != EINTR)
            fail(1, "poll: %s", strerror(errno));
        if (ready > 0 && fds[0].revents) {
            ssize_t n = read(output[0], piece + fill, sizeof piece - fill);

            if (n > 0)
                fill += (size_t)n;
            else if (n == 0)
                open = false;
        } else if (ready > 0 && fds[1].revents) {
            waitpid(pid, &status, 0);
            ended = true;
            continue;
        } else if (ready == 0 && ended) {
            open = false;
        }
        if (fill == sizeof piece || (fill && (ready == 0 || !open))) {
            send_piece(xs, id, pieces++, piece, fill);
            fill = 0;
        }
    }
    unlink(file);
    snprintf(path, sizeof path, "data/rig/jobs/%s/status", id);
    node_write(xs, path, "%d %ld", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), pieces);
    exit(0);
}

/* Jobs are started once each; remembered by name, as there may be many at a time, in any order. */
static bool is_new(const char *id)
{
    static char **known;
    static size_t count;

    for (size_t i = 0; i < count; i++)
        if (strcmp(known[i], id) == 0)
            return false;
    known = reallocarray(known, count + 1, sizeof *known);
    known[count++] = strdup(id);
    return true;
}

/* As `poweroff` and `reboot`, which the kernel runs for `xl shutdown` and `xl reboot`: in a domU
 * without an init system somebody has to make the system call. */
static void leave(int how)
{
    sync();
    mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
    reboot(how);
    fail(1, "%s", strerror(errno));
}

int main(int argc, char **argv)
{
    char boot_id[64] = "";

    if (strcmp(program_invocation_short_name, "poweroff") == 0)
        leave(RB_POWER_OFF);
    if (strcmp(program_invocation_short_name, "reboot") == 0)
        leave(RB_AUTOBOOT);
    if (argc == 3 && strcmp(argv[1], "--job") == 0)
        run_job(argv[2]);
    if (argc != 1)
        fail(2, "usage: rig-agent (started by the rig's init, takes jobs from dom0)");

    signal(SIGCHLD, SIG_IGN);
    struct xs_handle *xs = connect_xenstore();
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file || !fgets(boot_id, sizeof boot_id, file))
        fail(1, "no boot id: %s", strerror(errno));
    fclose(file);
    boot_id[strcspn(boot_id, "\n")] = '\0';
    if (!xs_watch(xs, "data/rig/jobs", "jobs") || !node_write(xs, "data/rig/ready", "%s", boot_id))
        fail(1, "cannot speak to dom0 through xenstore: %s", strerror(errno));

    for (;;) {
        unsigned count = 0;
        char **event = xs_read_watch(xs, &count);
        char **ids;

        free(event);
        ids = xs_directory(xs, XBT_NULL, "data/rig/jobs", &count);
        for (unsigned i = 0; ids && i < count; i++) {
            char path[128];

            snprintf(path, sizeof path, "data/rig/jobs/%s/start", ids[i]);
            if (!node_exists(xs, path) || !is_new(ids[i]))
                continue;
            if (fork() == 0) {
                signal(SIGCHLD, SIG_DFL);
                execl("/proc/self/exe", "rig-agent", "--job", ids[i], NULL);
                _exit(127);
            }
        }
        free(ids);
    }
}
