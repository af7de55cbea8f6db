/* SPDX-License-Identifier: Apache-2.0 */
/* viod's files, the text for the way to a worker, and the man page that describes the keys. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "config.h"
#include "log.h"

#define MAN_PAGE VIOD_SOURCE_DIR "/configs/man/viod.conf.5"
#define DEFAULTS_FILE VIOD_SOURCE_DIR "/configs/viod.conf"

static char path[] = "/tmp/viod-test-config.XXXXXX";
static char error[CONFIG_ERROR_LEN];

static void write_file(const void *text, size_t len)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, len), (ssize_t)len);
    close(fd);
}

static int load(const char *text, struct guest_file **file)
{
    write_file(text, strlen(text));
    error[0] = '\0';
    return guest_file_load(path, file, error, sizeof(error));
}

/* Messages are "<file>: …" or "<file>:<line>: …": compares what is behind the file's name. */
static void expect_error(const char *what)
{
    size_t len = strlen(path);

    if (strncmp(error, path, len) || strncmp(error + len, what, strlen(what)))
        fail_msg("expected \"%s%s\", got \"%s\"", path, what, error);
}

static int fill(struct device_config *config, const char *name, const struct guest_file *file,
                const char *const *presets)
{
    *config = (struct device_config){0};
    snprintf(config->name, sizeof(config->name), "%s", name);
    error[0] = '\0';
    return device_config_fill(config, device_type_by_id(2), file, presets, error, sizeof(error));
}

static void test_full_section(void **state)
{
    static const char text[] = "\xef\xbb\xbf# comment\r\n"
                               "; comment\n"
                               "\n"
                               "[other] ; behind\n"
                               "  [blk0]\n"
                               "path = /srv/a b/ü=[x]#y;z.img \t\r\n"
                               "\treadonly=yes ; only to read\n"
                               "cache: writeback\n"
                               "discard = on\n"
                               "queues = 16\n"
                               "queue-size = 0512\n"
                               "serial = 12345678901234567890\n"
                               "logical-block-size=4096\n"
                               "packed = true\n"
                               "event-idx = 0\n"
                               "indirect = off\n"
                               "in-order = 1";
    struct device_config config;
    struct guest_file *file;

    (void)state;
    assert_int_equal(load(text, &file), 0);
    assert_int_equal(fill(&config, "blk0", file, NULL), 0);
    guest_file_free(file);
    assert_int_equal(config.virtio_id, 2);
    assert_string_equal(device_config_string(&config, "path"), "/srv/a b/ü=[x]#y;z.img");
    assert_true(device_config_bool(&config, "readonly"));
    assert_string_equal(device_config_string(&config, "cache"), "writeback");
    assert_true(device_config_bool(&config, "discard"));
    assert_int_equal(device_config_uint(&config, "queues"), 16);
    assert_int_equal(device_config_uint(&config, "queue-size"), 512);
    assert_string_equal(device_config_string(&config, "serial"), "12345678901234567890");
    assert_int_equal(device_config_uint(&config, "logical-block-size"), 4096);
    assert_true(device_config_bool(&config, "packed"));
    assert_false(device_config_bool(&config, "event-idx"));
    assert_false(device_config_bool(&config, "indirect"));
    assert_true(device_config_bool(&config, "in-order"));
    assert_int_equal(config.values[0].line, 6);
    device_config_free(&config);
    assert_null(config.values);
}

static void test_defaults(void **state)
{
    const char *const presets[] = {"path=/dev/x", NULL};
    struct device_config config;
    struct guest_file *file;

    (void)state;
    unlink(path);
    assert_int_equal(guest_file_load(path, &file, error, sizeof(error)), 0);
    assert_int_equal(fill(&config, "xvda", file, presets), 0);
    guest_file_free(file);
    assert_string_equal(device_config_string(&config, "path"), "/dev/x");
    assert_false(device_config_bool(&config, "readonly"));
    assert_string_equal(device_config_string(&config, "cache"), "none");
    assert_false(device_config_bool(&config, "discard"));
    assert_int_equal(device_config_uint(&config, "queues"), 0);
    assert_int_equal(device_config_uint(&config, "queue-size"), 256);
    assert_null(device_config_string(&config, "serial"));
    assert_int_equal(device_config_uint(&config, "serial"), 0);
    assert_int_equal(device_config_uint(&config, "logical-block-size"), 0);
    assert_false(device_config_bool(&config, "packed"));
    assert_true(device_config_bool(&config, "event-idx"));
    assert_true(device_config_bool(&config, "indirect"));
    assert_false(device_config_bool(&config, "in-order"));
    assert_int_equal(config.n_fds, 0);
    assert_int_equal(config.fds[0], -1);
    device_config_free(&config);
}

