/* A cluster in one process under a simulated clock: the shipped cores of routers and workers, a
 * network that delays, reorders between channels, cuts and heals, and processes that die, pause and
 * come back. One seed is one schedule; it replays exactly.
 *
 * The model is a hash: the contents of a (layer, page) are a number made of the tokens before it,
 * and the next token is made of the contents of all pages that the sequence names. A byte of
 * another prompt, a lost page or a wrong position therefore gives another token than the oracle's.
 */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/kv/kv_msg.h"
#include "common/kv/kv_recv.h"
#include "common/kv/kv_send.h"
#include "common/rpc/registry_msg.h"
#include "decode_worker/decode_core.h"
#include "prefill_worker/prefill_core.h"
#include "router/core.h"

enum {
    SIM_ROUTERS = 2,
    SIM_PREFILLS = 2,
    SIM_DECODES = 3,
    SIM_NODES = SIM_ROUTERS + SIM_PREFILLS + SIM_DECODES,
    SIM_LAYERS = 2,
    SIM_VOCAB = 997,
    SIM_CONTEXT = 192,
    SIM_CALLS = 16,   /* of clients */
    SIM_CLIENTS = 32, /* requests: calls and their further choices */
    SIM_BIASES = 8,
    SIM_ROWS = 256, /* of one step */
    SIM_CONNS = 512,
    SIM_TICKETS = 64,
    SIM_ENDING = 512,
    SIM_CORRUPTION = 0x10,
    SIM_EOS_MOD = 29, /* tokens that are a multiple of it end a sequence */
};
#define SIM_S UINT64_C(1000000)

enum sim_role { SIM_ROUTER, SIM_PREFILL, SIM_DECODE };

/* Everything that can go wrong, and each must have been seen to (the "sometimes" table). */
enum sim_fault {
    SIM_KILL_ROUTER,
    SIM_KILL_PREFILL,
    SIM_KILL_DECODE,
    SIM_PAUSE,
    SIM_CUT_ATTACH,
    SIM_CUT_LINK,
    SIM_DRAIN,
    SIM_FLUSH,
    SIM_CANCEL,
    SIM_SHORT_DEADLINE,
    SIM_STOP_STRING,
    SIM_LIE_GENERATION,
    SIM_LIE_RANGE,
    SIM_LIE_DUPLICATE,
    SIM_LIE_COMMIT,
    SIM_LATE_HELLO,
    SIM_LIE_CHECKSUM,
    SIM_LIE_WITHDRAWN,
    SIM_LIVE_FIRST,
    SIM_CORRUPT,
    SIM_NONFINITE,
    SIM_POWER_LOSS, /* a process ends and nobody is told */
    SIM_SLOW_STEP,
    SIM_LATE_STOP, /* the text was matched when the request had gone on */
    SIM_SHORT_QUEUE,
    SIM_ROUTER_FULL,
    SIM_FOREIGN_TOKEN, /* a token that the workers' model does not have */
    SIM_SHORT_CUT,     /* of links, and nothing else in that seed */
    SIM_LATE_TOKENS,   /* of a worker that its router has given up */
    SIM_CUT_SCORES,    /* the stream ends while a prompt's logprobs are on it */
    SIM_FAULT_COUNT,
};
const char *sim_fault_name(enum sim_fault fault);

struct sim_random {
    uint64_t state;
};
uint64_t sim_mix(uint64_t a, uint64_t b);
uint64_t sim_next(struct sim_random *random);
/* 0 .. n - 1 */
uint32_t sim_below(struct sim_random *random, uint32_t n);
bool sim_chance(struct sim_random *random, uint32_t percent);

enum sim_event_type {
    SIM_ON_TICK,
    SIM_ON_ARRIVE,
    SIM_ON_CANCEL,
    SIM_ON_DIAL,
    SIM_ON_MESSAGE,
    SIM_ON_CLOSED,
    SIM_ON_LAYER,
    SIM_ON_STEP,
    SIM_ON_LINK_DIAL,
    SIM_ON_LINK_UP,
    SIM_ON_LINK_MESSAGE,
    SIM_ON_FRAME_READ,
    SIM_ON_FRAME,
    SIM_ON_LAND,
    SIM_ON_LAND_END, /* of a receive whose link is gone */
    SIM_ON_LINK_DOWN,
    SIM_ON_FAULT,
    SIM_ON_STOP,
    SIM_ON_RESTART,
};

struct sim_event {
    uint64_t at_us, order;
    enum sim_event_type type;
    int node;        /* whose event it is; -1: the world's */
    uint64_t born;   /* incarnation number of that node: the event dies with it */
    uint64_t serial; /* of connection a, where it is about one */
    uint32_t a, b;
    void *data; /* owned by the event */
};

