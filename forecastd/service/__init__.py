"""Service files for a user's own paths: what is to be run, how systemd and supervisord spell it, where it is installed.

Both are rendered from the two files that ship with the project, so every choice in those holds for every install.
"""
