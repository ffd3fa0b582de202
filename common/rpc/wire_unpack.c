/* Unpacks one WorkerItem or RouterItem of proto/registry.proto into struct bt_msg. */
#include <string.h>

#include "common/rpc/wire_item.h"
#include "common/rpc/wire_logprobs.h"
#include "proto/registry.pb-c.h"

/* protobuf-c's allocator over the arena: what a hostile item may take is bounded there. */
static void *arena_alloc(void *arena, size_t n_bytes) {
    return bt_wire_arena_alloc(arena, n_bytes);
}

static void arena_free(void *arena, void *p) {
    (void)arena; /* all at once, at the reset */
    (void)p;
}

static bt_status no_memory(struct bt_error *err) {
    return bt_fail(err, BT_E_NO_MEMORY, "no memory to unpack an item");
}

static void *list_of(struct bt_wire_arena *arena, size_t n, size_t element_bytes) {
    return bt_wire_arena_alloc(arena, n * element_bytes + 1);
}

static bt_status get_text(const char *field, const char *from, char *to, size_t capacity,
                          struct bt_error *err) {
    size_t n = strlen(from);
    if (n >= capacity)
        return bt_fail(err, BT_E_TOO_LARGE, "%s has %zu bytes, must have at most %zu", field, n,
                       capacity - 1);
    memcpy(to, from, n + 1);
    return BT_OK;
}

static bt_status get_count(const char *field, size_t n, size_t max, struct bt_error *err) {
    if (n <= max)
        return BT_OK;
    return bt_fail(err, BT_E_TOO_LARGE, "%s has %zu entries, must have at most %zu", field, n, max);
}

/* Submessages that are left out are all zeros; the check says whether that may be. */
static struct bt_attempt get_key(const Baton__V1__Attempt *key) {
    return key ? (struct bt_attempt){.request = key->request, .attempt = key->attempt}
               : (struct bt_attempt){0};
}

static struct bt_id get_id(const Baton__V1__Id *id) {
    return id ? (struct bt_id){.hi = id->hi, .lo = id->lo} : (struct bt_id){0};
}

static struct bt_census get_census(const Baton__V1__Census *census) {
    if (!census)
        return (struct bt_census){0};
    return (struct bt_census){.total = census->total,
                              .free = census->free,
                              .cached = census->cached,
                              .reserved = census->reserved,
                              .filling = census->filling,
                              .armed = census->armed,
                              .landed = census->landed,
                              .live = census->live,
                              .quarantined = census->quarantined};
}

static bt_status get_join(const Baton__V1__Join *from, struct bt_msg_join *join,
                          struct bt_error *err) {
    BT_TRY(get_text("join.name", from->name, join->name, sizeof join->name, err));
    BT_TRY(get_text("join.link_address", from->link_address, join->link_address,
                    sizeof join->link_address, err));
    struct bt_error why = {0};
    if (bt_fingerprint_unpack(from->fingerprint.data, from->fingerprint.len, &join->fingerprint,
                              &why) != BT_OK)
        return bt_fail(err, BT_E_INVALID, "join.fingerprint: %.200s", why.text);
    join->incarnation = get_id(from->incarnation);
    join->role = (enum bt_role)from->role;
    join->protocol_min = from->protocol_min;
    join->protocol_max = from->protocol_max;
    join->text_hash = from->text_hash;
    join->max_context = from->max_context;
    join->max_seqs = from->max_seqs;
    join->census = get_census(from->census);
    return BT_OK;
}

static void get_status(const Baton__V1__Status *from, struct bt_msg_status *status) {
    status->census = get_census(from->census);
    status->running = from->running;
    status->backlog_tokens = from->backlog_tokens;
    status->step_us = from->step_us;
    status->draining = from->draining;
    status->kv_bytes = from->kv_bytes;
    status->refused_frames = from->refused_frames;
    status->links = from->links;
    status->step_p50_us = from->step_p50_us;
    status->step_p99_us = from->step_p99_us;
}

static bt_status get_blocks(const Baton__V1__Blocks *from, struct bt_msg_blocks *blocks,
                            struct bt_error *err) {
    BT_TRY(get_count("blocks.added", from->n_added, BT_WIRE_BLOCKS, err));
    BT_TRY(get_count("blocks.evicted", from->n_evicted, BT_WIRE_BLOCKS, err));
    blocks->sequence = from->sequence;
    blocks->census_first = from->census_first;
    blocks->census_last = from->census_last;
    blocks->added = from->added;
    blocks->n_added = (uint32_t)from->n_added;
    blocks->evicted = from->evicted;
    blocks->n_evicted = (uint32_t)from->n_evicted;
    return BT_OK;
}

