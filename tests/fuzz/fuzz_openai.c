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
    for (uint32_t i = 0; request.prompts && i < request.prompts->n_ids; i++)
        if (request.prompts->ids[i] < 0 || request.prompts->ids[i] >= VOCAB)
            abort();
    const struct bt_sampling *s = &request.generate.sampling;
    if (!(s->temperature >= 0 && s->temperature <= 2) || s->n_stop_tokens > BT_STOP_TOKENS ||
        request.generate.n_stops > BT_STOP_STRINGS)
        abort();
    bt_openai_request_fini(&request);
    return 0;
}
