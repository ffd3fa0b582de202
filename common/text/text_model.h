/* Reads the text side of a model file: its tokenizer and its chat template, without its weights. */
#pragma once
#include <stdint.h>

#include "common/base/status.h"
#include "common/text/chat_template.h"
#include "common/text/tokenizer.h"

struct bt_text_model {
    struct bt_tokenizer *tokenizer;
    struct bt_chat_template *chat; /* NULL: the model has none */
    uint32_t context_tokens;       /* <architecture>.context_length; 0: not said */
    char name[128];                /* general.name, cut; empty: not said */
    uint64_t text_hash; /* of vocabulary, merges and template: two processes with the same
                           hash turn the same conversation into the same ids */
};

/* path is a GGUF file. On failure *model is left zeroed. */
bt_status bt_text_model_open(const char *path, struct bt_text_model *model, struct bt_error *err);
void bt_text_model_close(struct bt_text_model *model);
