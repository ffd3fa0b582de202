/* Fuzzes the reader of OpenAI requests; the first byte chooses the kind of request. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "router/openai_request.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { VOCAB = 1000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size)
        return 0;
    struct bt_openai_request request;
    struct bt_generate_fault fault;
    struct bt_error err = {.text = ""};
    const struct bt_slice body = {(const char *)data + 1, size - 1};
    bt_status status = bt_openai_request_parse((enum bt_openai_kind)(data[0] & 3), body, VOCAB,
                                               data[0] & 4, &request, &fault, &err);
    if (status != BT_OK) {
        /* A refusal always says why. */
        if (!err.text[0] || request.root)
            abort();
        return 0;
    }
    /* What the parser takes the core's checks take: ranges, ids, number of choices. */
    bool generates = request.kind == BT_OPENAI_CHAT || request.kind == BT_OPENAI_COMPLETION;
    const struct bt_generate_check check = {&fault, &err};
    if (generates && bt_generate_request_check(&request.generate, VOCAB, &check) != BT_OK)
        abort();
    if (generates && (!request.n_shown || request.n_shown > request.generate.n))
        abort();
    for (uint32_t p = 0; p < request.generate.n_prompts; p++)
        for (uint32_t i = 0; i < request.prompts[p].n_ids; i++)
            if (request.prompts[p].ids[i] < 0 || request.prompts[p].ids[i] >= VOCAB)
                abort();
    bt_openai_request_fini(&request);
    return 0;
}
