/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bell.h - the doorbell between two ports: the paper's inter-processor interrupt.
 *
 * A doorbell is a bare wake-up, never a message: the byte means nothing, its count means nothing.
 * It is one end of a SOCK_STREAM socket pair, not an eventfd, because an eventfd is one file
 * description for both sides: the other side could clear O_NONBLOCK, fill the counter and hang
 * the writer, or read a ring away. Here each side can only spoil its own hearing.
 */
#ifndef MINT_BELL_H
#define MINT_BELL_H

#include <stdbool.h>

/* Ring. Never blocks and never fails: a full socket means that a ring is already pending, and a
 * closed one that nobody is there to be woken. */
void mint_bell_ring(int fd);

/* Take all pending rings. Return: whether the other end still exists. */
bool mint_bell_drain(int fd);

#endif
