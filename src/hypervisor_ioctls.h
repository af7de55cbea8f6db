/* SPDX-License-Identifier: Apache-2.0 */
/* The ioctls that the hypervisor's implementation needs after lock_down; defined by xen/. */
#ifndef VIOD_HYPERVISOR_IOCTLS_H
#define VIOD_HYPERVISOR_IOCTLS_H

#include "types.h"

extern const uint32_t hypervisor_ioctls[];
extern const size_t n_hypervisor_ioctls;

#endif
