/* Pages about the model and the state: /v1/models, /tokenize, /detokenize, /health, /ready. */
#pragma once

#include "router/http_server.h"

/* Handlers; arg is the shell. */
void bt_model_on_list(void *arg, struct bt_http_call *call);
void bt_model_on_one(void *arg, struct bt_http_call *call);
void bt_model_on_tokenize(void *arg, struct bt_http_call *call);
void bt_model_on_detokenize(void *arg, struct bt_http_call *call);
void bt_model_on_health(void *arg, struct bt_http_call *call);
void bt_model_on_ready(void *arg, struct bt_http_call *call);
void bt_model_on_version(void *arg, struct bt_http_call *call);
