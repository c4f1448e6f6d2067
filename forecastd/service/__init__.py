"""Create, install and remove service files for systemd and supervisord with a user's own paths.

Each file is rendered from a template that ships with the project, so every choice in the template applies to every
install.
"""