/* A grant for a table of descriptors costs a copy more: what is not said is said for grants. */
static void test_defaults_with_grants(void **state)
{
    const char *const presets[] = {"path=/dev/x", NULL};
    const char *const said[] = {"path=/dev/x", "indirect=yes", "queue-size=256", NULL};
    struct device_config config = {.name = "xvda", .grant_usage = true};

    (void)state;
    assert_int_equal(
        device_config_fill(&config, device_type_by_id(2), NULL, presets, error, sizeof(error)), 0);
    assert_false(device_config_bool(&config, "indirect"));
    assert_int_equal(device_config_uint(&config, "queue-size"), 1024);
    assert_true(device_config_bool(&config, "event-idx"));
    device_config_free(&config);
    config = (struct device_config){.name = "xvda", .grant_usage = true};
    assert_int_equal(
        device_config_fill(&config, device_type_by_id(2), NULL, said, error, sizeof(error)), 0);
    assert_true(device_config_bool(&config, "indirect"));
    assert_int_equal(device_config_uint(&config, "queue-size"), 256);
    device_config_free(&config);
}

static void test_bad_files(void **state)
{
    static const struct {
        const char *text, *error;
    } files[] = {
        {"x = 1\n", ":1: \"x\" stands before any section; write [name] above it"},
        {"[blk0]\n\nnonsense\n", ":3: neither a section nor a key; write [name] or key = value"},
        {"[blk0]\n= v\n", ":2: no key before the =; write key = value"},
        {"[blk0\n", ":1: the section heading has no ]; write [name]"},
        {"[]\n", ":1: a section's name has 1 to 31 characters"},
        {"[0123456789012345678901234567890X]\n", ":1: a section's name has 1 to 31 characters"},
        {"[a b]\n", ":1: \"a b\" is no section name"},
        {"[a\tb]\n", ":1: \"a?b\" is no section name"},
        {"[blk0] path = /x\n", ":1: text behind [blk0]; write it in a line of its own"},
        {"[a]\n[b]\n[a]\n", ":3: [a] was begun in line 1 already; put all its keys there"},
        {"[a]\nx=1\ny=2\nx=3\n", ":4: \"x\" was set in line 2 already; remove one of the two"},
        {"[a]\nx = \x01\n", ":2: control character 0x01; write plain text"},
        {"[a]\nbroken\nx=\x02\n", ":3: control character 0x02"},
    };
    struct guest_file *file;

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
        assert_int_equal(load(files[i].text, &file), -EINVAL);
        assert_null(file);
        expect_error(files[i].error);
    }
    write_file("[a]\nx=\0y\n", 9);
    assert_int_equal(guest_file_load(path, &file, error, sizeof(error)), -EINVAL);
    expect_error(":2: control character 0x00");
    assert_int_equal(guest_file_load("/", &file, error, sizeof(error)), -EINVAL);
    assert_string_equal(error, "/: is not a regular file; write a text file");
    assert_int_equal(guest_file_load("/dev/zero", &file, error, sizeof(error)), -EINVAL);
}

/* dom0, a driver domain and viodctl check agree on whose file there can be. */
static void test_guest_names(void **state)
{
    static const char longest[] = "0123456789012345678901234567890123456789012345678901234567890-2";
    static const char *const good[] = {"a", ".a", "..", "a b", "viod2", "Gast-\xc3\xa4", longest};
    static const char *const bad[] = {"", "?", "a/b", "/", "viod", "a\tb", "a\x7f", "\n",
                                      "0123456789012345678901234567890123456789012345678901234567890-23"};

    (void)state;
    assert_int_equal(strlen(longest), 63);
    for (size_t i = 0; i < ARRAY_SIZE(good); i++)
        assert_null(guest_name_fault(good[i]));
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
        assert_non_null(guest_name_fault(bad[i]));
}

/* Everything has a limit, and just below it everything works. */
static void test_limits(void **state)
{
    static char text[80 * 1024];
    struct device_config config;
    struct guest_file *file;
    int len;

    (void)state;
    len = sprintf(text, "[blk0]\npath = /");
    memset(text + len, 'p', CONFIG_VALUE_MAX - 1);
    assert_int_equal(load(text, &file), 0);
    assert_int_equal(fill(&config, "blk0", file, NULL), 0);
    assert_int_equal(strlen(device_config_string(&config, "path")), CONFIG_VALUE_MAX);
    device_config_free(&config);
    guest_file_free(file);

    text[strlen(text)] = 'p';
    assert_int_equal(load(text, &file), 0);
    assert_int_equal(fill(&config, "blk0", file, NULL), -EINVAL);
    assert_null(config.values);
    expect_error(":2: path = /ppp");
    guest_file_free(file);

    memset(text + len, 'p', 5000);
    assert_int_equal(load(text, &file), -EINVAL);
    expect_error(":2: the line has 5008 bytes; at most 1087 are read");

    memset(text, '#', sizeof(text) - 1);
    for (size_t i = 79; i < sizeof(text) - 1; i += 80)
        text[i] = '\n';
    assert_int_equal(load(text, &file), -EINVAL);
    expect_error(": is too large; at most 65536 bytes");
    text[65536] = '\0';
    assert_int_equal(load(text, &file), 0);
    guest_file_free(file);

    len = 0;
    for (int i = 0; i < 65; i++)
        len += sprintf(text + len, "[s%d]\n", i);
    assert_int_equal(load(text, &file), -EINVAL);
    expect_error(":65: too many sections; at most 64");
    len = sprintf(text, "[s]\n");
    for (int i = 0; i < 65; i++)
        len += sprintf(text + len, "k%d=1\n", i);
    assert_int_equal(load(text, &file), -EINVAL);
    expect_error(":66: too many keys in [s]; at most 64");
}

