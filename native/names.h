/* SPDX-License-Identifier: Apache-2.0 */
/* names.h - the counters' names; NULL for an index without a counter. */
#ifndef MINT_NAMES_H
#define MINT_NAMES_H

#include <stdint.h>

const char *mint_tx_counter_name(uint32_t i);
const char *mint_rx_counter_name(uint32_t i);
const char *mint_port_counter_name(uint32_t i);

#endif
