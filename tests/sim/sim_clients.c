/* The clients of the simulator: what they ask, and what they must get. */
#include <string.h>

#include "sim.h"

void sim_make_clients(struct sim *sim) {
    struct sim_random *random = &sim->random;
    sim->n_clients = 4 + (int)sim_below(random, SIM_CALLS - 4);
    for (int c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        uint32_t family = sim_below(random, 3);
        client->leader = -1;
        client->router = (int)sim_below(random, (uint32_t)sim->n_routers);
        client->n_prompt =
            1 + sim_below(random, sim->long_answers || sim_chance(random, 60) ? 40 : 90);
        uint32_t shared = sim_below(random, client->n_prompt + 1);
        for (uint32_t i = 0; i < client->n_prompt; i++)
            client->prompt[i] = (int32_t)(i < shared ? sim_mix(family, i) % SIM_VOCAB
                                                     : sim_below(random, SIM_VOCAB));
        client->sampling = (struct bt_sampling){
            .temperature = 1,
            .top_p = 1,
            .repetition_penalty = 1,
            .seed = sim_next(random),
            .max_tokens = 1 + sim_below(random, sim->long_answers        ? 150
                                                : sim_chance(random, 70) ? 20
                                                                         : 70),
            .ignore_eos = sim_chance(random, sim->long_answers ? 90 : 50),
            .want_hash = sim_chance(random, 50),
        };
        client->sampling.min_tokens = sim_below(random, client->sampling.max_tokens + 1);
        client->seed_given = sim_chance(random, 50);
        uint64_t at = sim->now_us + 300000 + sim_below(random, 2500000);
        sim_push(sim, at, SIM_ON_ARRIVE, -1, (uint32_t)c, 0, NULL);
        client->arrives_us = at;
        client->aim = BT_REQUEST_QUEUED + sim_below(random, BT_REQUEST_SERVED - BT_REQUEST_QUEUED);
        if (sim->enabled[SIM_CANCEL] && sim_chance(random, 25)) {
            client->aims_cancel = sim_chance(random, 40);
            if (!client->aims_cancel)
                sim_push(sim, at + sim_below(random, 1500000), SIM_ON_CANCEL, -1, (uint32_t)c, 0,
                         NULL);
        }
        if (sim->enabled[SIM_SHORT_DEADLINE] && sim_chance(random, sim->slow ? 40 : 15))
            client->deadline_ms = 1 + sim_below(random, sim->slow ? 4000 : 1500);
        if (sim->enabled[SIM_STOP_STRING] && sim_chance(random, 20))
            client->stop_at = 1 + sim_below(random, client->sampling.max_tokens);
        client->stops_late = sim->enabled[SIM_LATE_STOP] && sim_chance(random, 50);
        if (client->stops_late)
            client->stop_at = 1 + sim_below(random, 4);
        client->is_foreign = sim->enabled[SIM_FOREIGN_TOKEN] && sim_chance(random, 10);
        if (client->is_foreign)
            client->prompt[client->n_prompt - 1] = SIM_VOCAB + (int32_t)sim_below(random, 3);
    }
    sim_make_wishes(sim);
    sim_make_choices(sim);
}

void sim_on_arrive(struct sim *sim, uint32_t c) {
    struct sim_client *client = &sim->clients[c];
    struct sim_node *router = &sim->nodes[client->router];
    if (!router->up) {
        client->sent = client->ended = client->lost = true;
        sim_ask_choices(sim, c);
        return;
    }
    if (!bt_router_core_ready(router->router)) { /* a client tries again, as a balancer would */
        if (sim->now_us < 60 * SIM_S) {
            sim_push(sim, sim->now_us + 50000, SIM_ON_ARRIVE, -1, c, 0, NULL);
            return;
        }
        sim_fail(sim, "liveness", "%s is never ready", router->name);
        return;
    }
    sim_ask(sim, c);
    sim_ask_choices(sim, c);
}

void sim_ask(struct sim *sim, uint32_t c) {
    struct sim_client *client = &sim->clients[c];
    struct sim_node *router = &sim->nodes[client->router];
    client->sampling.bias = client->bias;
    struct bt_submit submit = {
        .tokens = client->prompt,
        .n_tokens = client->n_prompt,
        .sampling = client->sampling,
        .seed_given = client->seed_given,
        .max_tokens_given = true,
        .deadline_ms = client->deadline_ms,
        .tenant = "",
        .user = client,
    };
    if (client->leader >= 0) {
        submit.leader = sim->clients[client->leader].req;
        submit.seed_given = true;
        submit.sampling.seed = sim->clients[client->leader].seed + client->choice;
    }
    struct bt_error err = {0};
    client->sent = true;
    client->sent_us = sim->now_us;
    client->n_tokens = client->n_prompt;
    memcpy(client->tokens, client->prompt, client->n_prompt * sizeof *client->prompt);
    bt_status status =
        bt_router_core_submit(router->router, sim->now_us, &submit, &client->req, &err);
    sim_say(sim, client->router, "client %u asks: %u tokens, at most %u more, request %llu", c,
            client->n_prompt, client->sampling.max_tokens,
            status < 0 ? 0 : (unsigned long long)client->req->id);
    if (status == BT_OK) {
        client->seed = client->req->sampling.seed;
    } else {
        client->ended = true;
        client->status = status;
        client->ended_us = sim->now_us;
        sim->coverage->n_refused++;
        sim->coverage->faults[SIM_ROUTER_FULL] += status == BT_E_FULL;
        if (status == BT_E_FULL && !sim->tight)
            sim_fail(sim, "liveness", "client %u is refused: %s", c, err.text);
        if (status != BT_E_TOO_LARGE && status != BT_E_FULL && status != BT_E_UNAVAILABLE)
            sim_fail(sim, "liveness", "client %u is refused: %s", c, err.text);
    }
    sim_drain_actions(sim, client->router);
}

