/* Scores decode workers by room and prefix, and for each the prefill workers that may serve it. */
#include "router/placement.h"

#include "common/base/block_hash.h"
#include "common/base/page.h"

/* Prompt tokens left to compute beside so many cached pages; the last one always is. */
static uint32_t tokens_left(uint32_t n_tokens, uint32_t n_cached_pages) {
    uint32_t cached = n_cached_pages * BT_PAGE_TOKENS;
    return cached < n_tokens ? n_tokens - cached : 1;
}

struct view {
    const struct bt_worker_table *table;
    const struct bt_placement_rules *rules;
    const struct bt_placement_ask *ask;
    uint64_t now_us;
    uint32_t pages; /* that D must find, no prefix counted */
    uint32_t depth[BT_MAX_WORKERS];
};

static bool may_work(const struct view *view, const struct bt_worker *worker, enum bt_role role) {
    return bt_worker_takes_work(worker) && worker->role == role &&
           worker->full_until_us <= view->now_us && worker->n_requests < worker->max_seqs &&
           worker->n_requests < view->rules->worker_requests_max;
}

/* shared: pages that it would use together with others, which cost nothing. */
static bool d_fits(const struct view *view, uint32_t d, uint32_t shared) {
    const struct bt_worker *worker = &view->table->workers[d];
    return may_work(view, worker, BT_ROLE_DECODE) &&
           bt_worker_capacity(worker) >= view->ask->n_total &&
           bt_worker_pages_free(worker) + shared >= view->pages;
}

static bool d_has_room(const struct view *view, uint32_t d) {
    /* Of the prefix, those that others use; cached ones are in the free count already. */
    uint32_t live = view->table->workers[d].status.census.live;
    return d_fits(view, d, view->depth[d] < live ? view->depth[d] : live);
}

/* The D of its leader's prompt, if it still has it and has room. */
static bool choose_leaders(const struct view *view, struct bt_placement_choice *out) {
    const struct bt_placement_ask *ask = view->ask;
    if (ask->choice_d == BT_NO_WORKER || ask->scores)
        return false;
    uint32_t d = (uint32_t)ask->choice_d;
    /* The last token is always computed. */
    uint32_t shared = (ask->n_tokens - 1) / BT_PAGE_TOKENS;
    bool fits = ask->choice_fresh ? d_fits(view, d, shared)
                                  : view->depth[d] >= shared && d_has_room(view, d);
    if (!fits)
        return false;
    *out = (struct bt_placement_choice){.p = BT_NO_WORKER,
                                        .d = ask->choice_d,
                                        .why = BT_PLACE_LOCAL_CHOICE,
                                        .pages = view->pages - shared};
    return true;
}

/* What the prefill workers can do for this D. */
struct p_view {
    int best;      /* may take it now, or BT_NO_WORKER */
    bool any_fits; /* one is up and large enough */
    bool any_linked /* and its link to D was not lost just now */;
};

static struct p_view find_p(const struct view *view, uint32_t d) {
    struct p_view found = {.best = BT_NO_WORKER};
    uint64_t best_cost = UINT64_MAX;
    for (uint32_t p = 0; p < BT_MAX_WORKERS; p++) {
        const struct bt_worker *worker = &view->table->workers[p];
        if (!bt_worker_takes_work(worker) || worker->role != BT_ROLE_PREFILL ||
            bt_worker_capacity(worker) < view->ask->n_tokens)
            continue;
        found.any_fits = true;
        if (view->table->avoid_until_us[p][d] > view->now_us)
            continue;
        found.any_linked = true;
        uint32_t backlog = bt_worker_backlog(worker);
        if (!may_work(view, worker, BT_ROLE_PREFILL) ||
            backlog >= view->rules->prefill_backlog_tokens)
            continue;
        uint64_t cost = (uint64_t)backlog + tokens_left(view->ask->n_tokens, view->depth[p]);
        /* Requests break ties: between equal costs the one with fewer of ours. */
        cost = cost << 20 | worker->n_requests;
        if (cost < best_cost) {
            best_cost = cost;
            found.best = (int)p;
        }
    }
    return found;
}

