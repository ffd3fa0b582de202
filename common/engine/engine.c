/* The model behind a worker's event loop: one compute thread that takes a step and answers by
 * events. */
#include "common/engine/engine.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/base/assert.h"
#include "common/base/failpoint.h"
#include "common/base/ring.h"
#include "common/device/device.h"
#include "common/engine/forward.h"
#include "common/engine/kv_memory.h"
#include "common/engine/model.h"
#include "common/engine/weights.h"

_Static_assert((int)BT_ENGINE_EOS_MAX == (int)BT_MODEL_EOS_MAX, "info holds all of the model's");
_Static_assert((int)BT_ENGINE_NAME_BYTES == (int)BT_MODEL_NAME_BYTES, "info holds the model's");

/* What the compute thread is told and tells; the rest of the engine is its own while it runs. */
enum state { LOADING, READY, FAILED };

struct bt_engine {
    struct bt_engine_params params;
    pthread_t thread;
    bool started;

    /* Guarded by lock: state, posted, stopping. Signalled by changed. */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    enum state state;
    struct bt_step *posted; /* lent by the loop, not yet begun */
    bool stopping;

    bool busy; /* the loop's: a step is outstanding */
    struct bt_ring events;

    /* Written by the compute thread before READY, constant afterwards. */
    struct bt_engine_info info;
    struct bt_error error;

    /* The compute thread's. */
    struct bt_device *device;
    struct bt_model model;
    struct bt_weights weights;
    struct bt_kv_memory kv;
    struct bt_forward *forward;
};

/* ---- The compute thread ---- */

static bt_status check_params(const struct bt_engine_params *p, struct bt_error *err) {
    if (!p->max_rows || !p->max_seqs)
        return bt_fail(err, BT_E_INVALID,
                       "a step of %u rows and %u sequences was asked for, both must be 1 or more",
                       p->max_rows, p->max_seqs);
    if (!p->n_pages && !p->kv_bytes_max)
        return bt_fail(err, BT_E_INVALID, "neither pages nor bytes of the KV cache are given");
    if (p->profile < BT_PROFILE_FAST || p->profile > BT_PROFILE_EXACT)
        return bt_fail(err, BT_E_INVALID, "profile %d is not known", (int)p->profile);
    if (bt_forward_kv_type(p->profile, p->kv_type) == BT_KV_BY_PROFILE)
        return bt_fail(err, BT_E_INVALID, "a KV cache of type %s was asked for; profile %s has %s",
                       bt_kv_type_name(p->kv_type), bt_profile_name(p->profile),
                       p->profile == BT_PROFILE_EXACT ? "f32 only" : "bf16, int8 or f32");
    return BT_OK;
}

static bt_status choose_pages(const struct bt_engine *e, size_t page_bytes, uint32_t *out,
                              struct bt_error *err) {
    uint64_t n = e->params.n_pages ? e->params.n_pages : UINT32_MAX;
    uint64_t all_layers = (uint64_t)page_bytes * e->model.shape.n_layers;
    if (e->params.kv_bytes_max && e->params.kv_bytes_max / all_layers < n)
        n = e->params.kv_bytes_max / all_layers;
    if (!n)
        return bt_fail(
            err, BT_E_INVALID,
            "%llu bytes hold no page of the KV cache, which has %llu bytes in all layers",
            (unsigned long long)e->params.kv_bytes_max, (unsigned long long)all_layers);
    *out = (uint32_t)n;
    return BT_OK;
}

/* A sequence is no longer than the model, what was asked for, and the pool. */
static uint32_t choose_context(const struct bt_engine *e, uint32_t n_pages) {
    uint32_t n = e->model.shape.context;
    if (e->params.max_context && e->params.max_context < n)
        n = e->params.max_context;
    uint64_t pool_tokens = (uint64_t)n_pages * BT_PAGE_TOKENS;
    return pool_tokens < n ? (uint32_t)pool_tokens : n;
}

