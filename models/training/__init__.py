"""What every training needs: configuration, state, Lightning, progress."""
