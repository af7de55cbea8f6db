/* SPDX-License-Identifier: Apache-2.0 */
/* The keys of a network device, and what the supervisor makes of them. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "config.h"

/* ---- the host ---- */

static struct {
    struct net_tap_config config;
    char name[32], bridge[32];
    unsigned calls;
    int result;
} host;

int net_tap_open(const struct net_tap_config *config, int *fds, uint32_t *mtu, char *error,
                 size_t error_len)
{
    host.calls++;
    host.config = *config;
    snprintf(host.name, sizeof(host.name), "%s", config->name);
    snprintf(host.bridge, sizeof(host.bridge), "%s", config->bridge ? config->bridge : "-");
    if (host.result < 0) {
        snprintf(error, error_len, "the host says no");
        return host.result;
    }
    for (unsigned i = 0; i < config->queues; i++)
        fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    *mtu = config->mtu ? config->mtu : 1400;
    return 0;
}

int net_tap_gone(unsigned queues, int *fds)
{
    for (unsigned i = 0; i < queues && host.result == 0; i++)
        fds[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
    return host.result;
}

static const struct guest_identity guest = {.domid = 7, .name = "g1",
                                            .uuid = "6f1a4a2e-52c7-4f0e-9a0c-3d1b7e5c9a10"};

struct opened {
    struct device_config config;
    char error[CONFIG_ERROR_LEN];
    int result;
};

static void open_it(struct opened *o, const struct guest_identity *who, const char *name,
                    const char *const *presets)
{
    static const char *const none[] = {NULL};
    const struct device_type *type = device_type_by_name("net");

    memset(o, 0, sizeof(*o));
    host.calls = 0;
    snprintf(o->config.name, sizeof(o->config.name), "%s", name);
    o->config.virtio_id = 1;
    o->config.guest = who;
    o->result = device_config_fill(&o->config, type, NULL, presets ? presets : none, o->error,
                                   sizeof(o->error));
    if (o->result == 0)
        o->result = type->open(&o->config, o->error, sizeof(o->error));
}

static void close_it(struct opened *o)
{
    if (o->result == 0)
        device_type_by_name("net")->close(&o->config);
    device_config_free(&o->config);
}

static void defaults(void **state)
{
    struct opened o, again;
    char mac[32];

    (void)state;
    open_it(&o, &guest, "net0", NULL);
    assert_int_equal(o.result, 0);
    assert_string_equal(host.name, "viod7.0");
    assert_string_equal(host.bridge, "-");
    assert_int_equal(host.config.queues, NET_PAIRS_MAX);
    assert_int_equal(o.config.n_fds, NET_PAIRS_MAX);
    assert_string_equal(device_config_string(&o.config, "mtu"), "1400");
    assert_string_equal(o.config.backing, "viod7.0");
    snprintf(mac, sizeof(mac), "%s", device_config_string(&o.config, "mac"));
    assert_memory_equal(mac, "00:16:3e:", 9);
    assert_int_equal(strlen(mac), 17);
    /* The same guest, another day, with another domid: the same address. */
    struct guest_identity later = guest;
    later.domid = 300;
    open_it(&again, &later, "net0", NULL);
    assert_string_equal(device_config_string(&again.config, "mac"), mac);
    assert_string_equal(host.name, "viod300.0");
    close_it(&again);
    /* Another device, another guest: another one. */
    open_it(&again, &guest, "net1", NULL);
    assert_string_not_equal(device_config_string(&again.config, "mac"), mac);
    assert_string_equal(host.name, "viod7.1");
    close_it(&again);
    later.uuid[0] = '7';
    open_it(&again, &later, "net0", NULL);
    assert_string_not_equal(device_config_string(&again.config, "mac"), mac);
    close_it(&again);
    later.uuid[0] = '\0';
    open_it(&again, &later, "net0", NULL);
    assert_string_not_equal(device_config_string(&again.config, "mac"), mac);
    close_it(&again);
    close_it(&o);
}

/* What was decided reaches the worker. */
static void reaches_the_worker(void **state)
{
    const char *const presets[] = {"bridge=xenbr0", "queues=3", "mtu=9000", "link=down", NULL};
    struct device_config worker;
    char text[4096], error[CONFIG_ERROR_LEN];
    struct opened o;
    int len;

    (void)state;
    open_it(&o, &guest, "net0", presets);
    assert_int_equal(o.result, 0);
    assert_string_equal(host.bridge, "xenbr0");
    assert_string_equal(o.config.backing, "viod7.0 on xenbr0");
    assert_int_equal(o.config.n_fds, 3);
    o.config.base = 0x02000000;
    o.config.irq = 33;
    len = device_config_encode(&o.config, text, sizeof(text));
    assert_true(len > 0);
    assert_int_equal(device_config_decode(text, (size_t)len, &worker, error, sizeof(error)), 0);
    assert_string_equal(device_config_string(&worker, "mac"), device_config_string(&o.config, "mac"));
    assert_int_equal(device_config_uint(&worker, "mtu"), 9000);
    assert_string_equal(device_config_string(&worker, "link"), "down");
    for (size_t i = 0; i < DEVICE_FDS_MAX; i++)
        worker.fds[i] = -1;
    device_config_free(&worker);
    close_it(&o);
}

static void wrong_values(void **state)
{
    static const struct {
        const char *preset, *says;
    } cases[] = {
        {"mac=00:16:3e:01:02", "six bytes"},
        {"mac=00:16:3e:01:02:0g", "six bytes"},
        {"mac=01:16:3e:01:02:03", "the first one is even"},
        {"mac=00:00:00:00:00:00", "six bytes"},
        {"mac=00-16-3e-01-02-03", "six bytes"},
        {"mac= 0:16:3e:01:02:03", "six bytes"},
        {"mtu=67", "the smallest possible is 68"},
        {"tap=a/b", "cannot be the name of an interface"},
        {"tap=..", "cannot be the name"},
        {"tap=a b", "cannot be the name"},
        {"tap=vif%d", "cannot be the name"},
        {"bridge=../x", "cannot be the name"},
        {"bridge=abcdefghijklmnop", "15"},
        {"queues=9", "8"},
        {"queue-size=100", "128"},
        {"link=sideways", "up"},
        {"backend=passt", "belong together"},
        {"socket=/tmp/s", "belong together"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *const presets[] = {cases[i].preset, NULL};
        struct opened o;

        open_it(&o, &guest, "net0", presets);
        if (o.result >= 0 || strstr(o.error, cases[i].says) == NULL)
            fail_msg("%s: %d, %s", cases[i].preset, o.result, o.error);
        assert_int_equal(host.calls, 0);
        close_it(&o);
    }
    static const char *const not_for_passt[] = {"bridge=xenbr0", "tap=x", "queues=2"};
    for (size_t i = 0; i < 3; i++) {
        const char *const presets[] = {"backend=passt", "socket=/nowhere", not_for_passt[i], NULL};
        struct opened o;

        open_it(&o, &guest, "net0", presets);
        if (o.result != -EINVAL)
            fail_msg("%s: %d, %s", not_for_passt[i], o.result, o.error);
        close_it(&o);
    }
    host.result = -ENODEV;
    struct opened o;
    open_it(&o, &guest, "net0", NULL);
    assert_int_equal(o.result, -ENODEV);
    assert_string_equal(o.error, "the host says no");
    host.result = 0;
    close_it(&o);
}

/* A worker may be in its guest's hands: it gets its own interface, and only that. */
static void asks(void **state)
{
    static const char *const wrong[] = {"", "tap", "tap 0", "tap 9", "tap 12", "tap 1 x", "tap -1",
                                        "tap eth0", "bridge x", "tap 1\nx"};
    const struct device_type *type = device_type_by_name("net");
    const char *const presets[] = {"tap=mine", NULL};
    char error[CONFIG_ERROR_LEN];
    int fds[DEVICE_FDS_MAX];
    struct opened o;

    (void)state;
    open_it(&o, &guest, "net0", presets);
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        host.calls = 0;
        if (type->ask(&o.config, wrong[i], fds, error, sizeof(error)) != -EINVAL)
            fail_msg("\"%s\"", wrong[i]);
        assert_int_equal(host.calls, 0);
    }
    assert_int_equal(type->ask(&o.config, "tap 2", fds, error, sizeof(error)), 2);
    assert_string_equal(host.name, "mine");
    assert_int_equal(close(fds[0]), 0);
    assert_int_equal(close(fds[1]), 0);
    host.result = -ENODEV;
    assert_int_equal(type->ask(&o.config, "tap 2", fds, error, sizeof(error)), -ENODEV);
    host.result = 0;
    close_it(&o);
}

/* Two devices with one interface would get each other's frames. */
static void interface_in_use(void **state)
{
    const char *const presets[] = {"tap=mine", NULL};
    struct guest_identity other = guest;
    struct opened first, second;

    (void)state;
    strcpy(other.name, "g2");
    open_it(&first, &guest, "net0", presets);
    assert_int_equal(first.result, 0);
    open_it(&second, &other, "net1", presets);
    assert_int_equal(second.result, -EBUSY);
    assert_int_equal(host.calls, 0);
    assert_string_equal(second.error, "net1: interface mine is in use by net0 of guest g1; each "
                                      "device needs one of its own");
    close_it(&second);
    close_it(&first);
    /* One that could not be opened is in use by nobody. */
    host.result = -ENODEV;
    open_it(&first, &guest, "net0", presets);
    assert_int_equal(first.result, -ENODEV);
    close_it(&first);
    host.result = 0;
    open_it(&second, &other, "net1", presets);
    assert_int_equal(second.result, 0);
    close_it(&second);
}

/* At a takeover, it cannot be made now: a guest that has had it goes on without, and it stays its own. */
static void lost_for_the_time_being(void **state)
{
    const char *const presets[] = {"tap=mine", "queues=3", NULL};
    const struct device_type *type = device_type_by_name("net");
    struct opened o, other;

    (void)state;
    host.result = -ENODEV;
    open_it(&o, &guest, "net0", presets);
    assert_int_equal(o.result, -ENODEV);
    assert_int_equal(type->lost(&o.config), -ENODEV);
    host.result = 0;
    assert_int_equal(type->lost(&o.config), 0);
    o.result = 0;
    assert_int_equal(o.config.n_fds, 3);
    assert_int_equal(o.config.n_kept, 3);
    open_it(&other, &guest, "net1", presets);
    assert_int_equal(other.result, -EBUSY);
    assert_int_equal(type->lost(&other.config), -EBUSY);
    close_it(&other);
    close_it(&o);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(reaches_the_worker),
        cmocka_unit_test(wrong_values),
        cmocka_unit_test(asks),
        cmocka_unit_test(interface_in_use),
        cmocka_unit_test(lost_for_the_time_being),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