static void test_bad_values(void **state)
{
    static const struct {
        const char *line, *error;
    } lines[] = {
        {"cahe = none", "unknown key \"cahe\" in [blk0]; the nearest known key is \"cache\""},
        {"read-only = yes", "unknown key \"read-only\" in [blk0]; the nearest known key is "
                            "\"readonly\""},
        {"colour = red", "unknown key \"colour\" in [blk0]; known keys: path readonly cache"},
        {"path = a.img", "path = a.img: is not an absolute path; write an absolute path"},
        {"serial =", "serial = : is empty; write at most 20 printable characters"},
        {"serial = 123456789012345678901", "serial = 123456789012345678901: is too long; write at "
                                           "most 20 printable characters"},
        {"readonly = maybe", "readonly = maybe: is neither yes nor no; write yes or no"},
        {"readonly = yes # no", "readonly = yes # no: is neither yes nor no; write yes or no (a "
                                "comment behind a value begins with ;)"},
        /* Quoted so that it remains one line of text: xenstore takes nothing else. */
        {"serial = a\tb\x7f", "serial = a?b?: has a control character; write at most 20 printable "
                              "characters"},
        {"se\trial = x", "unknown key \"se?rial\" in [blk0]; the nearest known key is \"serial\""},
        {"cache = writethrough", "cache = writethrough: is not possible; write none or writeback"},
        {"cache = none writeback", "cache = none writeback: is not possible"},
        {"queues = 17", "queues = 17: is out of range; write a number from 0 to 16"},
        {"queues = -1", "queues = -1: is not a number"},
        {"queues = +1", "queues = +1: is not a number"},
        {"queues = 0x1", "queues = 0x1: is not a number"},
        {"queues = 1 2", "queues = 1 2: is not a number"},
        {"queues = 18446744073709551617", "queues = 18446744073709551617: is not a number"},
        {"queue-size = 4", "queue-size = 4: is out of range; write 8, 16, 32, 64, 128, 256, 512 "
                           "or 1024"},
        {"queue-size = 100", "queue-size = 100: is not possible; write 8, 16"},
        {"logical-block-size = 1024", "logical-block-size = 1024: is not possible; write 0, 512 "
                                      "or 4096"},
    };
    struct device_config config;
    struct guest_file *file;
    char text[256], expected[256];

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(lines); i++) {
        bool has_path = !strncmp(lines[i].line, "path", 4);

        snprintf(text, sizeof(text), "[blk0]\n%s\n%s\n", has_path ? "" : "path = /x",
                 lines[i].line);
        assert_int_equal(load(text, &file), 0);
        assert_int_equal(fill(&config, "blk0", file, NULL), -EINVAL);
        snprintf(expected, sizeof(expected), ":3: %s", lines[i].error);
        expect_error(expected);
        guest_file_free(file);
    }
}

static void test_missing_path(void **state)
{
    struct device_config config;
    struct guest_file *file;

    (void)state;
    unlink(path);
    assert_int_equal(guest_file_load(path, &file, error, sizeof(error)), 0);
    assert_int_equal(fill(&config, "blk0", file, NULL), -EINVAL);
    expect_error(": does not exist; write section [blk0] with path = /absolute/path");
    guest_file_free(file);

    assert_int_equal(load("[blk1]\n", &file), 0);
    assert_int_equal(fill(&config, "blk0", file, NULL), -EINVAL);
    expect_error(": has only [blk1]; write section [blk0] with path = /absolute/path");
    assert_int_equal(fill(&config, "blk1", file, NULL), -EINVAL);
    expect_error(":1: [blk1] has no \"path\"");
    guest_file_free(file);

    assert_int_equal(load("", &file), 0);
    assert_int_equal(fill(&config, "blk0", file, NULL), -EINVAL);
    expect_error(": has no section; write section [blk0]");
    guest_file_free(file);
}

