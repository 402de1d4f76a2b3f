// fold_tile
