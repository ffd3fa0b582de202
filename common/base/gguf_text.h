/* One number for the text side of a model file, the same on a router and on a worker. */
#pragma once
#include <stdint.h>

#include "common/base/gguf.h"

/* XXH3-64 over every key that begins with "tokenizer." (vocabulary, merges, special ids, chat
 * template), with its type and value; the order of the keys in the file does not matter. Two
 * processes with the same hash turn the same conversation into the same ids. */
uint64_t bt_gguf_text_hash(const struct bt_gguf *gguf);