static void get_reserved(const Baton__V1__Reserved *from, struct bt_msg_reserved *reserved) {
    reserved->key = get_key(from->key);
    reserved->accepted = from->accepted;
    reserved->pages_held = from->pages_held;
    reserved->pages = from->pages;
    reserved->reason = (enum bt_end)from->reason;
}

static bt_status get_column(const char *field, size_t n, size_t n_rows, bool may_be_empty,
                            struct bt_error *err) {
    if (n == n_rows || (may_be_empty && n == 0))
        return BT_OK;
    return bt_fail(err, BT_E_INVALID, "%s has %zu entries, must have %zu%s as the first column",
                   field, n, n_rows, may_be_empty ? " or none," : "");
}

static bt_status get_tokens(const Baton__V1__Tokens *from, struct bt_wire_arena *arena,
                            struct bt_msg_tokens *tokens, struct bt_error *err) {
    size_t n = from->n_request;
    BT_TRY(get_count("tokens.request", n, BT_WIRE_TOKEN_ROWS, err));
    BT_TRY(get_column("tokens.attempt", from->n_attempt, n, false, err));
    BT_TRY(get_column("tokens.index", from->n_index, n, false, err));
    BT_TRY(get_column("tokens.token", from->n_token, n, false, err));
    BT_TRY(get_column("tokens.finish", from->n_finish, n, true, err));
    BT_TRY(get_column("tokens.hash", from->n_hash, n, true, err));
    struct bt_token *rows = list_of(arena, n, sizeof *rows);
    struct bt_logprobs *logprobs = NULL;
    if (!rows)
        return no_memory(err);
    if (from->logprobs)
        BT_TRY(bt_wire_logprobs_get(from->logprobs, n, arena, &logprobs, err));
    for (size_t i = 0; i < n; i++) {
        bool shown = logprobs && from->logprobs->shown[i];
        rows[i] = (struct bt_token){
            .key = {.request = from->request[i], .attempt = from->attempt[i]},
            .index = from->index[i],
            .token = (int32_t)from->token[i], /* negative where it is over 2^31 - 1: refused */
            .finish = from->n_finish ? (enum bt_finish)from->finish[i] : BT_FINISH_NONE,
            .hash = from->n_hash ? from->hash[i] : 0,
            .logprobs = shown ? logprobs++ : NULL};
    }
    tokens->rows = rows;
    tokens->n_rows = (uint32_t)n;
    return BT_OK;
}

static bt_status get_scores(const Baton__V1__Scores *from, struct bt_wire_arena *arena,
                            struct bt_msg_scores *scores, struct bt_error *err) {
    size_t n = from->rows ? from->rows->n_own : 0;
    BT_TRY(get_count("scores.rows", n, BT_SCORE_ROWS, err));
    struct bt_logprobs *rows = NULL;
    if (from->rows)
        BT_TRY(bt_wire_logprobs_get(from->rows, n, arena, &rows, err));
    for (size_t i = 0; i < n; i++)
        if (!from->rows->shown[i])
            return bt_fail(err, BT_E_INVALID, "logprobs.shown is 0 in scores, must be 1 to %d",
                           1 + BT_TOP_LOGPROBS);
    scores->key = get_key(from->key);
    scores->first = from->first;
    scores->rows = rows;
    scores->n_rows = (uint32_t)n;
    return BT_OK;
}

static void get_ended(const Baton__V1__Ended *from, struct bt_msg_ended *ended) {
    ended->key = get_key(from->key);
    ended->reason = (enum bt_end)from->reason;
    ended->next_index = from->next_index;
    if (from->stages)
        ended->stages = (struct bt_stages){.queue_us = from->stages->queue_us,
                                           .grant_us = from->stages->grant_us,
                                           .prefill_us = from->stages->prefill_us,
                                           .transfer_us = from->stages->transfer_us,
                                           .join_us = from->stages->join_us,
                                           .decode_us = from->stages->decode_us,
                                           .steps = from->stages->steps,
                                           .batch_rows = from->stages->batch_rows};
    ended->pages = from->pages;
    ended->pages_held = from->pages_held;
    ended->pages_cached_p = from->pages_cached_p;
    ended->kv_bytes = from->kv_bytes;
}

