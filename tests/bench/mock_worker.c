/* A prefill and a decode worker that cost nothing: attach to a router and send tokens at a fixed
 * pace, without a model.
 *
 *   mock_worker --router HOST:PORT --model FILE [--role both|prefill|decode] [--name NAME]
 *               [--interval-us N] [--max-context N] [--max-seqs N] [--vocab N]
 *               [--full] [--hold] [--stop-after N] [--by-index] [--gather N]
 *
 * Token 0 is sent at Prefill, the others one per step of a clock that ticks at multiples of the
 * interval. Each token's id tells when it was sent: 100 + (monotonic time / 100 us) % (vocab -
 * 100).
 * With --by-index it is 100 + index % (vocab - 100) instead: the same text every time.
 * --full refuses every Reserve; --hold takes work and sends nothing; --stop-after ends the process
 * after so many tokens; --gather takes no step before so many sequences are there at once. The
 * model file gives the text hash that the router compares. */
#include <getopt.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <sys/random.h>

#include "common/base/log.h"
#include "common/rpc/rpc.h"
#include "common/rpc/rpc_client.h"
#include "common/text/text_model.h"

enum { ROWS = 8192, FIRST_ID = 100, SLOT_P = 0, SLOT_D = 1, PAGES = 1 << 20, REDIAL_MS = 100 };

struct job {
    struct bt_attempt key;
    uint32_t next, end; /* index of the next token and of the one after the last */
    uint32_t n_prompt;
    bool want_hash;
};

struct mock {
    const char *router, *name;
    bool role[2]; /* by slot: prefill, decode */
    bool open[2];
    uint64_t dial_at_us[2];
    uint64_t interval_us, stop_after, n_sent;
    uint32_t vocab, max_context, max_seqs;
    size_t gather; /* steps begin with so many sequences; 0: they have begun */
    bool full, hold, by_index;
    uint64_t text_hash;
    struct bt_id incarnation[2];
    struct bt_rpc_client *client;
    struct bt_rpc_streams *streams;
    struct job *jobs; /* D's */
    size_t n_jobs, capacity;
    struct bt_token rows[ROWS];
};

static volatile sig_atomic_t stopping;

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int32_t token_id(const struct mock *m, uint32_t index) {
    uint64_t number = m->by_index ? index : now_us() / 100;
    return FIRST_ID + (int32_t)(number % (m->vocab - FIRST_ID));
}

static void say(struct mock *m, uint32_t slot, const struct bt_msg *msg) {
    struct bt_error err;
    bt_status status = bt_rpc_send(m->streams, slot, msg, &err);
    if (status < 0 && status != BT_E_PEER_GONE) {
        fprintf(stderr, "mock_worker: %s\n", err.text);
        exit(1);
    }
}

static struct bt_census census(void) {
    return (struct bt_census){.total = PAGES, .free = PAGES};
}

static void join(struct mock *m, uint32_t slot) {
    struct bt_msg msg = {.type = BT_MSG_JOIN};
    struct bt_msg_join *join = &msg.join;
    snprintf(join->name, sizeof join->name, "%s-%s", m->name,
             slot == SLOT_P ? "prefill" : "decode");
    join->incarnation = m->incarnation[slot];
    join->role = slot == SLOT_P ? BT_ROLE_PREFILL : BT_ROLE_DECODE;
    join->protocol_min = BT_PROTOCOL_MIN;
    join->protocol_max = BT_PROTOCOL_MAX;
    join->fingerprint = (struct bt_fingerprint){.model_hash = 1,
                                                .n_layers = 2,
                                                .n_kv_heads = 2,
                                                .head_dim = 32,
                                                .page_tokens = BT_PAGE_TOKENS,
                                                .kv_type = BT_KV_BF16,
                                                .wire_type = BT_KV_BF16,
                                                .inner_order = BT_KV_INNER_ORDER_CPU,
                                                .profile = BT_PROFILE_FAST,
                                                .contract = BT_NUMERICS_CONTRACT};
    join->text_hash = m->text_hash;
    if (slot == SLOT_D)
        snprintf(join->link_address, sizeof join->link_address, "127.0.0.1:9");
    join->max_context = m->max_context;
    join->max_seqs = m->max_seqs;
    join->census = census();
    say(m, slot, &msg);
}

