/* Looks the names of routers up again and again, without holding the loop. */
#include "common/worker/router_lookup.h"

#include <arpa/inet.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <event2/util.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "common/base/assert.h"

/* One name's; outlives `lookup` where the resolver still has it. */
struct question {
    struct bt_router_lookup *lookup; /* NULL: given up */
    struct evdns_base *dns;          /* its own, so that the files are read anew */
    uint32_t name;
};

struct bt_router_lookup {
    struct event_base *base;
    struct bt_router_lookup_user user;
    struct question *questions[BT_MAX_ROUTERS]; /* under way; NULL: none */
    struct evdns_base *done[BT_MAX_ROUTERS];    /* answered, not yet freed: it was on the stack */
};

bt_status bt_router_lookup_create(struct event_base *base, const struct bt_router_lookup_user *user,
                                  struct bt_router_lookup **out, struct bt_error *err) {
    struct bt_router_lookup *lookup = calloc(1, sizeof *lookup);
    if (!lookup)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory to look routers up");
    lookup->base = base;
    lookup->user = *user;
    *out = lookup;
    return BT_OK;
}

void bt_router_lookup_destroy(struct bt_router_lookup *lookup) {
    if (!lookup)
        return;
    for (uint32_t i = 0; i < BT_MAX_ROUTERS; i++) {
        struct question *question = lookup->questions[i];
        if (lookup->done[i])
            evdns_base_free(lookup->done[i], 0);
        if (question) {
            question->lookup = NULL;
            evdns_base_free(question->dns, 1); /* its answer is "cancelled" */
        }
    }
    free(lookup);
}

static int compare(const void *a, const void *b) {
    return strcmp(a, b);
}

/* The addresses of one family, in order, each once. */
static uint32_t collect(const struct evutil_addrinfo *list, int family,
                        char hosts[BT_LOOKUP_ADDRESSES][BT_ADDRESS_BYTES]) {
    uint32_t n = 0, n_kept = 0;
    for (; list && n < BT_LOOKUP_ADDRESSES; list = list->ai_next) {
        if (list->ai_family != family)
            continue;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
        memset(hosts[n], 0, BT_ADDRESS_BYTES);
        if (family == AF_INET) {
            memcpy(&v4, list->ai_addr, sizeof v4);
            inet_ntop(family, &v4.sin_addr, hosts[n], BT_ADDRESS_BYTES);
        } else {
            memcpy(&v6, list->ai_addr, sizeof v6);
            inet_ntop(family, &v6.sin6_addr, hosts[n], BT_ADDRESS_BYTES);
        }
        n++;
    }
    qsort(hosts, n, BT_ADDRESS_BYTES, compare);
    for (uint32_t i = 0; i < n; i++)
        if (n_kept == 0 || strcmp(hosts[n_kept - 1], hosts[i])) {
            if (n_kept != i)
                memcpy(hosts[n_kept], hosts[i], BT_ADDRESS_BYTES);
            n_kept++;
        }
    return n_kept;
}

static void on_answer(int result, struct evutil_addrinfo *list, void *arg) {
    struct question *question = arg;
    struct bt_router_lookup *lookup = question->lookup;
    uint32_t name = question->name;
    if (lookup) {
        char hosts[BT_LOOKUP_ADDRESSES][BT_ADDRESS_BYTES];
        lookup->questions[name] = NULL;
        lookup->done[name] = question->dns;
        uint32_t n = result ? 0 : collect(list, AF_INET, hosts);
        if (!result && !n)
            n = collect(list, AF_INET6, hosts);
        if (n)
            lookup->user.found(lookup->user.arg, name, (const char(*)[BT_ADDRESS_BYTES])hosts, n);
        else
            lookup->user.failed(lookup->user.arg, name,
                                result ? evutil_gai_strerror(result) : "it has no address");
    }
    free(question);
    if (list)
        evutil_freeaddrinfo(list);
}

void bt_router_lookup_start(struct bt_router_lookup *lookup, uint32_t name, const char *host) {
    BT_ASSERT(name < BT_MAX_ROUTERS);
    if (lookup->questions[name])
        return;
    if (lookup->done[name])
        evdns_base_free(lookup->done[name], 0);
    lookup->done[name] = NULL;
    struct question *question = calloc(1, sizeof *question);
    struct evdns_base *dns =
        question ? evdns_base_new(lookup->base, EVDNS_BASE_INITIALIZE_NAMESERVERS |
                                                    EVDNS_BASE_DISABLE_WHEN_INACTIVE)
                 : NULL;
    if (!dns) {
        free(question);
        lookup->user.failed(lookup->user.arg, name, "no resolver");
        return;
    }
    *question = (struct question){.lookup = lookup, .dns = dns, .name = name};
    lookup->questions[name] = question;
    const struct evutil_addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
    evdns_getaddrinfo(dns, host, NULL, &hints, on_answer, question); /* it may have answered */
}
