"""What every training run needs: the steps of a task, options, rows, state on disk, Lightning, progress, the run."""
