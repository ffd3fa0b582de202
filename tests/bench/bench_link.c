/* Measures a KV link over loopback: the cache of a 1,500-token prompt from one process to another.
 *
 *   bench_link [ROUNDS] [tls]   prints one JSON line, GB/s (1e9 bytes) of payload; under TLS 1.3
 *
 * SmolLM2's shape: 30 layers, 94 pages of 12,288 bytes: 35 MB. Each sample is the time from the
 * first frame to the receiver's word that all of it is in its pages and every sum was compared;
 * sums of the sender are made before, as the engine does. Sender and receiver have one thread each.
 */
#include <event2/event.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

#include "common/base/assert.h"
#include "common/kv/kv_link.h"
#include "tests/unit/certs.h"

enum { LAYERS = 30, PAGES = 94, PAGE_BYTES = 12288, ROUNDS_MAX = 1000 };

struct side {
    struct event_base *base;
    const struct bt_kv_link_ops *ops;
    struct bt_kv_links *links;
    uint8_t *memory;
    uint64_t *sums; /* [layer][page] */
    uint32_t n_rounds, round;
    uint32_t link, layer, first_page; /* P: the next frame */
    uint64_t n_landed, n_bad;         /* D */
    struct timespec start;
    double gb_per_s[ROUNDS_MAX];
};

static uint8_t *on_page(void *arg, uint32_t layer, uint32_t page) {
    return ((struct side *)arg)->memory + ((size_t)layer * PAGES + page) * PAGE_BYTES;
}

static void begin_round(struct side *side) {
    side->layer = side->first_page = 0;
    clock_gettime(CLOCK_MONOTONIC, &side->start);
    side->ops->pump(side->links, side->link);
}

static void on_up(void *arg, uint32_t link, struct bt_id peer) {
    struct side *side = arg;
    (void)peer;
    side->link = link;
    side->layer = LAYERS;
    if (side->sums)
        begin_round(side);
}

static void on_down(void *arg, uint32_t link, const char *why) {
    struct side *side = arg;
    (void)link;
    if (side->round < side->n_rounds)
        fprintf(stderr, "bench_link: the link went down: %s\n", why);
    event_base_loopbreak(side->base);
}

/* P: the round is over. */
static void on_message(void *arg, uint32_t link, const struct bt_kv_msg *msg) {
    struct side *side = arg;
    struct timespec now;
    (void)link, (void)msg;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double s = (double)(now.tv_sec - side->start.tv_sec) +
               1e-9 * (double)(now.tv_nsec - side->start.tv_nsec);
    side->gb_per_s[side->round++] = 1e-9 * LAYERS * PAGES * PAGE_BYTES / s;
    if (side->round == side->n_rounds)
        event_base_loopbreak(side->base);
    else
        begin_round(side);
}

static bool on_next_frame(void *arg, uint32_t link, struct bt_kv_outgoing *out) {
    struct side *side = arg;
    uint32_t n = BT_KV_FRAME_BYTES / PAGE_BYTES, left = PAGES - side->first_page;
    (void)link;
    if (side->layer == LAYERS)
        return false;
    n = n < left ? n : left;
    out->id = 0;
    out->frame = (struct bt_kv_frame){.generation = 1,
                                      .layer = side->layer,
                                      .first_page = side->first_page,
                                      .n_pages = n,
                                      .length = n * PAGE_BYTES};
    for (uint32_t i = 0; i < n; i++) {
        out->pages[i] = side->first_page + i;
        out->sums[i] = side->sums[side->layer * PAGES + side->first_page + i];
    }
    side->first_page += n;
    if (side->first_page == PAGES) {
        side->first_page = 0;
        side->layer++;
    }
    return true;
}

static void on_frame_done(void *arg, uint32_t link, uint32_t id) {
    (void)arg, (void)link, (void)id;
}

static bt_status on_frame(void *arg, uint32_t link, const struct bt_kv_frame *frame,
                          struct bt_kv_landing *out, struct bt_error *err) {
    (void)arg, (void)link, (void)err;
    out->lease = frame->lease;
    out->frame = *frame;
    for (uint32_t i = 0; i < frame->n_pages; i++)
        out->pages[i] = frame->first_page + i;
    return BT_OK;
}

static void on_frame_end(void *arg, uint32_t link, const struct bt_kv_landing *landing, bool whole,
                         const uint64_t *carried, const uint64_t *computed) {
    struct side *side = arg;
    for (uint32_t i = 0; whole && i < landing->frame.n_pages; i++)
        side->n_bad += carried[i] != computed[i];
    side->n_landed += landing->frame.n_pages;
    if (side->n_landed % (LAYERS * PAGES))
        return;
    BT_ASSERT(!side->n_bad);
    struct bt_kv_msg done = {.type = BT_KV_COMMITTED, .ticket = {1, 1}};
    side->ops->send(side->links, link, &done);
}

