/* libnats against a server binary: check PATH PORT */

#include <nats/nats.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *path, *port;
static char url[64];
static pid_t server;

static void pause_ms(long ms) {
    struct timespec t = {ms / 1000, (ms % 1000) * 1000000};
    nanosleep(&t, NULL);
}

static bool start(void) {
    server = fork();
    if (server == 0) {
        freopen("/dev/null", "w", stderr);
        execl(path, path, "-a", "127.0.0.1", "-p", port, (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 200; i++) {
        natsConnection *nc = NULL;
        if (natsConnection_ConnectTo(&nc, url) == NATS_OK) {
            natsConnection_Destroy(nc);
            return true;
        }
        pause_ms(50);
    }
    return false;
}

static void stop(void) {
    kill(server, SIGTERM);
    waitpid(server, NULL, 0);
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

static bool next_is(natsSubscription *sub, const void *data, int len) {
    natsMsg *msg = NULL;
    TRY(natsSubscription_NextMsg(&msg, sub, 20000));
    bool same = natsMsg_GetDataLength(msg) == len && memcmp(natsMsg_GetData(msg), data, (size_t)len) == 0;
    natsMsg_Destroy(msg);
    return same;
}

static bool pub_sub(void) {
    natsConnection *nc = NULL;
    natsSubscription *subs[3];
    const char *subjects[3] = {"a.b", "a.*", "a.>"};
    TRY(natsConnection_ConnectTo(&nc, url));
    for (int i = 0; i < 3; i++) TRY(natsConnection_SubscribeSync(&subs[i], nc, subjects[i]));
    natsMsg *msg = NULL;
    TRY(natsMsg_Create(&msg, "a.b", NULL, "hello", 5));
    TRY(natsMsgHeader_Set(msg, "Colour", "blue"));
    TRY(natsConnection_PublishMsg(nc, msg));
    natsMsg_Destroy(msg);
    for (int i = 0; i < 3; i++) {
        const char *colour = NULL;
        TRY(natsSubscription_NextMsg(&msg, subs[i], 20000));
        TRY(natsMsgHeader_Get(msg, "Colour", &colour));
        MUST(strcmp(colour, "blue") == 0 && strcmp(natsMsg_GetData(msg), "hello") == 0);
        natsMsg_Destroy(msg);
        natsSubscription_Destroy(subs[i]);
    }
    natsConnection_Destroy(nc);
    return true;
}

static bool queue(void) {
    natsConnection *nc[3], *publisher = NULL;
    natsSubscription *subs[3];
    for (int i = 0; i < 3; i++) {
        TRY(natsConnection_ConnectTo(&nc[i], url));
        TRY(natsConnection_QueueSubscribeSync(&subs[i], nc[i], "work", "q"));
        TRY(natsConnection_Flush(nc[i]));
    }
    TRY(natsConnection_ConnectTo(&publisher, url));
    for (int i = 0; i < 600; i++) TRY(natsConnection_Publish(publisher, "work", &i, sizeof i));
    TRY(natsConnection_Flush(publisher));
    static bool seen[600];
    int total = 0;
    for (int tries = 0; tries < 400 && total < 600; tries++) {
        for (int i = 0; i < 3; i++) {
            natsMsg *msg = NULL;
            while (natsSubscription_NextMsg(&msg, subs[i], 10) == NATS_OK) {
                int number;
                memcpy(&number, natsMsg_GetData(msg), sizeof number);
                MUST(number >= 0 && number < 600 && !seen[number]);
                seen[number] = true;
                total++;
                natsMsg_Destroy(msg);
            }
        }
    }
    MUST(total == 600);
    for (int i = 0; i < 3; i++) {
        natsSubscription_Destroy(subs[i]);
        natsConnection_Destroy(nc[i]);
    }
    natsConnection_Destroy(publisher);
    return true;
}

static void answer(natsConnection *nc, natsSubscription *sub, natsMsg *msg, void *closure) {
    (void)sub;
    (void)closure;
    natsConnection_Publish(nc, natsMsg_GetReply(msg), natsMsg_GetData(msg), natsMsg_GetDataLength(msg));
    natsMsg_Destroy(msg);
}

static bool request(void) {
    natsConnection *a = NULL, *b = NULL;
    natsSubscription *sub = NULL;
    natsMsg *reply = NULL;
    TRY(natsConnection_ConnectTo(&a, url));
    TRY(natsConnection_ConnectTo(&b, url));
    TRY(natsConnection_Subscribe(&sub, a, "service", answer, NULL));
    TRY(natsConnection_Flush(a));
    for (int i = 0; i < 100; i++) {
        TRY(natsConnection_Request(&reply, b, "service", &i, sizeof i, 10000));
        MUST(natsMsg_GetDataLength(reply) == sizeof i && memcmp(natsMsg_GetData(reply), &i, sizeof i) == 0);
        natsMsg_Destroy(reply);
    }
    MUST(natsConnection_Request(&reply, b, "nobody", "", 0, 10000) == NATS_NO_RESPONDERS);
    natsSubscription_Destroy(sub);
    natsConnection_Destroy(a);
    natsConnection_Destroy(b);
    return true;
}

static bool large(void) {
    natsConnection *nc = NULL;
    natsSubscription *sub = NULL;
    int len = 1 << 20;
    char *data = malloc((size_t)len);
    for (int i = 0; i < len; i++) data[i] = (char)(i * 7 % 251);
    TRY(natsConnection_ConnectTo(&nc, url));
    TRY(natsConnection_SubscribeSync(&sub, nc, "large"));
    for (int i = 0; i < 5; i++) TRY(natsConnection_Publish(nc, "large", data, len));
    for (int i = 0; i < 5; i++) MUST(next_is(sub, data, len));
    natsSubscription_Destroy(sub);
    natsConnection_Destroy(nc);
    free(data);
    return true;
}

static bool many(void) {
    static natsSubscription *subs[1000];
    natsConnection *nc = NULL;
    char subject[32];
    TRY(natsConnection_ConnectTo(&nc, url));
    for (int i = 0; i < 1000; i++) {
        snprintf(subject, sizeof subject, "many.%d", i);
        TRY(natsConnection_SubscribeSync(&subs[i], nc, subject));
    }
    TRY(natsConnection_Flush(nc));
    for (int i = 0; i < 1000; i++) {
        snprintf(subject, sizeof subject, "many.%d", i);
        TRY(natsConnection_Publish(nc, subject, &i, sizeof i));
    }
    for (int i = 0; i < 1000; i++) {
        MUST(next_is(subs[i], &i, sizeof i));
        natsSubscription_Destroy(subs[i]);
    }
    natsConnection_Destroy(nc);
    return true;
}

static volatile bool back;

static void reconnected(natsConnection *nc, void *closure) {
    (void)nc;
    (void)closure;
    back = true;
}

static bool reconnect(void) {
    natsOptions *options = NULL;
    natsConnection *nc = NULL;
    natsSubscription *sub = NULL;
    TRY(natsOptions_Create(&options));
    TRY(natsOptions_SetURL(options, url));
    TRY(natsOptions_SetReconnectWait(options, 100));
    TRY(natsOptions_SetMaxReconnect(options, 300));
    TRY(natsOptions_SetReconnectedCB(options, reconnected, NULL));
    TRY(natsConnection_Connect(&nc, options));
    TRY(natsConnection_SubscribeSync(&sub, nc, "after"));
    TRY(natsConnection_Flush(nc));
    stop();
    MUST(start());
    for (int i = 0; i < 600 && !back; i++) pause_ms(50);
    MUST(back);
    TRY(natsConnection_PublishString(nc, "after", "here again"));
    MUST(next_is(sub, "here again", 10));
    natsSubscription_Destroy(sub);
    natsConnection_Destroy(nc);
    natsOptions_Destroy(options);
    return true;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    path = arguments[1];
    port = arguments[2];
    alarm(300); /* never hang */
    snprintf(url, sizeof url, "nats://127.0.0.1:%s", port);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (!start()) return 1;
    struct { const char *name; bool (*run)(void); } checks[] = {
        {"pub_sub", pub_sub}, {"queue", queue}, {"request", request},
        {"large", large}, {"many", many}, {"reconnect", reconnect},
    };
    int failed = 0;
    for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
        bool good = checks[i].run();
        failed += !good;
        printf("%s c %s\n", good ? "PASS" : "FAIL", checks[i].name);
    }
    stop();
    return failed > 0;
}