/* How this D would be used; NONE when it must wait for a prefill worker. */
static enum bt_placement way(const struct view *view, uint32_t d, const struct p_view *p) {
    uint32_t n = view->ask->n_tokens;
    enum bt_disaggregate mode = view->rules->mode;
    if (view->ask->scores)
        return BT_PLACE_LOCAL_SCORES;
    if (mode == BT_DISAGGREGATE_NEVER)
        return BT_PLACE_LOCAL_NEVER;
    if (mode == BT_DISAGGREGATE_AUTO) {
        if (n <= view->rules->short_prompt_tokens)
            return BT_PLACE_LOCAL_SHORT;
        if (tokens_left(n, view->depth[d]) <= view->rules->short_prompt_tokens)
            return BT_PLACE_LOCAL_PREFIX;
        if (!p->any_fits)
            return BT_PLACE_LOCAL_NO_PREFILL;
        if (!p->any_linked)
            return BT_PLACE_LOCAL_PAIR_BROKEN;
    }
    return p->best == BT_NO_WORKER ? BT_PLACE_NONE : BT_PLACE_SPLIT;
}

/* Some attached worker of that role, also one that is busy or silent just now, could hold it. */
static bool could_hold(const struct view *view, enum bt_role role, uint32_t n_tokens) {
    for (uint32_t i = 0; i < BT_MAX_WORKERS; i++) {
        const struct bt_worker *worker = &view->table->workers[i];
        if (bt_worker_is_known(worker) && worker->role == role &&
            bt_worker_capacity(worker) >= n_tokens)
            return true;
    }
    return false;
}

enum bt_placement_answer bt_placement_choose(const struct bt_worker_table *table,
                                             const struct bt_prefix_table *prefix,
                                             const struct bt_placement_rules *rules,
                                             uint64_t now_us, const struct bt_placement_ask *ask,
                                             struct bt_placement_choice *out) {
    struct view view = {.table = table, .rules = rules, .ask = ask, .now_us = now_us};
    uint32_t total = bt_pages_of(ask->n_total);
    view.pages = bt_pages_of(ask->n_tokens) + BT_GROWTH_PAGES;
    if (view.pages > total)
        view.pages = total;
    if (!could_hold(&view, BT_ROLE_DECODE, ask->n_total) ||
        (rules->mode == BT_DISAGGREGATE_ALWAYS && !ask->scores &&
         !could_hold(&view, BT_ROLE_PREFILL, ask->n_tokens)))
        return BT_PLACEMENT_ASIDE;
    if (!ask->scores)
        bt_prefix_table_walk(prefix, bt_block_root(ask->tenant, table->fingerprint_hash),
                             ask->tokens, ask->n_tokens, view.depth);
    if (choose_leaders(&view, out))
        return BT_PLACEMENT_FOUND;
    int64_t best_score = INT64_MIN;
    bool waits_for_p = false;
    out->d = BT_NO_WORKER;
    for (uint32_t d = 0; d < BT_MAX_WORKERS; d++) {
        if (!d_has_room(&view, d))
            continue;
        struct p_view p = find_p(&view, d);
        enum bt_placement why = way(&view, d, &p);
        if (why == BT_PLACE_NONE) {
            waits_for_p = true;
            continue;
        }
        const struct bt_worker *worker = &table->workers[d];
        int64_t score =
            (int64_t)bt_worker_pages_free(worker) + (int64_t)BT_PREFIX_PAGE_WEIGHT * view.depth[d];
        /* Between equal scores the one with fewer of our requests. */
        score = score * (1 << 20) - worker->n_requests;
        if (score <= best_score)
            continue;
        best_score = score;
        bool split = why == BT_PLACE_SPLIT;
        *out = (struct bt_placement_choice){
            .p = split ? p.best : BT_NO_WORKER,
            .d = (int)d,
            .why = why,
            .pages = view.pages > view.depth[d] ? view.pages - view.depth[d] : 0,
            .backlog_tokens = split ? tokens_left(ask->n_tokens, view.depth[p.best]) : 0};
    }
    if (out->d != BT_NO_WORKER)
        return BT_PLACEMENT_FOUND;
    return waits_for_p ? BT_PLACEMENT_WAIT_P : BT_PLACEMENT_WAIT;
}