void sim_on_cancel(struct sim *sim, uint32_t c) {
    struct sim_client *client = &sim->clients[c];
    if (!client->sent || client->ended || client->lost)
        return;
    client->cancelled = true;
    sim->coverage->faults[SIM_CANCEL]++;
    sim_say(sim, client->router, "client %u goes away", c);
    bt_router_core_cancel(sim->nodes[client->router].router, sim->now_us, client->req);
    sim_drain_actions(sim, client->router);
}

void sim_on_stop(struct sim *sim, uint32_t c) {
    struct sim_client *client = &sim->clients[c];
    if (client->ended || client->lost)
        return;
    client->stops = true;
    sim->coverage->faults[SIM_LATE_STOP]++;
    sim_say(sim, client->router, "client %u: a stop string matched", c);
    bt_router_core_stop(sim->nodes[client->router].router, sim->now_us, client->req);
    sim_drain_actions(sim, client->router);
}

void sim_aim(struct sim *sim, int router) {
    for (int c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        if (client->router != router || !client->req || client->ended ||
            client->req->state != client->aim)
            continue;
        if (client->stop_due)
            sim_push(sim, sim->now_us, SIM_ON_STOP, -1, (uint32_t)c, 0, NULL);
        else if (client->aims_cancel && sim_chance(&sim->random, 30))
            sim_push(sim, sim->now_us, SIM_ON_CANCEL, -1, (uint32_t)c, 0, NULL);
        else
            continue;
        client->stop_due = client->aims_cancel = false;
    }
}

static void check_logprobs(struct sim *sim, const struct sim_client *client,
                           const struct bt_router_action *action, const struct bt_logprobs *want) {
    int c = (int)(client - sim->clients);
    bool asked = client->sampling.logprobs != 0;
    if (asked != (action->logprobs != NULL) ||
        (asked && !sim_logprobs_equal(action->logprobs, want)))
        sim_fail(sim, "logprobs are of this very token", "client %d: those of token %u are %s", c,
                 action->index, asked ? "wrong or missing" : "there, and nobody asked");
    sim->coverage->n_logprobs += asked;
    if (client->sampling.prompt_logprobs && client->n_scored + 1 != client->n_prompt)
        sim_fail(sim, "logprobs of a prompt come before its first token",
                 "client %d has %u of %u with token %u", c, client->n_scored, client->n_prompt - 1,
                 action->index);
}

void sim_on_scores(struct sim *sim, const struct bt_router_action *action) {
    struct sim_client *client = action->req->user;
    int c = (int)(client - sim->clients);
    if (client->ended || client->n_tokens != client->n_prompt || !client->sampling.prompt_logprobs)
        sim_fail(sim, "logprobs of a prompt come before its first token",
                 "client %d: some come when nobody waits for them", c);
    for (uint32_t i = 0; i < action->n_scores; i++) {
        struct bt_logprobs want;
        uint32_t position = action->first_score + i;
        if (position != ++client->n_scored || position >= client->n_prompt) {
            sim_fail(sim, "logprobs of a prompt come once and in order",
                     "client %d: position %u where %u is next", c, position, client->n_scored);
            return;
        }
        sim_oracle_score(client->tokens, position, client->sampling.prompt_logprobs - 1u, &want);
        if (!sim_logprobs_equal(&action->logprobs[i], &want))
            sim_fail(sim, "logprobs are of this very token",
                     "client %d: those of position %u of its prompt are wrong", c, position);
    }
    sim->coverage->n_scores += action->n_scores;
    sim_say(sim, client->router, "client %d gets logprobs of its prompt up to %u", c,
            client->n_scored);
}