static bt_status get_peers(const Baton__V1__Peers *from, struct bt_wire_arena *arena,
                           struct bt_msg_peers *peers, struct bt_error *err) {
    size_t n = from->n_peers;
    BT_TRY(get_count("peers", n, BT_MAX_WORKERS, err));
    struct bt_peer *rows = list_of(arena, n, sizeof *rows);
    if (!rows)
        return no_memory(err);
    for (size_t i = 0; i < n; i++) {
        const Baton__V1__Peer *peer = from->peers[i];
        memset(&rows[i], 0, sizeof rows[i]);
        BT_TRY(get_text("peers.name", peer->name, rows[i].name, sizeof rows[i].name, err));
        BT_TRY(get_text("peers.link_address", peer->link_address, rows[i].link_address,
                        sizeof rows[i].link_address, err));
        rows[i].incarnation = get_id(peer->incarnation);
    }
    peers->peers = rows;
    peers->n_peers = (uint32_t)n;
    return BT_OK;
}

static bt_status get_resume(const Baton__V1__Resume *from, struct bt_wire_arena *arena,
                            struct bt_msg_resume *resume, struct bt_error *err) {
    size_t n = from->n_rows;
    BT_TRY(get_count("resume", n, BT_WIRE_RESUME_ROWS, err));
    struct bt_resume *rows = list_of(arena, n, sizeof *rows);
    if (!rows)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        rows[i] = (struct bt_resume){.key = get_key(from->rows[i]->key),
                                     .ticket = get_id(from->rows[i]->ticket),
                                     .next_index = from->rows[i]->next_index};
    resume->rows = rows;
    resume->n_rows = (uint32_t)n;
    return BT_OK;
}

static bt_status get_bias(const Baton__V1__Sampling *from, struct bt_wire_arena *arena,
                          struct bt_sampling *sampling, struct bt_error *err) {
    size_t n = from->n_bias_token;
    BT_TRY(get_count("sampling.bias_token", n, BT_LOGIT_BIASES, err));
    BT_TRY(get_column("sampling.bias", from->n_bias, n, false, err));
    struct bt_logit_bias *bias = list_of(arena, n, sizeof *bias);
    if (!bias)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        bias[i] = (struct bt_logit_bias){(int32_t)from->bias_token[i], from->bias[i]};
    sampling->bias = n ? bias : NULL;
    sampling->n_bias = (uint16_t)n;
    return BT_OK;
}

static uint8_t get_small(uint32_t v) {
    return v > UINT8_MAX ? UINT8_MAX : (uint8_t)v; /* out of bounds as before: refused */
}

static bt_status get_sampling(const Baton__V1__Sampling *from, struct bt_wire_arena *arena,
                              struct bt_sampling *sampling, struct bt_error *err) {
    if (!from)
        return BT_OK; /* all zeros: the check refuses it and says which field */
    sampling->temperature = from->temperature;
    sampling->top_p = from->top_p;
    sampling->min_p = from->min_p;
    sampling->top_k = (int32_t)from->top_k; /* negative where it is over 2^31 - 1: refused */
    sampling->frequency_penalty = from->frequency_penalty;
    sampling->presence_penalty = from->presence_penalty;
    sampling->repetition_penalty = from->repetition_penalty;
    sampling->seed = from->seed;
    sampling->max_tokens = from->max_tokens;
    sampling->min_tokens = from->min_tokens;
    sampling->ignore_eos = from->ignore_eos;
    sampling->want_hash = from->want_hash;
    BT_TRY(get_count("sampling.stop_tokens", from->n_stop_tokens, BT_STOP_TOKENS, err));
    sampling->n_stop_tokens = (uint8_t)from->n_stop_tokens;
    for (size_t i = 0; i < from->n_stop_tokens; i++)
        sampling->stop_tokens[i] = (int32_t)from->stop_tokens[i];
    sampling->logprobs = get_small(from->logprobs);
    sampling->prompt_logprobs = get_small(from->prompt_logprobs);
    return get_bias(from, arena, sampling, err);
}

