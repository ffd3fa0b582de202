/* Answers Check and Watch, and tells watchers of changes. */
#include "common/rpc/public_health.h"

#include <grpc/status.h>
#include <string.h>

#include "common/rpc/public_status.h"
#include "proto/grpc/health/v1/health.pb-c.h"

typedef Grpc__Health__V1__HealthCheckRequest request_message;
typedef Grpc__Health__V1__HealthCheckResponse response_message;

enum {
    SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING,
    NOT_SERVING = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING,
    SERVICE_UNKNOWN = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN,
    RESPONSE_BYTES = 16,
    RETRY_MS = 1000,
};

static const struct {
    const char *name;
    bool follows;
} services[] = {
    {"", true},
    {"readiness", true},
    {"baton.v1.Inference", true},
    {"liveness", false},
    {"grpc.health.v1.Health", false},
    {"grpc.reflection.v1.ServerReflection", false},
    {"grpc.reflection.v1alpha.ServerReflection", false},
};

/* Answers the index into services, -1: there is no such service, -2: not a request. */
static int find_service(const uint8_t *bytes, size_t n_bytes) {
    request_message *request = grpc__health__v1__health_check_request__unpack(NULL, n_bytes, bytes);
    int found = -1;
    if (!request)
        return -2;
    for (size_t i = 0; i < sizeof services / sizeof services[0]; i++)
        if (request->service.len == strlen(services[i].name) &&
            (!request->service.len ||
             memcmp(request->service.data, services[i].name, request->service.len) == 0))
            found = (int)i;
    grpc__health__v1__health_check_request__free_unpacked(request, NULL);
    return found;
}

static void say(struct bt_public_call *call, int status) {
    uint8_t bytes[RESPONSE_BYTES];
    response_message response = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    response.status = (Grpc__Health__V1__HealthCheckResponse__ServingStatus)status;
    bt_public_send(call, bytes, grpc__health__v1__health_check_response__pack(&response, bytes));
}

static int status_of(const struct bt_public_health *health, bool follows) {
    return !follows || health->serving ? SERVING : NOT_SERVING;
}

static void refuse_bytes(struct bt_public_call *call) {
    bt_public_fail(call,
                   &(struct bt_public_fault){.code = GRPC_STATUS_INVALID_ARGUMENT,
                                             .message = "the message is not a HealthCheckRequest",
                                             .reason = "",
                                             .field = ""});
}

void bt_public_health_check(struct bt_public_health *health, struct bt_public_call *call,
                            const uint8_t *bytes, size_t n_bytes) {
    int i = find_service(bytes, n_bytes);
    if (i >= 0) {
        say(call, status_of(health, services[i].follows));
        bt_public_finish(call, &(struct bt_public_end){.message = ""});
    } else if (i == -1) {
        bt_public_fail(call, &(struct bt_public_fault){.code = GRPC_STATUS_NOT_FOUND,
                                                       .message = "there is no such service",
                                                       .reason = "",
                                                       .field = "service"});
    } else {
        refuse_bytes(call);
    }
}

static struct bt_public_watcher *free_watcher(struct bt_public_health *health) {
    for (size_t i = 0; i < BT_PUBLIC_WATCHERS; i++)
        if (!health->watchers[i].call)
            return &health->watchers[i];
    return NULL;
}

void bt_public_health_watch(struct bt_public_health *health, struct bt_public_call *call,
                            const uint8_t *bytes, size_t n_bytes) {
    int i = find_service(bytes, n_bytes);
    struct bt_public_watcher *watcher = free_watcher(health);
    if (i == -2) {
        refuse_bytes(call);
        return;
    }
    if (!watcher) {
        bt_public_fail(call, &(struct bt_public_fault){.code = GRPC_STATUS_RESOURCE_EXHAUSTED,
                                                       .message = "too many watch already",
                                                       .reason = "",
                                                       .field = "",
                                                       .retry_ms = RETRY_MS});
        return;
    }
    /* A service that is unknown may become known one day: the stream stays. */
    *watcher = (struct bt_public_watcher){.call = call,
                                          .follows = i >= 0 && services[i].follows,
                                          .status = i < 0 ? SERVICE_UNKNOWN
                                                          : status_of(health, services[i].follows)};
    bt_public_set_user(call, watcher);
    health->n_watchers++;
    say(call, watcher->status);
}

void bt_public_health_closed(struct bt_public_health *health, struct bt_public_call *call) {
    struct bt_public_watcher *watcher = bt_public_user(call);
    if (!watcher)
        return;
    watcher->call = NULL;
    health->n_watchers--;
}

void bt_public_health_set(struct bt_public_health *health, bool serving) {
    if (health->serving == serving)
        return;
    health->serving = serving;
    for (size_t i = 0; i < BT_PUBLIC_WATCHERS; i++) {
        struct bt_public_watcher *watcher = &health->watchers[i];
        if (!watcher->call || !watcher->follows)
            continue;
        watcher->status = status_of(health, true);
        say(watcher->call, watcher->status);
    }
}