static void describe(struct bt_engine *e) {
    const struct bt_model_shape *s = &e->model.shape;
    uint32_t kv_type = bt_forward_kv_type(e->params.profile, e->params.kv_type);
    struct bt_engine_info *info = &e->info;
    info->fingerprint = (struct bt_fingerprint){
        .model_hash = e->weights.model_hash,
        .n_layers = s->n_layers,
        .n_kv_heads = s->n_kv_heads,
        .head_dim = s->head_dim,
        .page_tokens = BT_PAGE_TOKENS,
        .kv_type = kv_type,
        .wire_type = kv_type,
        .inner_order = BT_KV_INNER_ORDER_CPU,
        .profile = (uint32_t)e->params.profile,
        .contract = BT_NUMERICS_CONTRACT,
    };
    memcpy(info->model_name, e->model.name, sizeof info->model_name);
    memcpy(info->eos, e->model.eos, sizeof info->eos);
    info->n_eos = e->model.n_eos;
    info->n_layers = s->n_layers;
    info->n_vocab = s->n_vocab;
    info->n_pages = e->kv.n_pages;
    info->n_threads = bt_device_threads(e->device);
    info->cpus = bt_device_cpus(e->device)->text;
    info->kernels = bt_device_kernels(e->device)->name;
    info->page_bytes = e->kv.page_bytes;
    info->weight_bytes = e->weights.memory_bytes;
    info->cache_bytes = bt_kv_memory_bytes(&e->kv);
    info->scratch_bytes = bt_forward_scratch_bytes(e->forward);
}

static bt_status load(struct bt_engine *e, struct bt_error *err) {
    const struct bt_engine_params *p = &e->params;
    const struct bt_model_shape *s = &e->model.shape;
    const struct bt_device_params device = {.kind = p->device ? p->device : "cpu",
                                            .path = p->path,
                                            .n_threads = p->n_threads,
                                            .pin = p->pin,
                                            .pin_first_cpu = p->pin_first_cpu};
    BT_TRY(check_params(p, err));
    BT_TRY(bt_model_open(p->model_path, &e->model, err));
    BT_TRY(bt_device_open(&device, &e->device, e->info.remark, err));
    BT_TRY(bt_weights_load(&e->weights, &e->model, p->profile, e->device, p->progress,
                           p->progress_arg, err));
    enum bt_cache_type cache = bt_forward_cache_type(bt_forward_kv_type(p->profile, p->kv_type));
    size_t page_bytes = bt_device_kernels(e->device)->page_bytes(cache, s->n_kv_heads, s->head_dim);
    uint32_t n_pages = 0;
    BT_TRY(choose_pages(e, page_bytes, &n_pages, err));
    BT_TRY(bt_kv_memory_init(&e->kv, e->device, s->n_layers, n_pages, page_bytes, err));
    e->info.max_context = choose_context(e, n_pages);
    const struct bt_forward_params forward = {.device = e->device,
                                              .model = &e->model,
                                              .weights = &e->weights,
                                              .kv = &e->kv,
                                              .profile = p->profile,
                                              .kv_type = p->kv_type,
                                              .max_rows = p->max_rows,
                                              .max_seqs = p->max_seqs,
                                              .max_context = e->info.max_context};
    BT_TRY(bt_forward_create(&forward, &e->forward, err));
    describe(e);
    bt_gguf_release(e->model.gguf); /* all but the embedding's rows was read for the last time */
    return BT_OK;
}

/* The device's memory goes before the device, which this thread alone may close. */
static void unload(struct bt_engine *e) {
    bt_forward_destroy(e->forward);
    bt_kv_memory_fini(&e->kv);
    bt_weights_fini(&e->weights);
    bt_model_close(&e->model);
    bt_device_close(e->device);
}

static void push_event(struct bt_engine *e, const struct bt_engine_event *event) {
    /* The ring holds all events of a step, and one step is outstanding. */
    BT_ASSERT(bt_ring_push(&e->events, event));
}

struct running {
    struct bt_engine *engine;
    uint64_t step;
};

static void on_layer_done(void *arg, uint32_t layer) {
    struct running *running = arg;
    push_event(running->engine, &(struct bt_engine_event){.kind = BT_ENGINE_LAYER_DONE,
                                                          .layer = layer,
                                                          .step = running->step});
}

/* Waits for a step; NULL: stop. */
static struct bt_step *take_step(struct bt_engine *e) {
    pthread_mutex_lock(&e->lock);
    while (!e->posted && !e->stopping)
        pthread_cond_wait(&e->changed, &e->lock);
    struct bt_step *step = e->posted;
    e->posted = NULL;
    pthread_mutex_unlock(&e->lock);
    return step;
}

