/* $(make_exec COMMAND): replaces GNU make's process with COMMAND, which keeps the process id and receives the signals.
 *
 * Without it, a make that receives a signal while a recipe runs waits for the recipe and then dies of the same signal,
 * whatever the recipe's exit status. `make run` is stopped by a signal and must end with 0.
 */
#include <stdio.h>
#include <unistd.h>

/* Part of gnumake.h, which few systems install. */
extern void gmk_add_function(const char *name, char *(*function)(const char *, unsigned, char **), unsigned min_args,
                             unsigned max_args, unsigned flags);

/* GNU make requires this symbol. This file may be used under any license, the GPL among them. */
int plugin_is_GPL_compatible;

static char *make_exec(const char *name, unsigned argc, char **argv) {
    (void)name;
    (void)argc;
    fflush(NULL);
    execl("/bin/sh", "sh", "-c", argv[0], (char *)NULL);
    return NULL; /* execl failed: the rest of the recipe's line runs */
}

int make_exec_gmk_setup(void) {
    gmk_add_function("make_exec", make_exec, 1, 1, 0);
    return 1;
}
