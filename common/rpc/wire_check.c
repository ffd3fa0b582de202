/* Checks a message against the bounds of proto/registry.proto, on the way out and on the way in. */
#include <string.h>

#include "common/base/address.h"
#include "common/rpc/wire.h"

static bt_status check_range(const char *field, uint64_t value, uint64_t min, uint64_t max,
                             struct bt_error *err) {
    if (value >= min && value <= max)
        return BT_OK;
    return bt_fail(err, BT_E_INVALID, "%s is %llu, must be %llu to %llu", field,
                   (unsigned long long)value, (unsigned long long)min, (unsigned long long)max);
}

static bt_status check_at_least_one(const char *field, uint64_t value, struct bt_error *err) {
    return value ? BT_OK : bt_fail(err, BT_E_INVALID, "%s is 0, must be at least 1", field);
}

static bt_status check_count(const char *field, uint32_t n, uint32_t max, struct bt_error *err) {
    if (n <= max)
        return BT_OK;
    return bt_fail(err, BT_E_TOO_LARGE, "%s has %u entries, must have at most %u", field, n, max);
}

static bt_status check_id(const char *field, struct bt_id id, struct bt_error *err) {
    return bt_id_is_zero(id) ? bt_fail(err, BT_E_INVALID, "%s is 0, must be another id", field)
                             : BT_OK;
}

static bt_status check_key(const char *message, const struct bt_attempt *key,
                           struct bt_error *err) {
    if (!key->request)
        return bt_fail(err, BT_E_INVALID, "%s.key.request is 0, must be at least 1", message);
    if (!key->attempt)
        return bt_fail(err, BT_E_INVALID, "%s.key.attempt is 0, must be at least 1", message);
    return BT_OK;
}

/* Bytes of the UTF-8 character at s (RFC 3629, section 4), 0 where none or a control character
 * stands there. */
