/* The prefill worker's core: what happens on each event, and what is to be done then. */
#include "prefill_worker/prefill_core.h"

#include <stdlib.h>

#include "common/base/assert.h"
#include "common/worker/tell_index.h"
#include "prefill_worker/prefill_state.h"

/* What each event does in each state: H handled, i ignored, - impossible. */
static const char table[BT_PREFILL_STATE_COUNT][BT_PREFILL_EVENT_COUNT + 1] = {
    /* granted link-ended committed released no-link cancel lost deadline move layer step */
    [BT_PREFILL_FREE] = "-----------",
    [BT_PREFILL_QUEUED] = "----HHHHH--",
    [BT_PREFILL_OFFERED] = "HH---HHHH--",
    [BT_PREFILL_GRANTED] = "-H---HHHH--",
    [BT_PREFILL_COMPUTING] = "-H---HHHHHH",
    [BT_PREFILL_HANDING] = "-HH--HHHH--",
    /* Its end is known: only what still holds its pages matters. */
    [BT_PREFILL_CLOSING] = "---H-iii-iH",
};
static const char *const state_names[] = {"free",      "queued",  "offered", "granted",
                                          "computing", "handing", "closing"};
static const char *const event_names[] = {"granted", "link ended", "committed", "released",
                                          "no link", "cancel",     "lost",      "deadline",
                                          "move",    "layer",      "step"};

bool bt_prefill_handles(struct bt_prefill_core *core, const struct bt_prefill_seq *seq,
                        enum bt_prefill_event event) {
    char entry = table[seq->state][event];
    BT_ASSERT(entry != '-');
    core->coverage[seq->state * BT_PREFILL_EVENT_COUNT + event]++;
    return entry == 'H';
}

const uint32_t *bt_prefill_core_coverage(const struct bt_prefill_core *core, uint32_t *n_pairs) {
    *n_pairs = BT_PREFILL_STATE_COUNT * BT_PREFILL_EVENT_COUNT;
    return core->coverage;
}

bool bt_prefill_core_pair(uint32_t pair, const char **state, const char **event) {
    uint32_t s = pair / BT_PREFILL_EVENT_COUNT, e = pair % BT_PREFILL_EVENT_COUNT;
    BT_ASSERT(s < BT_PREFILL_STATE_COUNT);
    *state = state_names[s];
    *event = event_names[e];
    return table[s][e] == 'H';
}

/* ---- create, destroy ---- */

static bt_status check(const struct bt_prefill_config *config, struct bt_error *err) {
    if (config->join.max_context < 2 || config->join.max_context > BT_KV_PAGES_MAX * 16u)
        return bt_fail(err, BT_E_INVALID, "max-context is %u, must be 2 to %u",
                       config->join.max_context, BT_KV_PAGES_MAX * 16u);
    if (!config->join.max_seqs || config->join.max_seqs > 4096)
        return bt_fail(err, BT_E_INVALID, "max-seqs is %u, must be 1 to 4096",
                       config->join.max_seqs);
    if (!config->n_pages || !config->n_layers || !config->page_bytes || !config->n_vocab)
        return bt_fail(err, BT_E_INVALID, "the KV cache has %u pages, must be at least 1",
                       config->n_pages);
    if (!config->chunk_tokens || !config->max_offers)
        return bt_fail(err, BT_E_INVALID, "chunk-tokens is %u, must be at least 1",
                       config->chunk_tokens);
    return BT_OK;
}

static bt_status create_parts(struct bt_prefill_core *core, struct bt_error *err) {
    const struct bt_prefill_config *config = &core->config;
    BT_TRY(bt_kv_pool_create(&(struct bt_kv_pool_config){.n_pages = config->n_pages,
                                                         .n_layers = config->n_layers,
                                                         .n_changes = 4096},
                             &core->pool, err));
    BT_TRY(bt_kv_send_create(
        &(struct bt_kv_send_config) {
            .pool = core->pool, .n_layers = config->n_layers, .page_bytes = config->page_bytes,
            .fingerprint_hash = bt_fingerprint_hash(&config->join.fingerprint),
            .max_sends = core->n_seqs,
#if BT_MUTANT_checksum_at_sending
            .sum_now = config->sum_now, .sum_now_arg = config->sum_now_arg,
#endif
        },
        &core->send, err));
    BT_TRY(
        bt_ledger_create(&(struct bt_ledger_config){.join = config->join, .max_jobs = core->n_seqs},
                         &core->ledger, err));
    /* Each sequence of a step can complete one page more than its rows fill. */
    uint32_t max_seqs = config->join.max_seqs;
    BT_TRY(bt_batch_init(&core->batch, config->chunk_tokens, max_seqs,
                         config->chunk_tokens / BT_PAGE_TOKENS + 2 * max_seqs + 1, 0,
                         config->n_layers, err));
    core->seqs = calloc(core->n_seqs, sizeof *core->seqs);
    core->pages = calloc((size_t)core->n_seqs * core->max_pages, sizeof *core->pages);
    core->census = calloc(config->n_pages, sizeof *core->census);
    if (!core->seqs || !core->pages || !core->census)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for %u sequences", core->n_seqs);
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        core->seqs[i].hold.pages = core->pages + (size_t)i * core->max_pages;
        core->seqs[i].hold.capacity = core->max_pages;
    }
    return BT_OK;
}

