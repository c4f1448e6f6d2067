"""The daemon: when a cycle runs, until when, and how it ends.

Three kinds of threads, none of which waits for another: the main loop ticks (`loop`), a watcher sees windows open by polling
and by events (`watcher`), and each topic with each wallet has a worker of its own that runs the cycles (`topicworker`). What
they work with is opened once and kept (`workshop`); what they do is put down in one place (`book`), from which it is told.
"""
