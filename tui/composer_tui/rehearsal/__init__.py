"""A Modal control plane on 127.0.0.1 that runs the user's functions on this machine, for $0.

It serves Modal's own client, unmodified: the library, and the command line (``modal run``,
``deploy``, ``app``, ``container``, ``volume``, ``secret``, ``environment``, ``billing`` ...). A
container is Modal's own container entrypoint in a process of its own. So a launch can be tried to
the end, its mistakes found and its kill switch tested, without an account and without a bill.

`process` starts, finds and stops one; `connection` is what a client needs. Both import nothing
heavy, and of this package the interface imports only them.

What is imitated
    apps        ephemeral, detached and deployed; heartbeats and their expiry; tags; stopping by
                SIGINT, a grace and SIGKILL; history; the end of a detached app after its calls
    functions   definitions, checked as Modal checks them (GPU names and counts, timeouts,
                nonpreemptible with a GPU); classes and their parameters; ``with_options``;
                autoscaler settings
    calls       remote, spawn, map, starmap, spawn_map, generators, async functions, concurrent and
                batched inputs, retries with their delays, timeouts, cancelling with and without the
                container, call graphs
    containers  scaling with the work, scaledown windows, min and max, single use, heartbeats and
                their expiry, stopping one (its inputs start anew elsewhere), preemption (`chaos`)
    logs        streamed, fetched, counted, filtered, with the states of containers; on disk
    the rest    volumes, mounts, images (recorded, not built), secrets, dicts, queues,
                environments, tokens, prices, bills

What is not imitated is refused with "the rehearsal does not imitate X"
    web functions, servers, endpoints, tunnels, domains, proxies; sandboxes, ``modal shell`` and
    ``container exec``; clusters; network file systems and cloud bucket mounts; interactive runs;
    functions that build images; rollback, rollover and older versions of an app; statistics over
    time; users, roles, budgets and audit logs; the input plane (clients are never sent there)

What is taken and has no effect, with a line in the app's log
    memory snapshots, schedules, regions and clouds, network blocking, limits of CPU, memory and
    disk, and the GPU itself: containers see this machine's devices as they are

The liberties it takes
    A container runs this machine's Python with this machine's packages; when a module is missing,
    the log says whether the image would have had it. What is on this machine, and is not in the
    image, is not noticed.
    A container sees this machine's folders, with a home, mounts and volumes of its own laid over
    them. Where the kernel allows no mount namespaces, its home is not at ``/root``, other mounts
    are symbolic links for as long as it runs, and a mount point that exists is refused.
    At most 16 containers a function (``Settings.most_containers``); one that does not start fails
    everything that waits for it, where Modal tries again for a while. A startup timeout is at
    least a minute.
    The control plane retries failed inputs; Modal's has the client do it for ``remote``.
    An attached app ends 60 s after its client's last heartbeat, a detached one 1 s after its last
    output once its client is gone; one that was never called stays. Modal publishes no numbers.
    A log stream that names no entry starts at the beginning. The two streams of a container are
    each in order; between them the order is that of arrival.
    Calls and outputs do not outlive the process; apps that were live are stopped by its death, and
    their containers die with it. Apps that were deployed, logs, volumes and secrets stay.

Nothing listens but on 127.0.0.1; every client needs the rehearsal's own token, and every container
a secret of its own. A container gets the client's secrets that its function names, and neither the
token nor the variables of whoever started the rehearsal.
"""
