/* SPDX-License-Identifier: Apache-2.0 */
/*
 * viodctl check: each tests/unit/check/X.cfg, with the guests' files in check/conf, gives
 * check/X.expected. "test_check --write" writes what it gives now: to be read before it is
 * committed.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <libxlutil.h>
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

#include "../../src/viodctl_check.h"
#include "../../xen/xl_config.h"

#define CHECK_DIR VIOD_SOURCE_DIR "/tests/unit/check"
#define EXAMPLES_DIR VIOD_SOURCE_DIR "/configs/examples"

static bool write_expected;

/* A host on which an image's name tells what it is. */
static int pretend(const char *path, struct image_info *image)
{
    *image = (struct image_info){.mode = S_IFREG | 0600, .size = UINT64_C(1) << 30, .direct = true};
    if (!strncmp(path, "/dev/", 5)) {
        image->mode = S_IFBLK | 0600;
        image->size = UINT64_C(20) << 30;
    }
    if (!strncmp(path, "/dev/tty", 8))
        image->mode = S_IFCHR | 0600;
    if (strstr(path, "missing"))
        return -ENOENT;
    if (strstr(path, "unreadable"))
        image->read_error = image->write_error = EACCES;
    if (strstr(path, "readonly"))
        image->write_error = EROFS;
    if (strstr(path, "directory"))
        image->mode = S_IFDIR | 0700;
    if (strstr(path, "empty"))
        image->size = 0;
    if (strstr(path, "nodirect"))
        image->direct = false;
    return 0;
}

static int pretend_backend(const char *domain)
{
    if (!strcmp(domain, "gone"))
        return -ENOENT;
    if (!strcmp(domain, "idle"))
        return -ESRCH;
    return strcmp(domain, "unknown") ? 0 : -EOPNOTSUPP;
}

static int pretended_grants;

static int pretend_grants(void)
{
    return pretended_grants;
}

static char *report(const char *cfg, const char *config_dir, unsigned *n_problems)
{
    char *text = NULL;
    size_t len = 0;
    struct check_options options = {
        .config_dir = config_dir,
        .run_dir = "/run/other",
        .out = open_memstream(&text, &len),
        .look = pretend,
        .backend = pretend_backend,
        .grants = pretend_grants,
    };

    assert_non_null(options.out);
    *n_problems = check_guest(cfg, &options);
    fclose(options.out);
    return text;
}

static char *read_text(const char *path)
{
    FILE *file = fopen(path, "re");
    char *text = calloc(1, 65536);

    assert_non_null(text);
    if (file) {
        assert_true(fread(text, 1, 65535, file) < 65535);
        fclose(file);
    }
    return text;
}

/* The expected reports are those on a machine whose xl is older. */
static bool xl_knows_grants(void)
{
    const char *spec = "/dev/vg0/a,raw,xvda,w,grant_usage=1";
    FILE *nowhere = fopen("/dev/null", "we");
    XLU_Config *xlu = xlu_cfg_init(nowhere, "-");
    libxl_device_disk disk;
    bool knows;

    assert_non_null(xlu);
    libxl_device_disk_init(&disk);
    knows = xlu_disk_parse(xlu, 1, &spec, &disk) == 0;
    libxl_device_disk_dispose(&disk);
    xlu_cfg_destroy(xlu);
    fclose(nowhere);
    return knows;
}

static void remove_notes(char *text)
{
    static const char note[] = "    note: this machine's xl does not know grant_usage";
    char *line;

    while ((line = strstr(text, note)) != NULL) {
        char *next = strchr(line, '\n') + 1;

        memmove(line, next, strlen(next) + 1);
    }
}

static void test_expected_reports(void **state)
{
    bool knows_grants = xl_knows_grants();
    glob_t cfgs;

    (void)state;
    assert_int_equal(chdir(CHECK_DIR), 0);
    assert_int_equal(glob("*.cfg", 0, NULL, &cfgs), 0);
    assert_true(cfgs.gl_pathc >= 10);
    for (size_t i = 0; i < cfgs.gl_pathc; i++) {
        const char *cfg = cfgs.gl_pathv[i];
        char path[256], *text, *expected;
        unsigned n_problems, written = 0;

        text = report(cfg, "conf", &n_problems);
        snprintf(path, sizeof(path), "%.*s.expected", (int)strlen(cfg) - 4, cfg);
        if (write_expected) {
            FILE *file = fopen(path, "we");

            assert_non_null(file);
            fputs(text, file);
            fclose(file);
        }
        expected = read_text(path);
        if (knows_grants)
            remove_notes(expected);
        if (strcmp(text, expected))
            print_error("%s: expected\n%s\nbut it is\n%s", path, expected, text);
        assert_string_equal(text, expected);
        for (const char *p = text; (p = strstr(p, "problem: ")) != NULL; p++)
            written++;
        assert_int_equal(written, n_problems);
        free(text);
        free(expected);
    }
    globfree(&cfgs);
}

