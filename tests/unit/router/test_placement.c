/* Which pair a request gets: room, prefix, backlog, mode, broken pairs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "common/base/block_hash.h"
#include "router/placement.h"

enum { P0 = 0, P1 = 1, D0 = 2, D1 = 3, NOW = 1000000 };

struct setup {
    struct bt_worker_table *table;
    struct bt_prefix_table prefix;
    struct bt_placement_rules rules;
    int32_t tokens[640];
    struct bt_placement_ask ask;
    struct bt_placement_choice choice;
};

static void add(struct setup *s, uint32_t i, enum bt_role role) {
    struct bt_worker *w = &s->table->workers[i];
    w->state = BT_WORKER_UP;
    w->role = role;
    snprintf(w->name, sizeof w->name, "w%u", i);
    w->max_context = 1024;
    w->max_seqs = 8;
    w->status.census = (struct bt_census){.total = 100, .free = 100};
}

static struct setup *start(enum bt_disaggregate mode) {
    struct setup *s = calloc(1, sizeof *s);
    s->table = calloc(1, sizeof *s->table);
    bt_worker_table_init(s->table, 0);
    assert_int_equal(bt_prefix_table_init(&s->prefix, 1024, NULL), BT_OK);
    s->rules = (struct bt_placement_rules){.mode = mode,
                                           .short_prompt_tokens = 32,
                                           .prefill_backlog_tokens = 1000,
                                           .worker_requests_max = 100};
    for (int i = 0; i < 640; i++)
        s->tokens[i] = i;
    s->ask = (struct bt_placement_ask){.tokens = s->tokens,
                                       .n_tokens = 320,
                                       .n_total = 400,
                                       .tenant = "",
                                       .choice_d = BT_NO_WORKER};
    add(s, P0, BT_ROLE_PREFILL);
    add(s, P1, BT_ROLE_PREFILL);
    add(s, D0, BT_ROLE_DECODE);
    add(s, D1, BT_ROLE_DECODE);
    return s;
}

static void finish(struct setup *s) {
    bt_prefix_table_fini(&s->prefix);
    free(s->table);
    free(s);
}

static enum bt_placement_answer choose(struct setup *s) {
    return bt_placement_choose(s->table, &s->prefix, &s->rules, NOW, &s->ask, &s->choice);
}

static void holds(struct setup *s, uint32_t worker, uint32_t n_blocks) {
    struct bt_id hash = bt_block_root("", 0);
    for (uint32_t i = 0; i < n_blocks; i++) {
        hash = bt_block_next(hash, s->tokens + i * BT_PAGE_TOKENS);
        bt_prefix_table_add(&s->prefix, hash.lo, worker);
    }
}

static void test_d_by_free_pages_and_prefix(void **state) {
    (void)state;
    struct setup *s = start(BT_DISAGGREGATE_ALWAYS);
    s->table->workers[D1].status.census.free = 120;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.d, D1);
    assert_int_equal(s->choice.why, BT_PLACE_SPLIT);
    assert_int_equal(s->choice.pages, 24); /* 20 of the prompt, 4 to grow */
    assert_int_equal(s->choice.backlog_tokens, 320);
    holds(s, D0, 10);
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.d, D0);
    assert_int_equal(s->choice.pages, 14);
    /* What was promised and is not in the census counts. */
    s->table->workers[D0].pages_asked = 50;
    s->table->workers[D0].pages_accepted = 30;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.d, D1);
    s->table->workers[D1].status.census.free = 23;
    assert_int_equal(choose(s), BT_PLACEMENT_WAIT);
    s->table->workers[D1].status.census.cached = 1; /* can be evicted */
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    finish(s);
}

static void test_p_by_prefix_and_backlog(void **state) {
    (void)state;
    struct setup *s = start(BT_DISAGGREGATE_ALWAYS);
    s->table->workers[P0].status.backlog_tokens = 200;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.p, P1);
    holds(s, P0, 18);
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.p, P0);
    assert_int_equal(s->choice.backlog_tokens, 32);
    /* At the bound it gets nothing, whoever's work it is. */
    s->table->workers[P0].backlog_tokens = 1000;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.p, P1);
    s->table->workers[P1].status.backlog_tokens = 1000;
    assert_int_equal(choose(s), BT_PLACEMENT_WAIT_P);
    s->table->workers[D0].status.census.free = s->table->workers[D1].status.census.free = 0;
    assert_int_equal(choose(s), BT_PLACEMENT_WAIT);
    finish(s);
}

static void test_who_gets_nothing(void **state) {
    (void)state;
    for (int how = 0; how < 6; how++) {
        struct setup *s = start(BT_DISAGGREGATE_ALWAYS);
        struct bt_worker *d = &s->table->workers[D0];
        s->table->workers[D1].status.census.free = 50; /* the second choice */
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D0);
        if (how == 0)
            d->state = BT_WORKER_SUSPECT;
        else if (how == 1)
            d->state = BT_WORKER_DETACHED;
        else if (how == 2)
            d->status.draining = true;
        else if (how == 3)
            d->n_requests = d->max_seqs;
        else if (how == 4)
            d->full_until_us = NOW + 1;
        else
            d->max_context = 399;
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D1);
        finish(s);
    }
}