/* An Attach stream or a KV link; end 0 is the worker's (the prefill worker's), end 1 the router's
 * (the decode worker's). */
struct sim_conn {
    bool used, is_link;
    uint64_t serial; /* the slot is used again */
    int node[2];
    uint64_t born[2];
    uint32_t slot[2]; /* of the core at that end */
    bool open[2];
    bool told[2];        /* that end has been told that it is open */
    uint64_t last_us[2]; /* when the last thing sent to that end arrives */
    uint64_t last_land_us;
    uint32_t n_reading; /* frames that the sender's link still reads */
    uint32_t n_landing;
    struct bt_kv_frame last_frame; /* for lies */
    bool has_frame;
    struct bt_id worker; /* incarnation of the worker on it */
    bool tampers;        /* the next commit on it is of another prompt */
};

/* A frame on its way. */
struct sim_frame {
    struct bt_kv_outgoing out;
    uint64_t contents[BT_KV_FRAME_PAGES];
    bool is_lie;
    bool is_forged; /* in the right place, and its sums are wrong */
    struct bt_kv_landing landing;
    bool is_dead; /* the receive has ended already */
    bool is_corrupt;
    bool reads; /* the sender's link reads its pages while this is on its way */
};

/* A ticket that a decode worker was shown by a router. */
struct sim_ticket {
    struct bt_id ticket;
    int node;
    uint64_t born, at_us;
};

struct sim_node {
    enum sim_role role;
    int index; /* among its role */
    char name[16];
    bool up;
    uint64_t born; /* incarnation number, from 1 */
    struct bt_id incarnation;
    uint64_t paused_until_us;
    bool draining;
    struct bt_router_core *router;
    struct bt_prefill_core *prefill;
    struct bt_decode_core *decode;
    int conn_of[SIM_ROUTERS]; /* workers: the stream to each router, -1: none */
    bool dialing[SIM_ROUTERS];
    uint64_t *contents;                  /* [SIM_LAYERS][n_pages] */
    uint64_t rows[SIM_LAYERS][SIM_ROWS]; /* of the step: its page's contents after each row */
    uint32_t n_pages;
    struct bt_step *step;
    uint64_t step_until_us;
    bool corrupting; /* while a frame is made whose memory has changed since it was filled */
};

struct sim_client {
    bool sent, ended, cancelled, stops, lost; /* lost: its router died */
    bool is_foreign;                          /* its prompt has a token that no worker knows */
    bool stops_late, stop_due; /* the stop comes after stop_at, when the request is in `aim` */
    bool aims_cancel;          /* the client goes when the request is in `aim` */
    int leader;                /* of a further choice: the client of the first one; else -1 */
    uint32_t choice;           /* 0 of the first one */
    uint64_t arrives_us, seed; /* the seed is known once the router has it */
    enum bt_request_state aim;
    int router;
    int32_t prompt[SIM_CONTEXT];
    uint32_t n_prompt;
    struct bt_sampling sampling;
    struct bt_logit_bias bias[SIM_BIASES];
    uint32_t n_scored; /* prompt tokens whose logprobs came */
    bool seed_given;
    uint32_t deadline_ms;
    uint64_t sent_us, ended_us;
    struct bt_request *req;
    int32_t tokens[SIM_CONTEXT + 1]; /* prompt and what came */
    uint32_t n_tokens;
    enum bt_finish finish;
    bt_status status;
    uint32_t stop_at; /* tokens after which a stop string matches */
    /* As they were at its end. */
    enum bt_placement placement;
    uint32_t attempts, pages_held;
};

struct sim_options {
    bool trace;
    bool audit; /* every core's is_valid after each event */
};

/* What all seeds together have reached. */
struct sim_coverage {
    uint64_t faults[SIM_FAULT_COUNT];
    uint64_t ends[BT_END_COUNT];
    uint64_t pairs_router[256], pairs_prefill[256], pairs_decode[256], pairs_send[256],
        pairs_recv[256];
    uint64_t n_requests, n_ok, n_cancelled, n_failed, n_refused, n_lost, n_tokens;
    uint64_t n_events, n_preempted, n_resumed, n_committed, n_pinned, n_choices, n_logprobs,
        n_scores;
};

