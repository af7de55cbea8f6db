/* SPDX-License-Identifier: Apache-2.0 */
/* What a console's worker says of a port in queue_stats.state of its transmit queue. */
#ifndef VIOD_CONSOLE_STATE_H
#define VIOD_CONSOLE_STATE_H

#define CONSOLE_GUEST_OPEN 1u   /* the guest has the port open */
#define CONSOLE_HOST_PRESENT 2u /* somebody is at the back end */
#define CONSOLE_ATTACHED_SHIFT 8 /* how many viodctl are attached */

/* Queues of a port: 5.3.2. */
static inline unsigned console_rx_queue(unsigned port) { return port == 0 ? 0 : 2 + 2 * port; }
static inline unsigned console_tx_queue(unsigned port) { return console_rx_queue(port) + 1; }

#endif
