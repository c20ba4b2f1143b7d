"""One file per search algorithm, known by its file name; each defines `create(space, config) -> Algorithm`."""
