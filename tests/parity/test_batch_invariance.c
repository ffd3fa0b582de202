/* 200 requests in random company give the bits that each gives alone.
 *
 * Each request is computed once by itself: one thread, chunks of 256. Then all of them come and go
 * in one batch, by a seeded plan: chunks of 1 to 256 rows beside decoding rows, sequences that
 * pause, leave, or lose their pages and are computed again, pages that are reused after being
 * filled with NaN. Every sampled token, every logits hash, every logprob and every byte of the
 * pages must be what they were, on each CPU path and with 1 and 2 threads. */
#include "tests/parity/model_run.h"

#include "kernels/kernels.h"

enum {
    REQUESTS_MAX = 200,
    PROMPT_MAX = 400,
    ANSWER_MAX = 12,
    TOKENS_MAX = PROMPT_MAX + ANSWER_MAX,
    PAGES_MAX = TOKENS_MAX / BT_PAGE_TOKENS + 1,
    LIVE_MAX = 24,
    PAGES = 200,
    ROWS_AT_ONCE = 256,
    SCORE_TOP = 2,
};

/* What a request gives: the same alone and in company. */
struct outcome {
    uint32_t n_answer;
    int32_t tokens[TOKENS_MAX]; /* the prompt, then the answer */
    struct bt_step_result results[ANSWER_MAX];
    struct bt_logprobs scores[PROMPT_MAX]; /* of the prompt tokens after each position, if wanted */
    uint64_t pages;                        /* of all bytes of its pages in all layers */
};

struct request {
    uint32_t n_prompt, n_answer_max;
    bool wants_scores;
    uint32_t leaves_after;   /* steps of its own after which its client is gone; 0: stays */
    uint32_t restarts_after; /* steps of its own after which its pages are lost; 0: never */
    struct bt_sampling sampling;
    struct outcome alone;
};

/* A request that has pages. */
struct live {
    struct request *request;
    uint32_t pages[PAGES_MAX], n_pages;
    uint32_t position; /* tokens whose keys and values are in the pages */
    uint32_t n_steps;
    bool ended;
    struct outcome got;
};

struct plan {
    struct model_run run;
    uint32_t n_requests;
    struct request requests[REQUESTS_MAX];
    uint32_t free_pages[PAGES], n_free;
    struct live live[LIVE_MAX];
    uint32_t n_live, next_request;
    uint32_t random;
    uint32_t flip_at_step; /* spoils one bit of one key in this step; 0: never */
    bool flipped;
    uint32_t n_compared, n_restarted, n_left, n_rows, n_steps; /* what the plan did */
    char wrong[256];                                           /* the first difference, or "" */
};

static struct plan plan;
static const struct bt_logit_bias biases[] = {{5, 4}, {17, -30}, {200, 3}};

static uint32_t draw(uint32_t n) {
    plan.random = plan.random * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(plan.random >> 4) * n >> 28);
}

/* ---- The requests ---- */

static struct bt_sampling draw_sampling(void) {
    struct bt_sampling s = {.top_p = 1, .repetition_penalty = 1, .want_hash = true};
    s.seed = draw(1u << 30);
    s.ignore_eos = draw(2);
    s.logprobs = (uint8_t)(draw(2) * (1 + draw(4)));
    switch (draw(5)) {
    case 0:
        break; /* greedy */
    case 1:
        s.temperature = 0.8f, s.top_p = 0.95f, s.top_k = 40;
        break;
    case 2:
        s.temperature = 1.3f, s.min_p = 0.02f;
        break;
    case 3:
        s.repetition_penalty = 1.2f, s.presence_penalty = 0.5f, s.frequency_penalty = 0.3f;
        break;
    default:
        s.temperature = 1, s.min_tokens = 3, s.n_bias = 3, s.bias = biases;
    }
    return s;
}