static void test_presets(void **state)
{
    const char *presets[DISK_PRESETS];
    struct device_config config;
    struct guest_file *file;
    char text[32];

    (void)state;
    assert_int_equal(disk_presets("/dev/a/name/that/is/too/long/here", false, true, text,
                                  sizeof(text), presets),
                     -ENAMETOOLONG);
    assert_int_equal(disk_presets("/dev/a=b", false, true, text, sizeof(text), presets), 0);

    /* Repeated, in another spelling, and extended. */
    assert_int_equal(load("[xvda]\npath=/dev/a=b\ndiscard=on\nreadonly=0\nqueues=2\n", &file), 0);
    assert_int_equal(fill(&config, "xvda", file, presets), 0);
    assert_string_equal(device_config_string(&config, "path"), "/dev/a=b");
    assert_true(device_config_bool(&config, "discard"));
    assert_false(device_config_bool(&config, "readonly"));
    assert_int_equal(device_config_uint(&config, "queues"), 2);
    device_config_free(&config);
    guest_file_free(file);

    assert_int_equal(load("[xvda]\ndiscard=no\n", &file), 0);
    assert_int_equal(fill(&config, "xvda", file, presets), -EINVAL);
    expect_error(":2: discard = no contradicts the domain's xl configuration");
    guest_file_free(file);
    assert_int_equal(load("[xvda]\npath=/dev/b\n", &file), 0);
    assert_int_equal(fill(&config, "xvda", file, presets), -EINVAL);
    expect_error(":2: path = /dev/b contradicts the domain's xl configuration");
    guest_file_free(file);

    /* What xenstore says is checked, too. */
    assert_int_equal(disk_presets("image", true, false, text, sizeof(text), presets), 0);
    assert_int_equal(fill(&config, "xvda", NULL, presets), -EINVAL);
    assert_string_equal(error, "xvda: the domain's xl configuration says path = image: is not an "
                               "absolute path; write an absolute path, it begins with /");
}

static void note_warning(void *arg, const char *line)
{
    strncat(arg, line, 1000);
    strncat(arg, "\n", 2);
}

static void test_unused_sections(void **state)
{
    const char *const used[] = {"blk0", "xvda"};
    struct guest_file *file;
    char warnings[4096] = "";

    (void)state;
    assert_int_equal(load("[blk0]\n[xvdb]\n[blk00]\n[xvda]\n", &file), 0);
    guest_file_warn_unused(file, used, 2, note_warning, warnings);
    assert_non_null(strstr(warnings, ":2: [xvdb] matches no device of the guest; the nearest one "
                                     "is [xvda]\n"));
    assert_non_null(strstr(warnings, ":3: [blk00] matches no device of the guest; the nearest one "
                                     "is [blk0]\n"));
    assert_null(strstr(warnings, "[blk0] matches"));
    warnings[0] = '\0';
    guest_file_warn_unused(file, NULL, 0, note_warning, warnings);
    assert_non_null(strstr(warnings, ":4: [xvda] matches no device"));
    guest_file_warn_unused(NULL, NULL, 0, note_warning, warnings);
    guest_file_free(file);
}

static void test_daemon_file(void **state)
{
    static const char text[] = "[viod]\n"
                               "config-dir = /a\n"
                               "run-dir = /b\n"
                               "log-level = debug\n"
                               "worker-uid-base = 65536\n"
                               "iothreads = 8\n"
                               "cpus = 0-1,3\n"
                               "poll-max-us = 0\n";
    static const struct {
        const char *text, *error;
    } bad[] = {
        {"[viod]\niothreads = 9\n", ":2: iothreads = 9: is not possible; write auto, 0, 1, 2"},
        {"[viod]\niothread = 1\n", ":2: unknown key \"iothread\" in [viod]; the nearest known key "
                                   "is \"iothreads\""},
        {"[viod]\nworker-uid-base = 0\n", ":2: worker-uid-base = 0: is out of range; write a "
                                          "number from 65536 to 4294901759"},
        {"[viod]\nrun-dir = run\n", ":2: run-dir = run: is not an absolute path"},
        {"[viod]\ncpus = 1-\n", ":2: cpus = 1-: expected all, or numbers and ranges of CPUs"},
        {"[viod]\ncpus = 3-1\n", ":2: cpus = 3-1: expected"},
        {"[viod]\ncpus = 0,,1\n", ":2: cpus = 0,,1: expected"},
        {"[viod]\ncpus = 0,\n", ":2: cpus = 0,: expected"},
        {"[viod]\ncpus = 0-99999999999999999999\n", ":2: cpus = 0-99999999999999999999: expected"},
        {"[blk0]\npath = /x\n", ":1: unknown section [blk0]; this file has only [viod]"},
        {"[viod\n", ":1: the section heading has no ]"},
    };
    struct daemon_config config, defaults;

    (void)state;
    unlink(path);
    assert_int_equal(daemon_config_load(path, &config, error, sizeof(error)), 0);
    assert_string_equal(config.config_dir, "/etc/viod");
    assert_string_equal(config.run_dir, "/run/viod");
    assert_int_equal(config.log_level, LOG_LEVEL_INFO);
    assert_int_equal(config.worker_uid_base, 1996488704);
    assert_true(config.iothreads_auto);
    assert_int_equal(config.poll_max_us, 2000);
    assert_int_equal(CPU_COUNT(&config.cpus), 0);

    /* What is installed changes nothing. */
    assert_int_equal(daemon_config_load(DEFAULTS_FILE, &defaults, error, sizeof(error)), 0);
    assert_string_equal(defaults.config_dir, config.config_dir);
    daemon_config_free(&defaults);
    daemon_config_free(&config);

    write_file(text, strlen(text));
    assert_int_equal(daemon_config_load(path, &config, error, sizeof(error)), 0);
    assert_string_equal(config.config_dir, "/a");
    assert_string_equal(config.run_dir, "/b");
    assert_int_equal(config.log_level, LOG_LEVEL_DEBUG);
    assert_int_equal(config.worker_uid_base, 65536);
    assert_false(config.iothreads_auto);
    assert_int_equal(config.iothreads, 8);
    assert_int_equal(config.poll_max_us, 0);
    assert_int_equal(CPU_COUNT(&config.cpus), 3);
    assert_false(CPU_ISSET(2, &config.cpus));
    assert_true(CPU_ISSET(3, &config.cpus));
    daemon_config_free(&config);

    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        write_file(bad[i].text, strlen(bad[i].text));
        assert_int_equal(daemon_config_load(path, &config, error, sizeof(error)), -EINVAL);
        expect_error(bad[i].error);
        daemon_config_free(&config);
    }
}

