/* SPDX-License-Identifier: Apache-2.0 */
/* A console's ports in a guest's file, and on their way to the worker. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "config.h"

static char path[] = "/tmp/viod-test-parts.XXXXXX";
static char error[CONFIG_ERROR_LEN];

static int fill(struct device_config *config, const char *name, const char *text)
{
    struct guest_file *file;
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600), ret;

    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    close(fd);
    assert_int_equal(guest_file_load(path, &file, error, sizeof(error)), 0);
    *config = (struct device_config){.base = 0x2000000, .irq = 33};
    snprintf(config->name, sizeof(config->name), "%s", name);
    error[0] = '\0';
    ret = device_config_fill(config, device_type_by_id(3), file, NULL, error, sizeof(error));
    guest_file_free(file);
    return ret;
}

/* `line` 0: not about a line of the file. */
static void refused(const char *text, int line, const char *what)
{
    struct device_config config;
    char start[128];

    assert_int_equal(fill(&config, "console0", text), -EINVAL);
    snprintf(start, sizeof(start), "%s:%d: ", path, line);
    if (strncmp(error, start, strlen(start)) || !strstr(error, what))
        fail_msg("expected \"%s… %s\", got \"%s\"", start, what, error);
    assert_null(config.values);
    assert_null(config.parts);
}

static void test_defaults(void **state)
{
    struct device_config config;

    (void)state;
    assert_int_equal(fill(&config, "console0", ""), 0);
    assert_int_equal(config.n_parts, 1);
    assert_string_equal(config.parts[0].name, "console");
    assert_string_equal(config_part_string(&config.parts[0], "backend"), "pty");
    assert_null(config_part_string(&config.parts[0], "path"));
    assert_false(config_part_bool(&config.parts[0], "announce"));
    assert_int_equal(config_part_uint(&config.parts[0], "baud"), 115200);
    device_config_free(&config);
    assert_int_equal(fill(&config, "console1", ""), 0);
    assert_string_equal(config.parts[0].name, "console1");
    device_config_free(&config);
}

static const char good[] = "[console1.gnss]\nbackend = none\n"
                           "[console0]\nports =  console   gnss b_t-2 \n"
                           "[console0.gnss]\nbackend = device\npath = /dev/ttyUSB0\nbaud = 9600\n"
                           "[console0.b_t-2]\nbackend = log\nmax-size = 5000\nannounce = yes\n";

static void check_good(const struct device_config *config, bool paths)
{
    assert_int_equal(config->n_parts, 3);
    assert_string_equal(config->parts[0].name, "console");
    assert_string_equal(config->parts[1].name, "gnss");
    assert_string_equal(config->parts[2].name, "b_t-2");
    assert_string_equal(config_part_string(&config->parts[0], "backend"), "pty");
    assert_string_equal(config_part_string(&config->parts[1], "backend"), "device");
    assert_int_equal(config_part_uint(&config->parts[1], "baud"), 9600);
    assert_int_equal(config_part_uint(&config->parts[2], "max-size"), 5000);
    assert_true(config_part_bool(&config->parts[2], "announce"));
    if (paths)
        assert_string_equal(config_part_string(&config->parts[1], "path"), "/dev/ttyUSB0");
    else
        assert_null(config_part_string(&config->parts[1], "path"));
}

static void test_sections(void **state)
{
    struct device_config config;

    (void)state;
    if (fill(&config, "console0", good))
        fail_msg("%s", error);
    check_good(&config, true);
    device_config_free(&config);
    assert_null(config.parts);
}

static void test_to_the_worker(void **state)
{
    struct device_config config, copy;
    char text[4096], broken[4096];
    int len;

    (void)state;
    assert_int_equal(fill(&config, "console0", good), 0);
    len = device_config_encode(&config, text, sizeof(text));
    assert_true(len > 0);
    assert_null(strstr(text, "ttyUSB0"));
    if (device_config_decode(text, (size_t)len, &copy, error, sizeof(error)))
        fail_msg("%s", error);
    check_good(&copy, false);
    device_config_free(&copy);
    device_config_free(&config);
    /* Cut anywhere, or with any byte wrong: an error, or something that is valid. */
    for (int i = 0; i < len; i++) {
        if (device_config_decode(text, (size_t)i, &copy, error, sizeof(error)) == 0)
            device_config_free(&copy);
        for (int bit = 0; bit < 8; bit++) {
            memcpy(broken, text, (size_t)len);
            broken[i] = (char)(broken[i] ^ 1 << bit);
            if (device_config_decode(broken, (size_t)len, &copy, error, sizeof(error)) == 0)
                device_config_free(&copy);
        }
    }
}

static void test_mistakes(void **state)
{
    char text[2048] = "[console0]\nports =";

    (void)state;
    refused("[console0]\nports = console gnss\n[console0.gnns]\nbackend = pty\n", 3,
            "the nearest one is \"gnss\"");
    refused("[console0]\nports = console\n[console0.elsewhere]\nbackend = pty\n", 3,
            "add it to ports in [console0]");
    refused("[console0.console]\nbakend = pty\n", 2, "the nearest known key is \"backend\"");
    refused("[console0.console]\nbackend = tcp\n", 2, "write pty, listen");
    refused("[console0.console]\nbaud = 9601\n", 2, "is not possible");
    refused("[console0.console]\npath = relative\n", 2, "absolute");
    refused("[console0]\nports = a b a\n", 2, "\"a\" is twice");
    refused("[console0]\nports = a/b\n", 2, "is no name");
    refused("[console0]\nports = -a\n", 2, "is no name");
    refused("[console0]\nports = ..\n", 2, "is no name");
    refused("[console0]\nports = abcdefghijklmnopqrstu\n", 2, "is no name");
    refused("[console0]\nbackend = pty\n", 2, "unknown key");
    for (unsigned i = 0; i < 32; i++)
        snprintf(text + strlen(text), sizeof(text) - strlen(text), " p%u", i);
    strcat(text, "\n");
    refused(text, 2, "more than 31 names");
}

static void test_devices_without_parts(void **state)
{
    struct device_config config = {.name = "rng0"};
    struct guest_file *file;
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT | O_CLOEXEC, 0600);

    (void)state;
    assert_int_equal(write(fd, "[rng0.x]\n", 9), 9);
    close(fd);
    assert_int_equal(guest_file_load(path, &file, error, sizeof(error)), 0);
    assert_int_equal(device_config_fill(&config, device_type_by_id(4), file, NULL, error,
                                        sizeof(error)), -EINVAL);
    assert_non_null(strstr(error, "has no parts"));
    guest_file_free(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_sections),
        cmocka_unit_test(test_to_the_worker),
        cmocka_unit_test(test_mistakes),
        cmocka_unit_test(test_devices_without_parts),
    };
    int fd = mkstemp(path), ret;

    if (fd < 0)
        return 1;
    close(fd);
    ret = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(path);
    return ret;
}