/* Most prompts are short, some span pieces of attention; the longest is `longest`. */
static void make_requests(uint32_t n, uint32_t longest, uint32_t seed) {
    plan.random = seed;
    plan.n_requests = n;
    uint32_t n_vocab = plan.run.model.shape.n_vocab;
    for (uint32_t i = 0; i < n; i++) {
        struct request *r = &plan.requests[i];
        uint32_t kind = draw(10), bound = kind < 6 ? 33 : kind < 9 ? 120 : longest;
        *r = (struct request){.n_prompt = 1 + draw(bound < longest ? bound : longest),
                              .n_answer_max = 1 + draw(ANSWER_MAX),
                              .wants_scores = draw(4) == 0,
                              .leaves_after = draw(8) == 0 ? 1 + draw(6) : 0,
                              .restarts_after = draw(6) == 0 ? 1 + draw(8) : 0,
                              .sampling = draw_sampling()};
        r->sampling.max_tokens = r->n_answer_max;
        /* Every third prompt is one that another request has, for a while. */
        uint32_t other = i % 3 ? i : draw(i + 1);
        for (uint32_t t = 0; t < r->n_prompt; t++)
            r->alone.tokens[t] = t < plan.requests[other].n_prompt && other < i && t < 40
                                     ? plan.requests[other].alone.tokens[t]
                                     : (int32_t)(3 + draw(n_vocab - 3));
    }
}

/* ---- Pages ---- */

static void free_all_pages(void) {
    plan.n_free = plan.run.n_pages;
    for (uint32_t i = 0; i < plan.n_free; i++)
        plan.free_pages[i] = i;
}

/* A freed page is all ones: NaN in either cache, for whoever reads what is not his. */
static void give_pages_back(struct live *l) {
    for (uint32_t i = 0; i < l->n_pages; i++) {
        for (uint32_t layer = 0; layer < plan.run.kv.n_layers; layer++)
            memset(bt_kv_memory_page(&plan.run.kv, layer, l->pages[i]), 0xff,
                   plan.run.kv.page_bytes);
        plan.free_pages[plan.n_free++] = l->pages[i];
    }
    l->n_pages = 0;
}

