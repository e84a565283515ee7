/* Preloaded on some of the bench's machines: what a process asks for first in the way of inotify(7) instances, and keeps,
 * are descriptors that never have anything to read.
 *
 * Of instances a host has fs.inotify.max_user_instances, often 128, and each machine's init keeps three: for the time
 * zone's file, for its bus, and for control groups that became empty; dbus-daemon keeps one. Nothing that the bench
 * measures depends on those. Later ones are real: systemd waits by them for the pid file of a unit of Type=forking, for
 * some milliseconds. Where the host has none left at the moment, that waits for one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KEPT = 3, DESCRIPTORS = 1024, TRIES = 300 };

static char fake[DESCRIPTORS];

int inotify_init1(int flags)
{
    static int asked;
    if (asked++ < KEPT) {
        int descriptor = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (descriptor >= 0 && descriptor < DESCRIPTORS)
            fake[descriptor] = 1;
        return descriptor;
    }
    for (int i = 0;; i++) {
        int descriptor = (int)syscall(SYS_inotify_init1, flags);
        if (descriptor >= 0 && descriptor < DESCRIPTORS)
            fake[descriptor] = 0;
        if (descriptor >= 0 || errno != EMFILE || i == TRIES)
            return descriptor;
        usleep(10000);
    }
}

int inotify_init(void)
{
    return inotify_init1(0);
}

int inotify_add_watch(int descriptor, const char *path, unsigned mask)
{
    static int watches;
    if (descriptor >= 0 && descriptor < DESCRIPTORS && fake[descriptor])
        return ++watches;
    return (int)syscall(SYS_inotify_add_watch, descriptor, path, mask);
}

int inotify_rm_watch(int descriptor, int watch)
{
    if (descriptor >= 0 && descriptor < DESCRIPTORS && fake[descriptor])
        return 0;
    return (int)syscall(SYS_inotify_rm_watch, descriptor, watch);
}
