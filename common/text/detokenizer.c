/* Joins the bytes of tokens, holding back the beginning of an unfinished character. */
#include "common/text/detokenizer.h"

#include <string.h>

#include "common/text/utf8.h"

void bt_detokenizer_init(struct bt_detokenizer *d, const struct bt_tokenizer *tok,
                         bool skip_control) {
    *d = (struct bt_detokenizer){.tok = tok, .skip_control = skip_control};
}

size_t bt_detokenizer_push(struct bt_detokenizer *d, int32_t id, char out[BT_TOKEN_TEXT_BYTES]) {
    if (d->skip_control && bt_tokenizer_is_control(d->tok, id))
        return 0;
    struct bt_slice token = bt_tokenizer_bytes(d->tok, id);
    char bytes[sizeof d->held + BT_TOKEN_BYTES];
    size_t n = d->n_held, n_out = 0;
    memcpy(bytes, d->held, n);
    if (token.n_bytes)
        memcpy(bytes + n, token.data, token.n_bytes);
    n += token.n_bytes;
    d->n_held = 0;
    for (size_t i = 0; i < n;) {
        struct bt_utf8_step step = bt_utf8_next(bytes + i, n - i);
        if (step.kind == BT_UTF8_VALID) {
            memcpy(out + n_out, bytes + i, step.n_bytes);
            n_out += step.n_bytes;
        } else if (step.kind == BT_UTF8_INVALID) {
            n_out += bt_utf8_encode(0xfffd, out + n_out);
        } else { /* the bytes end here: at most three, the next token decides */
            memcpy(d->held, bytes + i, step.n_bytes);
            d->n_held = step.n_bytes;
        }
        i += step.n_bytes;
    }
    return n_out;
}

size_t bt_detokenizer_flush(struct bt_detokenizer *d, char out[BT_TOKEN_TEXT_BYTES]) {
    if (!d->n_held)
        return 0;
    d->n_held = 0;
    return bt_utf8_encode(0xfffd, out);
}