static void on_turn(void *arg) {
    (void)arg;
}

static void side_open(struct side *side, bool prefill, struct bt_tls *tls) {
    struct bt_error err;
    side->base = event_base_new();
    side->ops = bt_kv_link_find("tcp");
    side->memory = malloc((size_t)LAYERS * PAGES * PAGE_BYTES);
    BT_ASSERT(side->base && side->ops && side->memory);
    memset(side->memory, prefill ? 5 : 0, (size_t)LAYERS * PAGES * PAGE_BYTES);
    struct bt_kv_links_config config = {
        .base = side->base,
        .user = {.arg = side,
                 .up = on_up,
                 .down = on_down,
                 .message = on_message,
                 .frame = on_frame,
                 .frame_end = on_frame_end,
                 .next_frame = on_next_frame,
                 .frame_done = on_frame_done,
                 .page = on_page,
                 .turn = on_turn},
        .prefill = prefill,
        .name = "bench",
        .incarnation = {1, prefill ? 1 : 2},
        .fingerprint = {1, LAYERS, 3, 64, BT_PAGE_TOKENS, BT_KV_BF16, BT_KV_BF16,
                        BT_KV_INNER_ORDER_CPU, BT_PROFILE_FAST, BT_NUMERICS_CONTRACT},
        .n_layers = LAYERS,
        .page_bytes = PAGE_BYTES,
        .listen = "127.0.0.1:0",
        .tls = tls,
    };
    if (side->ops->create(&config, &side->links, &err) != BT_OK) {
        fprintf(stderr, "bench_link: %s\n", err.text);
        exit(1);
    }
}

static void side_close(struct side *side) {
    side->ops->destroy(side->links);
    event_base_free(side->base);
    free(side->memory);
    free(side->sums);
}

/* The receiver, in a process of its own: says its address on fd and serves until its parent ends.
 */
static void receive(int fd, struct bt_tls *tls) {
    static struct side side;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    side_open(&side, false, tls);
    const char *address = side.ops->address(side.links);
    BT_ASSERT(write(fd, address, strlen(address) + 1) > 0);
    event_base_dispatch(side.base);
    side_close(&side);
    exit(0);
}

int main(int argc, char **argv) {
    static struct side side;
    int fds[2];
    char address[BT_ADDRESS_BYTES] = "";
    struct bt_error err;
    int n_rounds = argc > 1 ? atoi(argv[1]) : 20;
    if (n_rounds < 1 || n_rounds > ROUNDS_MAX) {
        fprintf(stderr, "bench_link: %d rounds, must be 1 to %d\n", n_rounds, ROUNDS_MAX);
        return 2;
    }
    struct bt_tls *p_tls = NULL, *d_tls = NULL;
    bool has_tls = argc > 2 && !strcmp(argv[2], "tls");
    if (has_tls) {
        struct certs certs;
        certs_open(&certs);
        certs_issue_roles(&certs);
        p_tls = certs_tls(&certs, "prefill", NULL, BT_TLS_PREFILL);
        d_tls = certs_tls(&certs, "decode", NULL, BT_TLS_DECODE);
        certs_close(&certs);
    }
    BT_ASSERT(!pipe(fds));
    pid_t child = fork();
    BT_ASSERT(child >= 0);
    if (!child)
        receive(fds[1], d_tls);
    BT_ASSERT(read(fds[0], address, sizeof address - 1) > 0);
    side.n_rounds = (uint32_t)n_rounds + 1; /* the first one warms up and does not count */
    BT_ASSERT(side.n_rounds <= ROUNDS_MAX);
    side_open(&side, true, p_tls);
    side.sums = calloc((size_t)LAYERS * PAGES, sizeof *side.sums);
    BT_ASSERT(side.sums);
    for (uint32_t i = 0; i < LAYERS * PAGES; i++)
        side.sums[i] = XXH3_64bits(side.memory + (size_t)i * PAGE_BYTES, PAGE_BYTES);
    if (side.ops->dial(side.links, 0, address, (struct bt_id){1, 2}, &err) != BT_OK) {
        fprintf(stderr, "bench_link: %s\n", err.text);
        return 1;
    }
    event_base_dispatch(side.base);
    bool ok = side.round == side.n_rounds;
    if (ok) {
        printf("{\"row\": \"link_tcp%s\", \"engine\": \"baton\", \"threads\": 1, \"unit\": "
               "\"GB/s\", \"samples\": [",
               has_tls ? "_tls" : "");
        for (uint32_t i = 1; i < side.n_rounds; i++)
            printf("%s%.3f", i > 1 ? ", " : "", side.gb_per_s[i]);
        printf("]}\n");
    }
    side_close(&side);
    bt_tls_destroy(p_tls);
    bt_tls_destroy(d_tls);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return ok ? 0 : 1;
}