/* viod.conf as it is installed names every key with its default. */
static void test_installed_file(void **state)
{
    char text[8192] = "", line[256];
    int fd = open(DEFAULTS_FILE, O_RDONLY | O_CLOEXEC);

    (void)state;
    assert_true(fd >= 0);
    assert_true(read(fd, text, sizeof(text) - 1) > 0);
    close(fd);
    for (const struct config_key *key = daemon_keys; key->name; key++) {
        snprintf(line, sizeof(line), "\n#%s = %s\n", key->name, key->default_value);
        if (!strstr(text, line))
            fail_msg("%s does not have \"%s\"", DEFAULTS_FILE, line);
    }
}

/* ---- the way to a worker ---- */

static void make_config(struct device_config *config)
{
    const char *const presets[] = {"path=/srv/\\x20 \xc3\xbc=.img", "queues=4", "serial=a=b", NULL};

    assert_int_equal(fill(config, "blk0", NULL, presets), 0);
    config->base = 0x02000200;
    config->irq = 34;
    config->n_vcpus = 4;
    config->block = (struct block_info){
        .size = UINT64_C(1) << 40,
        .logical_block = 4096,
        .physical_block = 8192,
        .optimal_io = 3 * 65536,
        .discard_granularity = 4096,
        .is_block_device = true,
        .can_write_zeroes = true,
        .cache = BLOCK_CACHE_WRITEBACK,
        .identity = UINT64_MAX,
    };
}

static void expect_same(const struct device_config *a, const struct device_config *b)
{
    assert_string_equal(a->name, b->name);
    assert_int_equal(a->virtio_id, b->virtio_id);
    assert_int_equal(a->base, b->base);
    assert_int_equal(a->irq, b->irq);
    assert_int_equal(a->grant_usage, b->grant_usage);
    assert_int_equal(a->n_vcpus, b->n_vcpus);
    assert_int_equal(a->n_values, b->n_values);
    for (size_t i = 0; i < a->n_values; i++) {
        assert_ptr_equal(a->values[i].key, b->values[i].key);
        assert_int_equal(a->values[i].value == NULL, b->values[i].value == NULL);
        if (a->values[i].value)
            assert_string_equal(a->values[i].value, b->values[i].value);
    }
    assert_int_equal(a->block.size, b->block.size);
    assert_int_equal(a->block.logical_block, b->block.logical_block);
    assert_int_equal(a->block.physical_block, b->block.physical_block);
    assert_int_equal(a->block.optimal_io, b->block.optimal_io);
    assert_int_equal(a->block.discard_granularity, b->block.discard_granularity);
    assert_int_equal(a->block.is_block_device, b->block.is_block_device);
    assert_int_equal(a->block.read_only, b->block.read_only);
    assert_int_equal(a->block.can_write_zeroes, b->block.can_write_zeroes);
    assert_int_equal(a->block.can_secure_erase, b->block.can_secure_erase);
    assert_int_equal(a->block.write_through, b->block.write_through);
    assert_int_equal(a->block.cache, b->block.cache);
    assert_true(a->block.identity == b->block.identity);
}

