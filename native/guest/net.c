/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.c - the node's interface, over netlink.
 *
 * It is known by its MAC, may appear at any time, and again when its driver is loaded anew: whenever
 * a link with that MAC comes up that is not set up yet, it is.
 */
#include "guest.h"
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LATE_MS 4000u
#define DECIMAL 10
#define HEX 16

/* ----------------------------------------------------------------------------------- messages */

struct request {
    struct nlmsghdr head;
    union {
        struct ifinfomsg link;
        struct ifaddrmsg address;
    } u;
    char attributes[256];
};

static void begin(struct request *r, unsigned type, unsigned flags, size_t body)
{
    memset(r, 0, sizeof(*r));
    r->head.nlmsg_len = (uint32_t)NLMSG_LENGTH(body);
    r->head.nlmsg_type = (uint16_t)type;
    r->head.nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags);
    r->head.nlmsg_seq = 1;
}

static void add(struct request *r, unsigned type, const void *data, size_t bytes)
{
    struct rtattr a = {.rta_len = (uint16_t)RTA_LENGTH(bytes), .rta_type = (uint16_t)type};
    size_t at = NLMSG_ALIGN(r->head.nlmsg_len);

    if (at + RTA_SPACE(bytes) > sizeof(*r))
        return; /* ours are all shorter */
    memcpy((char *)r + at, &a, sizeof(a));
    memcpy((char *)r + at + RTA_LENGTH(0), data, bytes);
    r->head.nlmsg_len = (uint32_t)(at + RTA_SPACE(bytes));
}

static int open_socket(unsigned groups, int flags)
{
    struct sockaddr_nl self = {.nl_family = AF_NETLINK, .nl_groups = groups};
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | flags, NETLINK_ROUTE);

    if (fd >= 0 && bind(fd, (struct sockaddr *)&self, sizeof(self)) < 0)
        guest_close(&fd);
    return fd;
}

/* Send a request and wait for its acknowledgement. Return: 0 or -errno. */
static int ask(struct request *r)
{
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[512];
    } answer;
    int fd = open_socket(0, 0), err = -errno;

    if (fd < 0)
        return err;
    r->head.nlmsg_flags |= NLM_F_ACK;
    if (send(fd, r, r->head.nlmsg_len, 0) < 0 || recv(fd, &answer, sizeof(answer), 0) < 0)
        err = -errno;
    else
        err = answer.head.nlmsg_type == NLMSG_ERROR ? answer.error.error : -EPROTO;
    close(fd);
    return err;
}

static int bring_up(int index)
{
    struct request r;

    begin(&r, RTM_NEWLINK, 0, sizeof(r.u.link));
    r.u.link.ifi_index = index;
    r.u.link.ifi_flags = IFF_UP;
    r.u.link.ifi_change = IFF_UP;
    return ask(&r);
}

int net_loopback(void)
{
    return bring_up(1);
}

/* ------------------------------------------------------------------------------- the interface */

static int set_link(const struct net *net, int index)
{
    struct request r;

    begin(&r, RTM_NEWLINK, 0, sizeof(r.u.link));
    r.u.link.ifi_index = index;
    add(&r, IFLA_IFNAME, net->name, strlen(net->name) + 1);
    add(&r, IFLA_MTU, &net->mtu, sizeof(net->mtu));
    add(&r, IFLA_TXQLEN, &net->queue, sizeof(net->queue));
    return ask(&r);
}

/* text: with a prefix length. IPv6 without duplicate address detection: usable at once. */
static int add_address(int index, const char *text)
{
    const uint32_t no_dad = IFA_F_NODAD;
    char host[INET6_ADDRSTRLEN];
    const char *slash = strchr(text, '/');
    struct request r;
    uint32_t v4;
    uint8_t v6[16];
    bool six = strchr(text, ':') != NULL;
    unsigned prefix;

    if (!slash || (size_t)(slash - text) >= sizeof(host))
        return -EINVAL;
    memcpy(host, text, (size_t)(slash - text));
    host[slash - text] = '\0';
    prefix = (unsigned)strtoul(slash + 1, NULL, DECIMAL);
    if (inet_pton(six ? AF_INET6 : AF_INET, host, six ? (void *)v6 : (void *)&v4) != 1)
        return -EINVAL;
    begin(&r, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, sizeof(r.u.address));
    r.u.address.ifa_family = six ? AF_INET6 : AF_INET;
    r.u.address.ifa_prefixlen = (uint8_t)prefix;
    r.u.address.ifa_index = (unsigned)index;
    if (six) {
        add(&r, IFA_LOCAL, v6, sizeof(v6));
        add(&r, IFA_FLAGS, &no_dad, sizeof(no_dad));
        return ask(&r);
    }
    add(&r, IFA_LOCAL, &v4, sizeof(v4));
    add(&r, IFA_ADDRESS, &v4, sizeof(v4));
    if (prefix < 31) {
        v4 |= htonl(prefix ? UINT32_MAX >> prefix : UINT32_MAX);
        add(&r, IFA_BROADCAST, &v4, sizeof(v4));
    }
    return ask(&r);
}

