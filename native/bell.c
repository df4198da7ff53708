/* SPDX-License-Identifier: Apache-2.0 */
/* bell.c - see bell.h. */
#include "bell.h"
#include <errno.h>
#include <sys/socket.h>

void mint_bell_ring(int fd)
{
    (void)send(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

bool mint_bell_drain(int fd)
{
    char sink[512];
    ssize_t n = recv(fd, sink, sizeof(sink), MSG_DONTWAIT);

    /* One read is enough: what is left, if a peer rang more often, wakes us once more. */
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}
