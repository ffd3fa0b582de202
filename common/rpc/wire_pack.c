/* Packs struct bt_msg into one WorkerItem or RouterItem of proto/registry.proto. */
#include <stdlib.h>

#include "common/rpc/wire_item.h"
#include "common/rpc/wire_logprobs.h"
#include "proto/registry.pb-c.h"

/* One item with all the submessages that it can have; lists have memory of their own. */
struct build {
    union {
        Baton__V1__WorkerItem worker;
        Baton__V1__RouterItem router;
    };
    union {
        Baton__V1__Join join;
        Baton__V1__Status status;
        Baton__V1__Blocks blocks;
        Baton__V1__Reserved reserved;
        Baton__V1__Live live;
        Baton__V1__Tokens tokens;
        Baton__V1__Ended ended;
        Baton__V1__Scores scores;
        Baton__V1__Welcome welcome;
        Baton__V1__Refused refused;
        Baton__V1__Peers peers;
        Baton__V1__Resume resume;
        Baton__V1__Work work;
        Baton__V1__Cancel cancel;
        Baton__V1__PrefillGone pgone;
        Baton__V1__Seen seen;
        Baton__V1__Pulse pulse;
        Baton__V1__Flush flush;
        Baton__V1__Piece piece;
    };
    Baton__V1__Attempt key;
    Baton__V1__Id id, peer;
    Baton__V1__Census census;
    Baton__V1__Stages stages;
    Baton__V1__Sampling sampling;
    uint32_t stop_tokens[BT_STOP_TOKENS];
    uint32_t bias_tokens[BT_LOGIT_BIASES];
    float biases[BT_LOGIT_BIASES];
    Baton__V1__Logprobs logprobs;
    void *list;
};

static Baton__V1__Attempt *put_key(Baton__V1__Attempt *to, const struct bt_attempt *key) {
    baton__v1__attempt__init(to);
    to->request = key->request;
    to->attempt = key->attempt;
    return to;
}

static Baton__V1__Id *put_id(Baton__V1__Id *to, struct bt_id id) {
    baton__v1__id__init(to);
    to->hi = id.hi;
    to->lo = id.lo;
    return to;
}

static Baton__V1__Census *put_census(Baton__V1__Census *to, const struct bt_census *census) {
    baton__v1__census__init(to);
    to->total = census->total;
    to->free = census->free;
    to->cached = census->cached;
    to->reserved = census->reserved;
    to->filling = census->filling;
    to->armed = census->armed;
    to->landed = census->landed;
    to->live = census->live;
    to->quarantined = census->quarantined;
    return to;
}

static void put_join(struct build *b, const struct bt_msg_join *join,
                     uint8_t fingerprint[BT_FINGERPRINT_BYTES]) {
    baton__v1__join__init(&b->join);
    b->join.name = (char *)join->name;
    b->join.incarnation = put_id(&b->id, join->incarnation);
    b->join.role = (Baton__V1__Role)join->role;
    b->join.protocol_min = join->protocol_min;
    b->join.protocol_max = join->protocol_max;
    bt_fingerprint_pack(&join->fingerprint, fingerprint);
    b->join.fingerprint.data = fingerprint;
    b->join.fingerprint.len = BT_FINGERPRINT_BYTES;
    b->join.text_hash = join->text_hash;
    b->join.link_address = (char *)join->link_address;
    b->join.max_context = join->max_context;
    b->join.max_seqs = join->max_seqs;
    b->join.census = put_census(&b->census, &join->census);
}

static void put_status(struct build *b, const struct bt_msg_status *status) {
    baton__v1__status__init(&b->status);
    b->status.census = put_census(&b->census, &status->census);
    b->status.running = status->running;
    b->status.backlog_tokens = status->backlog_tokens;
    b->status.step_us = status->step_us;
    b->status.draining = status->draining;
    b->status.kv_bytes = status->kv_bytes;
    b->status.refused_frames = status->refused_frames;
    b->status.links = status->links;
    b->status.step_p50_us = status->step_p50_us;
    b->status.step_p99_us = status->step_p99_us;
}

