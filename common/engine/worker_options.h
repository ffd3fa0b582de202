/* What a prefill or decode worker is started with: the command line's result, plain numbers and
 * strings.
 *
 * Filled by cli/worker_commands.c, which checks each value against its bound, the addresses' form
 * and the rule for unencrypted addresses; what depends on the model (a context longer than the
 * model's, a cache too small) is checked where the model is opened. All strings are borrowed and
 * live as long as the process. */
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "common/base/fingerprint.h"
#include "common/base/limits.h"

/* docs/numerics.md "Profiles". */
enum bt_precision {
    BT_PRECISION_FAST,  /* int8 activations for quantised weights, bf16 cache */
    BT_PRECISION_BF16,  /* bf16 arithmetic and cache */
    BT_PRECISION_EXACT, /* f32 arithmetic and cache */
};

/* What the options call them and the types of a KV cache: the `choices` of a bt_option, each in
 * its enum's order. */
#define BT_PRECISION_CHOICES \
    { "fast", "bf16", "exact" }
#define BT_KV_TYPE_CHOICES \
    { "auto", "bf16", "f32", "int8" }

static inline enum bt_profile bt_precision_profile(enum bt_precision precision) {
    return precision == BT_PRECISION_EXACT  ? BT_PROFILE_EXACT
           : precision == BT_PRECISION_BF16 ? BT_PROFILE_BF16
                                            : BT_PROFILE_FAST;
}

enum {
    BT_WORKER_THREADS_MAX = 256,
    BT_WORKER_SEQS_MAX = 1024,
    BT_WORKER_CHUNK_TOKENS_MAX = 8192,
    BT_WORKER_CONTEXT_MAX = 1 << 20,
    BT_WORKER_DRAIN_SECONDS_MAX = 86400,
    BT_WORKER_KV_TOKENS_STANDARD = 16384, /* --kv-tokens where neither it nor --kv-memory is set */
};

struct bt_worker_options {
    const char *model;                   /* path of a GGUF file */
    const char *name;                    /* 1 to BT_NAME_BYTES - 1 bytes; never NULL */
    const char *routers[BT_MAX_ROUTERS]; /* "host:port" of each registry, well-formed; a name may
                                            stand for several */
    uint32_t n_routers;                  /* >= 1 */

    uint32_t n_threads; /* compute threads; 0: one per CPU that this process is given */
    bool pin;           /* each compute thread stays on one CPU */
    enum bt_precision precision;
    enum bt_kv_type kv_type; /* of the cache; BY_PROFILE: what `precision` says above */

    /* Size of the KV cache: exactly one of the two is not 0. */
    uint64_t kv_tokens;       /* rounded up to whole pages by the worker */
    uint64_t kv_memory_bytes; /* rounded down to whole pages */
    bool kv_is_standard;      /* nobody chose: kv_tokens is an upper bound; take less where it would
                                 need more than kv_standard_bytes_max */
    uint64_t kv_standard_bytes_max; /* a quarter of this machine's memory */

    uint32_t max_context;  /* tokens of prompt and answer together; 0: the model's */
    uint32_t max_seqs;     /* sequences at the same time, >= 1 */
    uint32_t chunk_tokens; /* most prompt tokens in one step, >= BT_PAGE_TOKENS */
    uint32_t step_ms;      /* decode: prompts beside streams keep a step within it; 0: no bound */

    uint32_t drain_seconds; /* after SIGTERM: what still runs then is moved elsewhere */

    const char *link_listen;    /* decode: "host:port" for KV links, port 0: chosen; else NULL */
    const char *link_advertise; /* decode: "host:port" that prefill workers dial; NULL: listen's */

    const char *tls_cert, *tls_key, *tls_ca; /* PEM files; all or none (then: plain text) */
    const char *health_listen;               /* "host:port" on loopback for probes; NULL: none */
    bool insecure; /* addresses other than loopback were allowed without encryption */
};
