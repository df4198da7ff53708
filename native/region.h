/* SPDX-License-Identifier: Apache-2.0 */
/* region.h - mapping sealed memory files, with their size and seals checked first. */
#ifndef MINT_REGION_H
#define MINT_REGION_H

#include <stdbool.h>
#include <stddef.h>

/*
 * mint_region_check() - whether a descriptor is a memory file of `bytes` bytes that can never
 * shrink or grow: then no access within `bytes` can fault, whatever its other holders do.
 * Return: 0 or -EPROTO.
 */
int mint_region_check(int fd, size_t bytes);

/*
 * mint_region_map() - map the whole file. Return: the address, or NULL with errno set.
 */
void *mint_region_map(int fd, size_t bytes, bool writable);

/*
 * mint_region_map_twice() - map the file twice, back to back, so that a run of bytes over its end
 * goes on at its start. Return: the address (2 * bytes long), or NULL with errno set.
 */
void *mint_region_map_twice(int fd, size_t bytes, bool writable);

#endif
