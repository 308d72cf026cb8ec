"""Surgery on models: other layers made into these ones, and these into plain ones."""