static void test_round_trip(void **state)
{
    struct device_config config, copy;
    char text[4096];
    int len;

    (void)state;
    make_config(&config);
    len = device_config_encode(&config, text, sizeof(text));
    assert_true(len > 0);
    assert_int_equal(strlen(text), len);
    assert_int_equal(device_config_decode(text, (size_t)len, &copy, error, sizeof(error)), 0);
    expect_same(&config, &copy);
    assert_int_equal(copy.n_fds, 0);
    device_config_free(&copy);
    for (size_t room = 0; room <= (size_t)len; room++)
        assert_int_equal(device_config_encode(&config, text, room), -ENOSPC);
    assert_int_equal(device_config_encode(&config, text, (size_t)len + 1), len);
    device_config_free(&config);
}

/* Replaces one line of a good text; NULL removes it. */
static int decode_with(const char *good, const char *line_start, const char *replacement)
{
    const char *at = strstr(good, line_start);
    struct device_config config;
    char text[4096];
    int len, ret;

    assert_non_null(at);
    len = snprintf(text, sizeof(text), "%.*s%s%s%s", (int)(at - good), good,
                   replacement ? replacement : "", replacement ? "\n" : "",
                   strchr(at, '\n') + 1);
    ret = device_config_decode(text, (size_t)len, &config, error, sizeof(error));
    if (!ret)
        device_config_free(&config);
    return ret;
}

/* A text says all that was decided: what it does not say, nobody decides anew. */
static void test_text_with_grants(void **state)
{
    const char *const presets[] = {"path=/dev/x", NULL};
    struct device_config config = {.name = "blk0", .virtio_id = 2, .grant_usage = true}, copy;
    char text[4096], *line, *next;
    int len;

    (void)state;
    assert_int_equal(
        device_config_fill(&config, device_type_by_id(2), NULL, presets, error, sizeof(error)), 0);
    config.base = 0x02000200;
    config.irq = 34;
    config.block.logical_block = config.block.physical_block = 512;
    len = device_config_encode(&config, text, sizeof(text));
    assert_true(len > 0);
    assert_int_equal(device_config_decode(text, (size_t)len, &copy, error, sizeof(error)), 0);
    assert_false(device_config_bool(&copy, "indirect"));
    device_config_free(&copy);
    line = strstr(text, "key.indirect=no\n");
    assert_non_null(line);
    next = strchr(line, '\n') + 1;
    memmove(line, next, strlen(next) + 1);
    assert_int_equal(device_config_decode(text, strlen(text), &copy, error, sizeof(error)), 0);
    assert_true(device_config_bool(&copy, "indirect"));
    device_config_free(&copy);
    device_config_free(&config);
}

static void test_hostile_texts(void **state)
{
    static const char *const fields[] = {
        "name=", "virtio-id=", "base=", "irq=", "grant-usage=", "vcpus=", "block.size=",
        "block.logical-block=", "block.physical-block=", "block.optimal-io=",
        "block.discard-granularity=", "block.is-block-device=", "block.read-only=",
        "block.can-write-zeroes=", "block.can-secure-erase=", "block.cache=", "key.path="};
    static const struct {
        const char *field, *line;
    } bad[] = {
        {"name=", "name="}, {"name=", "name=a/b"}, {"name=", "name=..\\2f"},
        {"name=", "name=0123456789012345678901234567890X"}, {"name=", "name"},
        {"virtio-id=", "virtio-id=0"}, {"virtio-id=", "virtio-id=1"},
        {"virtio-id=", "virtio-id=65538"}, {"virtio-id=", "virtio-id=02"},
        {"base=", "base=0"}, {"base=", "base=33554433"}, {"base=", "base=18446744073709551104"},
        {"irq=", "irq=31"}, {"irq=", "irq=1020"}, {"irq=", "irq=4294967329"},
        {"grant-usage=", "grant-usage=2"}, {"grant-usage=", "grant-usage=yes"},
        {"vcpus=", "vcpus=4097"}, {"vcpus=", "vcpus=-1"}, {"vcpus=", "vcpus= 1"},
        {"block.size=", "block.size=9223372036854775808"}, {"block.size=", "block.size="},
        {"block.logical-block=", "block.logical-block=0"},
        {"block.logical-block=", "block.logical-block=513"},
        {"block.logical-block=", "block.logical-block=131072"},
        {"block.physical-block=", "block.physical-block=4294967296"},
        {"block.cache=", "block.cache=2"}, {"block.read-only=", "block.read-only=256"},
        {"key.path=", "key.path=relative"}, {"key.path=", "key.path=/a\\0ab"},
        {"key.path=", "key.path=/a\\00"}, {"key.path=", "key.path=/a\\4"},
        {"key.path=", "key.path=/a\\4G"}, {"key.path=", "key.path=/a\\4A"},
        {"key.path=", "key.path=/a\nkey.path=/b"}, {"key.queues=", "key.queues=17"},
        {"key.queues=", "key.queue=1"}, {"key.queues=", "key.=1"}, {"key.queues=", "key.queues"},
        {"key.queues=", "unknown=1"}, {"key.queues=", ""}, {"key.queues=", "="},
    };
    struct device_config config;
    char good[4096], line[128];
    int len;

    (void)state;
    make_config(&config);
    len = device_config_encode(&config, good, sizeof(good));
    device_config_free(&config);
    assert_true(len > 0);

    for (size_t i = 0; i < ARRAY_SIZE(fields); i++) {
        const char *at = strstr(good, fields[i]);

        assert_int_equal(decode_with(good, fields[i], NULL), -EINVAL);
        snprintf(line, sizeof(line), "%.*s\n%.*s", (int)strcspn(at, "\n"), at,
                 (int)strcspn(at, "\n"), at);
        assert_int_equal(decode_with(good, fields[i], line), -EINVAL);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        error[0] = '\0';
        if (decode_with(good, bad[i].field, bad[i].line) != -EINVAL)
            fail_msg("accepted: %s", bad[i].line);
        assert_true(error[0]);
    }
    assert_int_equal(decode_with(good, "key.queues=", NULL), 0);
    assert_int_equal(decode_with(good, "vcpus=", "vcpus=0"), 0);

    assert_int_equal(device_config_decode("", 0, &config, error, sizeof(error)), -EINVAL);
    assert_int_equal(device_config_decode("name=x", 6, &config, error, sizeof(error)), -EINVAL);
    assert_int_equal(device_config_decode("a\0b\n", 4, &config, error, sizeof(error)), -EINVAL);
    /* Every beginning, and every byte changed. */
    for (int cut = 0; cut < len; cut++)
        assert_true(device_config_decode(good, (size_t)cut, &config, error, sizeof(error)) ||
                    (device_config_free(&config), good[cut - 1] == '\n'));
}