static size_t character_bytes(const uint8_t *s) {
    if (s[0] < 0x80)
        return s[0] >= 0x20 && s[0] != 0x7f;
    if (s[0] < 0xc2 || s[0] > 0xf4)
        return 0;
    size_t n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    for (size_t i = 1; i < n; i++)
        if ((s[i] & 0xc0) != 0x80)
            return 0; /* the NUL at the end too: nothing past it is read */
    if ((s[0] == 0xc2 && s[1] < 0xa0) || (s[0] == 0xe0 && s[1] < 0xa0) ||
        (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return n;
}

static bt_status check_text(const char *field, const char *text, size_t capacity, size_t n_min,
                            struct bt_error *err) {
    const char *end = memchr(text, 0, capacity);
    if (!end)
        return bt_fail(err, BT_E_INVALID, "%s has no end within %zu bytes", field, capacity);
    size_t n = (size_t)(end - text);
    if (n < n_min)
        return bt_fail(err, BT_E_INVALID, "%s has %zu bytes, must have %zu to %zu", field, n, n_min,
                       capacity - 1);
    for (size_t i = 0, step; i < n; i += step) {
        step = character_bytes((const uint8_t *)text + i);
        if (!step)
            return bt_fail(err, BT_E_INVALID,
                           "%s has the byte 0x%02x at %zu, must be UTF-8 without control "
                           "characters",
                           field, (uint8_t)text[i], i);
    }
    return BT_OK;
}

static bt_status check_address(const char *field, const char *text, struct bt_error *err) {
    BT_TRY(check_text(field, text, BT_ADDRESS_BYTES, 1, err));
    struct bt_address address;
    struct bt_error why = {0};
    if (bt_address_parse(text, &address, &why) != BT_OK)
        return bt_fail(err, BT_E_INVALID, "%s: %.200s", field, why.text);
    return BT_OK;
}

static bt_status check_census(const char *field, const struct bt_census *census,
                              struct bt_error *err) {
    uint64_t sum = (uint64_t)census->free + census->cached + census->reserved + census->filling +
                   census->armed + census->landed + census->live + census->quarantined;
    if (sum == census->total)
        return BT_OK;
    return bt_fail(err, BT_E_INVALID, "%s.total is %u, must be the sum of the others, %llu", field,
                   census->total, (unsigned long long)sum);
}

static bt_status check_join(const struct bt_msg_join *join, struct bt_error *err) {
    BT_TRY(check_text("join.name", join->name, sizeof join->name, 1, err));
    BT_TRY(check_id("join.incarnation", join->incarnation, err));
    BT_TRY(check_range("join.role", join->role, BT_ROLE_PREFILL, BT_ROLE_DECODE, err));
    BT_TRY(check_at_least_one("join.protocol_min", join->protocol_min, err));
    BT_TRY(
        check_range("join.protocol_max", join->protocol_max, join->protocol_min, UINT32_MAX, err));
    uint8_t packed[BT_FINGERPRINT_BYTES];
    struct bt_fingerprint unpacked;
    struct bt_error why = {0};
    bt_fingerprint_pack(&join->fingerprint, packed);
    if (bt_fingerprint_unpack(packed, sizeof packed, &unpacked, &why) != BT_OK)
        return bt_fail(err, BT_E_INVALID, "join.fingerprint: %.200s", why.text);
    if (join->role == BT_ROLE_DECODE)
        BT_TRY(check_address("join.link_address", join->link_address, err));
    else if (join->link_address[0])
        return bt_fail(err, BT_E_INVALID,
                       "join.link_address is \"%.63s\", must be empty for a prefill worker",
                       join->link_address);
    BT_TRY(check_at_least_one("join.max_context", join->max_context, err));
    BT_TRY(check_at_least_one("join.max_seqs", join->max_seqs, err));
    return check_census("join.census", &join->census, err);
}

static bt_status check_blocks(const struct bt_msg_blocks *blocks, struct bt_error *err) {
    BT_TRY(check_count("blocks.added", blocks->n_added, BT_WIRE_BLOCKS, err));
    return check_count("blocks.evicted", blocks->n_evicted, BT_WIRE_BLOCKS, err);
}

static bt_status check_reserved(const struct bt_msg_reserved *reserved, struct bt_error *err) {
    BT_TRY(check_key("reserved", &reserved->key, err));
    if (reserved->accepted) {
        BT_TRY(check_range("reserved.pages_held", reserved->pages_held, 0, reserved->pages, err));
        return check_range("reserved.reason of an accepted one", reserved->reason, 0, 0, err);
    }
    switch (reserved->reason) {
    case BT_END_FULL:
    case BT_END_DRAINING:
    case BT_END_INVALID:
    case BT_END_DEADLINE:
        return BT_OK;
    default:
        return bt_fail(err, BT_E_INVALID,
                       "reserved.reason of a refused one is %d, must be FULL, DRAINING, INVALID or "
                       "DEADLINE",
                       (int)reserved->reason);
    }
}

/* A value that is no number fails every comparison, so it is refused too. */
static bt_status check_float(const char *field, float value, float min, float max,
                             struct bt_error *err) {
    if (value >= min && value <= max)
        return BT_OK;
    return bt_fail(err, BT_E_INVALID, "%s is %g, must be %g to %g", field, (double)value,
                   (double)min, (double)max);
}

static bt_status check_logprobs(const struct bt_logprobs *logprobs, struct bt_error *err) {
    BT_TRY(check_range("number of logprobs.top", logprobs->n_top, 0, BT_TOP_LOGPROBS, err));
    BT_TRY(check_float("logprobs.own", logprobs->logprob, BT_LOGPROB_MIN, 0, err));
    for (uint32_t i = 0; i < logprobs->n_top; i++) {
        const struct bt_logprob *top = &logprobs->top[i];
        BT_TRY(check_range("logprobs.top_token", (uint32_t)top->token, 0, INT32_MAX, err));
        BT_TRY(check_float("logprobs.top", top->logprob, BT_LOGPROB_MIN, 0, err));
    }
    return BT_OK;
}

static bt_status check_tokens(const struct bt_msg_tokens *tokens, struct bt_error *err) {
    BT_TRY(check_count("tokens", tokens->n_rows, BT_WIRE_TOKEN_ROWS, err));
    for (uint32_t i = 0; i < tokens->n_rows; i++) {
        const struct bt_token *row = &tokens->rows[i];
        BT_TRY(check_at_least_one("tokens.request", row->key.request, err));
        BT_TRY(check_at_least_one("tokens.attempt", row->key.attempt, err));
        BT_TRY(check_range("tokens.token", (uint32_t)row->token, 0, INT32_MAX, err));
        BT_TRY(check_range("tokens.finish", row->finish, BT_FINISH_NONE, BT_FINISH_ERROR, err));
        if (row->logprobs)
            BT_TRY(check_logprobs(row->logprobs, err));
    }
    return BT_OK;
}

static bt_status check_scores(const struct bt_msg_scores *scores, struct bt_error *err) {
    BT_TRY(check_key("scores", &scores->key, err));
    BT_TRY(check_count("scores", scores->n_rows, BT_SCORE_ROWS, err));
    BT_TRY(check_at_least_one("number of scores", scores->n_rows, err));
    BT_TRY(check_range("scores.first", scores->first, 1, BT_WIRE_PROMPT_TOKENS, err));
    for (uint32_t i = 0; i < scores->n_rows; i++)
        BT_TRY(check_logprobs(&scores->rows[i], err));
    return BT_OK;
}

static bt_status check_ended(const struct bt_msg_ended *ended, struct bt_error *err) {
    BT_TRY(check_key("ended", &ended->key, err));
    return check_range("ended.reason", ended->reason, BT_END_DONE, BT_END_COUNT - 1, err);
}

static bt_status check_report(const struct bt_msg_ended *report, struct bt_error *err) {
    BT_TRY(check_key("report", &report->key, err));
    return check_range("report.reason", report->reason, 0, BT_END_DONE, err);
}

static bt_status check_peers(const struct bt_msg_peers *peers, struct bt_error *err) {
    BT_TRY(check_count("peers", peers->n_peers, BT_MAX_WORKERS, err));
    for (uint32_t i = 0; i < peers->n_peers; i++) {
        const struct bt_peer *peer = &peers->peers[i];
        BT_TRY(check_text("peers.name", peer->name, sizeof peer->name, 1, err));
        BT_TRY(check_id("peers.incarnation", peer->incarnation, err));
        BT_TRY(check_address("peers.link_address", peer->link_address, err));
    }
    return BT_OK;
}

static bt_status check_resume(const struct bt_msg_resume *resume, struct bt_error *err) {
    BT_TRY(check_count("resume", resume->n_rows, BT_WIRE_RESUME_ROWS, err));
    for (uint32_t i = 0; i < resume->n_rows; i++) {
        BT_TRY(check_key("resume", &resume->rows[i].key, err));
        BT_TRY(check_id("resume.ticket", resume->rows[i].ticket, err));
    }
    return BT_OK;
}

static bt_status check_over_zero(const char *field, float value, float max, struct bt_error *err) {
    if (value > 0 && value <= max)
        return BT_OK;
    return bt_fail(err, BT_E_INVALID, "sampling.%s is %g, must be over 0, at most %g", field,
                   (double)value, (double)max);
}

static bt_status check_bias(const struct bt_sampling *sampling, struct bt_error *err) {
    BT_TRY(check_count("sampling.bias", sampling->n_bias, BT_LOGIT_BIASES, err));
    for (int i = 0; i < sampling->n_bias; i++) {
        const struct bt_logit_bias *bias = &sampling->bias[i];
        BT_TRY(check_range("sampling.bias_token", (uint32_t)bias->token, 0, INT32_MAX, err));
        if (i > 0 && bias->token <= bias[-1].token)
            return bt_fail(err, BT_E_INVALID, "sampling.bias_token is %d after %d, must rise",
                           bias->token, bias[-1].token);
        BT_TRY(check_float("sampling.bias", bias->bias, -100, 100, err));
    }
    return BT_OK;
}

static bt_status check_sampling(const struct bt_sampling *sampling, struct bt_error *err) {
    BT_TRY(check_float("sampling.temperature", sampling->temperature, 0, 2, err));
    BT_TRY(check_over_zero("top_p", sampling->top_p, 1, err));
    BT_TRY(check_float("sampling.min_p", sampling->min_p, 0, 1, err));
    BT_TRY(check_range("sampling.top_k", (uint32_t)sampling->top_k, 0, INT32_MAX, err));
    BT_TRY(check_float("sampling.frequency_penalty", sampling->frequency_penalty, -2, 2, err));
    BT_TRY(check_float("sampling.presence_penalty", sampling->presence_penalty, -2, 2, err));
    BT_TRY(check_over_zero("repetition_penalty", sampling->repetition_penalty, 10, err));
    BT_TRY(check_range("sampling.max_tokens", sampling->max_tokens, 1, BT_WIRE_PROMPT_TOKENS, err));
    BT_TRY(check_range("sampling.min_tokens", sampling->min_tokens, 0, sampling->max_tokens, err));
    BT_TRY(check_count("sampling.stop_tokens", sampling->n_stop_tokens, BT_STOP_TOKENS, err));
    for (int i = 0; i < sampling->n_stop_tokens; i++)
        BT_TRY(check_range("sampling.stop_tokens", (uint32_t)sampling->stop_tokens[i], 0, INT32_MAX,
                           err));
    BT_TRY(check_range("sampling.logprobs", sampling->logprobs, 0, 1 + BT_TOP_LOGPROBS, err));
    BT_TRY(check_range("sampling.prompt_logprobs", sampling->prompt_logprobs, 0,
                       1 + BT_TOP_LOGPROBS, err));
    return check_bias(sampling, err);
}

static bt_status check_work(const struct bt_msg_work *work, bool reserve, struct bt_error *err) {
    BT_TRY(check_key("work", &work->key, err));
    BT_TRY(check_id("work.ticket", work->ticket, err));
    BT_TRY(check_count("work.tokens", work->n_tokens, BT_WIRE_PROMPT_TOKENS, err));
    BT_TRY(check_at_least_one("number of work.tokens", work->n_tokens, err));
    BT_TRY(check_range("work.n_prompt", work->n_prompt, 1, work->n_tokens, err));
    for (uint32_t i = 0; i < work->n_tokens; i++)
        BT_TRY(check_range("work.tokens", (uint32_t)work->tokens[i], 0, INT32_MAX, err));
    BT_TRY(check_sampling(&work->sampling, err));
    BT_TRY(check_range("work.remaining_ms", work->remaining_ms, 0, BT_WIRE_DURATION_MS, err));
    BT_TRY(check_range("work.elapsed_ms", work->elapsed_ms, 0, BT_WIRE_DURATION_MS, err));
    BT_TRY(check_text("work.tenant", work->tenant, sizeof work->tenant, 0, err));
    if (reserve && work->prefill_here)
        return BT_OK;
    return check_id("work.peer", work->peer, err);
}

static bt_status check_seen(const struct bt_msg_seen *seen, struct bt_error *err) {
    BT_TRY(check_count("seen", seen->n_keys, BT_WIRE_SEEN_KEYS, err));
    for (uint32_t i = 0; i < seen->n_keys; i++)
        BT_TRY(check_key("seen", &seen->keys[i], err));
    return BT_OK;
}

static bt_status check_worker_message(const struct bt_msg *msg, struct bt_error *err) {
    switch (msg->type) {
    case BT_MSG_JOIN:
        return check_join(&msg->join, err);
    case BT_MSG_STATUS:
        return check_census("status.census", &msg->status.census, err);
    case BT_MSG_BLOCKS:
        return check_blocks(&msg->blocks, err);
    case BT_MSG_RESERVED:
        return check_reserved(&msg->reserved, err);
    case BT_MSG_LIVE:
        return check_key("live", &msg->live.key, err);
    case BT_MSG_TOKENS:
        return check_tokens(&msg->tokens, err);
    case BT_MSG_ENDED:
        return check_ended(&msg->ended, err);
    case BT_MSG_SCORES:
        return check_scores(&msg->scores, err);
    case BT_MSG_REPORT:
        return check_report(&msg->ended, err);
    default:
        return bt_fail(err, BT_E_INVALID, "message type %d is none that a worker sends",
                       (int)msg->type);
    }
}

static bt_status check_router_message(const struct bt_msg *msg, struct bt_error *err) {
    switch (msg->type) {
    case BT_MSG_WELCOME:
        BT_TRY(check_id("welcome.incarnation", msg->welcome.incarnation, err));
        return check_at_least_one("welcome.protocol", msg->welcome.protocol, err);
    case BT_MSG_REFUSED:
        return check_text("refused.reason", msg->refused.reason, sizeof msg->refused.reason, 1,
                          err);
    case BT_MSG_PEERS:
        return check_peers(&msg->peers, err);
    case BT_MSG_RESUME:
        return check_resume(&msg->resume, err);
    case BT_MSG_RESERVE:
    case BT_MSG_PREFILL:
        return check_work(&msg->work, msg->type == BT_MSG_RESERVE, err);
    case BT_MSG_CANCEL:
        BT_TRY(check_key("cancel", &msg->cancel.key, err));
        return check_id("cancel.ticket", msg->cancel.ticket, err);
    case BT_MSG_PGONE:
        BT_TRY(check_key("prefill_gone", &msg->pgone.key, err));
        return check_id("prefill_gone.ticket", msg->pgone.ticket, err);
    case BT_MSG_SEEN:
        return check_seen(&msg->seen, err);
    case BT_MSG_PULSE:
    case BT_MSG_FLUSH:
        return BT_OK;
    default:
        return bt_fail(err, BT_E_INVALID, "message type %d is none that a router sends",
                       (int)msg->type);
    }
}

bt_status bt_wire_check(const struct bt_msg *msg, enum bt_wire_side from, struct bt_error *err) {
    return from == BT_WIRE_WORKER ? check_worker_message(msg, err) : check_router_message(msg, err);
}