bt_status bt_prefill_core_create(const struct bt_prefill_config *config,
                                 struct bt_prefill_core **out, struct bt_error *err) {
    BT_TRY(check(config, err));
    struct bt_prefill_core *core = calloc(1, sizeof *core);
    if (!core)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for the prefill core");
    core->config = *config;
    core->max_pages = bt_pages_of(config->join.max_context);
    /* Ended sequences are remembered until their router has seen the end: as many again. */
    core->n_seqs = 2 * config->join.max_seqs + 8;
    bt_status status = create_parts(core, err);
    if (status < 0) {
        bt_prefill_core_destroy(core);
        return status;
    }
    *out = core;
    return BT_OK;
}

void bt_prefill_core_destroy(struct bt_prefill_core *core) {
    if (!core)
        return;
    bt_ledger_destroy(core->ledger);
    bt_kv_send_destroy(core->send);
    bt_kv_pool_destroy(core->pool);
    bt_batch_fini(&core->batch);
    free(core->seqs);
    free(core->pages);
    free(core->census);
    free(core);
}

/* ---- routers ---- */

void bt_prefill_core_router_opened(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot) {
    bt_ledger_opened(core->ledger, now_us, slot);
}

void bt_prefill_core_router_closed(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot) {
    bt_ledger_closed(core->ledger, now_us, slot);
}

static void on_cancel(struct bt_prefill_core *core, uint64_t now_us, uint32_t slot,
                      const struct bt_msg_cancel *cancel) {
    struct bt_job *job = bt_ledger_find(core->ledger, slot, cancel->key);
    if (!job || !job->held)
        return; /* it has ended here already */
    struct bt_prefill_seq *seq = &core->seqs[job->id];
    if (bt_prefill_handles(core, seq, BT_PREFILL_ON_CANCEL))
        bt_prefill_end(core, now_us, seq, BT_END_DONE, false);
}

bt_status bt_prefill_core_router_message(struct bt_prefill_core *core, uint64_t now_us,
                                         uint32_t slot, const struct bt_msg *msg,
                                         struct bt_error *err) {
    bt_status status = bt_ledger_message(core->ledger, now_us, slot, msg, err);
    if (status != BT_OK)
        return status < 0 ? status : BT_OK;
    switch (msg->type) {
    case BT_MSG_PREFILL:
        bt_prefill_accept(core, now_us, slot, &msg->work);
        return BT_OK;
    case BT_MSG_CANCEL:
        on_cancel(core, now_us, slot, &msg->cancel);
        return BT_OK;
    case BT_MSG_PEERS:
        bt_prefill_on_peers(core, now_us, slot, &msg->peers);
        return BT_OK;
    case BT_MSG_FLUSH:
        bt_kv_pool_flush(core->pool);
        return BT_OK;
    default:
        return bt_fail(err, BT_E_PROTOCOL, "message %d is not for a prefill worker",
                       (int)msg->type);
    }
}

/* ---- links (up and down: prefill_peers.c) ---- */

void bt_prefill_core_link_message(struct bt_prefill_core *core, uint64_t now_us, uint32_t link,
                                  const struct bt_kv_msg *msg) {
    bt_kv_send_message(core->send, now_us, link, msg);
}

bool bt_prefill_core_next_frame(struct bt_prefill_core *core, uint64_t now_us, uint32_t link,
                                struct bt_kv_outgoing *out) {
    return bt_kv_send_next_frame(core->send, now_us, link, out);
}

void bt_prefill_core_frame_done(struct bt_prefill_core *core, uint64_t now_us, uint32_t link,
                                uint32_t id) {
    bt_kv_send_frame_done(core->send, now_us, link, id);
}