static void put_blocks(struct build *b, const struct bt_msg_blocks *blocks) {
    baton__v1__blocks__init(&b->blocks);
    b->blocks.sequence = blocks->sequence;
    b->blocks.census_first = blocks->census_first;
    b->blocks.census_last = blocks->census_last;
    b->blocks.added = (uint64_t *)blocks->added;
    b->blocks.n_added = blocks->n_added;
    b->blocks.evicted = (uint64_t *)blocks->evicted;
    b->blocks.n_evicted = blocks->n_evicted;
}

static void put_reserved(struct build *b, const struct bt_msg_reserved *reserved) {
    baton__v1__reserved__init(&b->reserved);
    b->reserved.key = put_key(&b->key, &reserved->key);
    b->reserved.accepted = reserved->accepted;
    b->reserved.pages_held = reserved->pages_held;
    b->reserved.pages = reserved->pages;
    b->reserved.reason = (Baton__V1__End)reserved->reason;
}

static void put_tokens(struct build *b, const struct bt_msg_tokens *tokens, void *columns) {
    size_t n = tokens->n_rows;
    uint64_t *request = columns, *hash = request + n;
    uint32_t *attempt = (uint32_t *)(hash + n), *index = attempt + n, *token = index + n,
             *finish = token + n;
    uint32_t any_finish = 0;
    uint64_t any_hash = 0;
    bool any_logprobs = false;
    for (size_t i = 0; i < n; i++) {
        const struct bt_token *row = &tokens->rows[i];
        request[i] = row->key.request;
        attempt[i] = row->key.attempt;
        index[i] = row->index;
        token[i] = (uint32_t)row->token;
        finish[i] = (uint32_t)row->finish;
        hash[i] = row->hash;
        any_finish |= (uint32_t)row->finish;
        any_hash |= row->hash;
        any_logprobs |= row->logprobs != NULL;
    }
    baton__v1__tokens__init(&b->tokens);
    b->tokens.request = request;
    b->tokens.attempt = attempt;
    b->tokens.index = index;
    b->tokens.token = token;
    b->tokens.finish = (Baton__V1__Finish *)finish;
    b->tokens.hash = hash;
    b->tokens.n_request = b->tokens.n_attempt = b->tokens.n_index = b->tokens.n_token = n;
    b->tokens.n_finish = any_finish ? n : 0;
    b->tokens.n_hash = any_hash ? n : 0;
    if (!any_logprobs)
        return;
    bt_wire_logprobs_begin(&b->logprobs, finish + n, n);
    for (size_t i = 0; i < n; i++)
        bt_wire_logprobs_put(&b->logprobs, tokens->rows[i].logprobs);
    b->tokens.logprobs = &b->logprobs;
}

static void put_scores(struct build *b, const struct bt_msg_scores *scores, void *columns) {
    baton__v1__scores__init(&b->scores);
    b->scores.key = put_key(&b->key, &scores->key);
    b->scores.first = scores->first;
    bt_wire_logprobs_begin(&b->logprobs, columns, scores->n_rows);
    for (size_t i = 0; i < scores->n_rows; i++)
        bt_wire_logprobs_put(&b->logprobs, &scores->rows[i]);
    b->scores.rows = &b->logprobs;
}

static void put_ended(struct build *b, const struct bt_msg_ended *ended) {
    baton__v1__ended__init(&b->ended);
    baton__v1__stages__init(&b->stages);
    b->ended.key = put_key(&b->key, &ended->key);
    b->ended.reason = (Baton__V1__End)ended->reason;
    b->ended.next_index = ended->next_index;
    b->ended.stages = &b->stages;
    b->stages.queue_us = ended->stages.queue_us;
    b->stages.grant_us = ended->stages.grant_us;
    b->stages.prefill_us = ended->stages.prefill_us;
    b->stages.transfer_us = ended->stages.transfer_us;
    b->stages.join_us = ended->stages.join_us;
    b->stages.decode_us = ended->stages.decode_us;
    b->stages.steps = ended->stages.steps;
    b->stages.batch_rows = ended->stages.batch_rows;
    b->ended.pages = ended->pages;
    b->ended.pages_held = ended->pages_held;
    b->ended.pages_cached_p = ended->pages_cached_p;
    b->ended.kv_bytes = ended->kv_bytes;
}

