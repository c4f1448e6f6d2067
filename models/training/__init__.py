"""What every training needs: the task protocol, options, state on disk, Lightning, progress, the template."""
