/* The streaming API of libnats against a server binary: check PATH PORT FOLDER
 * Debian's header hides that API unless it is asked for, and its library has it. */

#define NATS_HAS_STREAMING
#include <nats/nats.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *path, *port, *folder;
static char url[64];
static pid_t server;

static void pause_ms(long ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

#define TRY(call)                                                                      \
    do {                                                                               \
        natsStatus s_ = (call);                                                        \
        if (s_ != NATS_OK) {                                                           \
            printf("  %s: %s (line %d)\n", #call, natsStatus_GetText(s_), __LINE__);   \
            return false;                                                              \
        }                                                                              \
    } while (0)
#define MUST(what)                                                                     \
    do {                                                                               \
        if (!(what)) {                                                                 \
            printf("  not so: %s (line %d)\n", #what, __LINE__);                       \
            return false;                                                              \
        }                                                                              \
    } while (0)

/* Everything a test does comes back through here. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t seqs[4096];
    bool again[4096];
    int count, acks, failures;
    bool hold_acks;
} seen = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void reset(void) {
    pthread_mutex_lock(&seen.lock);
    seen.count = seen.acks = seen.failures = 0;
    seen.hold_acks = false;
    pthread_mutex_unlock(&seen.lock);
}

static bool wait_for(int *figure, int count) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += 30;
    pthread_mutex_lock(&seen.lock);
    int error = 0;
    while (*figure < count && error == 0) error = pthread_cond_timedwait(&seen.changed, &seen.lock, &end);
    bool enough = *figure >= count;
    pthread_mutex_unlock(&seen.lock);
    return enough;
}

static void on_message(stanConnection *sc, stanSubscription *sub, const char *channel, stanMsg *msg, void *closure) {
    pthread_mutex_lock(&seen.lock);
    seen.again[seen.count] = stanMsg_IsRedelivered(msg);
    seen.seqs[seen.count++] = stanMsg_GetSequence(msg);
    bool ack = closure != NULL && !seen.hold_acks;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
    if (ack) stanSubscription_AckMsg(sub, msg);
    stanMsg_Destroy(msg);
}

static void on_ack(const char *guid, const char *error, void *closure) {
    pthread_mutex_lock(&seen.lock);
    seen.acks++;
    seen.failures += error != NULL;
    pthread_cond_broadcast(&seen.changed);
    pthread_mutex_unlock(&seen.lock);
}

static natsStatus connect_as(stanConnection **sc, const char *id) {
    natsOptions *nats = NULL;
    stanConnOptions *options = NULL;
    natsStatus s = natsOptions_Create(&nats);
    if (s == NATS_OK) s = natsOptions_SetURL(nats, url);
    if (s == NATS_OK) s = stanConnOptions_Create(&options);
    if (s == NATS_OK) s = stanConnOptions_SetNATSOptions(options, nats);
    if (s == NATS_OK) s = stanConnOptions_SetPings(options, 1, 5);
    if (s == NATS_OK) s = stanConnection_Connect(sc, "check", id, options);
    stanConnOptions_Destroy(options);
    natsOptions_Destroy(nats);
    return s;
}

static bool start(void) {
    server = fork();
    if (server == 0) {
        if (freopen("/dev/null", "w", stderr) == NULL) _exit(126);
        execl(path, path, "-a", "127.0.0.1", "-p", port, "-cid", "check", "-st", "FILE", "-dir", folder, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 100; i++) {
        stanConnection *sc = NULL;
        if (connect_as(&sc, "probe") == NATS_OK) {
            stanConnection_Close(sc);
            stanConnection_Destroy(sc);
            return true;
        }
        pause_ms(50);
    }
    return false;
}

static void stop(int with) {
    kill(server, with);
    waitpid(server, NULL, 0);
}

static bool publish_and_replay(void) {
    stanConnection *sc = NULL;
    TRY(connect_as(&sc, "me"));
    for (int i = 0; i < 1000; i++) TRY(stanConnection_PublishAsync(sc, "foo", "data", 4, on_ack, NULL));
    MUST(wait_for(&seen.acks, 1000) && seen.failures == 0);
    TRY(stanConnection_Publish(sc, "foo", "last", 4));
    MUST(stanConnection_Publish(sc, "foo.*", "x", 1) != NATS_OK);
    stanSubOptions *options = NULL;
    stanSubscription *sub = NULL;
    TRY(stanSubOptions_Create(&options));
    TRY(stanSubOptions_DeliverAllAvailable(options));
    TRY(stanConnection_Subscribe(&sub, sc, "foo", on_message, NULL, options));
    MUST(wait_for(&seen.count, 1001));
    for (int i = 0; i < 1001; i++) MUST(seen.seqs[i] == (uint64_t)i + 1 && !seen.again[i]);
    stanSubOptions_Destroy(options);
    TRY(stanSubscription_Unsubscribe(sub));
    stanSubscription_Destroy(sub);
    TRY(stanConnection_Close(sc));
    stanConnection_Destroy(sc);
    return true;
}

static bool manual_acks(stanConnection *sc, stanSubscription **sub) {
    stanSubOptions *options = NULL;
    TRY(stanSubOptions_Create(&options));
    TRY(stanSubOptions_DeliverAllAvailable(options));
    TRY(stanSubOptions_SetDurableName(options, "d"));
    TRY(stanSubOptions_SetManualAckMode(options, true));
    TRY(stanSubOptions_SetAckWait(options, 1000));
    TRY(stanSubOptions_SetMaxInflight(options, 10));
    TRY(stanConnection_Subscribe(sub, sc, "foo", on_message, sc, options));
    stanSubOptions_Destroy(options);
    return true;
}

static bool redelivery_and_durable(void) {
    stanConnection *sc = NULL;
    stanSubscription *sub = NULL;
    TRY(connect_as(&sc, "me"));
    seen.hold_acks = true;
    MUST(manual_acks(sc, &sub));
    MUST(wait_for(&seen.count, 20)); /* ten, and the same ten after AckWait */
    for (int i = 0; i < 20; i++) MUST(seen.again[i] == (i >= 10));
    pthread_mutex_lock(&seen.lock);
    seen.hold_acks = false;
    pthread_mutex_unlock(&seen.lock);
    MUST(wait_for(&seen.count, 1000));
    TRY(stanSubscription_Close(sub));
    stanSubscription_Destroy(sub);
    TRY(stanConnection_Close(sc));
    stanConnection_Destroy(sc);

    stop(SIGKILL);
    MUST(start());
    reset();
    TRY(connect_as(&sc, "me"));
    MUST(manual_acks(sc, &sub));
    TRY(stanConnection_Publish(sc, "foo", "more", 4));
    MUST(wait_for(&seen.count, 1));
    MUST(seen.seqs[0] > 10); /* it did not begin anew */
    TRY(stanSubscription_Unsubscribe(sub));
    stanSubscription_Destroy(sub);
    TRY(stanConnection_Close(sc));
    stanConnection_Destroy(sc);
    return true;
}

static bool queue_group(void) {
    stanConnection *sc = NULL;
    stanSubscription *subs[3];
    TRY(connect_as(&sc, "me"));
    for (int i = 0; i < 3; i++) TRY(stanConnection_QueueSubscribe(&subs[i], sc, "bar", "g", on_message, NULL, NULL));
    for (int i = 0; i < 300; i++) TRY(stanConnection_Publish(sc, "bar", "x", 1));
    MUST(wait_for(&seen.count, 300));
    pause_ms(200);
    MUST(seen.count == 300);
    for (int i = 0; i < 3; i++) {
        TRY(stanSubscription_Unsubscribe(subs[i]));
        stanSubscription_Destroy(subs[i]);
    }
    TRY(stanConnection_Close(sc));
    stanConnection_Destroy(sc);
    return true;
}

static bool one_client_id(void) {
    stanConnection *first = NULL, *second = NULL;
    TRY(connect_as(&first, "twin"));
    MUST(connect_as(&second, "twin") != NATS_OK);
    TRY(stanConnection_Close(first));
    stanConnection_Destroy(first);
    TRY(connect_as(&second, "twin"));
    TRY(stanConnection_Close(second));
    stanConnection_Destroy(second);
    return true;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    path = argv[1];
    port = argv[2];
    folder = argv[3];
    snprintf(url, sizeof url, "nats://127.0.0.1:%s", port);
    static const struct {
        const char *name;
        bool (*run)(void);
    } checks[] = {
        {"publish and replay", publish_and_replay},
        {"redelivery, and a durable over kill -9", redelivery_and_durable},
        {"queue group", queue_group},
        {"one client per id", one_client_id},
    };
    if (!start()) {
        printf("the server does not start\n");
        return 1;
    }
    int failed = 0;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        reset();
        bool good = checks[i].run();
        printf("%s: %s\n", good ? "ok" : "FAILED", checks[i].name);
        failed += !good;
    }
    stop(SIGTERM);
    nats_Close();
    return failed != 0;
}
