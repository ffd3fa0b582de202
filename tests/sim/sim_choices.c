/* What calls ask for beside a stream of tokens: logprobs, bias, and further choices, which are
 * requests that follow the first one, each with its own seed and its own end.
 *
 * All of it is drawn apart, so that schedules without it stay what they were. */
#include "sim.h"

void sim_make_wishes(struct sim *sim) {
    struct sim_random random = {sim_mix(sim->seed, 0x3150e8)};
    if (!sim_chance(&random, 40))
        return;
    for (int c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        if (sim_chance(&random, 40))
            client->sampling.logprobs = (uint8_t)(1 + sim_below(&random, 4));
        if (sim_chance(&random, 25))
            client->sampling.prompt_logprobs = (uint8_t)(1 + sim_below(&random, 3));
        if (sim_chance(&random, 30))
            client->sampling.n_bias = (uint16_t)(1 + sim_below(&random, SIM_BIASES));
        for (uint32_t i = 0; i < client->sampling.n_bias; i++)
            client->bias[i] = (struct bt_logit_bias){
                .token = (int32_t)(i * (SIM_VOCAB / SIM_BIASES) + sim_below(&random, 100)),
                .bias = (float)sim_below(&random, 201) - 100};
    }
}

static void make_follower(struct sim *sim, struct sim_random *random, int leader, uint32_t choice) {
    int c = sim->n_clients++;
    struct sim_client *client = &sim->clients[c];
    *client = sim->clients[leader];
    client->leader = leader;
    client->choice = choice;
    client->stop_at = 0;
    if (sim_chance(random, 70)) /* its prompt is the first one's */
        client->sampling.prompt_logprobs = 0;
    client->stops_late = client->aims_cancel = false;
    client->aim = BT_REQUEST_QUEUED + sim_below(random, 3);
    if (sim->enabled[SIM_CANCEL] && sim_chance(random, 25)) {
        client->aims_cancel = sim_chance(random, 60);
        if (!client->aims_cancel)
            sim_push(sim, client->arrives_us + sim_below(random, 800000), SIM_ON_CANCEL, -1,
                     (uint32_t)c, 0, NULL);
    }
    if (sim->enabled[SIM_SHORT_DEADLINE] && sim_chance(random, 20))
        client->deadline_ms = 1 + sim_below(random, 1500);
    if (sim->enabled[SIM_STOP_STRING] && sim_chance(random, 20))
        client->stop_at = 1 + sim_below(random, client->sampling.max_tokens);
}

void sim_make_choices(struct sim *sim) {
    struct sim_random random = {sim_mix(sim->seed, 0xc401e1)};
    if (!sim_chance(&random, 40))
        return;
    for (int leader = 0, n = sim->n_clients; leader < n; leader++) {
        struct sim_client *client = &sim->clients[leader];
        uint32_t n_more = sim_chance(&random, 50) ? 1 + sim_below(&random, 3) : 0;
        /* Its first token, which its prefill worker gives, is then its last. */
        if (n_more && sim_chance(&random, 20)) {
            client->sampling.max_tokens = client->sampling.min_tokens = 1;
            if (sim->enabled[SIM_SHORT_DEADLINE] && sim_chance(&random, 50))
                client->deadline_ms = 1 + sim_below(&random, 400);
        }
        for (uint32_t i = 1; i <= n_more && sim->n_clients < SIM_CLIENTS; i++)
            make_follower(sim, &random, leader, i);
    }
}

void sim_ask_choices(struct sim *sim, uint32_t leader) {
    const struct sim_client *first = &sim->clients[leader];
    for (int c = 0; c < sim->n_clients; c++) {
        struct sim_client *client = &sim->clients[c];
        if (client->leader != (int)leader)
            continue;
        if (!first->ended) {
            sim_ask(sim, (uint32_t)c);
            continue;
        }
        client->sent = client->ended = true;
        client->lost = first->lost;
        client->status = first->status;
        client->ended_us = sim->now_us;
    }
}

void sim_check_choices(struct sim *sim) {
    for (int c = 0; c < sim->n_clients; c++) {
        const struct sim_client *client = &sim->clients[c];
        if (client->leader < 0 || client->status != BT_OK || client->lost)
            continue;
        sim->coverage->n_choices += client->placement == BT_PLACE_LOCAL_CHOICE;
        uint32_t shared = (client->n_prompt - 1) / BT_PAGE_TOKENS;
        bool scored = client->sampling.prompt_logprobs && client->n_prompt > 1;
        if (sim->short_cuts && !scored &&
            (client->placement != BT_PLACE_LOCAL_CHOICE || client->pages_held != shared))
            sim_fail(sim, "one prefill and one transfer for all choices",
                     "client %d, choice %u of %d: %s, %u of %u pages were there", c, client->choice,
                     client->leader, bt_placement_name(client->placement), client->pages_held,
                     shared);
    }
}