struct sim {
    uint64_t seed, now_us, n_events;
    struct sim_random random;
    const struct sim_options *options;
    struct sim_event *heap;
    size_t n_heap, heap_capacity;
    uint64_t order, n_conns;
    struct sim_node nodes[SIM_NODES];
    int n_nodes, n_routers;
    struct sim_conn conns[SIM_CONNS];
    uint64_t cut_until_us[SIM_NODES][SIM_NODES];
    struct sim_client clients[SIM_CLIENTS];
    int n_clients;
    enum bt_disaggregate disaggregate;
    bool faulty; /* this seed has faults */
    bool enabled[SIM_FAULT_COUNT];
    bool short_cuts;   /* only links are cut, and never as long as it takes to notice */
    bool split;        /* links carry bulk beside control: bytes land later than their header */
    bool eager;        /* and let go of the sender's pages before the bytes have landed */
    bool slow;         /* prefill workers with little room and steps that last */
    uint32_t n_struck; /* of those that wait */
    bool tight;        /* the router's bounds are small */
    uint32_t queue_ms;
    struct bt_id speaker; /* the worker whose message a router handles now; 0: none */
    bool long_answers;    /* and small pools: sequences must be preempted */
    uint32_t page_bytes;
    uint32_t slow_percent; /* of messages */
    uint64_t calm_us;      /* no faults after this */
    uint64_t next_incarnation;
    struct sim_ticket tickets[SIM_TICKETS];
    uint32_t n_tickets;
    struct bt_id tampered[SIM_TICKETS]; /* tickets whose commit was of another prompt */
    uint32_t n_tampered;
    struct bt_kv_landing ending[SIM_ENDING]; /* receives of a link that has just gone */
    uint32_t n_ending;
    char failure[512]; /* the broken invariant; empty: none */
    struct sim_coverage *coverage;
};

/* sim_run.c: one seed; false where an invariant broke (sim->failure). */
bool sim_run(uint64_t seed, const struct sim_options *options, struct sim_coverage *coverage,
             char failure[512]);
