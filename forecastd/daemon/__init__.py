"""The daemon: when a cycle runs, until when, and how the daemon exits.

Three kinds of threads, none of which waits for another: the main loop ticks (`loop`), the watcher finds open submission
windows by polling and by events (`watcher`), and each topic of each wallet has a worker that runs the cycles
(`topic_worker`). Their resources are opened once and shared (`resources`). What they do is recorded in one place
(`status_registry`), from which the status is published (`status_publisher`).
"""