static bool put_peers(struct build *b, const struct bt_msg_peers *peers) {
    struct row {
        Baton__V1__Peer peer;
        Baton__V1__Id id;
    };
    size_t n = peers->n_peers;
    Baton__V1__Peer **pointers = b->list = malloc(n * (sizeof(void *) + sizeof(struct row)) + 1);
    if (!pointers)
        return false;
    struct row *rows = (struct row *)(pointers + n);
    for (size_t i = 0; i < n; i++) {
        baton__v1__peer__init(&rows[i].peer);
        rows[i].peer.name = (char *)peers->peers[i].name;
        rows[i].peer.incarnation = put_id(&rows[i].id, peers->peers[i].incarnation);
        rows[i].peer.link_address = (char *)peers->peers[i].link_address;
        pointers[i] = &rows[i].peer;
    }
    baton__v1__peers__init(&b->peers);
    b->peers.peers = pointers;
    b->peers.n_peers = n;
    return true;
}

static bool put_resume(struct build *b, const struct bt_msg_resume *resume) {
    struct row {
        Baton__V1__ResumeRow row;
        Baton__V1__Attempt key;
        Baton__V1__Id ticket;
    };
    size_t n = resume->n_rows;
    Baton__V1__ResumeRow **pointers = b->list =
        malloc(n * (sizeof(void *) + sizeof(struct row)) + 1);
    if (!pointers)
        return false;
    struct row *rows = (struct row *)(pointers + n);
    for (size_t i = 0; i < n; i++) {
        baton__v1__resume_row__init(&rows[i].row);
        rows[i].row.key = put_key(&rows[i].key, &resume->rows[i].key);
        rows[i].row.ticket = put_id(&rows[i].ticket, resume->rows[i].ticket);
        rows[i].row.next_index = resume->rows[i].next_index;
        pointers[i] = &rows[i].row;
    }
    baton__v1__resume__init(&b->resume);
    b->resume.rows = pointers;
    b->resume.n_rows = n;
    return true;
}

static void put_sampling(struct build *b, const struct bt_sampling *sampling) {
    baton__v1__sampling__init(&b->sampling);
    b->sampling.temperature = sampling->temperature;
    b->sampling.top_p = sampling->top_p;
    b->sampling.min_p = sampling->min_p;
    b->sampling.top_k = (uint32_t)sampling->top_k;
    b->sampling.frequency_penalty = sampling->frequency_penalty;
    b->sampling.presence_penalty = sampling->presence_penalty;
    b->sampling.repetition_penalty = sampling->repetition_penalty;
    b->sampling.seed = sampling->seed;
    b->sampling.max_tokens = sampling->max_tokens;
    b->sampling.min_tokens = sampling->min_tokens;
    b->sampling.ignore_eos = sampling->ignore_eos;
    b->sampling.want_hash = sampling->want_hash;
    for (int i = 0; i < sampling->n_stop_tokens; i++)
        b->stop_tokens[i] = (uint32_t)sampling->stop_tokens[i];
    b->sampling.stop_tokens = b->stop_tokens;
    b->sampling.n_stop_tokens = sampling->n_stop_tokens;
    b->sampling.logprobs = sampling->logprobs;
    b->sampling.prompt_logprobs = sampling->prompt_logprobs;
    for (int i = 0; i < sampling->n_bias; i++) {
        b->bias_tokens[i] = (uint32_t)sampling->bias[i].token;
        b->biases[i] = sampling->bias[i].bias;
    }
    b->sampling.bias_token = b->bias_tokens;
    b->sampling.bias = b->biases;
    b->sampling.n_bias_token = b->sampling.n_bias = sampling->n_bias;
}