/* A step that takes longer than the model does; nothing in builds without failpoints. */
static void be_slow(const struct bt_step *step) {
    for (uint32_t i = 0; i < step->n_seqs; i++) {
        const struct bt_step_seq *seq = &step->seqs[i];
        if (!seq->sample)
            continue;
        uint64_t us = seq->position < seq->n_prompt ? bt_failpoint_us(BT_FAILPOINT_PREFILL)
                      : seq->index == 2             ? bt_failpoint_us(BT_FAILPOINT_STEP)
                                                    : 0;
        if (us)
            usleep((useconds_t)us);
    }
}

static void *compute(void *arg) {
    struct bt_engine *e = arg;
    bt_status status = load(e, &e->error);
    pthread_mutex_lock(&e->lock);
    e->state = status < 0 ? FAILED : READY;
    pthread_cond_broadcast(&e->changed);
    pthread_mutex_unlock(&e->lock);
    for (struct bt_step *step; status >= 0 && (step = take_step(e));) {
        struct running running = {e, step->id};
        be_slow(step);
        bt_forward_run(e->forward, step, step->n_sums ? on_layer_done : NULL, &running);
        push_event(e, &(struct bt_engine_event){.kind = BT_ENGINE_STEP_DONE, .step = running.step});
    }
    unload(e);
    return NULL;
}

/* ---- The loop's side ---- */

static bt_status start(struct bt_engine *e, struct bt_error *err) {
    int code = pthread_create(&e->thread, NULL, compute, e);
    if (code)
        return bt_fail(err, BT_E_NO_MEMORY, "cannot start the compute thread: %s", strerror(code));
    e->started = true;
    pthread_mutex_lock(&e->lock);
    while (e->state == LOADING)
        pthread_cond_wait(&e->changed, &e->lock);
    enum state state = e->state;
    pthread_mutex_unlock(&e->lock);
    if (state == FAILED)
        return bt_fail(err, e->error.status, "%s", e->error.text);
    /* Nothing is posted before create returns, so the ring may be made now that the number of
     * layers is known. */
    return bt_ring_init(&e->events, 2 * (e->info.n_layers + 1), sizeof(struct bt_engine_event),
                        err);
}

bt_status bt_engine_create(const struct bt_engine_params *params, struct bt_engine **out,
                           struct bt_error *err) {
    /* Aligned as the ring's indices are. */
    size_t bytes = (sizeof(struct bt_engine) + 63) & ~(size_t)63;
    struct bt_engine *e = aligned_alloc(64, bytes);
    if (!e)
        return bt_fail(err, BT_E_NO_MEMORY, "no memory for an engine");
    memset(e, 0, bytes);
    e->params = *params;
    e->events.fd = -1;
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    bt_status status = start(e, err);
    if (status < 0) {
        bt_engine_destroy(e);
        return status;
    }
    *out = e;
    return BT_OK;
}

void bt_engine_destroy(struct bt_engine *e) {
    if (!e)
        return;
    if (e->started) {
        pthread_mutex_lock(&e->lock);
        e->stopping = true;
        pthread_cond_broadcast(&e->changed);
        pthread_mutex_unlock(&e->lock);
        pthread_join(e->thread, NULL);
    }
    bt_ring_fini(&e->events);
    pthread_cond_destroy(&e->changed);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

const struct bt_engine_info *bt_engine_info(const struct bt_engine *e) {
    return &e->info;
}

struct bt_kv_memory *bt_engine_kv_memory(struct bt_engine *e) {
    return &e->kv;
}

void bt_engine_post(struct bt_engine *e, struct bt_step *step) {
    BT_ASSERT(!e->busy);
    e->busy = true;
    pthread_mutex_lock(&e->lock);
    e->posted = step;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
}

void bt_engine_set_profile(struct bt_engine *e, struct bt_forward_profile *profile) {
    /* The compute thread waits for a step and sees this when it takes one. */
    BT_ASSERT(!e->busy);
    bt_forward_set_profile(e->forward, profile);
}

bool bt_engine_busy(const struct bt_engine *e) {
    return e->busy;
}

int bt_engine_fd(const struct bt_engine *e) {
    return bt_ring_fd(&e->events);
}

bool bt_engine_next(struct bt_engine *e, struct bt_engine_event *event) {
    if (!bt_ring_pop(&e->events, event)) {
        /* Dry: clear the descriptor, then look once more for what came in between. */
        bt_ring_acknowledge(&e->events);
        if (!bt_ring_pop(&e->events, event))
            return false;
    }
    if (event->kind == BT_ENGINE_STEP_DONE)
        e->busy = false;
    return true;
}