void sim_fail(struct sim *sim, const char *invariant, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void sim_say(struct sim *sim, int node, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
void sim_push(struct sim *sim, uint64_t at_us, enum sim_event_type type, int node, uint32_t a,
              uint32_t b, void *data);

/* Whether the event is about this very connection. */
bool sim_concerns(const struct sim *sim, const struct sim_event *event, uint32_t conn);

/* sim_oracle.c */
/* The token after these, as the model gives it where no byte is wrong. */
void sim_oracle(const int32_t *tokens, uint32_t n_tokens, uint32_t n_prompt,
                const struct bt_sampling *sampling, struct bt_step_result *result);
/* Logprobs of the prompt token at that position. */
void sim_oracle_score(const int32_t *tokens, uint32_t position, uint32_t n_top,
                      struct bt_logprobs *out);
bool sim_logprobs_equal(const struct bt_logprobs *a, const struct bt_logprobs *b);
uint64_t sim_sum(uint64_t contents);
/* The engine of a worker: writes one layer of the step; gives the results. */
void sim_engine_layer(struct sim_node *node, uint32_t layer);
void sim_engine_results(struct sim_node *node, struct sim_random *random, bool nonfinite);

/* sim_net.c */
struct bt_msg *sim_copy_msg(const struct bt_msg *msg);
/* When something sent now from one node to another arrives. */
uint64_t sim_arrival(struct sim *sim, uint64_t *last_us);
void sim_dial_routers(struct sim *sim, int node);
void sim_on_dial(struct sim *sim, const struct sim_event *event);
void sim_send_msg(struct sim *sim, int node, uint32_t slot, const struct bt_msg *msg);
void sim_close_stream(struct sim *sim, int node, uint32_t slot);
void sim_on_message(struct sim *sim, const struct sim_event *event);
void sim_on_closed(struct sim *sim, const struct sim_event *event);
struct sim_conn *sim_conn_at(struct sim *sim, int node, uint32_t slot, bool is_link);
int sim_conn_new(struct sim *sim);
/* Every connection of a node that has just died: the other end will hear of it, or notice. */
void sim_drop_conns(struct sim *sim, int node, bool silent);
uint64_t sim_cut_until(const struct sim *sim, const struct sim_conn *conn);

/* sim_links.c */
void sim_link_dial(struct sim *sim, int node, uint32_t link, struct bt_id peer);
void sim_on_link_dial(struct sim *sim, const struct sim_event *event);
void sim_on_link_up(struct sim *sim, const struct sim_event *event);
void sim_link_send(struct sim *sim, int node, uint32_t link, const struct bt_kv_msg *msg);
void sim_link_pump(struct sim *sim, int node, uint32_t link);
void sim_link_cut(struct sim *sim, int node, uint32_t link, uint32_t lease);
void sim_link_close(struct sim *sim, int node, uint32_t link);
void sim_on_link_message(struct sim *sim, const struct sim_event *event);
void sim_on_frame_read(struct sim *sim, const struct sim_event *event);
void sim_on_frame(struct sim *sim, const struct sim_event *event);
void sim_on_land(struct sim *sim, const struct sim_event *event);
void sim_on_land_end(struct sim *sim, const struct sim_event *event);
void sim_on_link_down(struct sim *sim, const struct sim_event *event);
void sim_end_link(struct sim *sim, uint32_t conn, int end);
/* The sender's end is gone and the other will not be told: it notices after 2 s. */
void sim_lose_link(struct sim *sim, uint32_t conn, int end);

/* sim_faults.c */
void sim_plan_faults(struct sim *sim);
void sim_on_fault(struct sim *sim, enum sim_fault fault);
/* In slow seeds: strikes a prompt that waits on a prefill worker for its pages or its turn. */
void sim_strike_waiting(struct sim *sim, int prefill);
/* Ends the stream on which a decode worker has just sent a prompt's logprobs. */
void sim_cut_scores(struct sim *sim, int decode, uint32_t slot);
bool sim_is_enabled(const struct sim *sim, enum sim_fault fault);

/* sim_lies.c */
void sim_lie(struct sim *sim, enum sim_fault fault);
/* A prefill worker gives up what it has not said hello for. */
void sim_lie_withdrawn(struct sim *sim, int decode);
/* A decode worker that has the cache says so before the tokens that it has sent. */
void sim_live_first(struct sim *sim, int router, uint32_t slot, const struct bt_msg_pgone *pgone);
/* The leases of a decode worker beside one: what a forged frame must not touch. */
uint64_t sim_other_leases(const struct sim_node *decode, uint32_t lease);
bool sim_lease_is(const struct sim_node *decode, uint32_t lease, uint64_t generation);

/* sim_check.c */
void sim_check_node(struct sim *sim, int node);
/* When everything has ended. */
void sim_check_rest(struct sim *sim);
/* The oldest sequence always finishes: whoever was preempted, an older one is still there. */
void sim_check_preempted(struct sim *sim, int node, const struct bt_msg_ended *end);
/* A committed attempt is not thrown away because its prefill worker has gone. */
void sim_check_cancel(struct sim *sim, int router, uint32_t slot,
                      const struct bt_msg_cancel *cancel);
/* A token is taken from the workers of the request's attempt only. */
void sim_check_speaker(struct sim *sim, int router, const struct bt_request *req);
bool sim_is_given_up(const struct sim_node *router, uint32_t slot);

/* sim_nodes.c */
void sim_start_node(struct sim *sim, int node);
/* silent: nobody is told, the others find out by themselves. */
void sim_kill_node(struct sim *sim, int node, bool silent);
void sim_drain_actions(struct sim *sim, int node);
void sim_gather(struct sim *sim, int node);
uint32_t sim_n_pairs_prefill(void);
uint32_t sim_n_pairs_decode(void);
uint32_t sim_n_pairs_send(void);
uint32_t sim_n_pairs_recv(void);
bool sim_has_ended(const struct sim *sim, int node, struct bt_id ticket);
int sim_node_of(const struct sim *sim, struct bt_id incarnation);

/* sim_clients.c */
void sim_make_clients(struct sim *sim);
void sim_on_arrive(struct sim *sim, uint32_t client);
/* Gives the request to its router, which is up. */
void sim_ask(struct sim *sim, uint32_t client);
void sim_on_cancel(struct sim *sim, uint32_t client);
void sim_on_stop(struct sim *sim, uint32_t client);
/* Clients that wait for a state of their request before they go or stop. */
void sim_aim(struct sim *sim, int router);
void sim_on_emit(struct sim *sim, const struct bt_router_action *action);
void sim_on_scores(struct sim *sim, const struct bt_router_action *action);
void sim_on_end(struct sim *sim, const struct bt_router_action *action);
void sim_clients_lost(struct sim *sim, int router);
bool sim_all_ended(const struct sim *sim);

/* sim_choices.c */
/* Lets some calls ask for logprobs of their tokens or prompt, or bias some tokens. */
void sim_make_wishes(struct sim *sim);
/* Gives some calls further choices: requests that follow the first one. */
void sim_make_choices(struct sim *sim);
/* The first one was taken in, or was not: its further choices come right behind it. */
void sim_ask_choices(struct sim *sim, uint32_t client);
/* One prefill and one transfer for all choices, where nothing went wrong. */
void sim_check_choices(struct sim *sim);
void sim_check_clients(struct sim *sim);