static void put_work(struct build *b, const struct bt_msg_work *work) {
    baton__v1__work__init(&b->work);
    b->work.key = put_key(&b->key, &work->key);
    b->work.ticket = put_id(&b->id, work->ticket);
    b->work.tokens = (uint32_t *)work->tokens;
    b->work.n_tokens = work->n_tokens;
    b->work.n_prompt = work->n_prompt;
    put_sampling(b, &work->sampling);
    b->work.sampling = &b->sampling;
    b->work.remaining_ms = work->remaining_ms;
    b->work.elapsed_ms = work->elapsed_ms;
    b->work.tenant = (char *)work->tenant;
    b->work.prefill_here = work->prefill_here;
    b->work.peer = put_id(&b->peer, work->peer);
}

static bool put_seen(struct build *b, const struct bt_msg_seen *seen) {
    size_t n = seen->n_keys;
    uint64_t *request = b->list = malloc(n * (sizeof(uint64_t) + sizeof(uint32_t)) + 1);
    if (!request)
        return false;
    uint32_t *attempt = (uint32_t *)(request + n);
    for (size_t i = 0; i < n; i++) {
        request[i] = seen->keys[i].request;
        attempt[i] = seen->keys[i].attempt;
    }
    baton__v1__seen__init(&b->seen);
    b->seen.request = request;
    b->seen.attempt = attempt;
    b->seen.n_request = b->seen.n_attempt = n;
    return true;
}

/* Fills the body of a message of a worker; answers the member of the item, 0 for another type. */
static Baton__V1__WorkerItem__ItemCase put_worker(struct build *b, const struct bt_msg *msg,
                                                  void *columns, uint8_t *fingerprint) {
    switch (msg->type) {
    case BT_MSG_JOIN:
        put_join(b, &msg->join, fingerprint);
        return BATON__V1__WORKER_ITEM__ITEM_JOIN;
    case BT_MSG_STATUS:
        put_status(b, &msg->status);
        return BATON__V1__WORKER_ITEM__ITEM_STATUS;
    case BT_MSG_BLOCKS:
        put_blocks(b, &msg->blocks);
        return BATON__V1__WORKER_ITEM__ITEM_BLOCKS;
    case BT_MSG_RESERVED:
        put_reserved(b, &msg->reserved);
        return BATON__V1__WORKER_ITEM__ITEM_RESERVED;
    case BT_MSG_LIVE:
        baton__v1__live__init(&b->live);
        b->live.key = put_key(&b->key, &msg->live.key);
        return BATON__V1__WORKER_ITEM__ITEM_LIVE;
    case BT_MSG_TOKENS:
        put_tokens(b, &msg->tokens, columns);
        return BATON__V1__WORKER_ITEM__ITEM_TOKENS;
    case BT_MSG_ENDED:
        put_ended(b, &msg->ended);
        return BATON__V1__WORKER_ITEM__ITEM_ENDED;
    case BT_MSG_SCORES:
        put_scores(b, &msg->scores, columns);
        return BATON__V1__WORKER_ITEM__ITEM_SCORES;
    case BT_MSG_REPORT:
        put_ended(b, &msg->ended);
        return BATON__V1__WORKER_ITEM__ITEM_REPORT;
    default:
        return BATON__V1__WORKER_ITEM__ITEM__NOT_SET;
    }
}