/* Whatever is accepted is within bounds: its encoding is accepted again, and is the same. */
static void test_changed_texts(void **state)
{
    static const unsigned char bytes[] = {0, 1, '\n', '=', '\\', '0', '9', 'a', '/', 0x7f, 0xff};
    struct device_config config, again;
    char good[4096], text[4096], encoded[4096];
    unsigned accepted = 0;
    int len;

    (void)state;
    make_config(&config);
    len = device_config_encode(&config, good, sizeof(good));
    device_config_free(&config);
    for (int i = 0; i < len; i++) {
        for (size_t j = 0; j < sizeof(bytes); j++) {
            int encoded_len;

            memcpy(text, good, (size_t)len);
            text[i] = (char)bytes[j];
            if (device_config_decode(text, (size_t)len, &config, error, sizeof(error)))
                continue;
            accepted++;
            encoded_len = device_config_encode(&config, encoded, sizeof(encoded));
            assert_true(encoded_len > 0);
            assert_int_equal(device_config_decode(encoded, (size_t)encoded_len, &again, error,
                                                  sizeof(error)), 0);
            expect_same(&config, &again);
            device_config_free(&config);
            device_config_free(&again);
        }
    }
    assert_true(accepted > 0);
}

/* ---- the man page ---- */

static bool is_key(const char *name, size_t len)
{
    for (const struct config_key *key = daemon_keys; key->name; key++)
        if (strlen(key->name) == len && !memcmp(key->name, name, len))
            return true;
    for (size_t i = 0; device_types[i]->name; i++)
        for (unsigned part = 0; part < 2; part++)
            for (const struct config_key *key = part ? device_types[i]->part_keys
                                                     : device_types[i]->keys;
                 key && key->name; key++)
                if (strlen(key->name) == len && !memcmp(key->name, name, len))
                    return true;
    return false;
}

static void test_man_page(void **state)
{
    static char text[65536];
    int fd = open(MAN_PAGE, O_RDONLY | O_CLOEXEC);
    char item[128];
    unsigned items = 0;

    (void)state;
    assert_true(fd >= 0);
    assert_true(read(fd, text, sizeof(text) - 1) > 0);
    close(fd);

    for (const struct config_key *key = daemon_keys; key->name; key++) {
        snprintf(item, sizeof(item), "\n.It Ic %s No = ", key->name);
        if (!strstr(text, item))
            fail_msg("viod.conf(5) does not describe %s", key->name);
    }
    for (size_t i = 0; device_types[i]->name; i++) {
        const struct config_key *keys[] = {device_types[i]->keys, device_types[i]->part_keys};

        for (const struct config_key *key = keys[0]; key && key->name;
             key = !key[1].name && keys[1] ? keys[1] : key + 1) {
            if (key == keys[1])
                keys[1] = NULL;
            snprintf(item, sizeof(item), "\n.It Ic %s No = ", key->name);
            if (!strstr(text, item))
                fail_msg("viod.conf(5) does not describe %s", key->name);
            assert_non_null(key->help);
        }
    }
    for (const char *p = text; (p = strstr(p, "\n.It Ic ")) != NULL;) {
        size_t len;

        p += strlen("\n.It Ic ");
        len = strcspn(p, " \n");
        if (strncmp(p + len, " No = ", 6))
            continue;
        items++;
        if (!is_key(p, len))
            fail_msg("viod.conf(5) describes %.*s, which is no key", (int)len, p);
    }
    assert_true(items >= 18);
}

