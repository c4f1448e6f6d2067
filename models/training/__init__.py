"""What every training run needs: the task protocol, options, state on disk, Lightning, progress, the template."""
