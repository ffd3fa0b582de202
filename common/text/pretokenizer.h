/* Cuts text into the words inside which BPE merges: the regular expressions of a model family. */
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "common/base/status.h"
#include "common/text/slice.h"

/* Immutable; any thread. */
struct bt_pretokenizer;
/* Cursor over one text; one thread. */
struct bt_word_cursor;

/* `pre` is tokenizer.ggml.pre; empty means "default". BT_E_UNSUPPORTED names an unknown value. */
bt_status bt_pretokenizer_create(struct bt_slice pre, struct bt_pretokenizer **out,
                                 struct bt_error *err);
void bt_pretokenizer_destroy(struct bt_pretokenizer *pre);

bt_status bt_word_cursor_create(const struct bt_pretokenizer *pre, struct bt_word_cursor **out,
                                struct bt_error *err);
void bt_word_cursor_destroy(struct bt_word_cursor *cursor);
/* text must be valid UTF-8 and stay until the last word is taken. */
void bt_word_cursor_start(struct bt_word_cursor *cursor, struct bt_slice text);
/* BT_OK and the next word (never empty), BT_DONE at the end. The words are the whole text in order.
 * BT_E_INTERNAL if the regex engine gives up (a limit that no text is known to reach). */
bt_status bt_word_cursor_next(struct bt_word_cursor *cursor, struct bt_slice *word,
                              struct bt_error *err);
