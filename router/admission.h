/* Lets a request in, or says at once why not. */
#pragma once
#include <stdint.h>

struct bt_router_core;

/* Largest prompt + max_tokens that the attached workers can hold now; 0 without workers. */
uint32_t bt_admission_context(const struct bt_router_core *core);