/* As put_worker; *full says that there was no memory for a list. */
static Baton__V1__RouterItem__ItemCase put_router(struct build *b, const struct bt_msg *msg,
                                                  bool *full) {
    switch (msg->type) {
    case BT_MSG_WELCOME:
        baton__v1__welcome__init(&b->welcome);
        b->welcome.incarnation = put_id(&b->id, msg->welcome.incarnation);
        b->welcome.protocol = msg->welcome.protocol;
        return BATON__V1__ROUTER_ITEM__ITEM_WELCOME;
    case BT_MSG_REFUSED:
        baton__v1__refused__init(&b->refused);
        b->refused.reason = (char *)msg->refused.reason;
        b->refused.final = msg->refused.final;
        return BATON__V1__ROUTER_ITEM__ITEM_REFUSED;
    case BT_MSG_PEERS:
        *full = !put_peers(b, &msg->peers);
        return BATON__V1__ROUTER_ITEM__ITEM_PEERS;
    case BT_MSG_RESUME:
        *full = !put_resume(b, &msg->resume);
        return BATON__V1__ROUTER_ITEM__ITEM_RESUME;
    case BT_MSG_RESERVE:
        put_work(b, &msg->work);
        return BATON__V1__ROUTER_ITEM__ITEM_RESERVE;
    case BT_MSG_PREFILL:
        put_work(b, &msg->work);
        return BATON__V1__ROUTER_ITEM__ITEM_PREFILL;
    case BT_MSG_CANCEL:
        baton__v1__cancel__init(&b->cancel);
        b->cancel.key = put_key(&b->key, &msg->cancel.key);
        b->cancel.ticket = put_id(&b->id, msg->cancel.ticket);
        return BATON__V1__ROUTER_ITEM__ITEM_CANCEL;
    case BT_MSG_PGONE:
        baton__v1__prefill_gone__init(&b->pgone);
        b->pgone.key = put_key(&b->key, &msg->pgone.key);
        b->pgone.ticket = put_id(&b->id, msg->pgone.ticket);
        return BATON__V1__ROUTER_ITEM__ITEM_PREFILL_GONE;
    case BT_MSG_SEEN:
        *full = !put_seen(b, &msg->seen);
        return BATON__V1__ROUTER_ITEM__ITEM_SEEN;
    case BT_MSG_PULSE:
        baton__v1__pulse__init(&b->pulse);
        return BATON__V1__ROUTER_ITEM__ITEM_PULSE;
    case BT_MSG_FLUSH:
        baton__v1__flush__init(&b->flush);
        return BATON__V1__ROUTER_ITEM__ITEM_FLUSH;
    default:
        return BATON__V1__ROUTER_ITEM__ITEM__NOT_SET;
    }
}

static bt_status pack(const ProtobufCMessage *item, bt_wire_room *room, void *self,
                      struct bt_error *err) {
    size_t n = protobuf_c_message_get_packed_size(item);
    if (n > BT_WIRE_JOIN_BYTES)
        return bt_fail(err, BT_E_TOO_LARGE, "item has %zu bytes, must have at most %d", n,
                       BT_WIRE_JOIN_BYTES);
    uint8_t *to = room(self, n);
    if (!to)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for an item of %zu bytes", n);
    protobuf_c_message_pack(item, to);
    return BT_OK;
}

bt_status bt_wire_item_pack(const struct bt_msg *msg, void *columns, bt_wire_room *room, void *self,
                            struct bt_error *err) {
    struct build b;
    uint8_t fingerprint[BT_FINGERPRINT_BYTES];
    b.list = NULL;
    baton__v1__worker_item__init(&b.worker);
    b.worker.item_case = put_worker(&b, msg, columns, fingerprint);
    b.worker.join = &b.join; /* the member of any case: it is one pointer */
    if (b.worker.item_case != BATON__V1__WORKER_ITEM__ITEM__NOT_SET)
        return pack(&b.worker.base, room, self, err);
    bool full = false;
    baton__v1__router_item__init(&b.router);
    b.router.item_case = put_router(&b, msg, &full);
    b.router.welcome = &b.welcome;
    bt_status status = full ? bt_fail(err, BT_E_NO_MEMORY, "no memory for a list to send")
                            : pack(&b.router.base, room, self, err);
    free(b.list);
    return status;
}

bt_status bt_wire_piece_pack(const struct bt_wire_piece *piece, enum bt_wire_side from,
                             bt_wire_room *room, void *self, struct bt_error *err) {
    struct build b;
    baton__v1__piece__init(&b.piece);
    b.piece.total_bytes = piece->total_bytes;
    b.piece.offset = piece->offset;
    b.piece.data.data = (uint8_t *)piece->data;
    b.piece.data.len = piece->n_data;
    if (from == BT_WIRE_WORKER) {
        baton__v1__worker_item__init(&b.worker);
        b.worker.item_case = BATON__V1__WORKER_ITEM__ITEM_PIECE;
        b.worker.piece = &b.piece;
        return pack(&b.worker.base, room, self, err);
    }
    baton__v1__router_item__init(&b.router);
    b.router.item_case = BATON__V1__ROUTER_ITEM__ITEM_PIECE;
    b.router.piece = &b.piece;
    return pack(&b.router.base, room, self, err);
}
