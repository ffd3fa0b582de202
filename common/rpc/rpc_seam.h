/* Inside common/rpc: tells the thread sanitizer what gRPC orders for us.
 *
 * gRPC is not built with it, so it cannot see that what was written before a batch was started is
 * seen by whoever takes the batch's tag off the completion queue. These two say exactly that and
 * nothing more; in other builds they are nothing. */
#pragma once

#if defined(__SANITIZE_THREAD__)
#define BT_RPC_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BT_RPC_TSAN 1
#endif
#endif

#ifdef BT_RPC_TSAN
#include <sanitizer/tsan_interface.h>
#define BT_RPC_GIVE(tag) __tsan_release(tag)
#define BT_RPC_TAKE(tag) __tsan_acquire(tag)
#else
#define BT_RPC_GIVE(tag) ((void)(tag))
#define BT_RPC_TAKE(tag) ((void)(tag))
#endif