void sim_on_emit(struct sim *sim, const struct bt_router_action *action) {
    struct sim_client *client = action->req->user;
    int c = (int)(client - sim->clients);
    uint32_t index = client->n_tokens - client->n_prompt;
    sim->coverage->n_tokens++;
    if (client->ended)
        sim_fail(sim, "every request ends exactly once", "client %d: a token after its end", c);
    if (action->index != index) {
        sim_fail(sim, "no token twice, missing or out of order",
                 "client %d: token %u where %u is next", c, action->index, index);
        return;
    }
    struct bt_sampling sampling = client->sampling;
    sampling.seed = client->seed;
    struct bt_step_result want;
    sim_oracle(client->tokens, client->n_tokens, client->n_prompt, &sampling, &want);
    if (action->token != want.token || action->finish != want.finish || action->hash != want.hash)
        sim_fail(sim, "no token from another prompt",
                 "client %d: token %u is %d finish %d, must be %d finish %d (hash %s)", c, index,
                 action->token, (int)action->finish, want.token, (int)want.finish,
                 action->hash == want.hash ? "equal" : "differs");
    check_logprobs(sim, client, action, &want.logprobs);
    if (client->is_foreign)
        sim_fail(sim, "no token from another prompt", "client %d: its prompt cannot be computed",
                 c);
    sim_check_speaker(sim, client->router, action->req);
    client->tokens[client->n_tokens++] = action->token;
    client->finish = action->finish;
    sim_say(sim, client->router, "client %d gets token %u: %d%s", c, index, action->token,
            action->finish ? " (last)" : "");
    if (client->stops_late) {
        client->stop_due = client->stop_due || index + 1 == client->stop_at;
    } else if (client->stop_at && index + 1 == client->stop_at && !action->finish) {
        client->stops = true;
        sim->coverage->faults[SIM_STOP_STRING]++;
        bt_router_core_stop(sim->nodes[client->router].router, sim->now_us, action->req);
    }
}

/* Whether the client may end like this, and which fault it was. */
static void count_end(struct sim *sim, int c, const struct bt_router_action *action) {
    const struct sim_client *client = &sim->clients[c];
    struct sim_coverage *all = sim->coverage;
    bool waited = strstr(action->reason, "no place was free") != NULL;
    if (action->status == BT_OK) {
        all->n_ok++;
        if (!client->stops && client->finish == BT_FINISH_NONE)
            sim_fail(sim, "no token twice, missing or out of order",
                     "client %d ends in order after %u tokens without a last one", c,
                     client->n_tokens - client->n_prompt);
        return;
    }
    if (action->status == BT_E_CANCELLED && client->cancelled) {
        all->n_cancelled++;
        return;
    }
    if (action->status == BT_E_DEADLINE && client->deadline_ms && !waited) {
        all->faults[SIM_SHORT_DEADLINE]++;
        return;
    }
    all->n_failed++;
    if (action->status == BT_E_DEADLINE && waited && sim->enabled[SIM_SHORT_QUEUE])
        all->faults[SIM_SHORT_QUEUE]++;
    else if (action->status == BT_E_TOO_LARGE && client->is_foreign)
        all->faults[SIM_FOREIGN_TOKEN]++;
    else if (!sim->faulty || action->status == BT_E_DEADLINE || action->status == BT_E_CANCELLED ||
             action->status == BT_E_TOO_LARGE)
        sim_fail(sim, "liveness", "client %d ends with %s: %s", c, bt_status_name(action->status),
                 action->reason);
}

void sim_on_end(struct sim *sim, const struct bt_router_action *action) {
    struct sim_client *client = action->req->user;
    int c = (int)(client - sim->clients);
    if (client->ended) {
        sim_fail(sim, "every request ends exactly once", "client %d ends again", c);
        return;
    }
    client->ended = true;
    client->ended_us = sim->now_us;
    client->status = action->status;
    client->placement = action->req->placement;
    client->attempts = action->req->attempt;
    client->pages_held = action->req->pages_held;
    client->req = NULL;
    sim_say(sim, client->router, "client %d ends: %s %s", c, bt_status_name(action->status),
            action->reason);
    uint64_t deadline_us =
        client->sent_us + (client->deadline_ms ? client->deadline_ms : 60000) * UINT64_C(1000);
    bool was_paused = sim->now_us < sim->nodes[client->router].paused_until_us + 200000;
    if (sim->now_us > deadline_us + 200000 && !was_paused)
        sim_fail(sim, "nothing waits past its deadline", "client %d ends %llu ms late", c,
                 (unsigned long long)(sim->now_us - deadline_us) / 1000);
    count_end(sim, c, action);
}

void sim_clients_lost(struct sim *sim, int router) {
    for (int c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        if (client->router == router && client->sent && !client->ended) {
            client->ended = client->lost = true;
            client->req = NULL;
            sim->coverage->n_lost++;
        }
    }
}

bool sim_all_ended(const struct sim *sim) {
    for (int c = 0; c < sim->n_clients; c++)
        if (!sim->clients[c].ended)
            return false;
    return true;
}

void sim_check_clients(struct sim *sim) {
    for (int c = 0; c < sim->n_clients; c++)
        if (!sim->clients[c].ended)
            sim_fail(sim, "every request ends exactly once", "client %d never ends", c);
}
