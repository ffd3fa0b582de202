/* The batch: rows, sums and sampling of several sequences in one step, within its bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "common/engine/batch.h"

enum { ROWS = 10, SEQS = 3, SUMS = 4, SCORES = 3, LAYERS = 2 };

static const int32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
static const uint32_t pages[1] = {3};
static const struct bt_sampling sampling = {.max_tokens = 1};

static struct bt_batch_part part_of(uint32_t seq, uint32_t position, uint32_t n_rows,
                                    uint32_t n_sums) {
    return (struct bt_batch_part){.seq = seq,
                                  .tokens = tokens,
                                  .n_tokens = 8,
                                  .n_prompt = 6,
                                  .position = position,
                                  .n_rows = n_rows,
                                  .pages = pages,
                                  .n_sums = n_sums,
                                  .sample = position + n_rows == 8,
                                  .sampling = &sampling};
}

static void test_parts_stand_one_after_another(void **state) {
    (void)state;
    struct bt_batch batch;
    struct bt_error err;
    assert_int_equal(bt_batch_init(&batch, ROWS, SEQS, SUMS, SCORES, LAYERS, &err), BT_OK);
    bt_batch_begin(&batch);
    struct bt_batch_part a = part_of(7, 2, 4, 1), b = part_of(9, 7, 1, 2);
    assert_true(bt_batch_add(&batch, &a));
    assert_true(bt_batch_add(&batch, &b));
    const struct bt_step *step = &batch.step;
    assert_int_equal(step->n_rows, 5);
    assert_int_equal(step->n_seqs, 2);
    assert_int_equal(step->n_sums, 3);
    assert_int_equal(step->tokens[0], 3); /* a's rows are tokens 2 to 5 */
    assert_int_equal(step->tokens[3], 6);
    assert_int_equal(step->tokens[4], 8);
    assert_int_equal(step->seqs[0].seq, 7);
    assert_false(step->seqs[0].sample);
    assert_null(step->seqs[0].sampling);
    assert_int_equal(step->seqs[1].first_row, 4);
    assert_int_equal(step->seqs[1].sums_at, 1);
    assert_true(step->seqs[1].sample);
    assert_int_equal(step->seqs[1].index, 2); /* two tokens were generated before */
    assert_int_equal(step->seqs[1].n_history, 8);
    for (uint32_t i = 0; i < LAYERS * 3; i++)
        step->sums[i] = 100 + i;
    assert_int_equal(bt_batch_sums(&batch, 1, 1)[0], 104); /* layer 1 begins at 3 */
    uint64_t first = step->id;
    bt_batch_begin(&batch);
    assert_int_equal(step->id, first + 1);
    assert_int_equal(step->n_seqs + step->n_rows + step->n_sums, 0);
    bt_batch_fini(&batch);
    bt_batch_fini(&batch); /* a zeroed one */
}

static void test_what_does_not_fit_changes_nothing(void **state) {
    (void)state;
    struct bt_batch batch;
    struct bt_error err;
    assert_int_equal(bt_batch_init(&batch, ROWS, SEQS, SUMS, SCORES, LAYERS, &err), BT_OK);
    bt_batch_begin(&batch);
    struct bt_batch_part whole = part_of(0, 0, 8, 0), two = part_of(1, 6, 2, 0),
                         three = part_of(2, 5, 3, 0), sums = part_of(3, 7, 1, SUMS + 1);
    assert_true(bt_batch_add(&batch, &whole));
    assert_int_equal(bt_batch_rows_left(&batch), 2);
    assert_false(bt_batch_add(&batch, &three));
    assert_false(bt_batch_add(&batch, &sums));
    assert_int_equal(batch.step.n_rows, 8);
    assert_true(bt_batch_add(&batch, &two));
    assert_int_equal(bt_batch_rows_left(&batch), 0);
    bt_batch_begin(&batch);
    struct bt_batch_part one = part_of(0, 7, 1, 0);
    for (int i = 0; i < SEQS; i++)
        assert_true(bt_batch_add(&batch, &one));
    assert_int_equal(bt_batch_rows_left(&batch), 0); /* rows there are, sequences not */
    assert_false(bt_batch_add(&batch, &one));
    bt_batch_fini(&batch);
}

static void test_scored_rows_name_the_tokens_after_them(void **state) {
    (void)state;
    struct bt_batch batch;
    struct bt_error err;
    assert_int_equal(bt_batch_init(&batch, ROWS, SEQS, SUMS, SCORES, LAYERS, &err), BT_OK);
    bt_batch_begin(&batch);
    struct bt_batch_part a = part_of(0, 1, 2, 0), b = part_of(1, 6, 2, 0), c = part_of(2, 0, 2, 0);
    a.n_scores = 2, a.score_top = 5;
    b.n_scores = 1;
    c.n_scores = 1;
    assert_true(bt_batch_add(&batch, &a));
    assert_true(bt_batch_add(&batch, &b));
    assert_false(bt_batch_add(&batch, &c)); /* no room for a fourth score */
    c.n_scores = 0;
    assert_true(bt_batch_add(&batch, &c));
    const struct bt_step_seq *seqs = batch.step.seqs;
    assert_int_equal(seqs[0].n_scores, 2);
    assert_int_equal(seqs[0].score_top, 5);
    assert_int_equal(seqs[0].next[0], 3); /* after tokens[1] = 2 */
    assert_int_equal(seqs[0].next[1], 4);
    assert_int_equal(seqs[1].next[0], 8);
    assert_ptr_equal(seqs[1].scores, seqs[0].scores + 2);
    assert_null(seqs[2].scores);
    bt_batch_begin(&batch);
    c.n_scores = 2;
    assert_true(bt_batch_add(&batch, &c));
    bt_batch_fini(&batch);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parts_stand_one_after_another),
        cmocka_unit_test(test_scored_rows_name_the_tokens_after_them),
        cmocka_unit_test(test_what_does_not_fit_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