static void test_a_domain_without_grants(void **state)
{
    unsigned n_problems;
    char *text;

    (void)state;
    assert_int_equal(chdir(CHECK_DIR), 0);
    pretended_grants = -ENODEV; /* the guest is to run elsewhere */
    text = report("grants.cfg", "conf", &n_problems);
    assert_int_equal(n_problems, 0);
    free(text);
    pretended_grants = -ENOENT;
    text = report("grants.cfg", "conf", &n_problems);
    pretended_grants = 0;
    assert_int_equal(n_problems, 2); /* of four: for those that have grants, from this domain */
    assert_non_null(strstr(text, "blk0, block device, served by viod\n"));
    assert_non_null(strstr(text, "problem: grant_usage=1 needs /dev/xen/gntdev"));
    free(text);
}

/* What is installed as an example is right. */
static void test_examples(void **state)
{
    glob_t cfgs;

    (void)state;
    assert_int_equal(glob(EXAMPLES_DIR "/*.cfg", 0, NULL, &cfgs), 0);
    for (size_t i = 0; i < cfgs.gl_pathc; i++) {
        unsigned n_problems;
        char *text = report(cfgs.gl_pathv[i], EXAMPLES_DIR, &n_problems);

        if (n_problems)
            print_error("%s", text);
        assert_int_equal(n_problems, 0);
        free(text);
    }
    globfree(&cfgs);
}

static void test_look_at_image(void **state)
{
    char path[] = "/tmp/viod-test-check.XXXXXX";
    struct image_info image;
    int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, 12345), 0);
    close(fd);
    assert_int_equal(check_look_at_image(path, &image), 0);
    assert_true(S_ISREG(image.mode));
    assert_int_equal(image.size, 12345);
    assert_int_equal(image.read_error, 0);
    assert_int_equal(image.write_error, 0);
    unlink(path);
    assert_int_equal(check_look_at_image(path, &image), -ENOENT);
    assert_int_equal(check_look_at_image("/", &image), 0);
    assert_true(S_ISDIR(image.mode));
}

static void test_vdev_names(void **state)
{
    static const struct {
        const char *vdev;
        int devid;
    } good[] = {
        {"xvda", 51712}, {"d0p0", 51712}, {"51712", 51712}, {"0xca00", 51712}, {"xvda1", 51713},
        {"xvdb", 51728}, {"xvdp15", 51967}, {"xvda16", 268435472}, {"xvdq", 268439552},
        {"d16p0", 268439552}, {"xvdz", 268441856}, {"xvdaa", 268442112}, {"xvdc255", 268436223},
        {"d1048575p255", 536870911}, {"hda", 768}, {"hdb", 832}, {"hdc", 5632}, {"hdd63", 5759},
        {"sda", 2048}, {"sdb", 2064}, {"sdp15", 2303}, {"0", 0},
    };
    static const char *const bad[] = {"", "xvd", "xvda0", "xvda256", "xvda1x", "xvdA", "hde",
                                      "hda64", "sdq", "vda", "d0", "d0p0y", "d-1p0", "-1", "0x",
                                      "xvdzzzzzzzzzzzz", "disk"};

    (void)state;
    for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
        int devid = -1;

        assert_true(xl_vdev_number(good[i].vdev, &devid));
        assert_int_equal(devid, good[i].devid);
    }
    for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
        int devid;

        assert_false(xl_vdev_number(bad[i], &devid));
    }
}

static void test_unreadable_cfg(void **state)
{
    unsigned n_problems;
    char *text;

    (void)state;
    text = report(CHECK_DIR "/no-such.cfg", "conf", &n_problems);
    assert_int_equal(n_problems, 1);
    assert_non_null(strstr(text, "No such file or directory"));
    free(text);
    text = report(CHECK_DIR, "conf", &n_problems);
    assert_int_equal(n_problems, 1);
    free(text);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expected_reports),
        cmocka_unit_test(test_a_domain_without_grants),
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_look_at_image),
        cmocka_unit_test(test_vdev_names),
        cmocka_unit_test(test_unreadable_cfg),
    };

    write_expected = argc > 1 && !strcmp(argv[1], "--write");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
