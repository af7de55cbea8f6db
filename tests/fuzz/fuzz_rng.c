/* SPDX-License-Identifier: Apache-2.0 */
/* The entropy device under any driver. Its limit is counted: no input gets more bytes out of it. */
#include "fuzz_machine.h"

#define LIMIT 5000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const presets[] = {"max-bytes=5000", "period=3600000", NULL};
    struct fuzz f = {.left = 0};

    fuzz_configure(&f, 4, "rng0", presets);
    fuzz_run(&f, &virtio_rng_ops, 1, data, size);
    if (stat_get(&f.m->stats->queues[0].read_bytes) > LIMIT)
        fake_die("more random bytes than allowed");
    if (stat_get(&f.m->stats->queues[0].read_bytes) < LIMIT) {
        fuzz_post(&f, 0, 0, 10);
        driver_kick(&f.driver, 0);
        if (!fuzz_used(&f, 0))
            fake_die("the device does not work after a reset");
    }
    fuzz_end(&f);
    return 0;
}
