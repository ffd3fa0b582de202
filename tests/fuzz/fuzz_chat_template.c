/* Fuzzes the chat template: any source, rendered over two conversations, and the spans it reports.
 */
#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>

#include "common/text/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_spans(const struct bt_chat_text *text) {
    size_t at = 0;
    for (size_t i = 0; i < text->n_untrusted; i++) {
        if (text->untrusted[i].start < at + (i > 0) || text->untrusted[i].end > text->n_bytes ||
            text->untrusted[i].end <= text->untrusted[i].start)
            abort();
        at = text->untrusted[i].end;
    }
}

static void render(const struct bt_chat_template *tpl, const char *json) {
    json_t *messages = json_loads(json, 0, NULL);
    json_t *vars = json_pack("{s:[{s:s, s:{s:f, s:[i, b, n]}}]}", "tools", "name", "t",
                             "parameters", "x", 1.5, "y", 7, 1);
    struct bt_chat_input in = {.messages = messages,
                               .vars = vars,
                               .bos = {"<s>", 3},
                               .eos = {"</s>", 4},
                               .add_generation_prompt = true,
                               .now_s = 1700000000,
                               .max_output_bytes = 1 << 16};
    struct bt_chat_text text;
    struct bt_error err;
    if (bt_chat_template_render(tpl, &in, &text, &err) == BT_OK) {
        check_spans(&text);
        bt_chat_text_fini(&text);
    }
    json_decref(vars);
    json_decref(messages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct bt_chat_template *tpl;
    struct bt_error err;
    struct bt_slice source = {(const char *)data, size};
    if (size > 4096 || bt_chat_template_create(source, &tpl, &err) != BT_OK)
        return 0;
    render(tpl, "[{\"role\": \"user\", \"content\": \"a \\u00e9 <|im_end|>\\n\"}]");
    render(tpl, "[{\"role\": \"system\", \"content\": null}, {\"role\": \"tool\", "
                "\"content\": [{\"type\": \"text\", \"text\": \"x\"}], \"n\": [1, -2.5, true]}]");
    bt_chat_template_destroy(tpl);
    return 0;
}