static bt_status get_work(const Baton__V1__Work *from, struct bt_wire_arena *arena,
                          struct bt_msg_work *work, struct bt_error *err) {
    BT_TRY(get_count("work.tokens", from->n_tokens, BT_WIRE_PROMPT_TOKENS, err));
    BT_TRY(get_text("work.tenant", from->tenant, work->tenant, sizeof work->tenant, err));
    BT_TRY(get_sampling(from->sampling, arena, &work->sampling, err));
    work->key = get_key(from->key);
    work->ticket = get_id(from->ticket);
    work->tokens = (const int32_t *)from->tokens;
    work->n_tokens = (uint32_t)from->n_tokens;
    work->n_prompt = from->n_prompt;
    work->remaining_ms = from->remaining_ms;
    work->elapsed_ms = from->elapsed_ms;
    work->prefill_here = from->prefill_here;
    work->peer = get_id(from->peer);
    return BT_OK;
}

static bt_status get_seen(const Baton__V1__Seen *from, struct bt_wire_arena *arena,
                          struct bt_msg_seen *seen, struct bt_error *err) {
    size_t n = from->n_request;
    BT_TRY(get_count("seen.request", n, BT_WIRE_SEEN_KEYS, err));
    BT_TRY(get_column("seen.attempt", from->n_attempt, n, false, err));
    struct bt_attempt *keys = list_of(arena, n, sizeof *keys);
    if (!keys)
        return no_memory(err);
    for (size_t i = 0; i < n; i++)
        keys[i] = (struct bt_attempt){.request = from->request[i], .attempt = from->attempt[i]};
    seen->keys = keys;
    seen->n_keys = (uint32_t)n;
    return BT_OK;
}

static void get_piece(const Baton__V1__Piece *from, enum bt_wire_item_kind *kind,
                      struct bt_wire_piece *piece) {
    *kind = BT_WIRE_ITEM_PIECE;
    piece->total_bytes = from->total_bytes;
    piece->offset = from->offset;
    piece->data = from->data.data;
    piece->n_data = from->data.len;
}

static bt_status get_worker_item(const Baton__V1__WorkerItem *item, struct bt_wire_arena *arena,
                                 enum bt_wire_item_kind *kind, struct bt_msg *msg,
                                 struct bt_wire_piece *piece, struct bt_error *err) {
    *kind = BT_WIRE_ITEM_MESSAGE;
    switch (item->item_case) {
    case BATON__V1__WORKER_ITEM__ITEM_JOIN:
        msg->type = BT_MSG_JOIN;
        return get_join(item->join, &msg->join, err);
    case BATON__V1__WORKER_ITEM__ITEM_STATUS:
        msg->type = BT_MSG_STATUS;
        get_status(item->status, &msg->status);
        return BT_OK;
    case BATON__V1__WORKER_ITEM__ITEM_BLOCKS:
        msg->type = BT_MSG_BLOCKS;
        return get_blocks(item->blocks, &msg->blocks, err);
    case BATON__V1__WORKER_ITEM__ITEM_RESERVED:
        msg->type = BT_MSG_RESERVED;
        get_reserved(item->reserved, &msg->reserved);
        return BT_OK;
    case BATON__V1__WORKER_ITEM__ITEM_LIVE:
        msg->type = BT_MSG_LIVE;
        msg->live.key = get_key(item->live->key);
        return BT_OK;
    case BATON__V1__WORKER_ITEM__ITEM_TOKENS:
        msg->type = BT_MSG_TOKENS;
        return get_tokens(item->tokens, arena, &msg->tokens, err);
    case BATON__V1__WORKER_ITEM__ITEM_ENDED:
        msg->type = BT_MSG_ENDED;
        get_ended(item->ended, &msg->ended);
        return BT_OK;
    case BATON__V1__WORKER_ITEM__ITEM_SCORES:
        msg->type = BT_MSG_SCORES;
        return get_scores(item->scores, arena, &msg->scores, err);
    case BATON__V1__WORKER_ITEM__ITEM_REPORT:
        msg->type = BT_MSG_REPORT;
        get_ended(item->report, &msg->ended);
        return BT_OK;
    case BATON__V1__WORKER_ITEM__ITEM_PIECE:
        get_piece(item->piece, kind, piece);
        return BT_OK;
    default:
        *kind = BT_WIRE_ITEM_UNKNOWN;
        return BT_OK;
    }
}