/* ---- engine and time ---- */

void bt_prefill_core_layer_done(struct bt_prefill_core *core, uint64_t now_us, uint32_t layer) {
    BT_ASSERT(core->step_out && layer < core->config.n_layers);
    bt_prefill_on_layers(core, now_us, layer + 1);
}

void bt_prefill_core_step_done(struct bt_prefill_core *core, uint64_t now_us) {
    BT_ASSERT(core->step_out);
    core->step_out = false;
    bt_step_times_add(&core->step_times, now_us - core->step_posted_us);
    bt_prefill_on_step(core, now_us);
}

void bt_prefill_core_tick(struct bt_prefill_core *core, uint64_t now_us) {
    bt_ledger_tick(core->ledger, now_us);
    bool move = core->draining && now_us - core->drain_us > (uint64_t)core->config.drain_ms * 1000;
    for (uint32_t i = 0; core->n_active && i < core->n_seqs; i++) {
        struct bt_prefill_seq *seq = &core->seqs[i];
        if (seq->state == BT_PREFILL_FREE)
            continue;
        if (now_us >= seq->job->deadline_us) {
            if (bt_prefill_handles(core, seq, BT_PREFILL_ON_DEADLINE))
                bt_prefill_end(core, now_us, seq, BT_END_DEADLINE, true);
        } else if (move && seq->state != BT_PREFILL_CLOSING &&
                   bt_prefill_handles(core, seq, BT_PREFILL_ON_MOVE)) {
            bt_prefill_end(core, now_us, seq, BT_END_DRAINING, true);
        }
    }
}

void bt_prefill_core_drain(struct bt_prefill_core *core, uint64_t now_us) {
    if (core->draining)
        return;
    core->draining = true;
    core->drain_us = now_us;
}

/* ---- actions ---- */

static enum bt_end end_of(enum bt_kv_reason reason) {
    switch (reason) {
    case BT_KV_REASON_LINK:
        return BT_END_LINK;
    case BT_KV_REASON_CHECKSUM:
    case BT_KV_REASON_INCOMPLETE:
        return BT_END_CHECKSUM;
    default:
        return BT_END_REFUSED;
    }
}

static void take_send_action(struct bt_prefill_core *core, uint64_t now_us,
                             const struct bt_kv_send_action *action) {
    struct bt_prefill_seq *seq = &core->seqs[action->user];
    switch (action->type) {
    case BT_KV_SEND_GRANTED:
        if (bt_prefill_handles(core, seq, BT_PREFILL_ON_GRANTED)) {
            seq->state = BT_PREFILL_GRANTED;
            seq->n_pages_held = action->pages_held;
        }
        break;
    case BT_KV_SEND_ENDED:
        if (bt_prefill_handles(core, seq, BT_PREFILL_ON_LINK_ENDED))
            bt_prefill_end(core, now_us, seq, end_of(action->reason), true);
        break;
    case BT_KV_SEND_COMMITTED:
        if (bt_prefill_handles(core, seq, BT_PREFILL_ON_COMMITTED))
            bt_prefill_end(core, now_us, seq, BT_END_HANDED, true);
        break;
    case BT_KV_SEND_RELEASED:
        if (bt_prefill_handles(core, seq, BT_PREFILL_ON_RELEASED)) {
            seq->sending = false;
            bt_prefill_let_go(core, seq);
        }
        break;
    case BT_KV_SEND_MSG:
    case BT_KV_SEND_FRAMES:
        break;
    }
}

/* Takes the next action of the sending half; true where it is for the shell. */
static bool next_of_send(struct bt_prefill_core *core, uint64_t now_us,
                         struct bt_prefill_action *out) {
    struct bt_kv_send_action action;
    while (bt_kv_send_next(core->send, &action)) {
        if (action.type == BT_KV_SEND_MSG) {
            *out = (struct bt_prefill_action){
                .type = BT_PREFILL_LINK_SEND, .link = action.link, .link_msg = action.msg};
            return true;
        }
        if (action.type == BT_KV_SEND_FRAMES) {
            *out = (struct bt_prefill_action){.type = BT_PREFILL_LINK_PUMP, .link = action.link};
            return true;
        }
        take_send_action(core, now_us, &action);
    }
    return false;
}