static void test_a_broken_pair_is_avoided(void **state) {
    (void)state;
    struct setup *s = start(BT_DISAGGREGATE_ALWAYS);
    s->table->workers[D1].status.census.free = 50;
    s->table->workers[P1].backlog_tokens = 10;
    s->table->avoid_until_us[P0][D0] = NOW + 1;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.d, D0);
    assert_int_equal(s->choice.p, P1);
    s->table->avoid_until_us[P1][D0] = NOW + 1;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.d, D1);
    assert_int_equal(s->choice.p, P0);
    s->table->avoid_until_us[P0][D1] = s->table->avoid_until_us[P1][D1] = NOW + 1;
    assert_int_equal(choose(s), BT_PLACEMENT_WAIT_P);
    s->rules.mode = BT_DISAGGREGATE_AUTO;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.why, BT_PLACE_LOCAL_PAIR_BROKEN);
    assert_int_equal(s->choice.p, BT_NO_WORKER);
    finish(s);
}

static void test_modes(void **state) {
    (void)state;
    struct setup *s = start(BT_DISAGGREGATE_NEVER);
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.why, BT_PLACE_LOCAL_NEVER);
    s->rules.mode = BT_DISAGGREGATE_AUTO;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.why, BT_PLACE_SPLIT);
    s->ask.n_tokens = 32;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.why, BT_PLACE_LOCAL_SHORT);
    s->ask.n_tokens = 320;
    holds(s, D0, 18);
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.why, BT_PLACE_LOCAL_PREFIX);
    bt_prefix_table_forget(&s->prefix, D0);
    s->table->workers[P0].state = s->table->workers[P1].state = BT_WORKER_SUSPECT;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.why, BT_PLACE_LOCAL_NO_PREFILL);
    /* Always means always: it waits. A busy prefill worker is waited for in auto too. */
    s->rules.mode = BT_DISAGGREGATE_ALWAYS;
    assert_int_equal(choose(s), BT_PLACEMENT_WAIT_P);
    s->rules.mode = BT_DISAGGREGATE_AUTO;
    s->table->workers[P0].state = BT_WORKER_UP;
    s->table->workers[P0].backlog_tokens = 1000;
    assert_int_equal(choose(s), BT_PLACEMENT_WAIT_P);
    finish(s);
}

static void test_what_nobody_can_hold_steps_aside(void **state) {
    (void)state;
    struct setup *s = start(BT_DISAGGREGATE_ALWAYS);
    s->ask.n_total = 1025;
    assert_int_equal(choose(s), BT_PLACEMENT_ASIDE);
    s->ask.n_total = 1024;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    s->table->workers[P0].status.census.total = s->table->workers[P1].status.census.total = 19;
    assert_int_equal(choose(s), BT_PLACEMENT_ASIDE);
    finish(s);
}

static void test_equal_workers_share(void **state) {
    (void)state;
    struct setup *s = start(BT_DISAGGREGATE_ALWAYS);
    s->table->workers[D0].n_requests = 1;
    s->table->workers[P0].n_requests = 1;
    assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
    assert_int_equal(s->choice.d, D1);
    assert_int_equal(s->choice.p, P1);
    finish(s);
}

static void test_where_the_leaders_prompt_is(void **state) {
    (void)state;
    for (int mode = 0; mode < 3; mode++) {
        struct setup *s = start((enum bt_disaggregate)mode);
        struct bt_worker *d1 = &s->table->workers[D1];
        s->ask.choice_d = D1;
        s->ask.choice_fresh = true;
        d1->status.census = (struct bt_census){.total = 100, .free = 5, .live = 0};
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D1);
        assert_int_equal(s->choice.p, BT_NO_WORKER);
        assert_int_equal(s->choice.why, BT_PLACE_LOCAL_CHOICE);
        /* 320 tokens and 4 pages to grow; the last page is computed anew. */
        assert_int_equal(s->choice.pages, 5);
        assert_int_equal(s->choice.backlog_tokens, 0);
        d1->status.census.free = 4;
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D0);
        d1->status.census.free = 5;
        d1->status.draining = true;
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D0);
        d1->status.draining = false;
        /* Later the table must know the blocks, and the census the room. */
        s->ask.choice_fresh = false;
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D0);
        holds(s, D1, 19);
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D0);
        d1->status.census.live = 20;
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.d, D1);
        assert_int_equal(s->choice.why, BT_PLACE_LOCAL_CHOICE);
        finish(s);
    }
}

static void test_scores_are_made_where_decoding_is(void **state) {
    (void)state;
    for (int mode = 0; mode < 3; mode++) {
        struct setup *s = start((enum bt_disaggregate)mode);
        s->ask.scores = true;
        s->table->workers[P0].status.draining = s->table->workers[P1].status.draining = true;
        holds(s, D0, 20);
        s->table->workers[D1].status.census.free = 101;
        assert_int_equal(choose(s), BT_PLACEMENT_FOUND);
        assert_int_equal(s->choice.why, BT_PLACE_LOCAL_SCORES);
        /* No prefix is used for it: only the room counts, and all pages are asked. */
        assert_int_equal(s->choice.d, D1);
        assert_int_equal(s->choice.p, BT_NO_WORKER);
        assert_int_equal(s->choice.pages, 24);
        finish(s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_where_the_leaders_prompt_is),
        cmocka_unit_test(test_scores_are_made_where_decoding_is),
        cmocka_unit_test(test_d_by_free_pages_and_prefix),
        cmocka_unit_test(test_p_by_prefix_and_backlog),
        cmocka_unit_test(test_who_gets_nothing),
        cmocka_unit_test(test_a_broken_pair_is_avoided),
        cmocka_unit_test(test_modes),
        cmocka_unit_test(test_what_nobody_can_hold_steps_aside),
        cmocka_unit_test(test_equal_workers_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