static void test_types(void **state)
{
    (void)state;
    assert_string_equal(device_type_by_id(2)->name, "blk");
    assert_ptr_equal(device_type_by_name("blk"), device_type_by_id(2));
    assert_string_equal(device_type_by_id(1)->name, "net");
    assert_null(device_type_by_id(9));
    assert_null(device_type_by_name("9p"));
    assert_string_equal(virtio_device_title(1), "network device");
    assert_null(virtio_device_title(0));
    assert_null(virtio_device_title(37));
    assert_null(virtio_device_title(UINT16_MAX));
}

static void test_open_block(void **state)
{
    struct device_config config;
    char image[] = "/tmp/viod-test-image.XXXXXX", preset[64];
    const char *const presets[] = {preset, "cache=writeback", NULL};
    int fd = mkstemp(image);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 1 << 20), 0);
    close(fd);
    snprintf(preset, sizeof(preset), "path=%s", image);
    assert_int_equal(fill(&config, "blk0", NULL, presets), 0);
    assert_int_equal(device_type_by_id(2)->open(&config, error, sizeof(error)), 0);
    assert_int_equal(config.n_fds, 1);
    assert_true(fcntl(config.fds[0], F_GETFD) >= 0);
    assert_int_equal(config.block.size, 1 << 20);
    assert_int_equal(config.block.cache, BLOCK_CACHE_WRITEBACK);
    fd = config.fds[0];
    device_config_free(&config);
    assert_int_equal(fcntl(fd, F_GETFD), -1);

    unlink(image);
    assert_int_equal(fill(&config, "blk0", NULL, presets), 0);
    assert_int_equal(device_type_by_id(2)->open(&config, error, sizeof(error)), -ENOENT);
    assert_non_null(strstr(error, image));
    assert_int_equal(config.n_fds, 0);
    device_config_free(&config);
}

/* What goes to a driver domain is the device's sections, and means the same there. */
static void test_extract(void **state)
{
    static const char text[] = "# the disks\n"
                               "[blk1]\n"
                               "path = /srv/a;b #c.img ; behind\n"
                               "serial =;x=y\n"
                               "[blk10]\n"
                               "path = /srv/other.img\n"
                               "[console0]\n"
                               "ports = console gnss\n"
                               "[console0.gnss]\n"
                               "backend = log\n"
                               "path = /var/log/gnss\n";
    struct device_config config;
    struct guest_file *file, *copy;
    char out[4096];

    (void)state;
    assert_int_equal(load(text, &file), 0);
    assert_int_equal(guest_file_extract(file, "blk1", out, sizeof(out)), 0);
    assert_string_equal(out, "[blk1]\npath=/srv/a;b #c.img\nserial=;x=y\n");
    assert_int_equal(guest_file_parse("copy", out, strlen(out), &copy, error, sizeof(error)), 0);
    assert_int_equal(fill(&config, "blk1", copy, NULL), 0);
    assert_string_equal(device_config_string(&config, "path"), "/srv/a;b #c.img");
    assert_string_equal(device_config_string(&config, "serial"), ";x=y");
    device_config_free(&config);
    guest_file_free(copy);

    assert_int_equal(guest_file_extract(file, "console0", out, sizeof(out)), 0);
    assert_string_equal(out, "[console0]\nports=console gnss\n"
                             "[console0.gnss]\nbackend=log\npath=/var/log/gnss\n");
    assert_int_equal(guest_file_extract(file, "net0", out, sizeof(out)), 0);
    assert_string_equal(out, "");
    assert_int_equal(guest_file_extract(file, "blk1", out, 20), -E2BIG);
    guest_file_free(file);

    assert_int_equal(guest_file_parse("copy", "", 0, &copy, error, sizeof(error)), 0);
    guest_file_free(copy);
    assert_int_equal(guest_file_parse("copy", "x", 1, &copy, error, sizeof(error)), -EINVAL);
    assert_string_equal(error, "copy:1: neither a section nor a key; write [name] or key = value");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_section),
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_defaults_with_grants),
        cmocka_unit_test(test_text_with_grants),
        cmocka_unit_test(test_extract),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_guest_names),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_bad_values),
        cmocka_unit_test(test_missing_path),
        cmocka_unit_test(test_presets),
        cmocka_unit_test(test_unused_sections),
        cmocka_unit_test(test_daemon_file),
        cmocka_unit_test(test_installed_file),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_hostile_texts),
        cmocka_unit_test(test_changed_texts),
        cmocka_unit_test(test_man_page),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_open_block),
    };
    int fd = mkstemp(path), ret;

    if (fd < 0)
        return 1;
    close(fd);
    ret = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return ret;
}