static void end_lost(struct bt_prefill_core *core, uint64_t now_us) {
    for (uint32_t id; (id = bt_ledger_take_lost(core->ledger)) != BT_NO_JOB;) {
        struct bt_prefill_seq *seq = &core->seqs[id];
        if (bt_prefill_handles(core, seq, BT_PREFILL_ON_LOST))
            bt_prefill_end(core, now_us, seq, BT_END_DONE, false);
    }
}

static void tell_status(struct bt_prefill_core *core, uint64_t now_us) {
    bt_step_times_refresh(&core->step_times, now_us);
    struct bt_msg_status status = {
        .draining = core->draining,
        .step_us = core->step_times.mean_us,
        .step_p50_us = core->step_times.p50_us,
        .step_p99_us = core->step_times.p99_us,
        .kv_bytes = bt_kv_send_counters(core->send)->bytes,
        .links = bt_prefill_links_up(core),
    };
    bt_kv_pool_census(core->pool, &status.census);
    for (uint32_t i = 0; core->n_active && i < core->n_seqs; i++) {
        const struct bt_prefill_seq *seq = &core->seqs[i];
        status.running += seq->state == BT_PREFILL_COMPUTING;
        if (seq->state != BT_PREFILL_FREE && seq->state < BT_PREFILL_HANDING)
            status.backlog_tokens += seq->job->n_tokens - seq->n_computed;
    }
    bt_ledger_set_status(core->ledger, &status);
}

static bool next_of_ledger(struct bt_prefill_core *core, uint64_t now_us,
                           struct bt_prefill_action *out) {
    struct bt_ledger_action action;
    if (!bt_ledger_next(core->ledger, now_us, &action))
        return false;
    *out = (struct bt_prefill_action){
        .type = action.type == BT_LEDGER_SEND    ? BT_PREFILL_SEND
                : action.type == BT_LEDGER_CLOSE ? BT_PREFILL_CLOSE
                                                 : BT_PREFILL_QUIT,
        .slot = action.slot,
        .msg = action.msg,
        .reason = action.reason,
    };
    return true;
}

bool bt_prefill_core_next(struct bt_prefill_core *core, uint64_t now_us,
                          struct bt_prefill_action *out) {
    end_lost(core, now_us);
    if (next_of_send(core, now_us, out))
        return true;
    if (core->n_active) {
        bt_prefill_offer(core, now_us);
        bt_prefill_take_pages(core, now_us);
        if (next_of_send(core, now_us, out))
            return true;
        if (!core->step_out && bt_prefill_compose(core, now_us)) {
            core->step_out = true;
            core->step_posted_us = now_us;
            *out = (struct bt_prefill_action){.type = BT_PREFILL_STEP, .step = &core->batch.step};
            return true;
        }
    }
    if (bt_prefill_next_link_action(core, now_us, out))
        return true;
    bt_tell_index(core->pool, core->ledger, core->census, core->config.n_pages);
    tell_status(core, now_us);
    if (next_of_ledger(core, now_us, out))
        return true;
    bool told = bt_ledger_is_quiet(core->ledger) || !bt_ledger_n_attached(core->ledger);
    if (core->draining && !core->exit_told && !core->n_active && told) {
        core->exit_told = true;
        *out = (struct bt_prefill_action){.type = BT_PREFILL_EXIT};
        return true;
    }
    return false;
}

/* ---- introspection ---- */

void bt_prefill_core_census(const struct bt_prefill_core *core, struct bt_census *out) {
    bt_kv_pool_census(core->pool, out);
}

const struct bt_kv_send *bt_prefill_core_kv_send(const struct bt_prefill_core *core) {
    return core->send;
}

uint32_t bt_prefill_core_n_attached(const struct bt_prefill_core *core) {
    return bt_ledger_n_attached(core->ledger);
}

bool bt_prefill_core_is_valid(const struct bt_prefill_core *core) {
    uint32_t n_active = 0;
    for (uint32_t i = 0; i < core->n_seqs; i++) {
        const struct bt_prefill_seq *seq = &core->seqs[i];
        n_active += seq->state != BT_PREFILL_FREE;
        bool may_hold = seq->state >= BT_PREFILL_COMPUTING;
        if ((!may_hold && (seq->hold.n_pages || seq->hold.n_reserved)) ||
            (seq->state == BT_PREFILL_FREE && (seq->in_step || seq->sending)))
            return false;
        if (seq->state == BT_PREFILL_COMPUTING && seq->hold.n_pages != seq->n_pages)
            return false;
    }
    return n_active == core->n_active && bt_kv_pool_is_valid(core->pool) &&
           bt_kv_send_is_valid(core->send) && bt_ledger_is_valid(core->ledger);
}
