/* SPDX-License-Identifier: Apache-2.0 */
/* What a supervisor leaves to the next one: whole, or refused. */
#include "unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "config.h"
#include "supervisor_record.h"

static char folder[] = "/tmp/viod-test-record.XXXXXX";
static char first_text[] = "name=blk0\nkey.path=/srv/a image\n", second_text[] = "";

static struct guest_record example(void)
{
    struct guest_record record = {.domid = 7,
                                  .pid = 4711,
                                  .started = UINT64_C(123456789012),
                                  .restarts = 3,
                                  .state_version = 5,
                                  .boot_id = "11111111-2222-3333-4444-555555555555",
                                  .uuid = "66666666-7777-8888-9999-000000000000",
                                  .name = "guest one",
                                  .n_devices = 2};

    record.devices[0] = (struct record_device){1, 0, first_text};
    record.devices[1] = (struct record_device){0, 51712, second_text};
    return record;
}

static void expect_example(const struct guest_record *record)
{
    assert_int_equal(record->domid, 7);
    assert_int_equal(record->pid, 4711);
    assert_int_equal(record->started, UINT64_C(123456789012));
    assert_int_equal(record->restarts, 3);
    assert_int_equal(record->state_version, 5);
    assert_string_equal(record->boot_id, "11111111-2222-3333-4444-555555555555");
    assert_string_equal(record->uuid, "66666666-7777-8888-9999-000000000000");
    assert_string_equal(record->name, "guest one");
    assert_int_equal(record->n_devices, 2);
    assert_int_equal(record->devices[0].kind, 1);
    assert_int_equal(record->devices[0].devid, 0);
    assert_string_equal(record->devices[0].text, first_text);
    assert_int_equal(record->devices[1].kind, 0);
    assert_int_equal(record->devices[1].devid, 51712);
    assert_string_equal(record->devices[1].text, second_text);
}

static void test_written_is_read(void **state)
{
    struct guest_record record = example(), back;

    (void)state;
    assert_int_equal(record_read(folder, &back), -ENOENT);
    record.n_devices = 0;
    assert_int_equal(record_write(folder, &record), 0);
    record.n_devices = 2;
    assert_int_equal(record_write(folder, &record), 0); /* in its place */
    assert_int_equal(record_read(folder, &back), 0);
    expect_example(&back);
    record_free(&back);
    record_remove(folder);
    assert_int_equal(record_read(folder, &back), -ENOENT);
    assert_int_equal(record_write("/tmp/viod-no-such-folder", &record), -ENOENT);
}

static void test_a_flipped_bit_is_noticed(void **state)
{
    const struct guest_record record = example();
    struct guest_record back;
    size_t len;
    uint8_t *data = record_encode(&record, &len);

    (void)state;
    assert_non_null(data);
    for (size_t bit = 0; bit < len * 8; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        /* Another version is refused without a look at the rest. */
        assert_int_equal(record_decode(data, len, &back),
                         bit / 32 == 2 ? -EPROTONOSUPPORT : -EBADMSG);
        assert_int_equal(back.n_devices, 0);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(record_decode(data, len, &back), 0);
    expect_example(&back);
    record_free(&back);
    free(data);
}

static void test_a_cut_is_noticed(void **state)
{
    const struct guest_record record = example();
    struct guest_record back;
    size_t len;
    uint8_t *data = record_encode(&record, &len);

    (void)state;
    assert_non_null(data);
    for (size_t n = 0; n < len; n++) {
        uint8_t *cut = malloc(n + 1); /* its end is the sanitizer's */

        assert_non_null(cut);
        memcpy(cut, data, n);
        assert_int_equal(record_decode(cut, n, &back), -EBADMSG);
        free(cut);
    }
    free(data);
}

/* A text that no device has is refused when written, not when read. */
static void test_texts_are_bounded(void **state)
{
    struct guest_record record = example();
    char *text = malloc(RECORD_TEXT_MAX + 2);
    size_t len;

    (void)state;
    assert_non_null(text);
    memset(text, 'x', RECORD_TEXT_MAX + 1);
    text[RECORD_TEXT_MAX + 1] = '\0';
    record.devices[1].text = text;
    assert_null(record_encode(&record, &len));
    free(text);
}

static void test_a_process_is_known_by_its_start(void **state)
{
    uint64_t own = record_process_started(getpid()), child_started;
    pid_t child;
    int status;

    (void)state;
    assert_true(own > 0);
    assert_int_equal(record_process_started(getpid()), own);
    child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        pause();
        _exit(0);
    }
    child_started = record_process_started(child);
    assert_true(child_started >= own);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(record_process_started(child), 0);
}

static void test_boot_id(void **state)
{
    char id[40], again[40];

    (void)state;
    record_boot_id(id, sizeof(id));
    record_boot_id(again, sizeof(again));
    assert_int_equal(strlen(id), 36);
    assert_string_equal(id, again);
}

/* What a worker does not need, the next supervisor does: where a console's port is on the host. */
static void test_a_configuration_comes_back_whole(void **state)
{
    static const char file_text[] = "[console0]\nports = console gnss\n"
                                    "[console0.gnss]\nbackend = file\npath = /srv/gnss log\n";
    struct device_config config = {.name = "console0", .virtio_id = 3, .base = 0x2000200, .irq = 34},
                         back, for_worker;
    char error[CONFIG_ERROR_LEN], text[4096];
    struct guest_file *file;

    (void)state;
    assert_int_equal(guest_file_parse("test", file_text, strlen(file_text), &file, error,
                                      sizeof(error)), 0);
    assert_int_equal(device_config_fill(&config, device_type_by_id(3), file, NULL, error,
                                        sizeof(error)), 0);
    guest_file_free(file);
    assert_true(device_config_encode_all(&config, text, sizeof(text)) > 0);
    assert_int_equal(device_config_decode(text, strlen(text), &back, error, sizeof(error)), 0);
    assert_int_equal(back.n_parts, 2);
    assert_string_equal(back.parts[1].name, "gnss");
    assert_string_equal(config_part_string(&back.parts[1], "path"), "/srv/gnss log");
    assert_true(device_config_encode(&config, text, sizeof(text)) > 0);
    assert_int_equal(device_config_decode(text, strlen(text), &for_worker, error, sizeof(error)), 0);
    assert_null(config_part_string(&for_worker.parts[1], "path"));
    device_config_free(&config);
    device_config_free(&back);
    device_config_free(&for_worker);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_written_is_read),
        cmocka_unit_test(test_a_flipped_bit_is_noticed),
        cmocka_unit_test(test_a_cut_is_noticed),
        cmocka_unit_test(test_texts_are_bounded),
        cmocka_unit_test(test_a_process_is_known_by_its_start),
        cmocka_unit_test(test_boot_id),
        cmocka_unit_test(test_a_configuration_comes_back_whole),
    };
    int ret;

    if (mkdtemp(folder) == NULL)
        return 1;
    ret = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return ret;
}
