"""The sides of the training benches: the same model, rows and adapter, stepped by us and by each rival."""
