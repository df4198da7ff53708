/* SPDX-License-Identifier: Apache-2.0 */
/*
 * packed.h - plain frames, many with one call: for programs and for devices without offloads.
 * Frames lie back to back in one buffer, their lengths in an array.
 */
#ifndef MINT_PACKED_H
#define MINT_PACKED_H

#include "port.h"

/*
 * mint_port_send_packed() - send `n` frames, waiting for room for at most `timeout_ns` in all;
 * negative: for each until its channel counts as stalled, and then drop it. A receiver that gives
 * room, however slowly, is waited for then.
 * @done: receives how many were accepted (sent, or dropped and counted)
 * Return: 0; -ETIMEDOUT; -EMSGSIZE: frame number *done is too short or too long (counted);
 * -EINTR after a signal or when a descriptor watched as MINT_EV_CONTROL became readable.
 */
int mint_port_send_packed(struct mint_port *port, const uint8_t *frames, const uint32_t *lens,
                          uint32_t n, int64_t timeout_ns, uint32_t *done);

/*
 * mint_plain - what it takes to hand frames to a receiver without offloads: checksums completed,
 * segmented frames cut. One for each such receiver.
 */
struct mint_plain;
struct mint_plain *mint_plain_new(void);
void mint_plain_free(struct mint_plain *plain);

/* The next plain frame for this port, copied to out. Return: its bytes; 0: none now. */
uint32_t mint_plain_recv(struct mint_plain *plain, struct mint_port *port, uint8_t *out,
                         uint32_t size);

/*
 * The same one frame at a time, for a receiver that takes some frames as they are.
 * mint_plain_take(): one received view, copied to out. Return: its bytes; 0: it was dropped, or is
 * to be had by mint_plain_cut(). The view can be released then.
 * mint_plain_cut(): the next segment of the frame that is being cut. Return: its bytes; 0: none.
 */
uint32_t mint_plain_take(struct mint_plain *plain, struct mint_port *port,
                         const struct mint_view *v, uint8_t *out, uint32_t size);
uint32_t mint_plain_cut(struct mint_plain *plain, struct mint_port *port, uint8_t *out,
                        uint32_t size);

/*
 * mint_port_recv_packed() - receive up to `max` plain frames, waiting for the first.
 * @out:  buffer of `size` bytes; no more frames are taken when less than MINT_FRAME_MAX is left
 * @lens: receives their lengths
 * Return: number of frames; 0 after the time-out; -EINTR after a signal or when a descriptor
 * watched as MINT_EV_CONTROL became readable.
 */
int mint_port_recv_packed(struct mint_port *port, struct mint_plain *plain, uint8_t *out,
                          uint64_t size, uint32_t *lens, uint32_t max, int64_t timeout_ns);

#endif