static void configure(struct guest *g, int index)
{
    struct net *net = &g->net;
    int err = set_link(net, index);
    bool ok = !err;

    net->index = index;
    net->ready = false;
    if (err)
        guest_say(g, "%s: cannot set its name and MTU %u: %s", net->name, (unsigned)net->mtu,
                  strerror(-err));
    for (unsigned i = 0; i < net->addresses_n && ok; i++) {
        err = add_address(index, net->addresses[i]);
        ok = !err;
        if (err)
            guest_say(g, "%s: cannot add the address %s: %s", net->name, net->addresses[i],
                      strerror(-err));
    }
    err = bring_up(index);
    if (err)
        guest_say(g, "%s: cannot bring it up: %s", net->name, strerror(-err));
    net->ready = ok && !err;
}

/* One message of the kernel's about a link. */
static void on_link(struct guest *g, struct nlmsghdr *head)
{
    struct net *net = &g->net;
    const struct ifinfomsg *link = NLMSG_DATA(head);
    size_t left = head->nlmsg_len;
    struct rtattr *a;

    if (left < NLMSG_LENGTH(sizeof(*link)))
        return;
    if (head->nlmsg_type == RTM_DELLINK && link->ifi_index == net->index)
        net->index = 0;
    if (head->nlmsg_type != RTM_NEWLINK || link->ifi_index == net->index)
        return;
    left -= NLMSG_LENGTH(sizeof(*link));
    a = IFLA_RTA(NLMSG_DATA(head));
    for (; RTA_OK(a, left); a = RTA_NEXT(a, left))
        if (a->rta_type == IFLA_ADDRESS && RTA_PAYLOAD(a) == NET_MAC_BYTES &&
            memcmp(RTA_DATA(a), net->mac, NET_MAC_BYTES) == 0) {
            configure(g, link->ifi_index);
            return;
        }
}

/* Ask for all links there are; the answers come like news. */
static void look(const struct net *net)
{
    struct request r;

    begin(&r, RTM_GETLINK, NLM_F_DUMP, sizeof(r.u.link));
    send(net->events, &r, r.head.nlmsg_len, 0);
}

static bool receive(struct guest *g)
{
    struct net *net = &g->net;
    static union {
        struct nlmsghdr align;
        char bytes[32768];
    } buf;
    ssize_t n = recv(net->events, buf.bytes, sizeof(buf.bytes), 0);
    size_t left;
    struct nlmsghdr *head;

    if (n < 0 && errno == ENOBUFS)
        look(net); /* news were lost */
    if (n <= 0)
        return false;
    left = (size_t)n;
    for (head = (struct nlmsghdr *)(void *)buf.bytes; NLMSG_OK(head, left);
         head = NLMSG_NEXT(head, left))
        on_link(g, head);
    return true;
}

static bool parse_mac(const char *text, uint8_t mac[NET_MAC_BYTES])
{
    for (unsigned i = 0; i < NET_MAC_BYTES; i++) {
        char *end;

        mac[i] = (uint8_t)strtoul(text, &end, HEX);
        if (end != text + 2 || *end != (i == NET_MAC_BYTES - 1 ? '\0' : ':'))
            return false;
        text = end + 1;
    }
    return true;
}

int net_interface(struct net *net, char *const *args, unsigned n)
{
    if (!parse_mac(args[0], net->mac) || strlen(args[1]) >= sizeof(net->name) ||
        n > 4 + NET_ADDRESSES)
        return -EINVAL;
    snprintf(net->name, sizeof(net->name), "%s", args[1]);
    net->mtu = (uint32_t)strtoul(args[2], NULL, DECIMAL);
    net->queue = (uint32_t)strtoul(args[3], NULL, DECIMAL);
    for (unsigned i = 4; i < n; i++)
        snprintf(net->addresses[net->addresses_n++], sizeof(net->addresses[0]), "%s", args[i]);
    net->events = open_socket(RTMGRP_LINK, SOCK_NONBLOCK);
    if (net->events < 0)
        return -errno;
    net->wanted = true;
    net->since = guest_now();
    look(net);
    return 0;
}

bool net_ready(const struct net *net)
{
    return !net->wanted || net->ready;
}

void net_watch(struct net *net, struct watch *w)
{
    net->entry = watch_fd(w, net->events, POLLIN);
    if (net->wanted && !net->index && !net->said)
        watch_until(w, net->since + LATE_MS);
}

void net_serve(struct guest *g, const struct watch *w)
{
    struct net *net = &g->net;

    if (watch_got(w, net->entry))
        while (receive(g))
            ;
    if (net->wanted && !net->index && !net->said && guest_now() >= net->since + LATE_MS) {
        net->said = true;
        guest_say(g, "%s: no interface with MAC %02x:%02x:%02x:%02x:%02x:%02x has appeared",
                  net->name, net->mac[0], net->mac[1], net->mac[2], net->mac[3], net->mac[4],
                  net->mac[5]);
    }
}