static uint32_t pages_needed(const struct request *r) {
    return (r->n_prompt + r->n_answer_max + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
}

static void take_pages(struct live *l) {
    while (l->n_pages < pages_needed(l->request)) {
        uint32_t at = draw(plan.n_free);
        l->pages[l->n_pages++] = plan.free_pages[at];
        plan.free_pages[at] = plan.free_pages[--plan.n_free];
    }
}

static uint64_t hash_pages(const struct live *l) {
    uint64_t hash = 0;
    uint32_t n = (l->position + BT_PAGE_TOKENS - 1) / BT_PAGE_TOKENS;
    for (uint32_t layer = 0; layer < plan.run.kv.n_layers; layer++)
        for (uint32_t i = 0; i < n; i++)
            hash = hash * 0x9E3779B97F4A7C15u +
                   XXH3_64bits(bt_kv_memory_page(&plan.run.kv, layer, l->pages[i]),
                               plan.run.kv.page_bytes);
    return hash;
}

/* ---- One step ---- */

static void start(struct live *l, struct request *r) {
    *l = (struct live){.request = r};
    memcpy(l->got.tokens, r->alone.tokens, r->n_prompt * sizeof *l->got.tokens);
    take_pages(l);
}

static uint32_t n_known(const struct live *l) {
    return l->request->n_prompt + l->got.n_answer;
}

struct batch {
    struct bt_step step;
    int32_t tokens[RUN_ROWS];
    struct bt_step_seq seqs[LIVE_MAX];
    struct bt_step_result results[LIVE_MAX];
    struct live *who[LIVE_MAX];
};

/* The next rows of a sequence, at most `chunk`. */
static void add_rows(struct batch *b, struct live *l, uint32_t chunk) {
    const struct request *r = l->request;
    uint32_t left = n_known(l) - l->position, n = left < chunk ? left : chunk;
    uint32_t to_score = l->position + 1 < r->n_prompt ? r->n_prompt - 1 - l->position : 0;
    bool scores = r->wants_scores && to_score;
    b->who[b->step.n_seqs] = l;
    b->seqs[b->step.n_seqs++] = (struct bt_step_seq){
        .seq = (uint32_t)(r - plan.requests),
        .first_row = b->step.n_rows,
        .n_rows = n,
        .position = l->position,
        .pages = l->pages,
        .sample = n == left,
        .index = l->got.n_answer,
        .sampling = n == left ? &r->sampling : NULL,
        .history = l->got.tokens,
        .n_history = l->position + n,
        .n_prompt = r->n_prompt,
        .scores = scores ? l->got.scores + l->position : NULL,
        .next = scores ? l->got.tokens + l->position + 1 : NULL,
        .n_scores = !scores        ? 0
                    : to_score < n ? to_score
                                   : n,
        .score_top = SCORE_TOP,
    };
    memcpy(b->tokens + b->step.n_rows, l->got.tokens + l->position, n * sizeof *b->tokens);
    b->step.n_rows += n;
}

static void run_batch(struct batch *b) {
    b->step.id = ++plan.run.next_step;
    b->step.tokens = b->tokens;
    b->step.seqs = b->seqs;
    b->step.results = b->results;
    bt_forward_run(plan.run.forward, &b->step, NULL, NULL);
    plan.n_rows += b->step.n_rows;
    plan.n_steps++;
    for (uint32_t i = 0; i < b->step.n_seqs; i++) {
        struct live *l = b->who[i];
        struct outcome *got = &l->got;
        l->position += b->seqs[i].n_rows;
        l->n_steps++;
        l->ended = b->results[i].finish == BT_FINISH_ERROR;
        if (!b->seqs[i].sample)
            continue;
        got->tokens[n_known(l)] = b->results[i].token;
        got->results[got->n_answer++] = b->results[i];
        l->ended |=
            b->results[i].finish != BT_FINISH_NONE || got->n_answer == l->request->n_answer_max;
    }
    b->step.n_rows = b->step.n_seqs = 0;
}

/* ---- Alone ---- */

static void run_alone(void) {
    static struct batch batch;
    free_all_pages();
    for (uint32_t i = 0; i < plan.n_requests; i++) {
        struct live *l = &plan.live[0];
        start(l, &plan.requests[i]);
        while (!l->ended) {
            add_rows(&batch, l, ROWS_AT_ONCE);
            run_batch(&batch);
        }
        l->got.pages = hash_pages(l);
        plan.requests[i].alone = l->got;
        give_pages_back(l);
        assert_true(l->got.n_answer && l->got.results[0].token >= 0);
    }
}

/* ---- In company ---- */

/* Compares what a sequence has so far; `whole`: it ended by itself. */
static void compare(const struct live *l, bool whole) {
    const struct request *r = l->request;
    const struct outcome *alone = &r->alone;
    const char *what = NULL;
    uint32_t at = 0;
    for (uint32_t i = 0; i < l->got.n_answer && !what; i++) {
        const struct bt_step_result *a = &l->got.results[i], *b = &alone->results[i];
        at = i;
        what = i >= alone->n_answer   ? "more tokens"
               : a->hash != b->hash   ? "other logits"
               : a->token != b->token ? "another token"
               : a->finish != b->finish || memcmp(&a->logprobs, &b->logprobs, sizeof a->logprobs)
                   ? "other logprobs"
                   : NULL;
        plan.n_compared++;
    }
    if (!what && whole && l->got.n_answer != alone->n_answer)
        what = "fewer tokens";
    if (!what && whole && l->got.pages != alone->pages)
        what = "other bytes in its pages";
    for (uint32_t i = 0; i + 1 < r->n_prompt && i < l->position && r->wants_scores && !what; i++)
        if (memcmp(&l->got.scores[i], &alone->scores[i], sizeof alone->scores[i]))
            what = "other scores", at = i;
    if (what && !plan.wrong[0])
        snprintf(plan.wrong, sizeof plan.wrong, "request %u (prompt of %u) has %s at %u",
                 (uint32_t)(r - plan.requests), r->n_prompt, what, at);
}

static void drop(uint32_t i) {
    give_pages_back(&plan.live[i]);
    if (i != --plan.n_live)
        plan.live[i] = plan.live[plan.n_live];
}

/* Ended, left or lost: after a step each sequence may be over, or must begin again. */
static void settle(void) {
    for (uint32_t i = 0; i < plan.n_live;) {
        struct live *l = &plan.live[i];
        if (l->ended) {
            l->got.pages = hash_pages(l);
            compare(l, true);
            drop(i);
        } else if (l->request->leaves_after && l->n_steps >= l->request->leaves_after) {
            compare(l, false);
            plan.n_left++;
            drop(i);
        } else if (l->n_steps == l->request->restarts_after && l->position) {
            give_pages_back(l);
            take_pages(l);
            l->position =
                0; /* its answer so far is kept, and computed again as if it were prompt */
            l->n_steps++;
            plan.n_restarted++;
            i++;
        } else {
            i++;
        }
    }
}

static void admit(void) {
    uint32_t wanted = 1 + draw(LIVE_MAX);
    while (plan.n_live < wanted && plan.next_request < plan.n_requests &&
           pages_needed(&plan.requests[plan.next_request]) <= plan.n_free)
        start(&plan.live[plan.n_live++], &plan.requests[plan.next_request++]);
}

static void shuffle(uint32_t order[LIVE_MAX]) {
    for (uint32_t i = 0; i < plan.n_live; i++) {
        uint32_t j = draw(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
}

static uint32_t draw_chunk(void) {
    static const uint32_t bounds[] = {1, 4, 16, 64, ROWS_AT_ONCE};
    return 1 + draw(bounds[draw(5)]);
}

/* The lowest bit of the first key of the oldest token of a sequence that goes on. */
static void flip_a_bit(void) {
    for (uint32_t i = 0; i < plan.n_live && !plan.flipped; i++) {
        const struct live *l = &plan.live[i];
        if (!l->position || l->position + 2 > l->request->n_prompt)
            continue;
        uint8_t *page = bt_kv_memory_page(&plan.run.kv, 0, l->pages[0]);
        page[0] ^= 1;
        plan.flipped = true;
    }
}

/* The first n requests come and go. */
static void run_company(uint32_t n, uint32_t seed) {
    static struct batch batch;
    plan.random = seed;
    plan.n_requests = n;
    plan.n_live = plan.next_request = 0;
    plan.n_compared = plan.n_restarted = plan.n_left = plan.n_rows = plan.n_steps = 0;
    plan.wrong[0] = 0;
    plan.flipped = false;
    free_all_pages();
    while (plan.n_live || plan.next_request < plan.n_requests) {
        uint32_t order[LIVE_MAX];
        admit();
        shuffle(order);
        for (uint32_t i = 0; i < plan.n_live; i++) {
            uint32_t chunk = draw_chunk(), room = RUN_ROWS - batch.step.n_rows;
            if (draw(8) && room)
                add_rows(&batch, &plan.live[order[i]], chunk < room ? chunk : room);
        }
        if (!batch.step.n_seqs)
            continue;
        if (plan.flip_at_step && plan.n_steps >= plan.flip_at_step && !plan.flipped)
            flip_a_bit();
        run_batch(&batch);
        settle();
    }
    assert_int_equal(plan.n_free, plan.run.n_pages);
}

/* ---- The matrix ---- */

static void open_model(const char *path, const struct arithmetic *a, const char *cpu,
                       uint32_t n_threads) {
    run_open(&plan.run, &(struct run_options){.path = path,
                                              .profile = a->profile,
                                              .kv_type = a->kv_type,
                                              .cpu = cpu,
                                              .n_threads = n_threads,
                                              .max_context = 512,
                                              .n_pages = PAGES});
    bt_forward_keep_all_rows(plan.run.forward, false);
}

static void check_company(const char *path, const struct arithmetic *a, const char *cpu,
                          uint32_t n_threads, uint32_t n_requests, uint32_t seed) {
    char why[BT_ERROR_TEXT_BYTES];
    if (!bt_kernels_find(cpu, why, sizeof why)) {
        print_message("not run: %s\n", why);
        return;
    }
    open_model(path, a, cpu, n_threads);
    run_company(n_requests, seed);
    print_message("%s, %s, %u threads: %u requests, %u logits hashes, %u rows in %u steps, %u left "
                  "early, %u began again: %s\n",
                  a->name, bt_device_kernels(plan.run.device)->name, n_threads, n_requests,
                  plan.n_compared, plan.n_rows, plan.n_steps, plan.n_left, plan.n_restarted,
                  plan.wrong[0] ? plan.wrong : "the same bits");
    run_close(&plan.run);
    if (plan.wrong[0])
        fail_msg("%s", plan.wrong);
}

/* Alone on the fastest path. */
static void prepare(const char *path, const struct arithmetic *a, uint32_t n, uint32_t longest) {
    open_model(path, a, NULL, 1);
    make_requests(n, longest, 2026);
    run_alone();
    run_close(&plan.run);
}

static const char *tiny_path(const char *type) {
    static char path[512];
    snprintf(path, sizeof path, BT_FIXTURES "/tiny_gguf/tiny-llama-%s.gguf", type);
    return path;
}

/* Portable C takes seconds where the others take tenths, so fewer requests must do there for each
 * thread count, unless BATON_TEST_LONG=1 is set. */
static void check_tiny_on_all_paths(const struct arithmetic *a, uint32_t n_portable) {
    static const char *const paths[] = {"portable", "fma", "avx2", "avx2vnni", "avx512"};
    const char *path = tiny_path("Q4_1");
    prepare(path, a, REQUESTS_MAX, PROMPT_MAX);
    for (uint32_t p = 0; p < sizeof paths / sizeof *paths; p++)
        for (uint32_t n_threads = 1; n_threads <= 2; n_threads++)
            check_company(path, a, paths[p], n_threads,
                          p < 2 && !test_is_long() ? n_portable : REQUESTS_MAX, 2 * p + n_threads);
}

static void test_tiny_fast(void **state) {
    (void)state;
    check_tiny_on_all_paths(&FAST, 60);
}

static void test_tiny_int8_cache(void **state) {
    (void)state;
    check_tiny_on_all_paths(&FAST_INT8, 24);
}

static void test_tiny_bf16(void **state) {
    (void)state;
    check_tiny_on_all_paths(&BF16, 24);
}

static void test_tiny_exact(void **state) {
    (void)state;
    check_tiny_on_all_paths(&EXACT, 24);
}

/* The other packs, and a sliding window. */
static void test_tiny_other_types(void **state) {
    (void)state;
    static const char *const types[] = {"Q4_0", "Q8_0", "F16"};
    for (uint32_t i = 0; i < sizeof types / sizeof *types; i++) {
        prepare(tiny_path(types[i]), &FAST, REQUESTS_MAX, PROMPT_MAX);
        check_company(tiny_path(types[i]), &FAST, NULL, 2, REQUESTS_MAX, 50 + i);
    }
    static const char window[] = BT_FIXTURES "/tiny_window/tiny-mistral-BF16.gguf";
    prepare(window, &FAST, REQUESTS_MAX, PROMPT_MAX);
    check_company(window, &FAST, NULL, 2, REQUESTS_MAX, 60);
}

/* The comparison sees one wrong bit in one key of one of 200 requests. */
static void test_a_wrong_bit_is_seen(void **state) {
    (void)state;
    prepare(tiny_path("Q4_1"), &FAST, REQUESTS_MAX, PROMPT_MAX);
    open_model(tiny_path("Q4_1"), &FAST, NULL, 1);
    for (uint32_t step = 1; step <= 61; step += 20) {
        plan.flip_at_step = step;
        run_company(REQUESTS_MAX, step);
        assert_true(plan.flipped);
        print_message("a bit flipped in step %u: %s\n", step, plan.wrong);
        assert_true(plan.wrong[0]);
    }
    plan.flip_at_step = 0;
    run_company(REQUESTS_MAX, 61);
    assert_string_equal(plan.wrong, "");
    run_close(&plan.run);
}

/* The default model on the fastest path with 1 and 2 threads; with BATON_TEST_LONG=1 all of 200
 * requests, profile bf16 and the path for CPUs without AVX-512 too. */
static void test_smollm2(void **state) {
    (void)state;
    static char path[4096];
    if (!find_smollm2(path)) {
        print_message("skipped: no model at %s (scripts/get-model)\n", path);
        skip();
    }
    static const struct arithmetic *const all[] = {&FAST, &FAST_INT8, &BF16};
    bool is_long = test_is_long();
    uint32_t n = is_long ? REQUESTS_MAX : 20;
    for (uint32_t i = 0; i < (is_long ? 3 : 2); i++) {
        prepare(path, all[i], n, is_long ? PROMPT_MAX : 150);
        for (uint32_t n_threads = 1; n_threads <= 2; n_threads++) {
            check_company(path, all[i], NULL, n_threads, n, 70 + n_threads);
            if (is_long && all[i] != &BF16)
                check_company(path, all[i], "avx2", n_threads, n, 80 + n_threads);
        }
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_fast),        cmocka_unit_test(test_tiny_int8_cache),
        cmocka_unit_test(test_tiny_bf16),        cmocka_unit_test(test_tiny_exact),
        cmocka_unit_test(test_tiny_other_types), cmocka_unit_test(test_a_wrong_bit_is_seen),
        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
