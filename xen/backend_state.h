/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a domain that xl.cfg names as a backend has a viod. No Xen header is needed to include it. */
#ifndef VIOD_BACKEND_STATE_H
#define VIOD_BACKEND_STATE_H

/* Where viod in a driver domain says, in its own home, that it runs: its version. */
#define BACKEND_STATE_PATH "data/viod"

/*
 * `domain` is a name or a domid. 0: viod runs there; -ENOENT: there is no such domain now; -ESRCH:
 * viod does not run there; other -errno: it cannot be known (no Xen here, no right to ask).
 */
int xen_backend_state(const char *domain);

/* Whether this domain can reach what guests grant. 0; -ENOENT: gntdev is missing; -ENODEV: no Xen here. */
int xen_grants_usable(void);

#endif
