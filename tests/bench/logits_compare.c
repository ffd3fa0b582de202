/* How far one file of logits is from a reference, both f32 rows of the same positions: one JSON
 * object with the mean KL (reference to other), the argmaxes that differ where the reference leads
 * by more than a bound, and one position's lead.
 *
 *   logits_compare REFERENCE OTHER N_VOCAB MARGIN POSITION
 *
 * lead: what the reference's argmax leads by in the other file at POSITION; negative: it lost. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { VOCAB_MAX = 1 << 20 };

struct row {
    const float *logits;
    size_t n, best;
    double log_sum; /* log of the sum of exp */
};

static struct row look(const float *logits, size_t n) {
    struct row row = {.logits = logits, .n = n};
    double sum = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[row.best])
            row.best = i;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)(logits[i] - logits[row.best]));
    row.log_sum = (double)logits[row.best] + log(sum);
    return row;
}

static double divergence(const struct row *p, const struct row *q) {
    double kl = 0;
    for (size_t i = 0; i < p->n; i++) {
        double log_p = (double)p->logits[i] - p->log_sum;
        kl += exp(log_p) * (log_p - ((double)q->logits[i] - q->log_sum));
    }
    return kl;
}

/* What `token` leads the best of the others by. */
static double lead(const struct row *row, size_t token) {
    double second = -INFINITY;
    for (size_t i = 0; i < row->n; i++)
        if (i != token)
            second = fmax(second, (double)row->logits[i]);
    return (double)row->logits[token] - second;
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "logits_compare: REFERENCE OTHER N_VOCAB MARGIN POSITION\n");
        return 1;
    }
    FILE *p_file = fopen(argv[1], "rb"), *q_file = fopen(argv[2], "rb");
    size_t n = strtoul(argv[3], NULL, 10), n_rows = 0, n_wrong = 0, n_differ = 0;
    double margin = strtod(argv[4], NULL), kl = 0, lost = 0, lead_at = 0;
    size_t position = strtoul(argv[5], NULL, 10);
    float *p = n && n <= VOCAB_MAX ? malloc(2 * n * sizeof *p) : NULL;
    if (!p_file || !q_file || !p) {
        fprintf(stderr, "logits_compare: a file or the memory is missing\n");
        return 1;
    }
    float *q = p + n;
    while (fread(p, sizeof *p, n, p_file) == n && fread(q, sizeof *q, n, q_file) == n) {
        struct row reference = look(p, n), other = look(q, n);
        double by = lead(&reference, reference.best);
        kl += divergence(&reference, &other);
        n_differ += reference.best != other.best;
        n_wrong += reference.best != other.best && by > margin;
        if (reference.best != other.best)
            lost = fmax(lost, by);
        if (n_rows == position)
            lead_at = lead(&other, reference.best);
        n_rows++;
    }
    int unequal = fgetc(p_file) != EOF || fgetc(q_file) != EOF;
    if (unequal || !n_rows) {
        fprintf(stderr, "logits_compare: the files have not the same rows\n");
        return 1;
    }
    printf(
        "{\"rows\": %zu, \"kl\": %.9g, \"differ\": %zu, \"wrong\": %zu, \"lost\": %.4f, \"lead\": "
        "%.4f}\n",
        n_rows, kl / (double)n_rows, n_differ, n_wrong, lost, lead_at);
    free(p);
    return 0;
}