static void send_status(struct mock *m, uint32_t slot) {
    struct bt_msg msg = {.type = BT_MSG_STATUS,
                         .status = {.census = census(),
                                    .running = slot == SLOT_D ? (uint32_t)m->n_jobs : 0,
                                    .step_us = (uint32_t)m->interval_us,
                                    .links = 1}};
    say(m, slot, &msg);
}

static void send_end(struct mock *m, uint32_t slot, struct bt_attempt key, enum bt_end reason,
                     uint32_t next, uint32_t n_prompt) {
    struct bt_msg msg = {
        .type = BT_MSG_ENDED,
        .ended = {.key = key,
                  .reason = reason,
                  .next_index = next,
                  .stages = {.prefill_us = slot == SLOT_P, .decode_us = slot == SLOT_D},
                  .pages = (n_prompt + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS}};
    say(m, slot, &msg);
}

static void add_row(struct mock *m, struct bt_token *row, struct bt_attempt key, uint32_t index,
                    uint32_t end, bool want_hash) {
    *row = (struct bt_token){.key = key,
                             .index = index,
                             .token = token_id(m, index),
                             .finish = index + 1 == end ? BT_FINISH_LENGTH : BT_FINISH_NONE,
                             .hash = want_hash ? index + 1 : 0};
    if (++m->n_sent == m->stop_after)
        exit(0);
}

static void on_prefill(struct mock *m, const struct bt_msg_work *work) {
    uint32_t index = work->n_tokens - work->n_prompt;
    if (m->hold || m->full)
        return; /* the decode worker grants nothing */
    struct bt_token row;
    add_row(m, &row, work->key, index, work->sampling.max_tokens, work->sampling.want_hash);
    struct bt_msg msg = {.type = BT_MSG_TOKENS, .tokens = {&row, 1}};
    say(m, SLOT_P, &msg);
    send_end(m, SLOT_P, work->key, BT_END_HANDED, index + 1, work->n_prompt);
}

static void on_reserve(struct mock *m, const struct bt_msg_work *work) {
    struct bt_msg msg = {
        .type = BT_MSG_RESERVED,
        .reserved = {.key = work->key,
                     .accepted = !m->full,
                     .pages = (work->n_tokens + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS,
                     .reason = m->full ? BT_END_FULL : (enum bt_end)0}};
    say(m, SLOT_D, &msg);
    if (m->full)
        return;
    if (m->n_jobs == m->capacity) {
        m->capacity = m->capacity ? 2 * m->capacity : 64;
        m->jobs = realloc(m->jobs, m->capacity * sizeof *m->jobs);
        if (!m->jobs)
            exit(1);
    }
    m->jobs[m->n_jobs++] =
        (struct job){work->key, work->n_tokens - work->n_prompt, work->sampling.max_tokens,
                     work->n_prompt, work->sampling.want_hash};
}

static void forget(struct mock *m, uint32_t slot, struct bt_attempt key) {
    for (size_t i = 0; slot == SLOT_D && i < m->n_jobs; i++) {
        if (m->jobs[i].key.request != key.request || m->jobs[i].key.attempt != key.attempt)
            continue;
        send_end(m, slot, key, BT_END_DONE, m->jobs[i].next, m->jobs[i].n_prompt);
        m->jobs[i] = m->jobs[--m->n_jobs];
        return;
    }
    send_end(m, slot, key, BT_END_UNKNOWN, 0, 0);
}

static void on_message(struct mock *m, uint32_t slot, const struct bt_msg *msg) {
    switch (msg->type) {
    case BT_MSG_PREFILL:
        on_prefill(m, &msg->work);
        break;
    case BT_MSG_RESERVE:
        on_reserve(m, &msg->work);
        break;
    case BT_MSG_CANCEL:
        forget(m, slot, msg->cancel.key);
        break;
    case BT_MSG_PGONE:
        forget(m, slot, msg->pgone.key);
        break;
    case BT_MSG_RESUME:
        for (uint32_t i = 0; i < msg->resume.n_rows; i++)
            forget(m, slot, msg->resume.rows[i].key);
        break;
    case BT_MSG_REFUSED:
        fprintf(stderr, "mock_worker: refused: %s\n", msg->refused.reason);
        exit(1);
    default:
        break;
    }
}

/* One token for every sequence. */
static void step(struct mock *m) {
    size_t n = 0;
    struct bt_msg msg = {.type = BT_MSG_TOKENS};
    if (m->n_jobs < m->gather)
        return;
    m->gather = 0;
    for (size_t i = 0; i < m->n_jobs && !m->hold; i++) {
        struct job *job = &m->jobs[i];
        add_row(m, &m->rows[n++], job->key, job->next, job->end, job->want_hash);
        job->next++;
        if (n == ROWS || i + 1 == m->n_jobs) {
            msg.tokens = (struct bt_msg_tokens){m->rows, (uint32_t)n};
            say(m, SLOT_D, &msg);
            n = 0;
        }
    }
    for (size_t i = m->hold ? 0 : m->n_jobs; i-- > 0;) {
        struct job *job = &m->jobs[i];
        if (job->next < job->end)
            continue;
        send_end(m, SLOT_D, job->key, BT_END_DONE, job->next, job->n_prompt);
        m->jobs[i] = m->jobs[--m->n_jobs];
    }
}

static void take_events(struct mock *m) {
    struct bt_rpc_event event;
    while (bt_rpc_next(m->streams, &event)) {
        if (event.type == BT_RPC_OPENED) {
            m->open[event.slot] = true;
            join(m, event.slot);
        } else if (event.type == BT_RPC_MESSAGE) {
            on_message(m, event.slot, event.msg);
        } else if (event.type == BT_RPC_CLOSED) {
            m->open[event.slot] = false;
            m->dial_at_us[event.slot] = now_us() + REDIAL_MS * 1000;
            if (event.slot == SLOT_D)
                m->n_jobs = 0;
        }
    }
}

static void dial_due(struct mock *m, uint64_t now) {
    for (uint32_t slot = 0; slot < 2; slot++) {
        struct bt_error err;
        if (!m->role[slot] || m->open[slot] || now < m->dial_at_us[slot])
            continue;
        m->dial_at_us[slot] = UINT64_MAX;
        if (bt_rpc_client_dial(m->client, slot, m->router, 0, &err) != BT_OK) {
            fprintf(stderr, "mock_worker: %s\n", err.text);
            exit(1);
        }
    }
}

static void run(struct mock *m) {
    uint64_t beat_at = 0, step_at = (now_us() / m->interval_us + 1) * m->interval_us;
    while (!stopping) {
        uint64_t now = now_us();
        dial_due(m, now);
        if (now >= beat_at) {
            for (uint32_t slot = 0; slot < 2; slot++)
                if (m->open[slot])
                    send_status(m, slot);
            beat_at = now + BT_HEARTBEAT_MS * 1000;
        }
        if (now >= step_at) {
            step(m);
            step_at = (now / m->interval_us + 1) * m->interval_us;
        }
        bt_rpc_flush(m->streams);
        uint64_t until = m->n_jobs && !m->hold && step_at < beat_at ? step_at : beat_at;
        for (uint32_t slot = 0; slot < 2; slot++)
            if (m->role[slot] && !m->open[slot] && m->dial_at_us[slot] < until)
                until = m->dial_at_us[slot];
        now = now_us();
        uint64_t wait_us = until > now ? until - now : 0;
        struct timespec wait = {(time_t)(wait_us / 1000000), (long)(wait_us % 1000000 * 1000)};
        struct pollfd fd = {.fd = bt_rpc_fd(m->streams), .events = POLLIN};
        ppoll(&fd, 1, &wait, NULL);
        take_events(m);
        bt_rpc_flush(m->streams);
    }
}

static void usage(void) {
    fprintf(stderr,
            "usage: mock_worker --router HOST:PORT --model FILE [--role both|prefill|decode] "
            "[--name NAME] [--interval-us N]\n"
            "       [--max-context N] [--max-seqs N] [--vocab N] [--full] [--hold] "
            "[--stop-after N] [--by-index] [--gather N]\n");
    exit(2);
}

static void parse(struct mock *m, const char **model, int argc, char **argv) {
    static const struct option options[] = {
        {"router", 1, NULL, 'r'},      {"model", 1, NULL, 'm'},
        {"role", 1, NULL, 'o'},        {"name", 1, NULL, 'n'},
        {"interval-us", 1, NULL, 'i'}, {"max-context", 1, NULL, 'c'},
        {"max-seqs", 1, NULL, 's'},    {"vocab", 1, NULL, 'v'},
        {"full", 0, NULL, 'f'},        {"hold", 0, NULL, 'h'},
        {"stop-after", 1, NULL, 'a'},  {"by-index", 0, NULL, 'x'},
        {"gather", 1, NULL, 'g'},      {NULL, 0, NULL, 0},
    };
    const char *role = "both";
    for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (o == 'r')
            m->router = optarg;
        else if (o == 'm')
            *model = optarg;
        else if (o == 'o')
            role = optarg;
        else if (o == 'n')
            m->name = optarg;
        else if (o == 'i')
            m->interval_us = strtoull(optarg, NULL, 10);
        else if (o == 'c')
            m->max_context = (uint32_t)strtoul(optarg, NULL, 10);
        else if (o == 's')
            m->max_seqs = (uint32_t)strtoul(optarg, NULL, 10);
        else if (o == 'v')
            m->vocab = (uint32_t)strtoul(optarg, NULL, 10);
        else if (o == 'f')
            m->full = true;
        else if (o == 'h')
            m->hold = true;
        else if (o == 'x')
            m->by_index = true;
        else if (o == 'g')
            m->gather = strtoul(optarg, NULL, 10);
        else if (o == 'a')
            m->stop_after = strtoull(optarg, NULL, 10);
        else
            usage();
    }
    m->role[SLOT_P] = strcmp(role, "decode") != 0;
    m->role[SLOT_D] = strcmp(role, "prefill") != 0;
    if (!m->router || !*model || !m->interval_us || m->vocab <= FIRST_ID)
        usage();
}

int main(int argc, char **argv) {
    static struct mock mock = {.name = "mock",
                               .interval_us = 10000,
                               .vocab = 500,
                               .max_context = 8192,
                               .max_seqs = 1 << 16};
    struct mock *m = &mock;
    const char *model = NULL;
    struct bt_error err;
    struct bt_text_model text;
    parse(m, &model, argc, argv);
    bt_log_set_role("mock");
    bt_log_set_level(BT_LOG_WARN);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    if (bt_text_model_open(model, &text, &err) != BT_OK) {
        fprintf(stderr, "mock_worker: %s\n", err.text);
        return 2;
    }
    m->text_hash = text.text_hash;
    bt_text_model_close(&text);
    if (getrandom(m->incarnation, sizeof m->incarnation, 0) != (ssize_t)sizeof m->incarnation)
        return 1;
    bt_rpc_init();
    const struct bt_rpc_client_config config = {.max_streams = 2};
    if (bt_rpc_client_start(&config, &m->client, &err) != BT_OK) {
        fprintf(stderr, "mock_worker: %s\n", err.text);
        return 1;
    }
    m->streams = bt_rpc_client_streams(m->client);
    printf("ready: mock=%s\n", m->name);
    fflush(stdout);
    run(m);
    bt_rpc_client_stop(m->client);
    bt_rpc_fini();
    free(m->jobs);
    return 0;
}
