"""Commands that train a stage of the cascade from a recipe, and plan it for TPUs."""
