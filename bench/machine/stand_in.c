/* A small static program in the place of kubelet, containerd, kube-proxy and the others on machines without binaries.
 *
 * It is what the bench's 50 machines run: it says the version that it was built for (-DNAME, -DVERSION), answers the
 * checks of its configuration as the real one does, tells systemd that it is ready, answers its health port with 200,
 * and sleeps. It does not read its configuration and talks to no API server.
 */
#include <arpa/inet.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int has(int count, char **words, const char *word)
{
    for (int i = 1; i < count; i++)
        if (strcmp(words[i], word) == 0)
            return 1;
    return 0;
}

/* sd_notify(3) */
static void notify(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    if (path == NULL)
        return;
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(to.sun_path));
    if (to.sun_path[0] == '@')
        to.sun_path[0] = 0;
    int out = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sendto(out, "READY=1", 7, 0, (struct sockaddr *)&to, length);
    close(out);
}

static void serve(int port)
{
    static const char answer[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_ANY)}};
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 16) != 0) {
        perror(NAME ": listen");
        exit(1);
    }
    notify();
    for (;;) {
        char request[4096];
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        if (read(client, request, sizeof request) > 0 && write(client, answer, sizeof answer - 1) < 0)
            perror(NAME ": write");
        close(client);
    }
}

int main(int count, char **words)
{
    if (has(count, words, "--version") || has(count, words, "-v") || has(count, words, "version")) {
        puts(NAME " v" VERSION);
        return 0;
    }
    if (has(count, words, "--exit-on-lock-contention")) {
        fputs("no lock file specified\n", stderr);
        return 1;
    }
    if (has(count, words, "dump") || has(count, words, "--write-config-to"))
        return 0;
    if (strcmp(NAME, "kubelet") == 0)
        serve(10248);
    if (strcmp(NAME, "kube-proxy") == 0)
        serve(10256);
    if (strcmp(NAME, "containerd") == 0) {
        notify();
        for (;;)
            pause();
    }
    return 0;
}
