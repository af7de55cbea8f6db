/* SPDX-License-Identifier: Apache-2.0 */
/* Messages: one line each, limited per call site, errno kept; row 25. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "log.h"
#include "types.h"

static int saved_stderr, file;

static int begin(void **state)
{
    (void)state;
    fflush(stderr);
    saved_stderr = dup(STDERR_FILENO);
    file = memfd_create("stderr", MFD_CLOEXEC);
    /* A memfd has no lock around its position: threads would write over each other. */
    fcntl(file, F_SETFL, O_APPEND);
    dup2(file, STDERR_FILENO);
    log_set_level(LOG_LEVEL_INFO);
    return 0;
}

static int end(void **state)
{
    (void)state;
    dup2(saved_stderr, STDERR_FILENO);
    close(saved_stderr);
    close(file);
    return 0;
}

/* What was written since the last call. */
static const char *written(void)
{
    static char text[1 << 16];
    static off_t at;
    off_t size = lseek(file, 0, SEEK_END);
    ssize_t n;

    if (size < at)
        at = 0;
    n = pread(file, text, sizeof(text) - 1, at);
    text[n < 0 ? 0 : n] = '\0';
    at = size;
    return text;
}

static unsigned count(const char *text, char c)
{
    unsigned n = 0;

    for (; *text != '\0'; text++)
        n += *text == c;
    return n;
}

static void test_levels(void **state)
{
    static const struct {
        const char *word;
        enum log_level level;
    } words[] = {{"error", LOG_LEVEL_ERROR}, {"warning", LOG_LEVEL_WARNING},
                 {"info", LOG_LEVEL_INFO},   {"debug", LOG_LEVEL_DEBUG}};
    enum log_level level = LOG_LEVEL_INFO;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(words); i++) {
        assert_int_equal(log_level_parse(words[i].word, &level), 0);
        assert_int_equal(level, words[i].level);
        log_set_level(level);
        written();
        log_error("e");
        log_warning("w");
        log_info("i");
        log_debug("d");
        assert_int_equal(count(written(), '\n'), i + 1);
        assert_true(log_enabled(level));
    }
    assert_int_equal(log_level_parse("", &level), -EINVAL);
    assert_int_equal(log_level_parse("Error", &level), -EINVAL);
    assert_int_equal(log_level_parse("errors", &level), -EINVAL);
    assert_int_equal(level, LOG_LEVEL_DEBUG);
}

static void test_a_line_has_name_and_message(void **state)
{
    const char *text;

    (void)state;
    log_set_name("domain 7 (guest)");
    written();
    errno = ENOSPC;
    log_error("disk %d: %m", 5);
    assert_int_equal(errno, ENOSPC);
    text = written();
    assert_non_null(strstr(text, "domain 7 (guest)"));
    assert_non_null(strstr(text, "disk 5: No space left on device\n"));
}

/* What a guest or a path may hold does not make lines of its own, nor commands of a terminal. */
static void test_one_line_of_printable_text(void **state)
{
    char big[5000];
    const char *text;

    (void)state;
    written();
    log_error("a\nb\rc\x1b[2Jd\x7f\x01");
    text = written();
    assert_int_equal(count(text, '\n'), 1);
    assert_null(strchr(text, '\x1b'));
    assert_null(strchr(text, '\r'));
    memset(big, 'x', sizeof(big) - 1);
    big[sizeof(big) - 1] = '\0';
    log_error("%s", big);
    text = written();
    assert_int_equal(count(text, '\n'), 1);
    assert_int_equal(text[strlen(text) - 1], '\n');
    assert_true(strlen(text) <= 2048);
}

static void guest_line(unsigned i) { log_guest("guest did %u", i); }
static void host_line(unsigned i) { log_host("host did %u", i); }

static void test_row_25_one_line_per_site_and_second(void **state)
{
    const char *text;

    (void)state;
    written();
    errno = EINTR;
    for (unsigned i = 0; i < 100000; i++)
        guest_line(i);
    for (unsigned i = 0; i < 100000; i++)
        host_line(i);
    assert_int_equal(errno, EINTR);
    text = written();
    assert_in_range(count(text, '\n'), 2, 10);
    assert_non_null(strstr(text, "guest did 0"));
    assert_non_null(strstr(text, "host did 0"));
    usleep(1100000);
    guest_line(5);
    text = written();
    assert_int_equal(count(text, '\n'), 1);
    assert_non_null(strstr(text, "guest did 5"));
    /* It says how many there were. */
    assert_non_null(strstr(text, "99999"));
    /* Below the level nothing is counted either. */
    log_set_level(LOG_LEVEL_ERROR);
    usleep(1100000);
    guest_line(6);
    assert_string_equal(written(), "");
}

static void *flood(void *arg)
{
    (void)arg;
    for (unsigned i = 0; i < 20000; i++) {
        guest_line(i);
        if (i % 1000 == 0)
            log_info("thread");
    }
    return NULL;
}

static void test_threads(void **state)
{
    pthread_t threads[4];
    const char *text;

    (void)state;
    written();
    for (unsigned i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, flood, NULL), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    text = written();
    assert_in_range(count(text, '\n'), 80, 100);
    /* No two lines ran into each other. */
    for (const char *line = text; *line != '\0'; line = strchr(line, '\n') + 1)
        assert_int_equal(strncmp(line, "viod: ", 6), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_levels, begin, end),
        cmocka_unit_test_setup_teardown(test_a_line_has_name_and_message, begin, end),
        cmocka_unit_test_setup_teardown(test_one_line_of_printable_text, begin, end),
        cmocka_unit_test_setup_teardown(test_row_25_one_line_per_site_and_second, begin, end),
        cmocka_unit_test_setup_teardown(test_threads, begin, end),
    };

    unsetenv("JOURNAL_STREAM");
    return cmocka_run_group_tests_name("log", tests, NULL, NULL);
}