static bt_status get_router_item(const Baton__V1__RouterItem *item, struct bt_wire_arena *arena,
                                 enum bt_wire_item_kind *kind, struct bt_msg *msg,
                                 struct bt_wire_piece *piece, struct bt_error *err) {
    *kind = BT_WIRE_ITEM_MESSAGE;
    switch (item->item_case) {
    case BATON__V1__ROUTER_ITEM__ITEM_WELCOME:
        msg->type = BT_MSG_WELCOME;
        msg->welcome.incarnation = get_id(item->welcome->incarnation);
        msg->welcome.protocol = item->welcome->protocol;
        return BT_OK;
    case BATON__V1__ROUTER_ITEM__ITEM_REFUSED:
        msg->type = BT_MSG_REFUSED;
        msg->refused.final = item->refused->final;
        return get_text("refused.reason", item->refused->reason, msg->refused.reason,
                        sizeof msg->refused.reason, err);
    case BATON__V1__ROUTER_ITEM__ITEM_PEERS:
        msg->type = BT_MSG_PEERS;
        return get_peers(item->peers, arena, &msg->peers, err);
    case BATON__V1__ROUTER_ITEM__ITEM_RESUME:
        msg->type = BT_MSG_RESUME;
        return get_resume(item->resume, arena, &msg->resume, err);
    case BATON__V1__ROUTER_ITEM__ITEM_RESERVE:
        msg->type = BT_MSG_RESERVE;
        return get_work(item->reserve, arena, &msg->work, err);
    case BATON__V1__ROUTER_ITEM__ITEM_PREFILL:
        msg->type = BT_MSG_PREFILL;
        return get_work(item->prefill, arena, &msg->work, err);
    case BATON__V1__ROUTER_ITEM__ITEM_CANCEL:
        msg->type = BT_MSG_CANCEL;
        msg->cancel.key = get_key(item->cancel->key);
        msg->cancel.ticket = get_id(item->cancel->ticket);
        return BT_OK;
    case BATON__V1__ROUTER_ITEM__ITEM_PREFILL_GONE:
        msg->type = BT_MSG_PGONE;
        msg->pgone.key = get_key(item->prefill_gone->key);
        msg->pgone.ticket = get_id(item->prefill_gone->ticket);
        return BT_OK;
    case BATON__V1__ROUTER_ITEM__ITEM_SEEN:
        msg->type = BT_MSG_SEEN;
        return get_seen(item->seen, arena, &msg->seen, err);
    case BATON__V1__ROUTER_ITEM__ITEM_PULSE:
        msg->type = BT_MSG_PULSE;
        return BT_OK;
    case BATON__V1__ROUTER_ITEM__ITEM_FLUSH:
        msg->type = BT_MSG_FLUSH;
        return BT_OK;
    case BATON__V1__ROUTER_ITEM__ITEM_PIECE:
        get_piece(item->piece, kind, piece);
        return BT_OK;
    default:
        *kind = BT_WIRE_ITEM_UNKNOWN;
        return BT_OK;
    }
}

bt_status bt_wire_item_unpack(const uint8_t *bytes, size_t n_bytes, enum bt_wire_side from,
                              struct bt_wire_arena *arena, enum bt_wire_item_kind *kind,
                              struct bt_msg *msg, struct bt_wire_piece *piece,
                              struct bt_error *err) {
    bt_wire_arena_reset(arena);
    memset(msg, 0, sizeof *msg);
    ProtobufCAllocator allocator = {arena_alloc, arena_free, arena};
    const ProtobufCMessageDescriptor *type = from == BT_WIRE_WORKER
                                                 ? &baton__v1__worker_item__descriptor
                                                 : &baton__v1__router_item__descriptor;
    ProtobufCMessage *item = protobuf_c_message_unpack(type, &allocator, n_bytes, bytes);
    if (!item && arena->over)
        return bt_fail(err, BT_E_TOO_LARGE,
                       "item of %zu bytes takes more than %zu bytes to unpack, the bound", n_bytes,
                       arena->bytes_max);
    if (!item)
        return bt_fail(err, BT_E_INVALID, "item of %zu bytes is no well-formed %s", n_bytes,
                       type->short_name);
    if (from == BT_WIRE_WORKER)
        return get_worker_item((Baton__V1__WorkerItem *)item, arena, kind, msg, piece, err);
    return get_router_item((Baton__V1__RouterItem *)item, arena, kind, msg, piece, err);
}
